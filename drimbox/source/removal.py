"""Taking a manifest back from the national record: TD3.3c (requirements.md 4.3, DB.SO.26, DB.SO.97).

The DMP is asked first what it holds under the manifest's uniqueId: the answer gives the entryUUID that
the request names, tells that it is ours (hash, size), and tells an attempt whose answer never came from
one that never arrived. What the registry does not hold as current any more is removed, whoever did it: the
record is as it should be. The archive says "depublished" only once the DMP has said so (interfaces.md 9).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.logger import Logger

from drimbox import metrics
from drimbox.errors import PublicationError
from drimbox.ports import Accepted, Refused, RegistryEntry, Removal
from drimbox.source.dmp_exchange import APPROVED, Attempt, Doors, Exchanges, check_ours
from drimbox.source.publication_audit import Item


class Removals:
    """Removes manifests, one row of the outbox each. `removed` is told site and study of each."""

    log = Logger()

    def __init__(
        self, exchanges: Exchanges, doors: Doors, removed: Callable[[str, str], Awaitable[None]]
    ) -> None:
        self._exchanges = exchanges
        self._doors = doors
        self._removed = removed

    async def remove(self, attempt: Attempt, removal: Removal) -> None:
        """Work on one row.

        Raises `DmpUnavailable` and `CannotSend` when it must be put off, `PublicationError` (E007) when
        the DMP keeps the manifest for good.
        """
        item = attempt.item
        structure = self._exchanges.structure(item)
        entry = await self._exchanges.find_entry(item, structure, removal.sop_instance_uid)
        if entry is None or entry.status not in ("", APPROVED):
            # Somebody else was quicker, unless an attempt of ours has come through after all.
            await self._done(item, (), sent=item.outcome_unknown)
            return
        await self._check_ours(item, removal, entry)
        await self._doors.outbox.begin(item.id)
        attempt.begun = True
        sending = self._doors.record.remove(structure, removal, entry.entry_uuid)
        outcome = await self._exchanges.call(structure, sending)
        attempt.answered = True
        if isinstance(outcome, Accepted):
            await self._done(item, outcome.warnings, sent=True)
            return
        assert isinstance(outcome, Refused)
        # A no may mean that it is gone already: what the registry holds decides.
        after = await self._exchanges.find_entry(item, structure, removal.sop_instance_uid)
        if after is None or after.status not in ("", APPROVED):
            await self._done(item, (outcome.text,), sent=True)
            return
        raise PublicationError(f"retrait du KOS refusé : {outcome.code} {outcome.text}".strip())

    async def _check_ours(self, item: Item, removal: Removal, entry: RegistryEntry) -> None:
        """Nobody else's document is withdrawn, whatever its identifier. Raises `PublicationError`."""
        held = await self._doors.archive.published(item.site, item.study_uid)
        if held is not None and held.sop_instance_uid == removal.sop_instance_uid:
            check_ours(entry, held.data)

    async def _done(self, item: Item, warnings: tuple[str, ...], *, sent: bool) -> None:
        await self._exchanges.audit.removed(item, sent=sent)
        await self._doors.outbox.removed(item.id, warnings)
        metrics.PUBLICATIONS.labels("removed").inc()
        self.log.info("KOS of {study} removed", study=item.study_uid)
        await self._removed(item.site, item.study_uid)
        await self._exchanges.forget(item)

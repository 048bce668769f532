"""What the audit trail says of the exchanges with the DMP (SC.DMP/CONF.14, DB.SO.45).

Every request that left for the DMP gives one record: the questions (TD0.2, TD3.1), the submissions
(TD2.1) and the removals (TD3.3c), answered or not; one that was put again, two. What ended or has to wait
before anything left is recorded without the DMP's address.
"""

from __future__ import annotations

from typing import Protocol

from drimbox.audit import messages
from drimbox.audit.messages import DmpExchange
from drimbox.config import Config
from drimbox.errors import DrimboxError, PublicationError
from drimbox.ports import AuditTrail, Removal, Submission
from drimbox.source.structures import Structures
from drimbox.xds import queries


class Item(Protocol):
    """One row of the outbox."""

    @property
    def id(self) -> int: ...
    @property
    def site(self) -> str: ...
    @property
    def study_uid(self) -> str: ...
    @property
    def submission(self) -> Submission | Removal: ...
    @property
    def attempts(self) -> int: ...
    @property
    def outcome_unknown(self) -> bool: ...


class Unanswered(PublicationError):
    """An exchange that could not begin, or whose answer never came, or said "later"."""

    retry = True


class PublicationAudit:
    """Writes the records of one gateway's publications."""

    def __init__(self, config: Config, trail: AuditTrail) -> None:
        self._dmp = config.dmp.base_url
        self._names = {site.name: site.wado_fqdn for site in config.sites}
        self._structures = Structures(config)
        self._trail = trail

    async def published(self, item: Item, *, replaced: bool) -> None:
        """The DMP holds it, in the place of another when `replaced`."""
        await self._trail.record(
            messages.kos_published(
                submission=item.submission,
                study_uid=item.study_uid,
                dmp=self._dmp,
                source_name=self._name(item),
                internal_id=self._internal_id(item),
                replaced=replaced,
            )
        )

    async def removed(self, item: Item, *, sent: bool, error: DrimboxError | None = None) -> None:
        """The DMP does not hold it any more, or keeps it; `sent` tells whether it was asked to let go."""
        await self._trail.record(
            messages.kos_removed(
                submission=item.submission,
                study_uid=item.study_uid,
                dmp=self._dmp if sent else "",
                source_name=self._name(item),
                internal_id=self._internal_id(item),
                error=error,
            )
        )

    async def failed(self, item: Item, error: DrimboxError, *, sent: bool) -> None:
        """The DMP did not take it, or let go of it; `sent` tells whether what the row is about left."""
        if isinstance(item.submission, Removal):
            await self.removed(item, sent=sent, error=error)
            return
        await self._trail.record(
            messages.kos_failed(
                report=item.submission.report,
                study_uid=item.study_uid,
                source_name=self._name(item),
                error=error,
                dmp=self._dmp if sent else "",
                internal_id=self._internal_id(item),
                submission=item.submission,
            )
        )

    async def asked(
        self, kind: DmpExchange, item: Item, unique_id: str, error: DrimboxError | None
    ) -> None:
        """A question was put; `error` when it got no answer, or a no."""
        query = None
        if kind is DmpExchange.SEARCH:
            query = queries.GET_DOCUMENTS, queries.get_documents(unique_id).decode("utf-8")
        await self._trail.record(
            messages.dmp_exchange(
                kind=kind,
                report=item.submission.report,
                structure_id=item.submission.structure_id,
                dmp=self._dmp,
                source_name=self._name(item),
                internal_id=self._internal_id(item),
                document_uid=unique_id,
                study_uid=item.study_uid,
                query=query,
                error=error,
            )
        )

    def _internal_id(self, item: Item) -> str:
        return self._structures.internal_id(item.submission.structure_id)

    def _name(self, item: Item) -> str:
        return self._names.get(item.site, item.site)

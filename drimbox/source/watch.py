"""Notices that a study changed in a native archive, and has its KOS follow (DB.SO.27).

A native archive sends no IOCM: it is asked, again and again, what changed since last time. Each look does
three things.

1. *What changed*: the archive names studies, and says where to go on from. Those with a KOS become due, in
   the same transaction that keeps the new cursor: a process killed at any moment loses no change.
2. *What it cannot name*: when the archive says that more may have changed, every study with a KOS is looked
   at through its `mark`, a short text that is another one when the study is another one.
3. *What is due*: nothing of the study leaves the cache any more, and the study is compared with its archive
   as after any difference (DB.SO.190), by the job of its last report. A study still being added to waits
   until two looks in a row find it the same, a few looks at most: one new KOS, not one for each look. One
   that is gone does not wait. A study whose job is on its way already stays due, because that job may have
   looked before the change.

The mark of a study that got its KOS since the last look is read *before* the archive is asked for changes,
so that whatever is removed between the two shows as a difference the next time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from drimbox.errors import PacsCommunicationError
from drimbox.native.store import Changes
from drimbox.ports import StudyMemory
from drimbox.source.outage import OutageNotices

#: Studies read from the store at once.
PAGE = 500
#: Looks a study that keeps changing may wait.
PATIENCE = 10
#: Looks in a row that failed before the administrator is told.
TELL_AFTER = 3


class Watched(Protocol):
    """A native archive, as it is watched. Raises `PacsCommunicationError`."""

    @property
    def name(self) -> str:
        """Its name for operators."""

    async def changes(self, cursor: str | None) -> Changes:
        """Say what changed since `cursor`."""

    async def mark(self, study_uid: str) -> str | None:
        """Return what tells one state of a study from the next; None when it is gone."""


class Watch:
    """Watches the native archive of one site; `look` is called again and again, never twice at once."""

    log = Logger()

    def __init__(
        self,
        site: str,
        archive: Watched,
        memory: StudyMemory,
        notices: OutageNotices,
        *,
        compare: Callable[[str], Awaitable[bool]],
        forget: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """`compare` queues the comparison of a study, False if it cannot; `forget` empties the cache."""
        self._site = site
        self._archive = archive
        self._memory = memory
        self._notices = notices
        self._compare = compare
        self._forget = forget
        #: Studies that waited at the last look: their mark then, and how often they have waited.
        self._unsettled: dict[str, tuple[str, int]] = {}
        self._failures = 0
        self._looking: Deferred[None] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Cut the present look short, and look no more: what it left undone is done at the next start."""
        self._stopped = True
        if self._looking is not None:
            self._looking.cancel()

    async def look(self) -> None:
        """Look once; an archive that does not answer is asked again next time."""
        if self._stopped:
            return
        self._looking = Deferred.fromCoroutine(self._look())
        try:
            await self._looking
        except CancelledError:
            return
        except PacsCommunicationError as error:
            await self._failed(error)
        else:
            if self._failures >= TELL_AFTER:
                await self._notices.resolve(self._key)
            self._failures = 0
        finally:
            self._looking = None

    async def _failed(self, error: PacsCommunicationError) -> None:
        if self._stopped:
            # Cut short by ourselves: the archive is not to blame.
            return
        self._failures += 1
        self.log.warn("changes of {site} not known: {error}", site=self._site, error=str(error))
        if self._failures == TELL_AFTER:
            text = f"Archive {self._archive.name} : changements inconnus, KOS non mis à jour : {error}"
            await self._notices.post(key=self._key, code=error.code, text=text)

    @property
    def _key(self) -> str:
        return f"changements-{self._site}"

    async def _look(self) -> None:
        memory, site = self._memory, self._site
        fresh = await self._fresh()
        changes = await self._archive.changes(await memory.cursor(site))
        if changes.complete:
            await memory.settle(site, fresh)
            await self._note(changes.studies, changes.cursor)
        else:
            await self._note(await self._different(), None)
            await self._note(changes.studies, changes.cursor)
        await self._work_off()

    async def _fresh(self) -> dict[str, str]:
        """Return the marks of studies never looked at."""
        fresh: dict[str, str] = {}
        after = ""
        while page := await self._memory.known(self._site, after, PAGE, only="new"):
            for each in page:
                mark = await self._archive.mark(each.study_uid)
                if mark is not None:
                    fresh[each.study_uid] = mark
            after = page[-1].study_uid
        return fresh

    async def _different(self) -> list[str]:
        """Return every known study that is not as it was."""
        different: list[str] = []
        after = ""
        while page := await self._memory.known(self._site, after, PAGE):
            for each in page:
                # Empty is the mark of what was gone already.
                if not each.due and (await self._archive.mark(each.study_uid) or "") != each.mark:
                    different.append(each.study_uid)
            after = page[-1].study_uid
        return different

    async def _note(self, changed: Collection[str], cursor: str | None) -> None:
        for study_uid in await self._memory.note(self._site, changed, cursor):
            # At once: what was removed must not be delivered until somebody has compared.
            await self._forget(self._site, study_uid)

    async def _work_off(self) -> None:
        unsettled: dict[str, tuple[str, int]] = {}
        after = ""
        while page := await self._memory.known(self._site, after, PAGE, only="due"):
            for each in page:
                # Read before the comparison is queued: what changes later differs from it.
                mark = await self._archive.mark(each.study_uid)
                if mark is not None:
                    before, waited = self._unsettled.get(each.study_uid, ("", 0))
                    if mark != before and waited < PATIENCE:
                        unsettled[each.study_uid] = (mark, waited + 1)
                        continue
                if await self._compare(each.study_uid):
                    self.log.info("study {study} changed in its archive", study=each.study_uid)
                    await self._memory.settle(self._site, {each.study_uid: mark or ""})
                else:
                    # On its way already: not to wait for it all over again.
                    unsettled[each.study_uid] = (mark or "", PATIENCE)
            after = page[-1].study_uid
        self._unsettled = unsettled

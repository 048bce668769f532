"""One site's images from a native archive (a `ports.ImageArchive`): its class, guarded.

Whatever the class of an archive does, a question ends within `timeout`, an answer is looked at before it
is believed, and failures are the coded errors of the specification.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from drimbox.config import Native
from drimbox.dicom.moving import MoveReceiver
from drimbox.errors import PacsCommunicationError
from drimbox.model import Study, is_uid
from drimbox.native.failures import feed_error
from drimbox.native.places import Places
from drimbox.native.pull import MAX_INSTANCES, Pull
from drimbox.native.store import Changes, ImageStore, StoreTimeout

T = TypeVar("T")

#: Longest cursor and mark kept, characters.
MAX_TEXT = 4096
#: StudyInstanceUID of no study (the nil UUID of the 2.25 arc).
_NOBODYS = "2.25.0"


class NativeArchive:
    """An archive on this machine, read through its `ImageStore`."""

    def __init__(self, store: ImageStore, settings: Native, clock: IReactorTime) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self.places = Places(settings.max_readings, clock)

    @property
    def name(self) -> str:
        """Its name for operators."""
        return self._settings.name

    @property
    def patience(self) -> float:
        """Longest pause put on a reading, seconds."""
        return self._settings.patience

    async def find_study(self, study_uid: str) -> Study | None:
        """List the study's instances, or None when the archive does not hold it (DB.SO.14).

        Raises `PacsCommunicationError` (E003).
        """
        study = await self._ask(self._store.find_study(study_uid))
        return None if study is None else _checked(study, study_uid)

    async def verify(self) -> None:
        """Ask about a study that nobody holds: an archive that works has an answer (DB.SO.28).

        Raises `PacsCommunicationError`.
        """
        await self._ask(self._store.mark(_NOBODYS))

    async def holds(self, study_uid: str) -> bool:
        """Say whether the archive lists instances of the study. Raises `PacsCommunicationError`."""
        study = await self.find_study(study_uid)
        return study is not None and bool(study.instance_count)

    def retrieval(self, receiver: MoveReceiver, needed: Collection[str] | None = None) -> Pull:
        """Prepare a pull; nothing happens before its `run`."""
        return Pull(self._store, self._settings, self.places, receiver, self._clock, needed)

    async def changes(self, cursor: str | None) -> Changes:
        """Say which studies changed since `cursor` (DB.SO.27). Raises `PacsCommunicationError`."""
        changes = await self._ask(self._store.changes(cursor))
        if len(changes.cursor) > MAX_TEXT:
            raise PacsCommunicationError(f"repère de plus de {MAX_TEXT} caractères")
        # What is no UID is no study of ours.
        return attrs.evolve(changes, studies=frozenset(uid for uid in changes.studies if is_uid(uid)))

    async def mark(self, study_uid: str) -> str | None:
        """Return what tells one state of a study from the next. Raises `PacsCommunicationError`."""
        mark = await self._ask(self._store.mark(study_uid))
        if mark is not None and len(mark) > MAX_TEXT:
            raise PacsCommunicationError(f"marque de plus de {MAX_TEXT} caractères")
        return mark

    async def close(self) -> None:
        """Let go of the archive. Raises `PacsCommunicationError`."""
        await self._ask(self._store.close())

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Ask the class, for `timeout` seconds at most whatever it makes of being cancelled."""
        answer: Deferred[T] = Deferred()
        work = Deferred.fromCoroutine(question)

        def done(result: T | Failure) -> None:
            if answer.called:
                return
            if isinstance(result, Failure):
                answer.errback(result)
            else:
                answer.callback(result)

        def late() -> None:
            done(Failure(StoreTimeout(f"aucune réponse de l'archive en {self._settings.timeout:.0f} s")))
            work.cancel()

        timer = self._clock.callLater(self._settings.timeout, late)
        work.addBoth(done)
        try:
            return await answer
        except Exception as error:
            raise feed_error(error) from None
        finally:
            if timer.active():
                timer.cancel()
            work.cancel()


def _checked(study: Study, study_uid: str) -> Study:
    """Return the study as a manifest may show it. Raises `PacsCommunicationError`."""
    if study.study_uid != study_uid:
        raise PacsCommunicationError("l'archive a décrit un autre examen")
    if study.instance_count > MAX_INSTANCES:
        raise PacsCommunicationError(f"plus de {MAX_INSTANCES} images dans un examen")
    uids = {series.series_uid for series in study.series}
    for series in study.series:
        for instance in series.instances:
            uids |= {instance.sop_instance_uid, instance.sop_class_uid}
    if not all(map(is_uid, uids)):
        raise PacsCommunicationError("l'archive a décrit l'examen avec un UID absent ou invalide")
    # A series that holds nothing is in no manifest.
    return attrs.evolve(study, series=tuple(series for series in study.series if series.instances))

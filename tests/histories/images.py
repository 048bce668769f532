"""The PACS of a random history: what the model says they hold, told well, badly or not at all."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from drimbox.dicom.dimse import Command, CommandField
from drimbox.dicom.moving import MoveResult
from drimbox.errors import PacsCommunicationError, PacsUnavailable
from drimbox.model import Instance, Series, Study
from tests.histories.gateway import Life
from tests.histories.messages import CT, EXPLICIT, KEY_OBJECT, encoded, key_object
from tests.histories.model import Holding, Model, study_uid
from tests.source.answers import FakeChannel

#: Seconds until a silent PACS is given up.
SILENCE = 6.0


class Pacs:
    """One PACS as one life of the gateway sees it (a `ports.ImageArchive`)."""

    patience = 5.0

    def __init__(self, number: int, model: Model, states: list[str], life: Life) -> None:
        self.number = number
        self.name = f"PACS{number + 1}"
        self._model = model
        self._states = states
        self._life = life

    async def find_study(self, uid: str) -> Study | None:
        """Answer a C-FIND: with what was held when it came, or when it is answered."""
        life, chance = self._life, self._life.chance
        number = next(n for n in self._model.holdings[self.number] if study_uid(n) == uid)
        before = self._held(number)
        await self._reachable()
        await life.answer(None, chance.choice((0.0, 0.02, 0.5)))
        await self._reachable()
        return _study(uid, before if chance.random() < 0.5 else self._held(number))

    async def _reachable(self) -> None:
        state = self._states[self.number]
        if state == "silent":
            await self._life.answer(None, SILENCE)
            raise PacsCommunicationError("aucune réponse")
        if state == "refusing":
            raise PacsCommunicationError("connexion refusée")

    def _held(self, study: int) -> Holding:
        return self._model.holdings[self.number][study]

    def retrieval(self, receiver: Any, needed: Collection[str] | None = None) -> Any:
        """Prepare to send a series of key objects."""
        return _Sending(self, receiver)

    async def send(self, receiver: Any, uid: str, series: str) -> MoveResult:
        """Send the key objects of a series, if it can."""
        await self._life.answer(None, self._life.chance.choice((0.0, 0.1)))
        if self._states[self.number] != "up":
            raise PacsUnavailable("le PACS n'envoie rien")
        number = next(n for n in self._model.holdings[self.number] if study_uid(n) == uid)
        held = self._held(number)
        series_of = {thing.uid: thing.series for thing in held}
        channel = FakeChannel()
        receiver.opened(channel)
        sent = 0
        for thing in sorted(held, key=lambda each: each.uid):
            if thing.series == series and thing.title:
                cited = {one: series_of.get(one, series) for one in thing.cites}
                note = key_object(uid, thing.title, thing.uid, series, cited)
                give(receiver, channel, thing.uid, encoded(note))
                sent += 1
        receiver.closed(channel, True)
        return MoveResult(0, sent, 0, 0)


class _Sending:
    """A C-MOVE (a `ports.MoveRun`)."""

    sent_at = None

    def __init__(self, pacs: Pacs, receiver: Any) -> None:
        self._pacs, self._receiver = pacs, receiver

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        return await self._pacs.send(self._receiver, study_uid, series_uid)

    def abandon(self) -> None:
        """Never asked for here."""


def give(receiver: Any, channel: FakeChannel, uid: str, data: bytes) -> None:
    """Send one key object by C-STORE."""
    command = Command(
        CommandField.C_STORE_RQ,
        message_id=1,
        affected_class=KEY_OBJECT,
        affected_instance=uid,
        has_dataset=True,
    )
    receiver.store(channel, command, EXPLICIT)
    receiver.data(channel, memoryview(data), True)


def _study(uid: str, held: Holding) -> Study | None:
    if not held:
        return None
    series: dict[str, list[Instance]] = {}
    modality = {thing.series: "KO" if thing.title else "CT" for thing in held}
    for thing in sorted(held, key=lambda each: (each.series, each.number)):
        sop_class = KEY_OBJECT if thing.title else CT
        series.setdefault(thing.series, []).append(Instance(thing.uid, sop_class, thing.number))
    return Study(
        uid,
        tuple(Series(each, modality[each], tuple(found), 1, "Axial") for each, found in series.items()),
        "20260110",
        "140000",
        "TDM",
    )

"""Reports and changes of the PACS: random histories, several at once, each held against its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from twisted.internet.threads import deferToThread

from tests.histories import operations as ops
from tests.histories.messages import EXPLICIT
from tests.histories.model import study_uid
from tests.integration.mixed.day import Day
from tests.integration.mixed.stand import Mixed
from tests.integration.test_feed_random import Hospital as RandomHospital
from tests.integration.test_feed_random import _stored
from tests.integration.waiting import pause, until

#: Seconds between two events of a ward.
PACE = 0.2


class Ward(RandomHospital):
    """One history among others: nothing it asks for may be refused, and what it waits for is its own."""

    def __init__(self, hospital: Mixed, day: Day, folder: Path, number: int) -> None:
        super().__init__(hospital.stand, hospital.pacs, folder, number)
        self._day = day
        self._uids = tuple(study_uid(study) for study in self.model.studies)

    async def do(self, operation: Any) -> None:
        await super().do(operation)
        self._day.done[f"ward {type(operation).__name__.lower()}"] += 1
        await pause(PACE)

    async def send(self, raw: bytes) -> None:
        ack = await self.stand.send(raw, seconds=60.0)
        assert ack.code == "AA", ack
        if b"|OMI^O23^" not in raw[:200]:
            self._day.asked["report"] += 1

    async def store(self, pacs: int, note: Dataset) -> None:
        note.file_meta = FileMetaDataset()
        note.file_meta.TransferSyntaxUID = EXPLICIT
        assert await deferToThread(_stored, self.pacses[pacs].ae_title, self.stand.dicom_port, note)

    async def set_pacs(self, pacs: int, state: str) -> None:
        """They are everybody's, and well."""

    async def set_dmp(self, state: str) -> None:
        """It is everybody's too; `desk.Moments` are not ours to end."""

    async def treat(self, transaction: str, treatment: str, times: int) -> None:
        """The same."""

    async def rest(self) -> None:
        (last,) = self.query("SELECT coalesce(max(id), 0) FROM inbox")
        await until(lambda: not self._waits(last[0]), seconds=120.0, what=f"an end of {self._uids}")

    def changes(self) -> int:
        entries = [entry for study in self._uids for entry in self.stand.kos(study, None)]
        return len(entries) + sum(not entry.status.endswith(":Approved") for entry in entries)

    def _waits(self, last: int) -> bool:
        """Say whether something about our studies waits: messages up to the last, jobs, publications."""
        marks = ", ".join("?" * len(self._uids))
        own = f"state = 'waiting' AND study_uid IN ({marks})"
        return bool(
            self.query("SELECT 1 FROM inbox WHERE state = 'waiting' AND id <= ?", last)
            or self.query(f"SELECT 1 FROM feed_job WHERE {own}", *self._uids)
            or self.query(f"SELECT 1 FROM outbox WHERE {own}", *self._uids)
        )

    def _rows(self, state: str) -> list[tuple[Any, ...]]:
        # Others have work of their own in the queues; nobody's may be given up.
        return [] if state == "waiting" else super()._rows(state)


class Wards:
    """Histories one after the other, in as many wards as work at once."""

    def __init__(
        self, hospital: Mixed, day: Day, histories: Sequence[tuple[Any, ...]], folder: Path
    ) -> None:
        self._hospital, self._day, self._histories, self._folder = hospital, day, histories, folder
        self._count = 0
        #: Manifests of each study in the record when its history had ended.
        self._last: dict[str, list[str]] = {}

    async def work(self) -> None:
        """Let histories happen until the day is over."""
        for _ in self._day.rounds():
            self._count += 1
            number = self._count
            ward = Ward(self._hospital, self._day, self._folder / str(number), number)
            await ward.fill()
            history = ops.numbered(self._histories[number % len(self._histories)], number)
            try:
                await ward.run(history)
            except Exception as error:
                shown = "\n".join(map(repr, history))
                raise AssertionError(f"history {number}:\n{shown}\n{error!r}") from error
            for study in ward.model.studies:
                uid = study_uid(study)
                self._last[uid] = [entry.unique_id for entry in self._hospital.stand.kos(uid)]
            self._day.done["histories"] += 1

    def check(self) -> None:
        """Check that what was judged right at the end of each history still stands."""
        changed = {
            uid: (before, now)
            for uid, before in self._last.items()
            if (now := [entry.unique_id for entry in self._hospital.stand.kos(uid)]) != before
        }
        assert not changed

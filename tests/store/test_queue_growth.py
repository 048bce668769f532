"""Taking a row costs the same whether ten wait or thousands, however long the rows are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from sqlalchemy import Connection, Table, insert, update
from twisted.internet import reactor

from drimbox.model import KosState
from drimbox.store import codec
from drimbox.store.database import Database
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.inbox import Inbox
from drimbox.store.outbox import Outbox
from drimbox.store.schema import DONE, WAITING, feed_job, inbox, kos, outbox
from tests.store import samples
from tests.store.samples import TestClock

NOW = samples.START
FEW, MANY = 20, 2_000


@attrs.define
class Steps:
    """Hundreds of instructions of SQLite's machine, counted on the writer's connection."""

    count: int = 0

    def watch(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(self._step, 100)

    def _step(self) -> int:
        self.count += 1
        return 0


def _fill(waiting: int, ended: int) -> Callable[[Connection], None]:
    """Return work that adds so many waiting rows to every queue, after so many that have ended."""

    def work(connection: Connection) -> None:
        text = codec.dumps(samples.submission())
        numbers = range(1, waiting + ended + 1)

        def queued(number: int) -> dict[str, Any]:
            done = number <= ended
            return {"state": DONE if done else WAITING, "due_at": NOW, "id": number}

        message = {"ris": "RIS", "peer": "p", "control_id": "1", "raw": b"x" * 5000, "received_at": NOW}
        study = {"site": "site", "created_at": NOW}
        manifest = {
            "data": b"",
            "metadata": b"",
            "fingerprint": "f",
            "structure_id": "1",
            "patient_ins": "1",
            "patient_ins_oid": "1",
            "patient_id": "1",
            "changed_at": NOW,
            "state": KosState.PENDING.value,
        }
        rows: dict[Table, Callable[[int], dict[str, Any]]] = {
            inbox: lambda n: {**message, **queued(n)},
            feed_job: lambda n: {
                **queued(n),
                "message_id": n,
                "ris": "RIS",
                "study_uid": f"2.25.{n}",
                "created_at": NOW,
            },
            kos: lambda n: {
                **study,
                **manifest,
                "id": n,
                "study_uid": f"2.25.{n}",
                "sop_instance_uid": f"2.{n}",
            },
            outbox: lambda n: {
                **study,
                **queued(n),
                "kos_id": n,
                "study_uid": f"2.25.{n}",
                "submission": text,
            },
        }
        for table, values in rows.items():
            connection.execute(insert(table), [values(n) for n in numbers])

    return work


def _read_all(connection: Connection) -> None:
    """End every message: the jobs of those that are not read wait for them."""
    connection.execute(update(inbox).values(state=DONE))


async def _cost(file: Path, rows: int, ended: int, late: bool) -> dict[str, int]:
    """Return the steps that taking two rows of each queue takes."""
    database = Database(f"sqlite:///{file}", reactor=reactor)
    await database.open()
    clock = TestClock()
    await database.run(_fill(rows, ended))
    steps = Steps()
    await database.run(steps.watch)
    costs: dict[str, int] = {}

    async def measure(name: str, take: Callable[[datetime, int], Awaitable[list[Any]]]) -> None:
        steps.count = 0
        assert len(await take(clock.now(), 2)) == 2
        costs[name] = steps.count

    await measure("inbox", Inbox(database, clock=clock).take)
    await database.run(_read_all)
    if late:
        # Those in front wait for a PACS or the DMP.
        for table in (feed_job, outbox):
            first = update(table).where(table.c.id <= ended + rows // 2)
            await database.run(
                lambda c, first=first: c.execute(first.values(due_at=NOW + timedelta(hours=1)))
            )
    await measure("feed_job", FeedJobs(database, clock=clock).take)
    await measure("outbox", Outbox(database, clock=clock).take)
    await database.close()
    return costs


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("ended", [0, MANY], ids=["new", "after many"])
async def test_taking_a_row_does_not_look_at_those_behind_it(tmp_path: Path, ended: int) -> None:
    few = await _cost(tmp_path / "few.db", FEW, 0, late=False)
    many = await _cost(tmp_path / "many.db", MANY, ended, late=False)
    for queue, cost in many.items():
        assert cost <= 2 * few[queue] + 10, f"{queue}: {cost} after {few[queue]}"


@pytest_twisted.ensureDeferred
async def test_rows_put_off_are_passed_in_few_steps(tmp_path: Path) -> None:
    """They are in the order of the queue, before those that are due: some ten instructions each."""
    few = await _cost(tmp_path / "few.db", FEW, 0, late=True)
    many = await _cost(tmp_path / "many.db", MANY, 0, late=True)
    for queue in ("feed_job", "outbox"):
        assert many[queue] - few[queue] <= MANY // 2 * 30 / 100

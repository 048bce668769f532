"""An archive of a million KOS: what finding one costs, what adding one costs, what it takes on disk.

Figures (`python -m bench --only archive`), on a store of that many published KOS, each with its report
and its ended row of the outbox:
- `archive.kos`: how many; `archive.bytes`: bytes on disk for each, of which KOS and metadata are 4 KB here
  (real ones are larger: `drain.bytes` is of real ones, with everything else that is kept);
- `archive.lookup`, `archive.lookup_p99`: seconds of what an image request asks, `Archive.candidates` of a
  StudyInstanceUID, from the reactor thread and back: median and 99th percentile of random studies;
- `archive.lookup_cold`: the same right after start, with nothing of the file in the system's cache;
- `archive.lookup_large`, `archive.lookup_large_cold`: the same of a study whose KOS and metadata are
  megabytes long (13,000 images), and its very first one;
- `archive.walk`, `archive.walk_end`: seconds of one page of a walk over the archive (a resynchronisation),
  of the first ones and of the last ones, medians; `archive.walk_memory`: by how much the process grew
  over all pages, MB;
- `archive.insert`, `archive.insert_empty`: KOS a second added with their submission, each with a durable
  commit of its own, into the full archive and into an empty one.

The program (`python -m bench.kosarchive FOLDER COUNT`) is a process of its own, so that nothing else is in
its memory. Rows are made in bulk, not durably; everything that is measured is done by the gateway's own
code, with the gateway's own settings.
"""

from __future__ import annotations

import os
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy import Connection, insert
from twisted.internet import defer, task

from bench.plan import Plan
from bench.processes import peak_mb, reset_peak, resident_mb
from bench.program import Program, say
from bench.results import Results
from bench.ris import message, study_of
from drimbox.clock import SystemClock
from drimbox.model import Study
from drimbox.ports import Submission
from drimbox.source.interpretation import interpret
from drimbox.store.archive import Archive
from drimbox.store.database import Database
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.schema import feed_job, inbox
from drimbox.store.walks import Walks

_SITE, _NODE = "site1", "main"
#: Bytes of KOS and metadata, together halves of this, of one row and of the large one.
_SMALL, _LARGE = 4_000, 10_000_000
#: Rows of one transaction while the archive is made.
_BULK = 20_000
#: Lookups measured warm and cold, and KOS added.
_LOOKUPS, _COLD, _ADDED = 2_000, 100, 200
#: KOS of a page of a walk.
_PAGE = 100
#: Seconds that making and measuring a million may take.
_LONGEST = 3600.0


def measure_archive(results: Results, plan: Plan, folder: Path) -> None:
    """Make an archive and measure it, in a process of its own."""
    arguments = (str(folder), str(plan.archived))
    with Program("bench.kosarchive", *arguments, log=folder / "log", timeout=_LONGEST) as program:
        for name, (value, unit) in program.read().items():
            results.add(f"archive.{name}", value, unit)


async def measure(reactor: Any, folder: Path, count: int) -> dict[str, tuple[float, str]]:
    """Return the figures by name, with their unit."""
    file = folder / "archive.db"
    empty = await _adding(reactor, folder / "empty.db", 1)
    await _made(reactor, file)
    fill(file, count)
    size = sum(path.stat().st_size for path in folder.glob("archive.db*"))
    forget(file)
    numbers = random.Random(349)
    cold = await _lookups(reactor, file, [numbers.randrange(count) for _ in range(_COLD)], cold=True)
    large_cold = await _lookups(reactor, file, [count], cold=True)
    warm = await _lookups(reactor, file, [numbers.randrange(count) for _ in range(_LOOKUPS)])
    large = await _lookups(reactor, file, [count] * _COLD)
    pages, grown = await _walk(reactor, file, count)
    some = max(1, min(20, len(pages) // 2))
    return {
        "kos": (count, "KOS"),
        "bytes": (size / count / 1000, "KB"),
        "lookup": (statistics.median(warm), "s"),
        "lookup_p99": (statistics.quantiles(warm, n=100)[98], "s"),
        "lookup_cold": (statistics.median(cold), "s"),
        "lookup_large": (statistics.median(large), "s"),
        "lookup_large_cold": (large_cold[0], "s"),
        "walk": (statistics.median(pages[:some]), "s"),
        "walk_end": (statistics.median(pages[-some:]), "s"),
        "walk_memory": (grown, "MB"),
        "insert_empty": (empty, "/s"),
        "insert": (await _adding(reactor, file, count + 1), "/s"),
    }


async def _made(reactor: Any, file: Path) -> None:
    database = Database(f"sqlite:///{file}", reactor=reactor)
    await database.open()
    await database.close()


def fill(file: Path, count: int) -> None:
    """Add `count` published KOS, and one more that is large, in bulk."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(file, isolation_level=None)) as store:
        store.execute("PRAGMA synchronous=OFF")
        for first in range(0, count + 1, _BULK):
            numbers = range(first, min(first + _BULK, count + 1))
            store.execute("BEGIN")
            store.executemany(
                "INSERT INTO kos (id, site, study_uid, series_uid, sop_instance_uid, state, data,"
                " metadata, fingerprint, structure_id, patient_ins, patient_ins_oid, patient_id,"
                " entry_uuid, created_at, published_at, changed_at)"
                " VALUES (?, ?, ?, ?, ?, 'published', ?, ?, ?, '1999999999', '284070100499094',"
                " '1.2.250.1.213.1.4.10', ?, ?, ?, ?, ?)",
                _kos_rows(numbers, _LARGE if first + _BULK > count else _SMALL, count, now),
            )
            store.executemany(
                "INSERT INTO kos_report (kos_id, report_id) VALUES (?, ?)",
                ((number + 1, f"2.25.{number}") for number in numbers),
            )
            store.executemany(
                "INSERT INTO outbox (kos_id, site, study_uid, submission, created_at, attempts, state,"
                " due_at, finished_at) VALUES (?, ?, ?, '{}', ?, 1, 'done', ?, ?)",
                ((number + 1, _SITE, study_of(number), now, now, now) for number in numbers),
            )
            store.execute("COMMIT")
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _kos_rows(numbers: range, large: int, last: int, now: str) -> Iterator[tuple[Any, ...]]:
    some = os.urandom(_SMALL)
    for number in numbers:
        data = some if number < last else os.urandom(large)
        half = len(data) // 2
        study = study_of(number)
        yield (
            number + 1,
            _SITE,
            study,
            f"{study}.1",
            f"{study}.2",
            data[:half],
            data[half:],
            f"{number:064x}",
            f"P{number}",
            f"urn:uuid:{number:032x}",
            now,
            now,
            now,
        )


def forget(file: Path) -> None:
    """Have the system forget what it holds of a file (posix_fadvise(2))."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


async def _lookups(reactor: Any, file: Path, numbers: list[int], *, cold: bool = False) -> list[float]:
    """Return how long each lookup took; unless `cold`, after as many to warm caches."""
    database = Database(f"sqlite:///{file}", reactor=reactor)
    await database.open()
    archive = Archive(database, clock=SystemClock())
    taken = []
    for number in numbers if cold else [*numbers[: _LOOKUPS // 4], *numbers]:
        started = time.perf_counter()
        found = await archive.candidates(_SITE, study_of(number))
        taken.append(time.perf_counter() - started)
        if [one.study_uid for one in found] != [study_of(number)]:
            raise LookupError(f"{len(found)} KOS found for study {number}")
    await database.close()
    return taken[-len(numbers) :]


async def _walk(reactor: Any, file: Path, count: int) -> tuple[list[float], float]:
    """Read the whole archive page by page; return how long each page took, and the memory it took, MB."""
    database = Database(f"sqlite:///{file}", reactor=reactor)
    await database.open()
    walks = Walks(database, clock=SystemClock())
    taken, after, seen = [], "", 0
    before = resident_mb(os.getpid())
    reset_peak(os.getpid())
    while True:
        started = time.perf_counter()
        page = await walks.page(_SITE, after, _PAGE)
        if not page:
            break
        taken.append(time.perf_counter() - started)
        after, seen = page[-1].study_uid, seen + len(page)
    await database.close()
    if seen != count + 1:
        raise LookupError(f"{seen} KOS met of {count + 1}")
    return taken, peak_mb(os.getpid()) - before


async def _adding(reactor: Any, file: Path, first: int) -> float:
    """Return how many KOS a second are added, one commit each, for jobs that are in hand."""
    database = Database(f"sqlite:///{file}", reactor=reactor)
    await database.open()
    clock = SystemClock()
    jobs = FeedJobs(database, clock=clock, node=_NODE)
    await database.run(lambda connection: _in_hand(connection, first, clock.now()))
    made = _submission(clock.now())
    metadata = os.urandom(_SMALL // 2)
    started = time.perf_counter()
    for number in range(first, first + _ADDED):
        study = study_of(number)
        submission = attrs.evolve(
            made, sop_instance_uid=f"{study}.2", study=attrs.evolve(made.study, study_uid=study)
        )
        await jobs.queue_publication(
            number, site=_SITE, submission=submission, metadata=metadata, fingerprint=f"{number:064x}"
        )
    rate = _ADDED / (time.perf_counter() - started)
    await database.close()
    return rate


def _in_hand(connection: Connection, first: int, now: datetime) -> None:
    """Add messages that were read and jobs that this process holds."""
    numbers = range(first, first + _ADDED)
    common = {"ris": "RIS", "due_at": now}
    received = {"peer": "127.0.0.1", "control_id": "1", "raw": b"", "received_at": now, "state": "done"}
    connection.execute(insert(inbox), [{**common, **received, "id": number} for number in numbers])
    held = {"created_at": now, "holder": _NODE, "held_until": now}
    rows = [
        {**common, **held, "id": number, "message_id": number, "study_uid": study_of(number)}
        for number in numbers
    ]
    connection.execute(insert(feed_job), rows)


def _submission(now: datetime) -> Submission:
    """Return what a report of the bench leads to, with a KOS of no meaning."""
    read = interpret(message(0))
    assert read.message is not None
    assert read.report is not None
    return Submission(
        kos=os.urandom(_SMALL // 2),
        sop_instance_uid="2.25.1",
        submission_uid="2.25.2",
        signature_uid="2.25.3",
        submission_time=now,
        report=read.report,
        visibility=read.message.visibility,
        secret_connection=False,
        patient_class=read.message.patient_class,
        study=Study(study_of(0), ()),
        structure_id="1999999999",
    )


def main() -> None:
    """Make, measure and say."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])

    async def run(reactor: Any) -> None:
        say(**await measure(reactor, folder, count))

    task.react(lambda reactor: defer.Deferred.fromCoroutine(run(reactor)))


if __name__ == "__main__":
    main()

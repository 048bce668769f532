"""From the first released schema, with rows in every table of it, to a store that works."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest_twisted
from alembic import command
from sqlalchemy import Connection, MetaData, insert, select
from sqlalchemy.engine import URL, make_url
from twisted.internet import reactor

from drimbox.audit import messages
from drimbox.ports import Submission
from drimbox.store import auditchain, codec
from drimbox.store.database import Database
from drimbox.store.engine import migration_engine
from drimbox.store.schema import metadata
from drimbox.store.upgrade import configuration, upgrade
from tests.store.conftest import stores_of
from tests.store.samples import START, TestClock, said, submission

FIRST = "0001"
Rows = Mapping[str, list[dict[str, Any]]]
#: What a process that was killed had in hand, what waits, what has ended.
QUEUED: list[dict[str, Any]] = [
    {"state": "waiting", "holder": "main", "held_until": START + timedelta(seconds=300), "attempts": 1},
    {"state": "waiting", "last_error": "PACS muet"},
    {"state": "done", "finished_at": START},
    {"state": "failed", "finished_at": START},
]


def fill(connection: Connection) -> None:
    """Write rows into every table, as the first version did."""
    old = MetaData()
    old.reflect(connection)

    def add(table: str, **values: Any) -> None:
        connection.execute(insert(old.tables[table]).values(**values))

    # Numbered by the database: it goes on from there.
    for number, queued in enumerate(QUEUED, 1):
        study, sop = f"2.25.{number}", f"2.25.500{number}"
        due = {"due_at": START, **queued}
        raw = f"MSH|{number} é".encode()
        add("inbox", ris="RIS", peer="p", control_id="c", raw=raw, received_at=START, **due)
        add("feed_job", message_id=number, ris="RIS", study_uid=study, created_at=START, **due)
        state = {"waiting": "pending", "done": "published", "failed": "refused"}[queued["state"]]
        common = {"site": "site1", "study_uid": study, "created_at": START}
        add(
            "kos",
            sop_instance_uid=sop,
            state=state,
            data=bytes(range(256)),
            metadata=b"<m/>",
            fingerprint="f",
            structure_id="1240001451",
            patient_ins="284070100499094",
            patient_ins_oid="1.2.3",
            patient_id="IPP",
            changed_at=START,
            **common,
        )
        add("kos_report", kos_id=number, report_id=f"2.25.900{number}")
        text = codec.dumps(submission(sop, study))
        add("outbox", kos_id=number, submission=text, outcome_unknown=number == 1, **common, **due)
    add("notice", key="k", code="DMP", text="muet", first_at=START, last_at=START)
    for number in range(3):
        event = messages.application_start(name="DRIMbox", source_name=f"db{number}.example")
        auditchain.append(connection, TestClock(), event, codec.to_plain(event))


def rows(connection: Connection) -> Rows:
    """Return every row of every table."""
    found = MetaData()
    found.reflect(connection)
    return {
        name: [dict(row._mapping) for row in connection.execute(select(table).order_by(*table.c))]
        for name, table in found.tables.items()
        if name != "alembic_version"
    }


def first_store(target: URL) -> Rows:
    """Make a store of the first version; return what is in it."""
    engine = migration_engine(target)
    with engine.begin() as connection:
        command.upgrade(configuration(connection), FIRST)
        fill(connection)
        before = rows(connection)
    engine.dispose()
    return before


@pytest_twisted.ensureDeferred
async def test_a_store_of_the_first_version_goes_on_with_all_that_was_in_it(empty_url: str) -> None:
    target = make_url(empty_url)
    before = first_store(target)
    assert all(before.values()), "every table has rows"
    # Several nodes start at once, each of the new version.
    with ThreadPoolExecutor(4) as pool:
        done = [each.result() for each in [pool.submit(upgrade, target) for _ in range(4)]]
    (head,) = {each.after for each in done}
    assert sorted(each.before or "" for each in done) == [FIRST, head, head, head]
    engine = migration_engine(target)
    with engine.begin() as connection:
        after = rows(connection)
    engine.dispose()
    assert set(after) == set(metadata.tables)
    for table, was in before.items():
        assert [{key: row[key] for key in was[0]} for row in after[table]] == was, table
    clock = TestClock()
    database = Database(empty_url, reactor=reactor)
    await database.open()
    try:
        stores = stores_of(database, clock)
        check = await stores.audit.verify()
        assert (check.fault, check.checked) == (None, 3)
        await stores.audit.record(messages.application_start(name="DRIMbox", source_name="db"))
        for queue in (stores.inbox, stores.jobs, stores.outbox):
            counts = await queue.counts()
            assert (counts.waiting, counts.in_hand, counts.done, counts.failed) == (1, 1, 1, 1)
            assert await queue.release_all() == 1
        # What was in hand, and what waited, is worked on to its end.
        published = await stores.outbox.take(clock.now(), 9)
        assert [item.outcome_unknown for item in published] == [True, False]
        for item in published:
            assert isinstance(item.submission, Submission)
            await stores.outbox.begin(item.id)
            await stores.outbox.published(item.id, "urn:uuid:1")
        assert [message.raw for message in await stores.inbox.take(clock.now(), 9)] == [
            "MSH|1 é".encode(),
            "MSH|2 é".encode(),
        ]
        await stores.inbox.processed(1, result="feed", said=said("2.25.3"))
        assert (await stores.archive.published("site1", "2.25.3")) is not None
    finally:
        await database.close()

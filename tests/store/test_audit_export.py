"""How far the trail was sent on: a position that survives, one node at a time."""

from __future__ import annotations

import json

import pytest
import pytest_twisted

from drimbox.ports import ExportBacklog
from drimbox.store.auditexport import AuditExport
from tests.store.conftest import Stores
from tests.store.test_audit import _behind, event
from tests.store.test_audit_retention import announce, old_and_new

pytestmark = pytest.mark.requirement("DB.CS.96")


def spool(stores: Stores, node: str = "main") -> AuditExport:
    return AuditExport(stores.database, clock=stores.clock, lease=60.0, node=node)


async def taken(one: AuditExport, limit: int = 100) -> list[int]:
    return [each.id for each in await one.take(limit)]


@pytest_twisted.ensureDeferred
async def test_what_waits_is_taken_in_order_until_it_is_confirmed(stores: Stores) -> None:
    one = spool(stores)
    assert await one.backlog() == ExportBacklog(0, None)
    assert await taken(one) == []
    first = stores.clock.now()
    for number in range(5):
        await stores.audit.record(event(study=f"2.25.{number}"))
        stores.clock.advance(1)
    assert await one.backlog() == ExportBacklog(5, first)
    (record,) = await stores.audit.search(limit=1)
    last = (await one.take(5))[-1]
    assert (last.id, last.hash, last.instant, last.event) == (5, record.hash, record.instant, record.event)
    assert await taken(one, 2) == [1, 2], "taken is not confirmed"
    await one.confirm(2)
    assert await taken(spool(stores), 2) == [3, 4], "after a restart too"
    await one.confirm(1)
    assert await one.position() == 2, "it never goes back"
    await one.confirm(5)
    assert await one.backlog() == ExportBacklog(0, None)


@pytest_twisted.ensureDeferred
async def test_one_node_sends_until_its_lease_is_over(stores: Stores) -> None:
    for _ in range(3):
        await stores.audit.record(event())
    one, other = spool(stores), spool(stores, "other")
    assert await taken(one, 2) == [1, 2]
    assert await taken(other) == []
    await other.confirm(3)
    assert await one.position() == 0, "who does not send does not confirm"
    stores.clock.advance(61)
    assert await taken(other) == [1, 2, 3]
    await one.confirm(2)
    assert await one.position() == 0
    await other.confirm(3)
    assert await one.position() == 3


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_read_back_does_not_stop_the_others(stores: Stores) -> None:
    for _ in range(3):
        await stores.audit.record(event())
    broken = json.dumps({"id": 2})
    await stores.database.run(lambda c: _behind(c, f"UPDATE audit SET payload = '{broken}' WHERE id = 2"))
    found = await spool(stores).take(9)
    assert [(one.id, one.event is None) for one in found] == [(1, False), (2, True), (3, False)]


@pytest_twisted.ensureDeferred
async def test_what_retention_removed_waits_no_more(stores: Stores) -> None:
    await old_and_new(stores)
    limit = (await stores.audit.search(limit=1))[0].instant
    assert await stores.audit.purge(limit, announce) == 7
    one = spool(stores)
    assert (await one.backlog()).count == 4
    assert await taken(one) == [8, 9, 10, 11]

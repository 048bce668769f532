"""Old events leave the trail from its old end alone, the trail says so, and the chain still verifies."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
import pytest_twisted
from sqlalchemy import func, select

from drimbox.audit.ontrail import trail_purged
from drimbox.ports import AuditEvent
from drimbox.store import audit as audit_module
from drimbox.store.auditchain import ChainHead, ChainWalk
from drimbox.store.schema import audit
from tests.store.conftest import Stores
from tests.store.samples import INS
from tests.store.test_audit import _behind, event

pytestmark = pytest.mark.requirement("DB.CS.06", "DB.CS.96")
DAY = 86400.0


def announce(last: int, link: str, count: int) -> AuditEvent:
    return trail_purged(
        name="DRIMbox", source_name="db1.349.example.test", last_id=last, link=link, count=count
    )


async def old_and_new(stores: Stores, old: int = 7, new: int = 3) -> None:
    """Record old events, a day apart, then new ones a year later."""
    for number in range(old):
        await stores.audit.record(event(study=f"2.25.{number}"))
        stores.clock.advance(DAY)
    stores.clock.advance(365 * DAY)
    for number in range(new):
        await stores.audit.record(event(study=f"2.25.1{number}"))


async def purge(stores: Stores, days: float = 300, upto: int | None = None) -> int:
    limit = stores.clock.now() - timedelta(days=days)
    return await stores.audit.purge(limit, announce, upto=upto)


async def numbers(stores: Stores) -> list[int]:
    query = select(audit.c.id).order_by(audit.c.id)
    return list(await stores.database.read(lambda c: c.execute(query).scalars().all()))


async def fault(stores: Stores, known: ChainHead | None = None) -> str | None:
    return (await stores.audit.verify(known=known)).fault


@pytest_twisted.ensureDeferred
async def test_old_events_go_and_the_trail_says_which(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_LOOKED_AT", 2)
    monkeypatch.setattr(audit_module, "_REMOVED", 3)
    await old_and_new(stores)
    before = await stores.audit.search()
    link = before[-7].hash
    assert await purge(stores) == 7
    assert await numbers(stores) == [8, 9, 10, 11]
    (said,) = await stores.audit.search(limit=1)
    assert (said.event.event_id, said.event.participants[1].user_id) == ("110113", "DRIMbox")
    assert f"7:{link}" in [one.id for one in said.event.objects]
    assert "(7)" in said.event.objects[0].details[0][1]
    check = await stores.audit.verify()
    assert (check.fault, check.checked, check.anchor) == (None, 4, ChainHead(7, link))
    await stores.audit.record(event())
    assert await fault(stores) is None
    assert await purge(stores) == 0, "nothing more is old: nothing is said either"
    assert await numbers(stores) == [8, 9, 10, 11, 12]


@pytest_twisted.ensureDeferred
async def test_nothing_goes_that_is_young_or_behind_a_young_one(stores: Stores) -> None:
    await stores.audit.record(event())
    stores.clock.advance(400 * DAY)
    await stores.audit.record(event())
    stores.clock.advance(-400 * DAY)  # the clock was wrong, and was set right
    await stores.audit.record(event())
    stores.clock.advance(400 * DAY)
    await stores.audit.record(event())
    assert await purge(stores, days=500) == 0
    assert await purge(stores) == 1
    assert (await numbers(stores))[:3] == [2, 3, 4]
    assert await fault(stores) is None


@pytest_twisted.ensureDeferred
async def test_the_newest_event_stays_and_so_does_what_was_not_sent_on(stores: Stores) -> None:
    await old_and_new(stores, new=0)
    assert await purge(stores, upto=4) == 4
    assert (await numbers(stores))[:2] == [5, 6]
    assert await purge(stores, upto=4) == 0
    # 8 is the event about the first purge, as young as the clock.
    assert await purge(stores, days=0.5) == 3
    assert (await numbers(stores))[0] == 8
    assert await fault(stores) is None
    stores.clock.advance(400 * DAY)
    assert await purge(stores) == 1
    assert await numbers(stores) == [9, 10]
    assert await fault(stores) is None


@pytest_twisted.ensureDeferred
async def test_a_purge_cut_half_way_leaves_a_whole_chain_and_is_finished_later(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_REMOVED", 2)
    await old_and_new(stores)
    remove, calls = audit_module._remove, []

    def cut(upto: int, connection: object) -> None:
        calls.append(upto)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        remove(upto, connection)  # type: ignore[arg-type]

    monkeypatch.setattr(audit_module, "_remove", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        await purge(stores)
    assert (await numbers(stores))[0] == 5
    assert await fault(stores) is None
    monkeypatch.setattr(audit_module, "_remove", remove)
    assert await purge(stores) == 3
    assert (await numbers(stores))[0] == 8
    assert await fault(stores) is None


@pytest.mark.threat("audit events kept from the repository, or removed from the trail")
@pytest.mark.parametrize(
    ("statements", "words", "number"),
    [
        # Somebody cuts the old end himself, before any purge and after one.
        (
            [
                "UPDATE audit_anchor SET last_id = 9, hash = (SELECT hash FROM audit WHERE id = 9)",
                "DELETE FROM audit WHERE id <= 9",
            ],
            "hors du délai",
            9,
        ),
        (["DELETE FROM audit WHERE id = 8"], "manquant", 8),
        (["UPDATE audit_anchor SET hash = 'x'"], "modifié", 8),
        (["UPDATE audit_anchor SET last_id = 5"], "manquant", 6),
        (["UPDATE audit_anchor SET last_id = 0, hash = '" + "0" * 64 + "'"], "manquant", 1),
        (
            [
                "INSERT INTO audit SELECT 7, instant, event_id, outcome, patient_ins, study_uid, payload,"
                " prev_hash, hash FROM audit WHERE id = 8"
            ],
            "hors de la chaîne",
            7,
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_removing_more_than_was_said_is_found(
    stores: Stores, statements: list[str], words: str, number: int
) -> None:
    await old_and_new(stores)
    await purge(stores)
    await stores.database.run(lambda c: _behind(c, *statements))
    check = await stores.audit.verify()
    assert check.fault is not None
    assert words in check.fault
    assert check.fault_id == number


@pytest_twisted.ensureDeferred
async def test_a_cut_without_any_purge_is_found(stores: Stores) -> None:
    await old_and_new(stores)
    cut = [
        "UPDATE audit_anchor SET last_id = 7, hash = (SELECT hash FROM audit WHERE id = 7)",
        "DELETE FROM audit WHERE id <= 7",
    ]
    await stores.database.run(lambda c: _behind(c, *cut))
    found = await fault(stores)
    assert found is not None
    assert "hors du délai" in found


@pytest_twisted.ensureDeferred
async def test_a_head_known_from_before_the_purge_is_judged_as_far_as_it_can_be(stores: Stores) -> None:
    await old_and_new(stores, new=0)
    kept = await stores.audit.head()
    stores.clock.advance(1)
    await stores.audit.record(event())
    await purge(stores)
    assert await fault(stores, kept) is None, "it is the anchor itself"
    assert await fault(stores, ChainHead(7, "f" * 64)) is not None
    assert await fault(stores, ChainHead(3, "f" * 64)) is None, "nobody can tell any more"


@pytest_twisted.ensureDeferred
async def test_a_purge_beside_a_verification_is_no_fault(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drimbox.store.auditchain.BATCH", 2)
    await old_and_new(stores, old=9)
    walk = ChainWalk()
    assert await stores.database.read(walk.step)
    await purge(stores)
    while await stores.database.read(walk.step):
        pass
    assert walk.result.fault is None
    assert walk.result.checked == 2 + 4


@pytest_twisted.ensureDeferred
async def test_the_database_refuses_to_delete_before_the_anchor_has_passed(stores: Stores) -> None:
    await old_and_new(stores)
    await purge(stores)
    count = select(func.count()).select_from(audit)
    for statement in ("DELETE FROM audit WHERE id = 8", "UPDATE audit_anchor SET last_id = 3"):
        with pytest.raises(Exception, match="append-only"):
            await stores.database.run(partial(_execute, statement))
    assert await stores.database.read(lambda c: c.execute(count).scalar_one()) == 4
    assert (await stores.audit.search())[0].event.patient_ins in ("", INS)


def _execute(statement: str, connection: object) -> None:
    connection.exec_driver_sql(statement)  # type: ignore[attr-defined]

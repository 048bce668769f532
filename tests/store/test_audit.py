"""The audit trail: nobody changes it, and who does it behind the triggers is found out."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest
import pytest_twisted
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DatabaseError
from twisted.internet.defer import ensureDeferred, gatherResults

from drimbox.ports import AuditEvent, AuditObject, AuditParticipant
from drimbox.store.auditchain import ChainHead, link_of
from drimbox.store.auditsearch import AuditQuery
from drimbox.store.database import Database
from drimbox.store.schema import audit
from tests.store.conftest import Stores, stores_of
from tests.store.samples import INS, TestClock


def event(ins: str = INS, study: str = "2.25.1", event_id: str = "110107", outcome: int = 0) -> AuditEvent:
    return AuditEvent(
        event_id=event_id,
        action="C",
        event_type=("RAD-128", "IHE Transactions", "Send Imaging Result"),
        participants=(AuditParticipant("ACC-7788^2.25.53", "110153", network_id="192.0.2.10"),),
        objects=(AuditObject(INS, "1", "1", "2", "2", (("StudyInstanceUID", "é\n\x00"),)),),
        outcome=outcome,
        outcome_description="E005 - Échec" if outcome else "",
        patient_ins=ins,
        study_uid=study,
    )


@pytest.mark.requirement("DB.CS.06")
@pytest_twisted.ensureDeferred
async def test_an_event_is_kept_with_its_instant(stores: Stores) -> None:
    await stores.audit.record(event())
    (record,) = await stores.audit.search()
    assert record.event == event()
    assert (record.id, record.instant) == (1, stores.clock.now())


@pytest.mark.requirement("DB.CS.10")
@pytest_twisted.ensureDeferred
async def test_events_are_found_by_period_patient_study_and_kind(stores: Stores) -> None:
    start = stores.clock.now()
    for number in range(6):
        await stores.audit.record(
            event(
                ins=INS if number % 2 else "1",
                study=f"2.25.{number}",
                event_id="110106" if number > 3 else "110107",
            )
        )
        stores.clock.advance(3600)

    async def found(limit: int = 1000, before: int | None = None, **criteria: object) -> list[int]:
        query = AuditQuery(**criteria)  # type: ignore[arg-type]
        return [record.id for record in await stores.audit.search(query, limit=limit, before=before)]

    assert await found() == [6, 5, 4, 3, 2, 1]
    assert await found(ins=INS) == [6, 4, 2]
    assert await found(study="2.25.2") == [3]
    assert await found(study="2.25.") == []
    assert await found(study="2.25._") == []
    assert await found(event_id="110106") == [6, 5]
    hour = timedelta(hours=1)
    assert await found(start=start + hour, end=start + 3 * hour) == [3, 2]
    assert await found(end=start + hour, ins=INS) == []
    assert await found(start=start + 4 * hour, ins=INS) == [6]
    assert await found(start=start + 9 * hour) == []
    assert await found(limit=2) == [6, 5]
    assert await found(limit=2, before=5) == [4, 3]
    assert await found(limit=-1) == []


@pytest.mark.requirement("DB.CS.10")
@pytest_twisted.ensureDeferred
async def test_events_are_found_by_outcome_and_by_what_happened(stores: Stores) -> None:
    for outcome, code in ((0, "RAD-107"), (4, "RAD-107"), (8, "ITI-41"), (0, "ITI-41")):
        kind = (code, "IHE Transactions", 'RAD-106 "event_type":["RAD-128",')
        one = attrs.evolve(event(event_id="110106", outcome=outcome), event_type=kind)
        await stores.audit.record(one)

    async def found(**criteria: object) -> list[int]:
        return [record.id for record in await stores.audit.search(AuditQuery(**criteria))]  # type: ignore[arg-type]

    assert await found(outcomes=(0,)) == [4, 1]
    assert await found(outcomes=(4, 8, 12)) == [3, 2]
    assert await found(outcomes=(0, 8)) == [4, 3, 1]
    assert await found(event_types=("RAD-107",)) == [2, 1]
    assert await found(event_types=("RAD-106",)) == [], "the words of a type are not its code"
    assert await found(event_types=("RAD-128",)) == [], "nor is a text that looks like one"
    assert await found(event_types=("RAD-107", "ITI-41"), outcomes=(8,)) == [3]
    assert await found(event_types=("ITI-41",), event_id="110107") == []


@pytest_twisted.ensureDeferred
async def test_an_event_about_several_studies_is_found_by_each(stores: Stores) -> None:
    await stores.audit.record(event(study="2.25.1 2.25.12 2.25.3"))
    for study in ("2.25.1", "2.25.12", "2.25.3"):
        assert len(await stores.audit.search(AuditQuery(study=study))) == 1
    for study in ("2.25", "2.25.2", "2", "25.12"):
        assert await stores.audit.search(AuditQuery(study=study)) == []


@pytest.mark.requirement("DB.CS.06")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET patient_ins = 'x'",
        "UPDATE audit SET payload = payload",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 1",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET last_id = 1",
        "UPDATE audit_head SET last_id = 3, hash = 'x'",
        "DELETE FROM audit_anchor",
        "INSERT INTO audit_anchor VALUES (2, 0, 'x')",
        "UPDATE audit_anchor SET last_id = 1",
        # The newest event never goes.
        "UPDATE audit_anchor SET last_id = 2, hash = (SELECT hash FROM audit_head)",
        "UPDATE audit_anchor SET last_id = -1",
        "INSERT INTO audit_head VALUES (2, 0, 'x')",
        # A row put in out of its turn.
        "INSERT INTO audit SELECT 7, instant, event_id, outcome, patient_ins, study_uid, payload,"
        " prev_hash, hash FROM audit WHERE id = 1",
        "INSERT INTO audit SELECT 7, instant, event_id, outcome, patient_ins, study_uid, payload,"
        " (SELECT hash FROM audit_head), hash FROM audit WHERE id = 1",
        "INSERT INTO audit SELECT 3, instant, event_id, outcome, patient_ins, study_uid, payload,"
        " prev_hash, hash FROM audit WHERE id = 1",
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_database_itself_refuses_to_change_the_trail(stores: Stores, statement: str) -> None:
    await _refused(stores, statement)


@pytest.mark.requirement("DB.CS.06")
@pytest_twisted.ensureDeferred
async def test_the_roundabout_ways_are_refused_too(stores: Stores) -> None:
    if stores.database.dialect == "sqlite":
        row = (
            "REPLACE INTO audit SELECT 1, instant, event_id, outcome, 'x', study_uid, payload,"
            " prev_hash, hash FROM audit WHERE id = 1"
        )
        await _refused(stores, row)
        await _refused(stores, "REPLACE INTO audit_head VALUES (1, 0, 'x')", first=False)
    else:
        await _refused(stores, "TRUNCATE audit")
        await _refused(stores, "TRUNCATE audit_head", first=False)


async def _refused(stores: Stores, statement: str, *, first: bool = True) -> None:
    if first:
        await stores.audit.record(event())
        await stores.audit.record(event())
    query = select(audit).order_by(audit.c.id)
    before = await stores.database.read(lambda c: c.execute(query).all())
    with pytest.raises(DatabaseError, match="append-only"):
        await stores.database.run(lambda c: c.execute(text(statement)))
    assert await stores.database.read(lambda c: c.execute(query).all()) == before
    assert (await stores.audit.verify()).fault is None


@pytest_twisted.ensureDeferred
async def test_a_whole_chain_verifies_batch_after_batch(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await stores.audit.verify()).fault is None
    monkeypatch.setattr("drimbox.store.auditchain.BATCH", 3)
    for number in range(1, 8):
        await stores.audit.record(event(ins="a\udc80\x00", study=f"2.25.{number}"))
        check = await stores.audit.verify()
        assert (check.fault, check.checked) == (None, number)


def _behind(connection: Connection, *statements: str) -> None:
    """Do what somebody with the rights of the database's owner can."""
    if connection.dialect.name == "sqlite":
        triggers = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        saved = connection.execute(triggers).all()
        for name, _ in saved:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.exec_driver_sql(statement)
        for _, sql in saved:
            connection.exec_driver_sql(sql)
    else:
        for table in ("audit", "audit_head", "audit_anchor"):
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        for statement in statements:
            connection.exec_driver_sql(statement)
        for table in ("audit", "audit_head", "audit_anchor"):
            connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


@pytest.mark.threat("audit events kept from the repository, or removed from the trail")
@pytest.mark.requirement("DB.CS.06")
@pytest.mark.parametrize(
    ("statements", "fault", "number"),
    [
        (["UPDATE audit SET payload = replace(payload, '110107', '110106') WHERE id = 3"], "modifié", 3),
        (["UPDATE audit SET prev_hash = 'x' WHERE id = 3"], "modifié", 3),
        (["UPDATE audit SET patient_ins = 'autre' WHERE id = 2"], "recherche", 2),
        (["UPDATE audit SET study_uid = '' WHERE id = 2"], "recherche", 2),
        (["UPDATE audit SET outcome = 0 WHERE id = 4"], "recherche", 4),
        (["UPDATE audit SET instant = '2020-01-01 00:00:00.000000+00:00' WHERE id = 5"], "recherche", 5),
        (["DELETE FROM audit WHERE id = 1"], "manquant", 1),
        (["DELETE FROM audit WHERE id = 3"], "manquant", 3),
        (["DELETE FROM audit WHERE id = 5"], "manquant", 5),
        (["DELETE FROM audit WHERE id = 3", "UPDATE audit SET id = id - 1 WHERE id > 3"], "modifié", 3),
        (["DELETE FROM audit", "UPDATE audit_head SET hash = 'x'"], "manquant", 1),
        (
            [
                "UPDATE audit SET id = 99 WHERE id = 2",
                "UPDATE audit SET id = 2 WHERE id = 3",
                "UPDATE audit SET id = 3 WHERE id = 99",
            ],
            "modifié",
            2,
        ),
        (
            [
                "UPDATE audit SET id = -id - 1 WHERE id > 2",
                "UPDATE audit SET id = -id WHERE id < 0",
                "INSERT INTO audit SELECT 3, instant, event_id, outcome, patient_ins, study_uid, payload,"
                " prev_hash, hash FROM audit WHERE id = 2",
                "UPDATE audit_head SET last_id = 6",
            ],
            "modifié",
            3,
        ),
        (["UPDATE audit_head SET hash = 'x'"], "dernier maillon", 5),
        (["UPDATE audit_head SET last_id = 4"], "dernier maillon", 4),
        (
            [
                "INSERT INTO audit SELECT 9, instant, event_id, outcome, patient_ins, study_uid, payload,"
                " prev_hash, hash FROM audit WHERE id = 5"
            ],
            "hors de la chaîne",
            9,
        ),
        (
            [
                "INSERT INTO audit SELECT 0, instant, event_id, outcome, patient_ins, study_uid, payload,"
                " prev_hash, hash FROM audit WHERE id = 5"
            ],
            "hors de la chaîne",
            0,
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_tampering_behind_the_triggers_is_found(
    stores: Stores, statements: list[str], fault: str, number: int
) -> None:
    for _ in range(5):
        await stores.audit.record(event(outcome=8))
    await stores.database.run(lambda c: _behind(c, *statements))
    check = await stores.audit.verify()
    assert check.fault is not None
    assert fault in check.fault
    assert check.fault_id == number


@pytest.mark.threat("audit events kept from the repository, or removed from the trail")
@pytest_twisted.ensureDeferred
async def test_a_chain_made_anew_on_another_origin_is_found(stores: Stores) -> None:
    """As of another trail, put in the place of this one."""
    for _ in range(3):
        await stores.audit.record(event())
    rows = await stores.database.read(lambda c: c.execute(select(audit.c.id, audit.c.payload)).all())
    link, statements = "5" * 64, [f"UPDATE audit_anchor SET hash = '{'5' * 64}'"]
    for number, payload in rows:
        after = link_of(link, payload)
        statements.append(f"UPDATE audit SET prev_hash = '{link}', hash = '{after}' WHERE id = {number}")
        link = after
    statements.append(f"UPDATE audit_head SET hash = '{link}'")
    await stores.database.run(lambda c: _behind(c, *statements))
    check = await stores.audit.verify()
    assert (check.fault, check.fault_id) == ("l'origine de la chaîne ne correspond pas", 0)


@pytest_twisted.ensureDeferred
async def test_a_trail_cut_short_and_rewritten_is_found_with_a_head_kept_elsewhere(stores: Stores) -> None:
    for _ in range(4):
        await stores.audit.record(event())
    kept = await stores.audit.head()
    await stores.audit.record(event())
    assert (await stores.audit.verify(known=kept)).fault is None
    query = select(audit.c.hash).where(audit.c.id == 2)
    link = await stores.database.read(lambda c: c.execute(query).scalar_one())
    cut = ["DELETE FROM audit WHERE id > 2", f"UPDATE audit_head SET last_id = 2, hash = '{link}'"]
    await stores.database.run(lambda c: _behind(c, *cut))
    assert (await stores.audit.verify()).fault is None, "the shortened chain is whole by itself"
    check = await stores.audit.verify(known=kept)
    assert check.fault is not None
    assert check.fault_id == 3
    for _ in range(3):
        await stores.audit.record(event(study="2.25.666"))
    check = await stores.audit.verify(known=kept)
    assert check.fault is not None
    assert check.fault_id == 4
    assert (await stores.audit.verify(known=ChainHead(2, link))).fault is None


@pytest_twisted.ensureDeferred
async def test_several_nodes_write_one_chain(database: Database, clock: TestClock) -> None:
    nodes = [stores_of(database, clock, f"node{n}") for n in range(4)]
    writing = [
        ensureDeferred(node.audit.record(event(study=f"2.25.{n}"))) for n in range(10) for node in nodes
    ]
    await gatherResults(writing)
    check = await nodes[0].audit.verify()
    assert (check.fault, check.checked) == (None, 40)


@pytest_twisted.ensureDeferred
async def test_an_event_that_cannot_be_stored_leaves_the_chain_usable(stores: Stores) -> None:
    await stores.audit.record(event())
    with pytest.raises(DatabaseError):
        await stores.audit.record(event(outcome=None))  # type: ignore[arg-type]
    await stores.audit.record(event())
    check = await stores.audit.verify()
    assert (check.fault, check.checked) == (None, 2)

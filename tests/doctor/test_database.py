"""`drimbox doctor` at the store: a real server, our rights, the nodes, and what each RIS sent last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import pytest_twisted
from sqlalchemy import create_engine, make_url, text
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.clock import SystemClock
from drimbox.config import Hl7Settings, Ris, StoreSettings
from drimbox.doctor import database as doctor
from drimbox.doctor.findings import Finding, State
from drimbox.sim.postgres import Absent, Cluster
from drimbox.store.database import Database
from drimbox.store.inspection import Server, StoreFacts
from drimbox.store.nodes import Nodes, SeenNode
from drimbox.store.revision import newest
from drimbox.store.upgrade import upgrade

pytestmark = [pytest.mark.requirement("DB.SO.35"), pytest.mark.peer("postgres")]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def config_of(url: str, *ris: str, password_file: Path | None = None) -> Any:
    return SimpleNamespace(
        drimbox=SimpleNamespace(node="a"),
        store_url=url,
        store=StoreSettings(url, password_file),
        ris=tuple(Ris(name) for name in ris),
        hl7=Hl7Settings(),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server whose commits wait for the disk."""
    try:
        cluster = Cluster(durable=True)
    except Absent as reason:
        pytest.skip(str(reason))
    try:
        cluster.demand_password("guarded")
        cluster.start()
        cluster.execute("CREATE ROLE guarded SUPERUSER LOGIN PASSWORD 'la bonne phrase'")
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    name = cluster.create()
    upgrade(make_url(cluster.url(name)))
    yield cluster.url(name)
    cluster.drop(name)


@pytest_twisted.async_yield_fixture
async def store(url: str) -> AsyncIterator[Database]:
    store = Database(url, reactor=reactor)
    await store.open()
    yield store
    await store.close()


def of(findings: list[Finding], check: str, subject: str = "") -> list[Finding]:
    found = [each for each in findings if each.check == check and subject in each.subject]
    assert all(bool(each.mend) or each.state is State.OK for each in found), found
    return found


async def beside(url: str, *ris: str, **options: Any) -> list[Finding]:
    config = config_of(url, *ris, **options)
    return await deferToThread(lambda: doctor.beside(config, SystemClock().now()))


def nodes_of(store: Database, name: str, *titles: str) -> Nodes:
    return Nodes(
        store,
        clock=SystemClock(),
        name=name,
        home=f"home-{name}",
        version="1",
        lease=60.0,
        titles=titles,
        dicom="10.0.0.1:104",
    )


# --- the server ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_well(store: Database, url: str) -> None:
    found = await beside(url, "RIS")
    assert [each.state for each in of(found, "store")] == [State.OK] * 3, found
    assert "lisible" in found[0].text
    assert "droits et durabilité vérifiés" in found[1].text
    assert "écriture confirmée en" in found[2].text
    assert of(found, "node") == []
    (ris,) = of(found, "ris")
    assert (ris.subject, ris.state) == ("RIS", State.WARNING)


@pytest_twisted.ensureDeferred
async def test_a_server_that_forgets_what_it_confirmed(cluster: Cluster, url: str) -> None:
    name = make_url(url).database
    cluster.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    found = of(await beside(url), "store")
    assert [each.state for each in found] == [State.OK, State.ERROR, State.OK]
    assert "synchronous_commit = off" in found[1].text


@pytest_twisted.ensureDeferred
async def test_an_account_without_its_rights(cluster: Cluster, url: str) -> None:
    name = make_url(url).database
    cluster.execute(f"CREATE ROLE poor_{name} LOGIN")
    try:
        poor = url.replace("drimbox@", f"poor_{name}@")
        for right, kind, lacking in (
            ("SELECT, INSERT, UPDATE", "TABLES", "DELETE"),
            ("DELETE", "TABLES", "USAGE"),
            ("USAGE", "SEQUENCES", ""),
        ):
            cluster.execute(f"GRANT {right} ON ALL {kind} IN SCHEMA public TO poor_{name}", name or "")
            said = [each.text for each in of(await beside(poor), "store") if each.state is State.ERROR]
            assert len(said) == bool(lacking)
            assert all(each.startswith(f"droits absents : {lacking} ") for each in said), said
            # Only an owner, or who was told so, upgrades.
            assert "ne peut pas créer de table" in repr(await beside(poor))
        cluster.execute(f"REVOKE SELECT ON node, inbox FROM poor_{name}", name or "")
        found = await beside(poor, "RIS")
        assert "SELECT inbox" in repr(of(found, "store"))
        assert of(found, "ris") == []
    finally:
        cluster.execute(f"DROP OWNED BY poor_{name}", name or "")
        cluster.execute(f"DROP ROLE poor_{name}")


@pytest_twisted.ensureDeferred
async def test_a_password_that_is_wrong_or_not_to_be_read(url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    guarded = url.replace("drimbox@", "guarded@")
    (found,) = await beside(guarded, password_file=secret)
    assert (found.state, found.check, "lecture impossible" in found.text) == (State.ERROR, "store", True)
    secret.write_text("une autre phrase\n", "utf-8")
    (found,) = await beside(guarded, password_file=secret)
    assert (found.state, "guarded" in found.text) == (State.ERROR, True), found
    assert "phrase" not in repr(found)
    secret.write_text("la bonne phrase\n", "utf-8")
    assert {each.state for each in await beside(guarded, password_file=secret)} == {State.OK}


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_away(url: str, tmp_path: Path) -> None:
    away = f"postgresql+psycopg://drimbox@/nothing?host={tmp_path}"
    (found,) = await beside(away)
    assert (found.state, found.check) == (State.ERROR, "store")
    assert found.mend


def test_a_server_too_old_and_a_copy_of_another() -> None:
    server = Server("13.4 (Debian)", 130004, False, {}, (), True)
    found = doctor.judge(config_of(""), StoreFacts(server, [], {}), 0.01, NOW)
    assert [each.state for each in found] == [State.WARNING, State.OK]
    assert "13.4, plus ancien que 15" in found[0].text
    found = doctor.judge(config_of(""), StoreFacts(attrs.evolve(server, standby=True), [], {}), None, NOW)
    assert (found[0].state, "lecture seule" in found[0].text) == (State.ERROR, True)


def test_a_commit_that_takes_long() -> None:
    server = Server("15.4", 150004, False, {}, (), True)
    found = doctor.judge(config_of(""), StoreFacts(server, [], {}), 2.0, NOW)
    assert (found[-1].state, "2000 ms" in found[-1].text) == (State.WARNING, True)


# --- the running process ------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_process_looks_at_its_own_store(store: Database, url: str) -> None:
    nodes = nodes_of(store, "a", "PACS/A1")
    await nodes.join()
    await nodes_of(store, "b", "PACS/B1").join()
    stores: Any = SimpleNamespace(database=store, nodes=nodes)
    found = await doctor.inside(config_of(url), stores, SystemClock(), reactor)
    assert [each.state for each in of(found, "store")] == [State.OK] * 3, found
    a, b = of(found, "node", "nœud ")
    assert (a.subject, b.subject) == ("nœud a", "nœud b")
    assert f"version 1, schéma {newest()}, bail encore" in a.text
    assert "horloge +0.0 s" in a.text or "horloge -0.0 s" in a.text
    # Two nodes that say they are at one address.
    assert "adresse DICOM 10.0.0.1:104 commun" in repr(of(found, "node", "a, b"))
    # Somebody takes the name: this node learns it here too.
    await store.run(
        lambda connection: connection.execute(text("UPDATE node SET home = 'x' WHERE name = 'a'"))
    )
    (found_,) = await doctor.inside(config_of(url), stores, SystemClock(), reactor)
    assert (found_.state, "sous le nom « a »" in found_.text) == (State.ERROR, True)


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_locked_is_given_up_in_time(
    store: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_TIMEOUT", 2.0)
    nodes = nodes_of(store, "a")
    await nodes.join()
    stores: Any = SimpleNamespace(database=store, nodes=nodes)
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE node IN ACCESS EXCLUSIVE MODE"))
            (found,) = await doctor.inside(config_of(url), stores, SystemClock(), reactor)
        assert (found.state, found.text) == (State.ERROR, "pas de réponse en 2 s")
    finally:
        engine.dispose()
    await store.close()
    (found,) = await doctor.inside(config_of(url), stores, SystemClock(), reactor)
    assert (found.state, found.text) == (State.ERROR, "ne répond pas (StoreClosed)")


# --- nodes --------------------------------------------------------------------------------------------


def node(name: str, **changes: Any) -> SeenNode:
    seen = SeenNode(
        name,
        "1.0",
        NOW - timedelta(days=1),
        NOW + timedelta(seconds=90),
        (),
        newest(),
        "0.0.0.0:104",
        0.0,
        (f"PACS/{name}1",),
    )
    return attrs.evolve(seen, **changes)


def judged(*nodes: SeenNode) -> list[Finding]:
    server = Server("15.4", 150004, False, {}, (), True)
    return of(doctor.judge(config_of(""), StoreFacts(server, list(nodes), {}), None, NOW), "node")


def test_nodes_that_are_well_side_by_side() -> None:
    # Every node may listen on all addresses of its machine, on the same port.
    found = judged(node("a"), node("b"))
    assert [(each.subject, each.state) for each in found] == [("nœud a", State.OK), ("nœud b", State.OK)]


def test_nodes_that_are_not() -> None:
    gone = node("b", held_until=NOW - timedelta(hours=3), titles=("PACS/a1",), version="0.9")
    first, second = judged(node("a"), gone)
    assert (first.state, second.state) == (State.OK, State.WARNING)
    assert "bail échu depuis 3 h" in second.text
    late = judged(node("a"), node("b", ahead=-12.5))[1]
    assert (late.state, "horloge -12.5 s" in late.text) == (State.WARNING, True)
    *_, versions = judged(node("a"), node("b", version="0.9", revision=""))
    assert (versions.state, versions.subject) == (State.WARNING, "versions")
    assert "b : version 0.9, schéma inconnu" in versions.text
    *_, shared = judged(node("a"), node("b", titles=("PACS/a1", "PACS/b1")))
    assert (shared.state, shared.subject) == (State.ERROR, "a, b")
    assert "AE title PACS/a1 commun" in shared.text
    *_, shared = judged(node("a", dicom="10.0.0.9:104"), node("b", dicom="10.0.0.9:104"))
    assert (shared.state, "adresse DICOM 10.0.0.9:104" in shared.text) == (State.ERROR, True)


def test_a_single_box_has_no_other_node() -> None:
    assert doctor.judge(config_of(""), StoreFacts(None, [node("a")], {}), 0.01, NOW)[-1].check == "store"


# --- RIS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest_twisted.ensureDeferred
async def test_the_last_message_of_each_ris(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'drimbox.db'}" if kind == "sqlite" else request.getfixturevalue("url")
    store = Database(url, reactor=reactor)
    await store.open()
    now = SystemClock().now()

    def work(connection: Any) -> None:
        from drimbox.store.schema import inbox

        for ris, state, age in (
            ("RIS-A", "done", timedelta(days=30)),
            ("RIS-A", "parked", timedelta(hours=2)),
            ("RIS-B", "failed", timedelta(days=30)),
        ):
            row = {"ris": ris, "peer": "", "control_id": "1", "raw": b"", "state": state}
            connection.execute(inbox.insert().values(**row, received_at=now - age, due_at=now - age))

    await store.run(work)
    await store.close()
    found = of(await beside(url, "RIS-A", "RIS-B", "RIS-C"), "ris")
    assert [(each.subject, each.state) for each in found] == [
        ("RIS-A", State.OK),
        ("RIS-B", State.WARNING),
        ("RIS-C", State.WARNING),
    ]
    assert "dernier message il y a 2 h" in found[0].text
    assert "aucun message depuis 30 j" in found[1].text
    assert "2575" in found[1].mend

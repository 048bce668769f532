"""`drimbox audit` beside a running gateway: search in all its forms, verification, retention."""

from __future__ import annotations

import csv
import io
import json
import os
import pwd
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from sqlalchemy import make_url

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from drimbox.store.auditchain import append
from drimbox.store.codec import to_plain
from drimbox.store.engine import writer_engine
from drimbox.store.upgrade import upgrade
from drimbox.xml import safe_parse
from tests.integration.feed_stand import POOL, FeedStand, Studies
from tests.integration.operator import drimbox
from tests.integration.waiting import until, wait
from tests.store.test_audit import event

INS = "284070100499094"
#: Events older than retention that the store holds when the gateway starts.
OLD = 1200


@attrs.define
class Then:
    """A clock that stands still."""

    instant: datetime

    def now(self) -> datetime:
        return self.instant


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies

    async def published(self) -> GeneratedStudy:
        study = self.studies.new(self.pacs)
        await self.stand.report(study)
        await until(lambda: self.stand.kos(study), what="a publication")
        return study

    async def search(self, *arguments: str, code: int = 0) -> str:
        done = await drimbox(self.stand.config, "audit", "search", *arguments)
        assert done.returncode == code, done.stderr
        return done.stdout

    async def rows(self, *arguments: str) -> list[dict[str, str]]:
        text = await self.search(*arguments, "--format", "csv")
        return list(csv.DictReader(io.StringIO(text), delimiter=";"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("audit")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = FeedStand(folder, [PacsAddress("PACS", pacs.port, POOL)], extra={"audit": {"keep": '"400j"'}})
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    _old_events(stand.folder / "state" / "drimbox.db")
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


def _old_events(path: Path) -> None:
    """Make a store with events of two years ago."""
    path.parent.mkdir(parents=True, mode=0o700)
    url = make_url(f"sqlite:///{path}")
    upgrade(url)
    clock = Then(datetime.now(UTC) - timedelta(days=730))
    engine = writer_engine(url, 1)
    with engine.begin() as connection:
        for _ in range(OLD):
            append(connection, clock, event(), to_plain(event()))
    engine.dispose()


@pytest.mark.requirement("DB.CS.06", "DB.CS.96")
@pytest_twisted.ensureDeferred
async def test_what_is_past_retention_goes_by_itself_and_the_chain_verifies(world: World) -> None:
    stand = world.stand
    await until(
        lambda: not stand.query("SELECT 1 FROM audit WHERE id <= ?", OLD), seconds=60, what="a purge"
    )
    assert stand.query("SELECT last_id FROM audit_anchor") == [(OLD,)]
    done = await drimbox(stand.config, "audit", "verify")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Chaîne intacte : ")
    assert lines[1] == f"Conservation : événements 1 à {OLD} effacés, effacement audité."
    head = lines[2].removeprefix("Dernier maillon : ")
    (said,) = [
        row for row in await world.rows("--event", "administration") if "Effacement" in row["objets"]
    ]
    assert f"AUDIT-PURGE={OLD}:" in said["objets"]
    done = await drimbox(stand.config, "audit", "verify", "--known", head, "--json")
    assert json.loads(done.stdout)["intact"] is True
    number = head.partition(":")[0]
    done = await drimbox(stand.config, "audit", "verify", "--known", f"{number}:{'0' * 64}")
    assert done.returncode == 1
    assert f"défaut à l'événement {number} : événement différent" in done.stderr


@pytest.mark.requirement("DB.CS.10")
@pytest_twisted.ensureDeferred
async def test_events_are_found_by_patient_study_kind_outcome_and_period(world: World) -> None:
    study, absent = await world.published(), world.studies.new()
    await world.stand.report(absent)
    await world.stand.notice_about(absent.study_uid, "E004")
    rows = await world.rows("--ins", INS, "--all")
    assert {study.study_uid, absent.study_uid} <= {uid for row in rows for uid in row["examens"].split()}
    assert {row["ins"] for row in rows} == {INS}
    ids = [int(row["numero"]) for row in rows]
    assert ids == sorted(ids, reverse=True)
    about = await world.rows("--study", study.study_uid, "--event", "publication")
    assert [(row["type"], row["resultat"]) for row in about] == [("ITI-41", "0")]
    (failed,) = await world.rows("--study", absent.study_uid, "--outcome", "echec")
    assert failed["description"].startswith("E004")
    assert await world.rows("--ins", INS, "--to", "2020-01-01") == []
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    assert await world.rows(
        "--study", study.study_uid, "--from", today, "--to", today, "--event", "reception"
    )
    assert not await world.rows("--ins", "999")


@pytest.mark.requirement("DB.CS.10")
@pytest_twisted.ensureDeferred
async def test_pages_follow_each_other_and_every_form_says_the_same(world: World) -> None:
    study = await world.published()
    whole = await world.rows("--study", study.study_uid, "--event", "dmp", "--all")
    assert len(whole) >= 2
    done = await drimbox(
        world.stand.config, "audit", "search", "--study", study.study_uid, "--event", "dmp", "--limit", "1"
    )
    last = whole[0]["numero"]
    assert done.stderr.strip() == f"1 événement(s) ; la suite : --before {last}"
    assert done.stdout.startswith(f"{last}  ")
    assert study.study_uid in done.stdout
    following = await world.rows(
        "--study", study.study_uid, "--event", "dmp", "--limit", "1", "--before", last
    )
    assert following == whole[1:2]
    root = safe_parse(
        (await world.search("--study", study.study_uid, "--event", "dmp", "--format", "xml")).encode()
    )
    assert root.tag == "AuditMessages"
    codes = [one.find(".//EventTypeCode").get("csd-code") for one in root.findall("AuditMessage")]
    assert codes == [row["type"] for row in whole]


@pytest.mark.requirement("DB.CS.10")
@pytest_twisted.ensureDeferred
async def test_who_searches_is_found_by_the_next_who_does(world: World) -> None:
    await world.search("--ins", "123456789012345")
    (row,) = await world.rows("--ins", "123456789012345")
    assert row["evenement"] == "110101"
    assert pwd.getpwuid(os.getuid()).pw_name in row["participants"]
    assert "ins=123456789012345" in row["objets"]


@pytest.mark.requirement("DB.CS.06")
@pytest_twisted.ensureDeferred
async def test_the_first_fault_is_named_and_ends_with_one(world: World) -> None:
    await world.published()
    path = world.stand.folder / "state" / "drimbox.db"
    (number,) = world.stand.query("SELECT max(id) FROM audit WHERE event_id = '110106'")[0]
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        (sql,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'audit_no_update'"
        ).fetchone()
        (payload,) = connection.execute("SELECT payload FROM audit WHERE id = ?", (number,)).fetchone()

        def write(text: str) -> None:
            connection.execute("DROP TRIGGER audit_no_update")
            connection.execute("UPDATE audit SET payload = ? WHERE id = ?", (text, number))
            connection.execute(sql)
            connection.commit()

        write(payload.replace('"outcome":0', '"outcome":4'))
        try:
            done = await drimbox(world.stand.config, "audit", "verify")
        finally:
            write(payload)
    assert done.returncode == 1
    assert f"défaut à l'événement {number} : événement modifié" in done.stderr
    assert (await drimbox(world.stand.config, "audit", "verify")).returncode == 0


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_opened_is_said_in_french(world: World, tmp_path: Path) -> None:
    state = f'state_dir = "{world.stand.folder / "state"}"'
    other = tmp_path / "other.toml"
    other.write_text(world.stand.config.read_text().replace(state, f'state_dir = "{tmp_path}"'))
    for command in ("search", "verify"):
        done = await drimbox(other, "audit", command)
        assert done.returncode == 1
        assert "base de données absente" in done.stderr
    (tmp_path / "drimbox.db").write_bytes(b"no database at all, " * 100)
    done = await drimbox(other, "audit", "verify")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for option, date in (("--from", "hier"), ("--to", "9999-12-31")):
        done = await drimbox(world.stand.config, "audit", "search", option, date)
        assert done.returncode == 2
        assert "AAAA-MM-JJ" in done.stderr

"""Poison in each queue of a gateway process: it is parked alone, seen, healed, or given up.

Rows are damaged in the store, beside the process, as a failing disk or another version would. The operator
works with the `drimbox` command.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.sim.behaviour import Kind
from drimbox.sim.dmp_patients import PatientRecord
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import POOL, FeedStand, Studies, after
from tests.integration.operator import drimbox
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.21")


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies

    async def command(self, *arguments: str, status: int = 0) -> str:
        """Run `drimbox`; return what it printed."""
        done = await drimbox(self.stand.config, *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stdout + done.stderr

    async def listed(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(await self.command("queue", "list", *arguments, "--json"))
        return found

    async def rows(self, wanted: str) -> list[dict[str, Any]]:
        """Return the rows of a queue as the admin listener gives them."""
        _, body = await self.stand.admin(f"/queues/{wanted}")
        found: list[dict[str, Any]] = json.loads(body)["rows"]
        return found

    async def parked(self, queue: str, number: int) -> dict[str, Any]:
        """Wait until a row is parked and told; return it as listed."""

        async def look() -> Any:
            rows = await self.rows(f"{queue}?state=parked")
            return next((row for row in rows if row["id"] == number), None)

        row: dict[str, Any] = await until(look, seconds=60, what=f"{queue} {number} parked")
        await self.stand.notice_about(f"file {queue}, ligne {number} ", "E008")
        return row

    def actions(self) -> list[str]:
        """Return what administrators were audited for, oldest first."""
        rows = self.stand.query("SELECT payload FROM audit WHERE event_id = '110113' ORDER BY id")
        events = [json.loads(row[0])["event"] for row in rows]
        return [
            f"{one['objects'][0]['details'][0][1]} / {one['objects'][0]['id']}"
            for one in events
            if one["event_type"][0] == "110132"
        ]

    async def flows(self) -> None:
        """Check that another study goes through."""
        study = self.studies.new(self.pacs)
        await self.stand.report(study)
        await until(lambda: self.stand.kos(study), what="another study in the DMP")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("queue")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    quick = {"retry_first": "0.1", "retry_max": "0.2"}
    stand = FeedStand(
        folder,
        [PacsAddress("PACS", pacs.port, POOL)],
        extra={
            "dmp": {"timeout": "2", "connect_timeout": "1", **quick},
            "feed": {"max_failures": "3", **quick},
        },
    )
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


@pytest.mark.requirement("DB.SO.21", "DB.SO.43", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_message_that_breaks_its_reader_is_parked_healed_and_played_again(world: World) -> None:
    await world.flows()
    study = world.studies.new(world.pacs)
    # A text where bytes belong: the reader breaks on it in a way nobody foresaw.
    number = world.stand.insert_message("MSH DUPONT")
    await world.flows()
    row = await world.parked("inbox", number)
    assert re.fullmatch(r"TypeError \(drimbox/[a-z_0-9/]+\.py:\d+\)", row["reason"]), row
    assert row["failures"] == 3
    shown = await world.command("queue", "list", "inbox", "--state", "parked")
    assert re.fullmatch(rf"inbox {number}  [-0-9]+ [:0-9]+  mise de côté  ris  TypeError .*\n", shown), (
        shown
    )
    await world.flows()
    status = (await world.stand.status())["queues"]["inbox"]
    assert (status["parked"], status["waiting"]) == (1, 0)
    events = world.stand.query("SELECT payload FROM audit WHERE event_id = '110107' ORDER BY id")
    told = [json.loads(one[0])["event"]["outcome_description"] for one in events]
    assert len([text for text in told if text.startswith("E008")]) == 1
    assert "DUPONT" not in await world.command("queue", "show", "inbox", str(number))
    # Played again as it is, it breaks again; healed, it goes through.
    await world.command("queue", "retry", "inbox", str(number))
    await world.parked("inbox", number)
    raw = world.stand.message(study, number=9001)
    world.stand.change("UPDATE inbox SET raw = ? WHERE id = ?", raw, number)
    assert "1 ligne(s) rejouée(s)" in await world.command("queue", "retry", "inbox", "--all", "parked")
    await world.stand.published_one(study)
    assert not [text for text in (await world.stand.notices()).values() if f"ligne {number} " in text]
    assert world.actions()[-2:] == [
        f"Rejeu d'une ligne de file / inbox {number}",
        "Rejeu des lignes de file : parked / inbox > 0",
    ]


@pytest.mark.requirement("DB.SO.14", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_study_whose_comparison_breaks_is_parked_and_the_others_flow(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    world.pacs.behaviour = PacsBehaviour(down=True)
    try:
        await stand.report(study)

        async def waiting() -> Any:
            return await world.rows(f"feed?state=put_off&study={study.study_uid}")

        (job,) = await until(waiting, what="a job that waits for the PACS")
        assert job["reason"] == "PACS injoignable"
        world.stand.change("UPDATE inbox SET raw = CAST(raw AS TEXT) WHERE id = ?", job["message_id"])
    finally:
        world.pacs.behaviour = PacsBehaviour()
    parked = await world.parked("feed", job["id"])
    assert parked["study_uid"] == study.study_uid
    assert parked["failures"] == 3, "waiting for the PACS counted for nothing"
    await world.flows()
    audited = [event["outcome_description"] for event in stand.audits(study.study_uid)]
    assert len([text for text in audited if text.startswith("E008")]) == 1
    world.stand.change("UPDATE inbox SET raw = CAST(raw AS BLOB) WHERE id = ?", job["message_id"])
    await world.command("queue", "retry", "feed", str(job["id"]))
    await stand.published_one(study)


async def waiting_in_outbox(world: World, study: GeneratedStudy) -> int:
    """Send a report and wait until its publication waits for the DMP."""
    await world.stand.report(study)

    async def waiting() -> Any:
        return await world.rows(f"outbox?study={study.study_uid}")

    (row,) = await until(waiting, what="a publication that waits for the DMP")
    return int(row["id"])


@pytest.mark.requirement("DB.SO.22", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_damaged_publication_is_parked_alone_and_published_once_when_healed(world: World) -> None:
    stand = world.stand
    study, other = world.studies.new(world.pacs), world.studies.new(world.pacs)
    await stand.dmp.down()
    try:
        number = await waiting_in_outbox(world, study)
        await waiting_in_outbox(world, other)
        ((whole,),) = stand.query("SELECT submission FROM outbox WHERE id = ?", number)
        damaged = whole.replace('"kos":"', '"kos":"?', 1)
        world.stand.change("UPDATE outbox SET submission = ? WHERE id = ?", damaged, number)
        row = await world.parked("outbox", number)
        assert row["reason"] == "ligne illisible : StoreDamaged"
    finally:
        stand.dmp.up()
    await until(lambda: stand.kos(other), what="the other study in the DMP")
    assert stand.kos(study, None) == []
    # A restart changes nothing, and tells nobody again.
    before = len(stand.audits(study.study_uid))
    await stand.kill_gateway()
    await stand.start_gateway()
    await world.flows()
    assert stand.kos(study, None) == []
    assert len(stand.audits(study.study_uid)) == before
    world.stand.change("UPDATE outbox SET submission = ? WHERE id = ?", whole, number)
    await world.command("queue", "retry", "outbox", str(number))
    await stand.published_one(study)
    assert len(stand.kos(study, None)) == 1


@pytest.mark.requirement("DB.SO.13", "DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_a_replacement_takes_the_place_of_a_parked_publication_that_had_arrived(world: World) -> None:
    """The DMP registered it, its answer was lost, then the row was damaged: no second current manifest."""
    stand = world.stand
    study = world.studies.new(world.pacs)
    stand.late = 1.0  # carried out after the gateway has gone
    seen = len(stand.requests)

    def arrived() -> bool:
        return any(stand.dmp.service.identify(one) == "TD2.1" for one in stand.requests[seen:])

    try:
        await stand.report(study)
        await until(arrived, what="an attempt at the DMP")
        await stand.kill_gateway()
        ((number,),) = stand.query("SELECT id FROM outbox WHERE study_uid = ?", study.study_uid)
        world.stand.change("UPDATE outbox SET submission = '{' WHERE id = ?", number)
        (first,) = await until(lambda: stand.kos(study), what="the first KOS in the DMP")
    finally:
        stand.late = 0.0
    await stand.start_gateway()
    await world.parked("outbox", number)
    # A second report, with another visibility: another manifest, which must replace the first.
    await stand.report(study, flags={"MASQUE_PS": "Y"})
    await until(
        lambda: [one for one in stand.kos(study) if one.entry_uuid != first.entry_uuid], what="another"
    )
    await stand.idle()
    (current,) = stand.kos(study)
    assert current.entry_uuid != first.entry_uuid
    assert len(stand.kos(study, None)) == 2
    (old,) = await world.listed("outbox", "--state", "dropped", "--study", study.study_uid)
    assert (old["id"], old["reason"]) == (number, "remplacée par une publication plus récente")
    assert not [text for text in (await stand.notices()).values() if f"outbox, ligne {number} " in text]


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_a_refused_publication_is_played_again_after_a_question(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    stand.dmp.service.patients = {"284070100499094": PatientRecord(open=False)}
    try:
        await stand.report(study)
        await stand.notice_about(study.study_uid, "E006")
    finally:
        stand.dmp.service.patients = None
    (row,) = await world.listed("outbox", "--state", "failed", "--study", study.study_uid)
    assert row["code"] == "E006"
    seen = len(stand.dmp.service.exchanges)
    await world.command("queue", "retry", "outbox", str(row["id"]))
    await stand.published_one(study)
    transactions = [one.transaction for one in list(stand.dmp.service.exchanges)[seen:]]
    assert transactions[:3] == ["TD3.1", "TD0.2", "TD2.1"]
    refused = await world.command("queue", "retry", "outbox", str(row["id"]), status=1)
    assert "déjà" in refused or "terminée" in refused


@pytest_twisted.ensureDeferred
async def test_content_is_written_to_a_private_file_and_giving_up_is_audited(
    world: World, tmp_path: Path
) -> None:
    await world.flows()
    number = world.stand.insert_message("MSH DUPONT")
    await world.parked("inbox", number)
    target = tmp_path / "message.hl7"
    await world.command("queue", "show", "inbox", str(number), "--raw", str(target))
    assert target.read_bytes() == b"MSH DUPONT"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = await world.command("queue", "show", "inbox", str(number), "--raw", str(target), status=1)
    assert "existe déjà" in again
    assert "Missing" not in again
    missing = await world.command("queue", "drop", "inbox", str(number), status=2)
    assert "--reason" in missing
    await world.command("queue", "drop", "inbox", str(number), "--reason", "message d'essai")
    (row,) = await world.listed("inbox", "--state", "dropped")
    assert (row["id"], row["reason"]) == (number, "abandonnée : message d'essai")
    assert world.stand.query("SELECT raw FROM inbox WHERE id = ?", number) == [("MSH DUPONT",)]
    assert not [
        text for text in (await world.stand.notices()).values() if f"inbox, ligne {number} " in text
    ]
    assert world.actions()[-2:] == [
        f"Contenu d'une ligne de file extrait / inbox {number}",
        f"Abandon d'une ligne de file : message d'essai / inbox {number}",
    ]
    gone = await world.command("queue", "drop", "inbox", str(number), "--reason", "encore", status=1)
    assert "déjà terminée" in gone
    assert "n'a pas de ligne" in await world.command("queue", "show", "inbox", "999999", status=1)
    assert "Aucune ligne" in await world.command("queue", "list", "feed", "--state", "in_hand")


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_a_row_in_hand_at_every_death_of_the_process_is_parked(world: World) -> None:
    """The DMP keeps silent, so the row is in hand when the process is killed, again and again."""
    stand = world.stand
    study = world.studies.new(world.pacs)
    seen = len(stand.requests)

    def asked(before: int) -> bool:
        return len(stand.requests) > before

    with stand.dmp_misbehaves(after("TD0.2", Kind.SILENT), None):
        await stand.report(study)
        for deaths in (1, 2, 3):
            await until(partial(asked, seen), seconds=60, what="a question to the DMP")
            await stand.kill_gateway()
            seen = len(stand.requests)
            ((number, failures),) = stand.query(
                "SELECT id, failures FROM outbox WHERE study_uid = ?", study.study_uid
            )
            assert failures == deaths - 1
            await stand.start_gateway()
    row = await world.parked("outbox", number)
    assert (row["failures"], row["reason"]) == (3, "processus interrompu pendant le traitement")
    await world.flows()
    await world.command("queue", "retry", "outbox", str(number))
    await stand.published_one(study)


@pytest.mark.requirement("DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_message_refused_by_the_configuration_goes_through_once_it_is_mended(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    await stand.report(study, flags={"DESTDMP": None})

    async def failed() -> Any:
        return await world.rows("inbox?state=failed")

    (row,) = await until(failed, what="E005")
    assert (row["code"], row["reason"]) == ("E005", "segment DESTDMP absent")
    text = stand.config.read_text("utf-8")
    assert text.count("[hl7]\n") == 1
    await stand.stop_gateway()
    stand.config.write_text(text.replace("[hl7]\n", '[hl7]\nmissing_destdmp = "yes"\n'), "utf-8")
    try:
        await stand.start_gateway()
        await world.command("queue", "retry", "inbox", "--all", "failed")
        await stand.published_one(study)
        assert await failed() == []
    finally:
        await stand.stop_gateway()
        stand.config.write_text(text, "utf-8")
        await stand.start_gateway()

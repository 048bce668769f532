"""Resynchronisation of archive, PACS and DMP with a real gateway process (DB.SO.28, DB.SO.88)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.threads import deferToThread

from drimbox.model import MessageAction
from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.peers import Orthanc, free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import POOL, FeedStand, after, held_instances, kos_instances
from tests.integration.resync_stand import Archive, Make, worlds
from tests.integration.waiting import pause, until

pytestmark = pytest.mark.requirement("DB.SO.28")
STATISTICS = ("STR01", "STR02", "STR03", "STR04", "STR05")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from worlds(tmp_path)


def statistics(walk: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(walk[name] for name in STATISTICS)


@pytest.mark.requirement("DB.SO.88")
@pytest_twisted.ensureDeferred
async def test_the_record_follows_everything_that_happened_in_one_pacs(make: Make) -> None:
    world = await make(pacses=2)

    same, more, less, gone = await world.publish(4, instances=3)
    (elsewhere,) = await world.publish(1, site=1)
    world.studies.new(world.pacs[0], instances=5, study_uid=more.study_uid, seed=77)
    world.drop(less, 1)
    world.drop(gone)
    world.drop(elsewhere, site=1)
    before = {study.study_uid: world.entry(study).unique_id for study in (same, more, less, elsewhere)}
    walk = await world.run("--site", "site1")
    await world.stand.idle()
    assert statistics(walk) == (4, 1, 2, 1, 3)
    assert await world.verdicts(walk["walk"]) == {
        same.study_uid: "inchangé",
        more.study_uid: "différent",
        less.study_uid: "différent",
        gone.study_uid: "absent",
    }
    assert world.stand.kos(gone) == []
    assert sum(map(len, kos_instances(world.entry(less)).values())) == 2
    assert sum(map(len, kos_instances(world.entry(more)).values())) >= 5
    # Only what differed was sent, and nothing of the other site was looked at.
    after_ = {uid: world.stand.kos(uid)[0].unique_id for uid in before}
    assert {uid for uid in before if before[uid] != after_[uid]} == {more.study_uid, less.study_uid}
    replaced = [entry for entry in world.stand.kos(more, None) if not entry.status.endswith(":Approved")]
    assert [entry.unique_id for entry in replaced] == [before[more.study_uid]]
    # Once more: nothing left to do, the removed one is not met again.
    again = await world.run("--site", "site1")
    assert statistics(again) == (3, 0, 0, 3, 3)
    assert world.administration() == [("Resynchronisation : lancement", "site1")] * 2
    _, metrics = await world.stand.admin("/metrics")
    line = 'drimbox_walk_studies_total{kind="resync",site="site1",verdict="unchanged"} 4.0'
    assert line in metrics.decode()


@pytest.mark.requirement("DB.SO.88")
@pytest_twisted.ensureDeferred
async def test_statistics_are_kept_and_exported_as_csv_without_patient(make: Make) -> None:
    world = await make(pacses=2)

    one, two = await world.publish(2)
    await world.publish(1, site=1)
    world.drop(one)
    text = await world.command("resync", "start")
    assert re.findall(r"(site\d) : passage \d lancé", text) == ["site1", "site2"]
    for number in (1, 2):
        await world.ended(number)
    text = await world.command("resync", "list", "--csv")
    rows = {row["site"]: row for row in csv.DictReader(io.StringIO(text), delimiter=";")}
    assert [rows["site1"][name] for name in STATISTICS] == ["2", "1", "0", "1", "1"]
    assert [rows["site2"][name] for name in STATISTICS] == ["1", "0", "0", "1", "1"]
    assert rows["site1"]["etat"] == "terminé"
    await world.stand.stop_gateway()
    await world.stand.start_gateway()
    number = rows["site1"]["passage"]
    (row,) = csv.DictReader(
        io.StringIO(await world.command("resync", "report", number, "--csv")), delimiter=";"
    )
    assert [row[name] for name in STATISTICS] == ["2", "1", "0", "1", "1"]
    shown = await world.command("resync", "report", number)
    assert "STR02 examens absents de l'archive d'images : 1" in shown
    studies = await world.command("resync", "studies", number)
    for text in (studies, shown, await world.command("resync", "list")):
        for secret in ("284070100499094", "P000123", "EXEMPLE", "ANONYME"):
            assert secret not in text
    assert two.study_uid in studies
    only = await world.command("resync", "studies", number, "--verdict", "gone")
    assert one.study_uid in only
    assert two.study_uid not in only


@pytest_twisted.ensureDeferred
async def test_a_dry_run_compares_and_changes_nothing(make: Make) -> None:
    world = await make()

    same, more, gone = await world.publish(3)
    world.studies.new(world.pacs[0], instances=5, study_uid=more.study_uid, seed=77)
    world.drop(gone)
    before = [len(world.stand.exchanges(kind)) for kind in ("TD2.1", "TD3.3c")]
    jobs = world.stand.query("SELECT * FROM feed_job ORDER BY id")
    walk = await world.run("--dry-run")
    assert statistics(walk) == (3, 1, 1, 1, 3)
    await world.stand.idle()
    assert [len(world.stand.exchanges(kind)) for kind in ("TD2.1", "TD3.3c")] == before
    assert world.stand.query("SELECT * FROM feed_job ORDER BY id") == jobs
    assert world.held([same, more, gone]) == 3
    assert world.administration() == [("Resynchronisation : lancement à blanc", "site1")]
    # The real one still finds everything to do.
    assert statistics(await world.run()) == (3, 1, 1, 1, 2)


@pytest_twisted.ensureDeferred
async def test_a_pacs_that_falls_silent_on_the_way_is_waited_for(make: Make) -> None:
    world = await make(resync={"rate": "20", "parallel": "1"})

    studies = await world.publish(22)
    gone = studies[-2]
    world.drop(gone)
    before = world.asked()
    number = await world.start()
    await until(lambda: world.asked() > before + 8, what="some studies asked")
    world.behave(down=True)
    reason = await world.waits(number, "injoignable")
    assert "PACS1" in reason
    assert "passage" in await world.stand.notice_about("en attente", "E003")
    assert (await world.walk(number))["STR02"] == 0
    await pause(1)
    assert (await world.walk(number))["state"] == "running"
    world.behave()
    walk = await world.ended(number)
    assert statistics(walk) == (22, 1, 0, 21, 21)
    assert [text for text in (await world.stand.notices()).values() if "passage" in text] == []


@pytest.mark.parametrize(
    "refusal", [{"reject": (1, 1, 7)}, {"find_status": 0xA700}, {"echo_status": 0x0122}, {"find": "abort"}]
)
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_refuses_makes_nothing_disappear(make: Make, refusal: dict[str, Any]) -> None:
    world = await make()

    studies = await world.publish(3)
    world.behave(**refusal)
    number = await world.start()
    if "echo_status" in refusal or "reject" in refusal:
        await world.waits(number, "injoignable")
        assert (await world.walk(number))["walked"] == 0
        await world.command("resync", "stop")
    else:
        # It answers C-ECHO: what it will not say is noted, and stays as it is.
        walk = await world.ended(number)
        assert statistics(walk) == (3, 0, 0, 0, 3)
        assert walk["silent"] == 3
    assert world.held(studies) == 3
    world.behave()
    assert statistics(await world.run()) == (3, 0, 0, 3, 3)


@pytest.mark.parametrize("moment", ["from the start", "half way", "with a control study"])
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_answers_nothing_to_everything_empties_nothing(make: Make, moment: str) -> None:
    """The worst of links: C-ECHO is well, and every C-FIND ends in success without a match."""
    control = {"resync": '{ control_study = "2.25.4242" }'} if moment == "with a control study" else {}
    world = await make(resync={"rate": "20", "parallel": "1"}, sites=[control])

    studies = await world.publish(22 if moment == "half way" else 8)
    total = len(studies)
    held = world.pacs[0].index.entries()
    if moment != "half way":
        world.pacs[0].index.clear()
    before = world.asked()
    number = await world.start()
    if moment == "half way":
        await until(lambda: world.asked() > before + 8, what="some studies asked")
        world.pacs[0].index.clear()
    if moment == "from the start":
        # No study was ever seen there: who could tell?
        walk = await world.ended(number, "suspended")
        assert "aucun examen témoin" in walk["waiting"]
        assert walk["STR02"] == total
        assert "Rien n'a été retiré" in await world.stand.notice_about("suspendu", "RESYNC")
    else:
        await world.waits(number, "sans l'examen témoin")
        assert (await world.walk(number))["STR02"] == 0
    assert world.held(studies) == total
    assert world.stand.exchanges("TD3.3c") == []
    for entry in held:
        world.pacs[0].index.add(entry.path)
    if moment == "half way":
        assert statistics(await world.ended(number)) == (total, 0, 0, total, total)
    else:
        await world.command("resync", "abandon", str(number))
        assert await world.stand.notices() == {}
    assert world.held(studies) == total


@pytest_twisted.ensureDeferred
async def test_too_many_absent_are_withdrawn_only_once_confirmed(make: Make) -> None:
    world = await make(resync={"max_removed": "2", "max_removed_share": "0.25"})

    studies = await world.publish(8)
    for study in studies[2:5]:
        world.drop(study)
    number = await world.start()
    walk = await world.ended(number, "suspended")
    assert statistics(walk) == (8, 3, 0, 5, None)
    assert "3 examens absents sur 8" in walk["waiting"]
    assert "suspendu" in await world.stand.notice_about("drimbox resync confirm", "RESYNC")
    assert world.held(studies) == 8
    refusal = await world.command("resync", "start", fails=True)
    assert f"le passage {number} (resynchronisation) est suspendu" in refusal
    # A restart releases nothing.
    await world.stand.stop_gateway()
    await world.stand.start_gateway()
    assert (await world.walk(number))["state"] == "suspended"
    # One is back meanwhile: each is asked about once more.
    world.pacs[0].load(studies[3])
    await world.command("resync", "confirm", str(number))
    walk = await world.ended(number)
    assert statistics(walk) == (8, 2, 0, 6, 6)
    assert [study for study in studies if not world.stand.kos(study)] == [studies[2], studies[4]]
    assert world.administration()[-1] == (
        "Resynchronisation : retraits confirmés",
        f"site1, passage {number}",
    )
    assert await world.stand.notices() == {}
    assert "rien à confirmer" in await world.command("resync", "confirm", str(number), fails=True)


@pytest_twisted.ensureDeferred
async def test_removals_wait_while_the_link_came_into_doubt_after_the_walk(make: Make) -> None:
    world = await make(resync={"max_removed_share": "0.1", "max_removed": "0"})

    studies = await world.publish(6)
    world.drop(studies[0])
    number = await world.start()
    await world.ended(number, "suspended")
    held = world.pacs[0].index.entries()
    world.pacs[0].index.clear()
    await world.command("resync", "confirm", str(number))
    await world.waits(number, "sans l'examen témoin")
    await pause(1)
    assert world.held(studies) == 6
    for entry in held:
        world.pacs[0].index.add(entry.path)
    walk = await world.ended(number)
    assert statistics(walk) == (6, 1, 0, 5, 5)


@pytest.mark.parametrize("end", ["kill", "stop the process", "stop the walk"])
@pytest_twisted.ensureDeferred
async def test_a_walk_goes_on_exactly_where_it_was(make: Make, end: str) -> None:
    world = await make(resync={"rate": "20", "parallel": "2"})

    total = 44
    studies = await world.publish(total)
    for study in studies[10:13]:
        world.drop(study)
    for study in studies[20:23]:
        world.drop(study, 1)
    published = len(world.stand.exchanges())
    before = world.asked()
    number = await world.start()
    await until(lambda: world.stand.query("SELECT 1 FROM walk WHERE position <> ''"), what="a page kept")
    if end == "kill":
        await world.stand.kill_gateway()
        await world.stand.start_gateway()
    elif end == "stop the process":
        await world.stand.stop_gateway()
        await world.stand.start_gateway()
    else:
        await world.command("resync", "stop")
        stopped = await world.walk(number)
        assert stopped["state"] == "stopped"
        await pause(1)
        assert (await world.walk(number))["walked"] <= stopped["walked"] + 20
        refusal = await world.command("resync", "start", "--dry-run", fails=True)
        assert "arrêté" in refusal
        assert "repris" in await world.command("resync", "start")
    walk = await world.ended(number)
    assert statistics(walk) == (total, 3, 3, total - 6, total - 3)
    await world.stand.idle()
    assert world.held(studies) == total - 3
    # Each difference was sent once, and nothing was asked all over again: at most one page twice.
    assert len(world.stand.exchanges()) == published + 3
    asked = world.asked() - before
    assert asked < total + 20 + 20
    assert len(await world.verdicts(number)) == total


@pytest_twisted.ensureDeferred
async def test_a_walk_works_only_at_its_hours_and_goes_on_at_the_next(make: Make) -> None:
    now = datetime.now(UTC).astimezone()
    begin, end = now + timedelta(hours=2), now + timedelta(hours=3)
    shut = f'["{begin:%H:%M}-{end:%H:%M}"]'
    around = f'["{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"]'
    world = await make(resync={"hours": shut})

    studies = await world.publish(2)
    before = world.asked("find", "echo")
    number = await world.start()
    assert "hors des heures" in await world.waits(number, "heures")
    assert "hors des heures" in await world.command("resync", "status")
    await pause(1)
    assert world.asked("find", "echo") == before
    assert (await world.walk(number))["walked"] == 0
    await world.reconfigure(resync={"hours": around})
    assert statistics(await world.ended(number)) == (2, 0, 0, 2, 2)
    assert world.held(studies) == 2


@pytest_twisted.ensureDeferred
async def test_a_silent_dmp_holds_the_end_of_the_walk_not_its_work(make: Make) -> None:
    world = await make()

    one, two = await world.publish(2)
    world.drop(one, 1)
    with world.stand.dmp_misbehaves(after("TD2.1", Kind.HTTP, status=503), times=None):
        number = await world.start()
        await world.waits(number, "envoi au DMP")
        assert statistics(await world.walk(number)) == (2, 0, 1, 1, None)
    assert statistics(await world.ended(number)) == (2, 0, 1, 1, 2)
    assert world.held([one, two]) == 2
    assert sum(map(len, kos_instances(world.entry(one)).values())) == 1


@pytest.mark.requirement("DB.SO.97")
@pytest_twisted.ensureDeferred
async def test_what_no_report_speaks_for_any_more_is_withdrawn_by_the_walk(
    make: Make,
) -> None:
    world = await make()

    (study,) = await world.publish(1)
    refusal = Behaviour(Kind.ERROR, transaction="TD3.3c", code="XDSMetadataUpdateError")
    with world.stand.dmp_misbehaves(refusal):
        document = {"document_id": "2.999.7.1", "set_id": "2.999.7.1"}
        await world.stand.report(study, report=document, action=MessageAction.DELETE)
        await world.stand.notice_about("retrait", "E007")
    assert world.held([study]) == 1
    walk = await world.run()
    assert (walk["retracted"], *statistics(walk)) == (1, 1, 0, 0, 0, 0)
    assert world.held([study]) == 0


@pytest.mark.peer("Orthanc")
@pytest_twisted.ensureDeferred
async def test_a_real_pacs_is_followed(tmp_path: Path) -> None:
    port = free_port()
    destinations = dict.fromkeys(POOL, (LOOPBACK, port))
    peer = Orthanc(tmp_path / "peer", "PACS", modalities=destinations, clients=["DRIMBOX"])
    await deferToThread(peer.start)
    world = Archive(tmp_path, resync={"max_removed_share": "1"})
    world.stand = FeedStand(
        tmp_path / "stand",
        [PacsAddress("PACS", peer.port, POOL, settings={"query_timeout": "10"})],
        dicom_port=port,
        extra={"resync": {"rate": "50"}},
    )

    async def new(**options: Any) -> GeneratedStudy:
        study = world.studies.new(transfer_syntax=ExplicitVRLittleEndian, **options)
        await deferToThread(peer.load, study.files)
        return study

    try:
        await world.up()
        same, more, gone = [await new(instances=3) for _ in range(3)]
        for study in (same, more, gone):
            await world.stand.report(study)
            await world.stand.published_one(study)
        added = await new(instances=5, study_uid=more.study_uid)
        found: Any = await deferToThread(
            peer.rest,
            "POST",
            "/tools/find",
            {"Level": "Study", "Query": {"StudyInstanceUID": gone.study_uid}},
        )
        await deferToThread(peer.rest, "DELETE", f"/studies/{found[0]}")
        walk = await world.run()
        assert statistics(walk) == (3, 1, 1, 1, 2)
        assert world.stand.kos(gone) == []
        assert kos_instances(world.entry(added)) == held_instances(added)
        # Stopped like a machine whose plug was pulled.
        peer.pause()
        number = await world.start()
        await world.waits(number, "injoignable")
        peer.resume()
        assert statistics(await world.ended(number)) == (2, 0, 0, 2, 2)
    finally:
        peer.resume()
        await world.down()
        await deferToThread(peer.stop)

"""Change of the access address: every KOS of the site is published anew, without its PACS (DB.SO.31)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from drimbox.kos.reading import read_manifest
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import held_instances, kos_instances
from tests.integration.resync_stand import Archive, Make, worlds
from tests.integration.waiting import until

pytestmark = pytest.mark.requirement("DB.SO.31")
OTHER = {"prefixes": '["wado-rs", "dicom-web-rs"]'}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from worlds(tmp_path)


def base(world: Archive, study: GeneratedStudy) -> str:
    """What stands before `/studies/` in the one KOS of a study that the DMP holds."""
    series = read_manifest(world.entry(study).document).series
    (found,) = {one.retrieve_url.partition("/studies/")[0] for one in series}
    return found


@pytest_twisted.ensureDeferred
async def test_every_kos_is_published_anew_while_the_pacs_is_away(make: Make) -> None:
    world = await make(pacses=2)
    studies = await world.publish(3, instances=3)
    (elsewhere,) = await world.publish(1, site=1)
    before = {study.study_uid: world.entry(study).unique_id for study in (*studies, elsewhere)}
    old = base(world, studies[0])
    assert "aucun passage" in await world.command("url-change", "status")
    await world.reconfigure(wado=OTHER)
    new = old.replace("dicom-web-rs", "wado-rs")
    # Images came meanwhile, and the PACS left: neither counts here.
    world.studies.new(world.pacs[0], instances=5, study_uid=studies[0].study_uid, seed=77)
    world.behave(down=True)
    walk = await world.run("--site", "site1", "--dry-run", command="url-change")
    assert (walk["STR01"], walk["STR03"]) == (3, 3)
    assert {base(world, study) for study in studies} == {old}
    assert "encore une autre adresse : 3" in await world.command("url-change", "status")
    asked = world.asked("find", "echo")
    walk = await world.run("--site", "site1", command="url-change")
    assert (walk["STR01"], walk["STR03"], walk["STR04"], walk["STR05"]) == (3, 3, 0, 3)
    assert {base(world, study) for study in studies} == {new}
    for study in studies:
        assert kos_instances(world.entry(study)) == held_instances(study)
        (replaced,) = [one for one in world.stand.kos(study, None) if one.status.endswith(":Deprecated")]
        assert replaced.unique_id == before[study.study_uid]
    assert world.asked("find", "echo") == asked
    # One site only.
    assert base(world, elsewhere) == old.replace("db1", "db2")
    status = await world.command("url-change", "status")
    assert f"site1 : {new}" in status
    assert "encore une autre adresse : 0" in status
    # Again: nothing is published twice.
    sent = len(world.stand.exchanges())
    walk = await world.run("--site", "site1", command="url-change")
    assert (walk["STR03"], walk["STR04"]) == (0, 3)
    assert len(world.stand.exchanges()) == sent
    assert world.administration() == [
        ("Changement d'adresse d'accès : lancement à blanc", "site1"),
        ("Changement d'adresse d'accès : lancement", "site1"),
        ("Changement d'adresse d'accès : lancement", "site1"),
    ]
    # What came to the PACS is found by the next resynchronisation, not lost.
    world.behave()
    walk = await world.run("--site", "site1")
    assert (walk["STR03"], walk["STR04"]) == (1, 2)


@pytest_twisted.ensureDeferred
async def test_a_killed_change_of_address_goes_on_and_one_to_yet_another_is_begun_anew(make: Make) -> None:
    world = await make(resync={"rate": "10"})
    studies = await world.publish(23)
    old = base(world, studies[0])
    await world.reconfigure(wado=OTHER)
    sent = len(world.stand.exchanges())
    number = await world.start(command="url-change")
    await until(lambda: world.stand.query("SELECT 1 FROM walk WHERE position <> ''"), what="a page kept")
    await world.stand.kill_gateway()
    await world.stand.start_gateway()
    walk = await world.ended(number)
    assert walk["STR03"] == 23
    assert {base(world, study) for study in studies} == {old.replace("dicom-web-rs", "wado-rs")}
    assert len(world.stand.exchanges()) == sent + 23
    # The address changes again in the middle: what was judged before counts no more.
    await world.reconfigure(wado={"prefixes": '["dicom-web-rs"]'})
    number = await world.start(command="url-change")
    await until(lambda: world.stand.query("SELECT 1 FROM walk WHERE id = ?", number), what="a walk")
    await world.reconfigure(wado=OTHER)
    assert (await world.walk(number))["state"] == "abandoned"
    assert "adresse a changé" in await world.stand.notice_about("abandonné", "RESYNC")
    assert "depuis ce passage" in await world.command("url-change", "status")
    await world.run(command="url-change")
    await world.stand.idle()
    assert {base(world, study) for study in studies} == {old.replace("dicom-web-rs", "wado-rs")}
    assert world.held(studies) == 23

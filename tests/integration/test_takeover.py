"""A DRIMbox replaced by another one at another address: its archive is loaded, then its KOS changed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom
import pytest
import pytest_twisted

from drimbox.conformance.archive import validate_archive
from drimbox.kos.reading import read_manifest
from drimbox.sim.behaviour import Kind
from drimbox.sim.dmp_registry import Entry
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.study_objects import add_key_objects
from tests.integration.feed_stand import after, held_instances, kos_instances
from tests.integration.resync_stand import Archive, Make, worlds
from tests.integration.waiting import until

pytestmark = pytest.mark.requirement("DB.SO.30", "DB.SO.31", "DB.SO.29")
#: The other box: its address, what it calls itself in its KOS, and in its VIHF.
NEW_BOX = {
    "wado": {"prefixes": '["wado-rs", "dicom-web-rs"]'},
    "drimbox": {"manufacturer": '"AUTRE"', "serial_number": '"SIM-2"'},
}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from worlds(tmp_path)


def url_base(entry: Entry) -> str:
    (found,) = {one.retrieve_url.partition("/studies/")[0] for one in read_manifest(entry.document).series}
    return found


def maker(entry: Entry) -> str:
    return str(pydicom.dcmread(io.BytesIO(entry.document)).Manufacturer)


async def replaced_box(world: Archive, medium: Path, month_of: Sequence[GeneratedStudy]) -> None:
    """Export the archive of the running box, and put an empty one at another address in its place."""
    medium.mkdir()
    said = await world.command("archive", "export", "--to", str(medium), "--json")
    (file,) = json.loads(said)["result"]["files"]
    assert file["sets"] == len(month_of)
    (path,) = medium.iterdir()
    report = validate_archive(path)
    assert report.ok, report.lines()
    await world.stand.stop_gateway()
    shutil.move(world.stand.folder / "state", world.stand.folder / "replaced-box")
    await world.reconfigure(**NEW_BOX)


@pytest_twisted.ensureDeferred
async def test_an_archive_that_was_loaded_is_published_at_the_new_address_each_once(
    make: Make, tmp_path: Path
) -> None:
    world = await make(resync={"rate": "10"})
    stand = world.stand
    studies = await world.publish(8)
    before = {study.study_uid: world.entry(study) for study in studies}
    old = url_base(before[studies[0].study_uid])
    await replaced_box(world, tmp_path / "medium", studies)
    sent, exchanged = len(stand.requests), len(stand.exchanges())
    said = json.loads(
        await world.command("archive", "import", "--site", "site1", str(tmp_path / "medium"), "--json")
    )
    assert said["result"]["counts"]["charge"] == 8
    # Nothing is said to the DMP by loading, and Consumers go on with the KOS they have.
    assert (len(stand.requests), await stand.waiting()) == (sent, 0)
    served = await stand.fetch(
        studies[0].study_uid, studies[0].series[0].series_uid, before[studies[0].study_uid].unique_id
    )
    assert served.status == 200

    assert "KOS non vérifiés" in await world.command("url-change", "status")
    world.behave(down=True)
    # One answer of the DMP is lost, and the box is killed on the way.
    with stand.dmp_misbehaves(after("TD2.1", Kind.CUT_AFTER)):
        number = await world.start("--site", "site1", command="url-change")
        await until(lambda: len(stand.exchanges()) > exchanged + 2, what="some published anew")
        await stand.kill_gateway()
    await stand.start_gateway()
    walk = await world.ended(number)
    await stand.idle()
    assert (walk["STR01"], walk["STR04"]) == (8, 0)
    new = old.replace("dicom-web-rs", "wado-rs")
    for study in studies:
        entry, former = world.entry(study), before[study.study_uid]
        assert (url_base(entry), maker(entry)) == (new, "AUTRE")
        assert kos_instances(entry) == held_instances(study)
        # One replacement of the other box's very entry, and nothing else: never two.
        assert [each.unique_id for each in stand.kos(study, None)] == [former.unique_id, entry.unique_id]
        assert stand.dmp.service.registry.entries[former.entry_uuid].status.endswith(":Deprecated")
    rows = stand.query("SELECT state, count(*) FROM kos GROUP BY state ORDER BY state")
    assert rows == [("published", 8), ("replaced", 8)]
    # Whoever speaks to the DMP since then is the new box.
    assert all(
        b"SIM-2" in request.body and b"SIM-1" not in request.body for request in stand.requests[sent:]
    )

    # Nothing is left to do: neither by address, nor held against the PACS.
    world.behave()
    published = len(stand.exchanges())
    assert "encore une autre adresse : 0" in await world.command("url-change", "status")
    for command in ("url-change", "resync"):
        walk = await world.run("--site", "site1", command=command)
        assert (walk["STR01"], walk["STR03"], walk["STR04"]) == (8, 0, 8), command
    assert len(stand.exchanges()) == published


@pytest_twisted.ensureDeferred
async def test_rejection_notes_that_the_other_box_listed_leave_the_kos_once(
    make: Make, tmp_path: Path
) -> None:
    world = await make(sites=[{"list_rejection_notes": "true"}])
    stand = world.stand
    (study,) = await world.publish(1)
    noted = add_key_objects(study, title="113001", targets=study.instances[:1])
    world.pacs[0].load(noted.instances[-1].path)
    await stand.report(study)
    await until(
        lambda: world.entry(study).document and stand.kos(study, "Deprecated"), what="a replacement"
    )
    await stand.idle()
    assert kos_instances(world.entry(study)) == held_instances(noted)
    stand._site_keys = []
    await replaced_box(world, tmp_path / "medium", [study])
    await world.command("archive", "import", "--site", "site1", str(tmp_path / "medium"))
    # The change of address asks no PACS: what the key object is, nobody told this box yet.
    await world.run(command="url-change")
    await stand.idle()
    assert kos_instances(world.entry(study)) == held_instances(noted)
    # The resynchronisation finds out, and does it once.
    for changed in (1, 0):
        walk = await world.run("--site", "site1")
        await stand.idle()
        assert walk["STR03"] == changed
        assert kos_instances(world.entry(study)) == held_instances(study)

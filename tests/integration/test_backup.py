"""A gateway at work is backed up, lost and restored: the record has each manifest once (DB.SO.24)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from drimbox.sim.behaviour import Kind
from tests.integration.feed_stand import OnePacs, after, one_pacs
from tests.integration.operator import drimbox
from tests.integration.waiting import until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[OnePacs]:
    waits = {"dmp": {"retry_first": "0.2", "retry_max": "0.5"}}
    with one_pacs(tmp_path / "stand", extra=waits) as world:
        yield world


@pytest.mark.requirement("DB.SO.24")
@pytest_twisted.ensureDeferred
async def test_a_backup_of_a_gateway_at_work_brings_it_back(world: OnePacs, tmp_path: Path) -> None:
    stand, backups = world.stand, tmp_path / "backups"
    backups.mkdir()
    old = [world.studies.new(world.pacs) for _ in range(3)]
    for study in old:
        await stand.report(study)
        await stand.published_one(study)
    await stand.idle()
    waiting, later = world.studies.new(world.pacs), world.studies.new(world.pacs)
    with stand.dmp_misbehaves(after("TD0.2", Kind.HTTP, status=503), None):
        await stand.report(waiting)
        put_off = "SELECT 1 FROM outbox WHERE study_uid = ? AND last_error IS NOT NULL"
        await until(lambda: stand.query(put_off, waiting.study_uid), what="a publication put off")
        made = await drimbox(stand.config, "backup", str(backups))
    assert made.returncode == 0, made.stderr
    # The gateway works on: what waited leaves, something new comes. Then the machine is lost.
    first = await stand.published_one(waiting)
    await stand.report(later)
    await stand.published_one(later)
    await stand.kill_gateway()
    shutil.rmtree(stand.folder / "state")
    (stand.folder / "state").mkdir(mode=0o700)
    sent = len(stand.exchanges())

    (backup,) = backups.iterdir()
    restored = await drimbox(stand.config, "restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    await stand.start_gateway()
    await stand.idle()
    # Asked first: the DMP has it, so it is not sent again, and the archive knows it as published.
    assert len(stand.exchanges()) == sent
    assert [entry.unique_id for entry in stand.kos(waiting, None)] == [first.unique_id]
    states = dict(stand.query("SELECT study_uid, state FROM kos"))
    assert states == {study.study_uid: "published" for study in (*old, waiting)}
    assert "resync" in await stand.notice_about("sauvegarde", "RESTAURATION")

    # The RIS sends again what came after the backup, as the notice says: work goes on as ever.
    for study in (waiting, old[0]):
        await stand.report(study)
    fresh = world.studies.new(world.pacs)
    await stand.report(fresh)
    await stand.published_one(fresh)
    await stand.idle()
    assert len(stand.kos(waiting, None)) == 1
    whole = await drimbox(stand.config, "audit", "verify")
    assert whole.returncode == 0, whole.stderr

"""Backups in a process of their own: followed, refused, given up in time, ended with the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.backup import running
from drimbox.backup.running import BackupRuns
from drimbox.clock import SystemClock
from drimbox.config import BackupSettings
from drimbox.configfile import load
from drimbox.source.jobs import Job
from tests.integration.waiting import until
from tests.operator_files import good_config

pytestmark = pytest.mark.requirement("DB.SO.24")


class Runs(BackupRuns):
    """Backups whose command is a script of ours."""

    def __init__(self, folder: Path, script: str, patch: pytest.MonkeyPatch, timeout: float) -> None:
        path = good_config(folder)
        config = attrs.evolve(load(path), backup=BackupSettings(timeout=timeout))
        program = folder / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        patch.setattr(running.sys, "executable", str(program))
        super().__init__(config, path, reactor, SystemClock(), deferToThread)

    def begin(self) -> Job:
        return self.jobs.start("backup", lambda progress: self.make(progress, Path("/srv"), [], None))

    async def ended(self, job: Job) -> Job:
        await until(lambda: not job.running, seconds=60, what="the end of the work")
        return job


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, timeout: float = 60.0) -> Runs:
    return Runs(tmp_path, script, monkeypatch, timeout)


@pytest_twisted.ensureDeferred
async def test_its_stages_are_followed_and_the_stop_of_the_gateway_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = made(tmp_path, monkeypatch, "echo 'stage 0' >&2; echo 'stage 2' >&2; exec sleep 600")
    job = runs.begin()
    await until(lambda: job.progress.stage == "relecture", what="the stage")
    assert (job.progress.done, job.progress.total, job.running) == (2, 4, True)
    await runs.stop()
    assert not job.running
    assert "interrompu par l'arrêt" in job.error


@pytest_twisted.ensureDeferred
async def test_one_that_does_not_hear_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_GRACE", 0.1)
    runs = made(tmp_path, monkeypatch, "trap '' TERM; echo 'stage 1' >&2; while :; do sleep 0.1; done")
    job = runs.begin()
    await until(lambda: job.progress.stage == "écriture", what="the stage")
    await runs.stop()
    assert "interrompu par l'arrêt" in job.error


@pytest_twisted.ensureDeferred
async def test_one_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = made(tmp_path, monkeypatch, "exec sleep 600", timeout=0.2)
    job = await runs.ended(runs.begin())
    assert "abandonnée après" in job.error


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'stage 0' >&2; echo 'Erreur : place insuffisante' >&2; exit 1", "place insuffisante"),
        ("kill -9 $$", "s'est interrompu"),
        ("echo '{'", "erreur interne"),
        ("head -c 300000 /dev/zero >&2; echo >&2; echo 'Erreur : fin' >&2; exit 1", "fin"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_its_failure_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    runs = made(tmp_path, monkeypatch, script)
    job = await runs.ended(runs.begin())
    assert (words in job.error, job.result) == (True, None), job.error


@pytest_twisted.ensureDeferred
async def test_a_gateway_without_a_file_makes_none(tmp_path: Path) -> None:
    runs = BackupRuns(load(good_config(tmp_path)), None, reactor, SystemClock(), deferToThread)
    job: Any = runs.jobs.start("backup", lambda progress: runs.make(progress, tmp_path, [], None))
    await until(lambda: not job.running, what="the end of the work")
    assert "aucun fichier de configuration" in job.error
    await Deferred.fromCoroutine(runs.stop())

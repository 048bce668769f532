"""`drimbox backup` and `drimbox restore`, as an administrator runs them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from twisted.internet import reactor

from drimbox import backupfiles
from drimbox.backup import making
from drimbox.backup.container import BackupUnusable
from drimbox.cli import cli
from drimbox.commands import backups
from drimbox.store.database import Database
from drimbox.store.errors import StoreUnfinished
from drimbox.store.unfinished import Mark
from tests.integration.waiting import wait
from tests.operator_files import good_config, write_private
from tests.store.conftest import stores_of
from tests.store.samples import TestClock, said, submission

pytestmark = pytest.mark.requirement("DB.SO.24")


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


class Machine:
    """A machine with a configuration and a store that holds a publication which waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.config = good_config(folder, state_dir=f'"{folder / "state"}"')
        self.state = folder / "state"
        self.database = self.state / "drimbox.db"
        self.backups = folder.parent / "backups"
        self.backups.mkdir(exist_ok=True)

    async def fill(self) -> None:
        clock = TestClock()
        database = Database(f"sqlite:///{self.database}", reactor=reactor)
        await database.open()
        stores = stores_of(database, clock)
        message = await stores.inbox.add(ris="ris", peer="10.0.0.1", control_id="1", raw=b"MSH|")
        await stores.inbox.take(clock.now(), 1)
        await stores.inbox.processed(message, result="feed", said=said("2.25.1"))
        (job,) = await stores.jobs.take(clock.now(), 1)
        await stores.jobs.queue_publication(
            job.id, site="radio", submission=submission(), metadata=b"<m/>", fingerprint="f"
        )
        await stores.outbox.take(clock.now(), 1)
        await database.close()

    def backup(self, *options: str, code: int = 0) -> Result:
        return run("backup", self.backups, "--config", self.config, *options, code=code)

    @property
    def newest(self) -> Path:
        return max(self.backups.glob("drimbox-*"), key=lambda path: path.stat().st_mtime_ns)

    def gone(self) -> None:
        """The machine is lost; the folder of the same name that comes next is empty."""
        shutil.rmtree(self.folder)
        self.state.mkdir(parents=True, mode=0o700)


def query(database: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        return store.execute(text).fetchall()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "machine")
    wait(made.fill())
    return made


def test_a_lost_machine_is_restored_without_its_secrets(machine: Machine) -> None:
    said_ = machine.backup().output
    assert "vérifiée" in said_
    assert "1 KOS" in said_
    kept = query(machine.database, "SELECT sop_instance_uid, data, metadata FROM kos")
    machine.gone()
    done = run("restore", machine.newest, "--config", machine.config, "--state-dir", machine.state)
    assert query(machine.database, "SELECT sop_instance_uid, data, metadata FROM kos") == kept
    assert machine.database.stat().st_mode & 0o777 == 0o600
    # What waited may have left since: the DMP is asked first, and nobody has it in hand.
    assert query(machine.database, "SELECT outcome_unknown, holder FROM outbox") == [(1, None)]
    assert "en attente : 1" in done.output
    assert "Clés et secrets ne sont pas dans" in done.output
    ((text,),) = query(machine.database, "SELECT text FROM notice WHERE key = 'restauration'")
    assert "resync" in text
    assert machine.config.exists()
    assert (machine.folder / "db1.pem").exists()
    assert not (machine.folder / "db1.key").exists()
    assert not (machine.folder / "secret").exists()
    # The trail has both, and is whole.
    found = run("audit", "search", "--event", "administration", "--config", machine.config)
    assert "Restauration de la sauvegarde" in found.output
    assert "Chaîne intacte" in run("audit", "verify", "--config", machine.config).output
    assert list(machine.state.glob("restauration-*")) == []


def test_the_backup_itself_is_in_the_trail(machine: Machine) -> None:
    machine.backup()
    found = run("audit", "search", "--event", "administration", "--config", machine.config)
    assert f"Sauvegarde ({machine.newest.name})" in found.output


@pytest.mark.requirement("DB.CS.10")
def test_no_backup_leaves_that_is_not_in_the_trail(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it is written to the medium, or unable to write to the trail."""

    def killed(*_: object) -> None:
        raise BackupUnusable("arrêt brutal")

    with monkeypatch.context() as patch:
        patch.setattr(making, "_deliver", killed)
        machine.backup(code=1)
    found = run("audit", "search", "--event", "administration", "--config", machine.config)
    assert f"Sauvegarde ({backupfiles.PREFIX}" in found.output
    monkeypatch.setattr(backups, "_audit", killed)
    before = list(machine.backups.iterdir())
    machine.backup(code=1)
    assert list(machine.backups.iterdir()) == before


@pytest.mark.peer("age")
def test_an_encrypted_backup_holds_the_secrets_and_opens_with_age_itself(
    machine: Machine, tmp_path: Path
) -> None:
    key = run("backup-key").output
    identity = tmp_path / "identity"
    write_private(identity, key.encode())
    public = key.splitlines()[0].rpartition(" ")[2]
    secret = (machine.folder / "secret").read_bytes()
    machine.backup("--recipient", public)
    sealed = machine.newest
    assert secret not in sealed.read_bytes()
    # The program of that name opens it without us, with a key that it could have made.
    plain = tmp_path / "plain.tar.gz"
    subprocess.run(["age", "-d", "-i", identity, "-o", plain, sealed], check=True, timeout=60)
    listed = subprocess.run(["tar", "tzf", plain], check=True, capture_output=True, text=True, timeout=60)
    assert "drimbox.db" in listed.stdout.split()
    assert "chiffrée" in run("restore", sealed, "--check", code=1).output
    other = tmp_path / "other"
    write_private(other, run("backup-key").output.encode())
    assert "autre clé" in run("restore", sealed, "--check", "--identity", other, code=1).output
    run("restore", sealed, "--check", "--identity", identity)
    machine.gone()
    where = ("--config", machine.config, "--state-dir", machine.state)
    run("restore", sealed, "--identity", identity, *where)
    assert (machine.folder / "secret").read_bytes() == secret
    assert (machine.folder / "secret").stat().st_mode & 0o077 == 0
    run("check-config", "--config", machine.config)


def test_nothing_is_overwritten(machine: Machine) -> None:
    machine.backup()
    before = machine.database.read_bytes()
    refused = run("restore", machine.newest, "--config", machine.config, code=1)
    assert "contient déjà une base" in refused.output
    assert machine.database.read_bytes() == before
    for path in machine.state.glob("drimbox.db*"):
        path.unlink()
    machine.config.write_text(machine.config.read_text() + "\n# à moi\n")
    done = run("restore", machine.newest, "--config", machine.config)
    assert machine.config.read_text().endswith("# à moi\n")
    assert "Mis de côté" in done.output
    assert (machine.folder / "restauration" / "configuration.toml").exists()


def test_the_store_goes_where_the_restored_configuration_looks_for_it(
    machine: Machine, tmp_path: Path
) -> None:
    machine.backup()
    path = machine.newest
    machine.gone()
    other = tmp_path / "other"
    refused = run("restore", path, "--config", machine.config, "--state-dir", other, code=1)
    assert f"{other} n'existe pas" in refused.output
    other.mkdir()
    refused = run("restore", path, "--config", machine.config, "--state-dir", other, code=1)
    assert f"relancer avec --state-dir {machine.state}" in refused.output
    assert list(other.iterdir()) == []
    assert not machine.config.exists()


def test_a_relative_folder_of_the_store_is_below_the_new_configuration(machine: Machine) -> None:
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.state}"', '"state"'))
    machine.backup()
    path = machine.newest
    machine.gone()
    run("restore", path, "--config", machine.config, "--state-dir", machine.state)
    assert machine.database.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_service_can_read_what_root_restores_in_folders_below(machine: Machine) -> None:
    (machine.folder / "certs").mkdir()
    for name in ("db1.pem", "db1.key"):
        text = machine.config.read_text().replace(f'"{name}"', f'"certs/{name}"')
        machine.config.write_text(text)
        (machine.folder / name).rename(machine.folder / "certs" / name)
    machine.backup()
    path = machine.newest
    machine.gone()
    os.chown(machine.folder, 0, 12345)
    run("restore", path, "--config", machine.config, "--state-dir", machine.state)
    for restored, mode in (
        (machine.folder / "certs", 0o750),
        (machine.folder / "certs" / "db1.pem", 0o640),
    ):
        about = restored.stat()
        assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (0, 12345, mode)


def test_a_damaged_backup_restores_nothing(machine: Machine) -> None:
    machine.backup()
    data = bytearray(machine.newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    machine.newest.write_bytes(data)
    path = machine.newest
    machine.gone()
    where = ("--config", machine.config, "--state-dir", machine.state)
    run("restore", path, *where, code=1)
    assert list(machine.state.iterdir()) == []
    assert not machine.config.exists()


def test_a_damaged_store_makes_no_backup(machine: Machine) -> None:
    data = bytearray(machine.database.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
    machine.database.write_bytes(data)
    machine.backup(code=1)
    assert list(machine.backups.iterdir()) == []
    assert list(machine.state.glob("sauvegarde-*")) == []


def test_only_the_newest_are_kept_and_others_files_never_go(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = machine.backups / "drimbox-999-20200101T000000Z.tar.gz"
    other.touch()
    names = []
    for day in (1, 2, 3):

        class Now(making.datetime):  # type: ignore[name-defined, misc]
            @classmethod
            def now(cls, zone: Any = None) -> Any:
                return cls(2026, 1, day, tzinfo=zone)  # noqa: B023

        monkeypatch.setattr(making, "datetime", Now)
        found = json.loads(machine.backup("--keep", "2", "--json").output)
        names.append(Path(found["file"]).name)
    assert {path.name for path in machine.backups.iterdir()} == {other.name, *names[1:]}


def test_without_room_nothing_is_begun(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(machine.state)._replace(free=10)
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: full)
    assert "place insuffisante" in machine.backup(code=1).output
    assert list(machine.backups.iterdir()) == []
    # What an upgrade has left beside the store is not copied, and takes no room.
    with machine.database.with_name("drimbox.db.0001-20260101T000000Z.bak").open("wb") as left:
        left.truncate(10 * machine.database.stat().st_size)
    enough = full._replace(free=4 * machine.database.stat().st_size)
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: enough)
    machine.backup()


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(machine.backups))

    monkeypatch.setattr(os, "fsync", broken)
    assert "disque plein" in machine.backup(code=1).output
    assert list(machine.backups.iterdir()) == []


def test_a_public_key_that_is_none_is_said(machine: Machine) -> None:
    assert "clé publique illisible" in machine.backup("--recipient", "age1xyz", code=1).output


def test_a_link_does_not_lead_out_of_the_configuration(machine: Machine, tmp_path: Path) -> None:
    nested = machine.folder / "certs"
    nested.mkdir()
    (machine.folder / "roots.pem").rename(nested / "roots.pem")
    text = machine.config.read_text().replace('"roots.pem"', '"certs/roots.pem"')
    machine.config.write_text(text)
    machine.backup()
    machine.gone()
    outside = tmp_path / "outside"
    outside.mkdir()
    nested.symlink_to(outside)
    done = run("restore", machine.newest, "--config", machine.config, "--state-dir", machine.state)
    assert list(outside.iterdir()) == []
    assert "Mis de côté" in done.output


def test_what_is_configured_need_not_be_said(machine: Machine) -> None:
    text = machine.config.read_text("utf-8")
    assert "DOSSIER" in run("backup", "--help").output
    assert "donner le dossier" in run("backup", "--config", machine.config, code=1).output
    machine.config.write_text(text + f'\n[backup]\nfolder = "{machine.backups}"\nkeep = 1\n', "utf-8")
    first = json.loads(run("backup", "--json", "--config", machine.config).output)
    found = json.loads(run("restore", "--check", "--json", first["file"]).output)
    assert {key: found[key] for key in ("file", "size", "audit_hash")} == {
        key: first[key] for key in ("file", "size", "audit_hash")
    }


def test_what_killed_backups_left_is_cleared_away_and_nothing_else(machine: Machine) -> None:
    names = ("sauvegarde-left", "sauvegarde-held", "sauvegarde-fresh", "autre")
    left, held, fresh, other = (machine.state / name for name in names)
    for folder in (left, held, fresh, other):
        folder.mkdir()
        (folder / "drimbox.db").write_bytes(b"x")
    partial = machine.backups / ".drimbox-349-20200101T000000Z.tar.gz.part"
    young = machine.backups / ".drimbox-349-20200102T000000Z.tar.gz.part"
    foreign = machine.backups / ".drimbox-999-20200101T000000Z.tar.gz.part"
    for path in (partial, young, foreign):
        path.touch()
    for path in (left, held, other, partial, foreign):
        os.utime(path, (0, 0))
    descriptor = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        machine.backup()
    finally:
        os.close(descriptor)
    assert [path.exists() for path in (left, held, fresh, other)] == [False, True, True, True]
    assert [path.exists() for path in (partial, young, foreign)] == [False, True, True]


def test_a_backup_that_is_ended_clears_away_what_it_began(machine: Machine) -> None:
    # The command as it is, with a packing that never ends.
    program = (
        "import time, sys; from drimbox.backup import container; "
        "container.write = lambda *_: time.sleep(600); "
        "from drimbox.cli import cli; cli(sys.argv[1:])"
    )
    arguments = ["backup", str(machine.backups), "--stages", "--config", str(machine.config)]
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE) as command:
        assert command.stderr is not None
        # It says so when it has begun to pack.
        assert [command.stderr.readline() for _ in range(2)] == [b"stage 0\n", b"stage 1\n"]
        assert list(machine.state.glob("sauvegarde-*")) != []
        command.terminate()
        assert command.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(machine.state.glob("sauvegarde-*")) == []
    assert list(machine.backups.iterdir()) == []


def _killed(machine: Machine, backup: Path, *, when: str) -> None:
    """Restore by the command as it is, killed (SIGKILL) by itself where `when` says."""
    program = (
        "import os, signal, sys; from drimbox.backup import restoring; "
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        f"{when}; from drimbox.cli import cli; cli(sys.argv[1:])"
    )
    where = ["--config", str(machine.config), "--state-dir", str(machine.state)]
    command = [sys.executable, "-P", "-c", program, "restore", str(backup), *where]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


#: While all is verified, with half of a file of the configuration written, and before the store is there.
MOMENTS = {
    "verifying": "restoring.snapshot.prepare_restored = kill",
    "configuration": "restoring.shutil.copyfileobj = lambda source, out: (out.write(source.read(9)), "
    "out.flush(), kill())",
    "store": "place = restoring._place_configuration; "
    "restoring._place_configuration = lambda *given: (place(*given), kill())",
}


@pytest.mark.parametrize("when", MOMENTS.values(), ids=MOMENTS)
@pytest_twisted.ensureDeferred
async def test_a_restore_that_was_killed_says_so_and_is_begun_again(machine: Machine, when: str) -> None:
    machine.backup()
    kept = query(machine.database, "SELECT sop_instance_uid, data FROM kos")
    written = machine.config.read_bytes()
    machine.gone()
    _killed(machine, machine.newest, when=when)
    # Started now, the gateway would serve an archive without a KOS, and nobody would know.
    database = Database(f"sqlite:///{machine.database}", reactor=reactor, exclusive=True)
    with pytest.raises(StoreUnfinished, match="relancer « drimbox restore »"):
        await database.open()
    assert list(machine.state.glob("drimbox.db*")) == []
    # No file of the configuration is there by half.
    assert not machine.config.exists() or machine.config.read_bytes() == written
    done = run("restore", machine.newest, "--config", machine.config, "--state-dir", machine.state)
    assert query(machine.database, "SELECT sop_instance_uid, data FROM kos") == kept
    assert "Mis de côté" not in done.output
    assert machine.config.read_bytes() == written
    assert [path.name for path in machine.state.iterdir() if not path.name.startswith("drimbox.db")] == []
    assert list(machine.folder.rglob(".*.part")) == []
    await database.open()
    await database.close()


def test_a_second_restore_keeps_what_the_first_put_aside(machine: Machine) -> None:
    machine.backup()
    machine.config.write_text(machine.config.read_text() + "\n# à moi\n")
    aside = machine.folder / "restauration" / "configuration.toml"
    for number in (1, 2, 3):
        for path in machine.state.glob("drimbox.db*"):
            path.unlink()
        if number == 3:
            aside.write_bytes(b"# un autre\n")
        run("restore", machine.newest, "--config", machine.config)
    assert aside.read_bytes() == b"# un autre\n"
    assert (machine.folder / "restauration-2" / "configuration.toml").exists()
    assert not (machine.folder / "restauration-3").exists()


def test_two_restores_at_once_are_one(machine: Machine) -> None:
    machine.backup()
    for path in machine.state.glob("drimbox.db*"):
        path.unlink()
    with Mark(machine.state, "la première"):
        assert (
            "autre restauration"
            in run("restore", machine.newest, "--config", machine.config, code=1).output
        )
    run("restore", machine.newest, "--config", machine.config)

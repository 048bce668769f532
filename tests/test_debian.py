"""The Debian package: built, installed, started as its unit starts it, upgraded over itself, removed."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import free_port
from drimbox.sim.ris import build_message
from drimbox.sim.stand import PacsAddress, Stand

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = Path("/etc/drimbox/drimbox.toml")
UNIT = Path("/lib/systemd/system/drimbox.service")
STATE, LOGS = Path("/var/lib/drimbox"), Path("/var/log/drimbox")
#: Where an installation of somebody's own would be: it is not ours to replace.
OCCUPIED = (Path("/opt/drimbox"), CONFIGURATION.parent, STATE, UNIT)
#: Runs a command as the unit does.
ACCOUNT = ("setpriv", "--reuid=drimbox", "--regid=drimbox", "--clear-groups")

pytestmark = [
    pytest.mark.peer("dpkg-deb"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="this Debian has no Python"),
]


def _run(*command: str | Path, **more: str) -> str:
    """Run a command, which must succeed; return what it printed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **more}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = str(tmp_path_factory.mktemp("deb"))
    return Path(_run("packaging/deb/build.sh", COMPRESS="none", DIST=folder).splitlines()[-1])


@pytest.fixture
def installed(package: Path) -> Iterator[Path]:
    there = [str(path) for path in OCCUPIED if path.exists()]
    if there:
        pytest.skip(f"a DRIMbox is installed on this machine ({', '.join(there)})")
    user = _user()
    try:
        # Dependencies are of Debian's own; whether they are there is not what is tried.
        _run("dpkg", "--force-depends", "--install", package)
        yield package
    finally:
        subprocess.run(["dpkg", "--purge", "drimbox"], check=False, capture_output=True, timeout=120)
        for path in (STATE, LOGS, CONFIGURATION.parent, Path("/opt/drimbox")):
            shutil.rmtree(path, ignore_errors=True)
        if user is None and _user() is not None:
            _run("userdel", "drimbox")


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("drimbox")
    except KeyError:
        return None


class Installed(Stand):
    """A stand whose gateway is the installed one, as its unit starts it."""

    def command(self, key: str) -> list[str]:
        """Return a command of the unit, run by the account of the unit."""
        lines = UNIT.read_text("utf-8").splitlines()
        (line,) = [line for line in lines if line.startswith(f"{key}=")]
        return [*ACCOUNT, *shlex.split(line.partition("=")[2])]

    def _arguments(self) -> list[str]:
        return self.command("ExecStart")


def test_the_package_holds_no_path_of_its_making_and_says_what_it_needs(package: Path) -> None:
    control = _run("dpkg-deb", "--field", package)
    assert "Depends: python3 (>= 3." in control
    listing = _run("dpkg-deb", "--contents", package)
    for wanted in (
        "./opt/drimbox/bin/twistd",
        "./etc/drimbox/drimbox.toml",
        "./lib/systemd/system/drimbox.service",
        "./usr/share/doc/drimbox/configuration.md",
        "./usr/bin/drimbox -> /opt/drimbox/bin/drimbox",
    ):
        assert wanted in listing
    with tempfile.TemporaryDirectory() as folder:
        _run("dpkg-deb", "--extract", package, folder)
        script = Path(folder, "opt/drimbox/bin/twistd").read_text("utf-8")
        assert script.startswith("#!/opt/drimbox/bin/python")


@pytest_twisted.ensureDeferred
async def test_installed_started_by_its_unit_and_removed(installed: Path) -> None:
    user = _user()
    assert user is not None
    assert user.pw_shell == "/usr/sbin/nologin"
    assert (STATE.stat().st_uid, STATE.stat().st_mode & 0o777) == (user.pw_uid, 0o700)
    assert (CONFIGURATION.stat().st_gid, CONFIGURATION.stat().st_mode & 0o777) == (user.pw_gid, 0o640)

    stand = Installed(STATE / "stand", reactor, [PacsAddress("PACS", free_port(), ("DRIMBOX1",))])
    await stand.start()
    try:
        _run("chown", "-R", "drimbox:drimbox", stand.folder)
        CONFIGURATION.write_text(stand.config.read_text("utf-8"), "utf-8")
        _run(*stand.command("ExecStartPre"))
        await stand.start_gateway()
        assert (await stand.send(build_message())).code == "AA"
        status = await deferToThread(_run, "/usr/bin/drimbox", "status")
        assert "drimbox" in status.lower()
        # An upgrade, over itself: what the administrator wrote stays.
        written = CONFIGURATION.read_text("utf-8")
        await deferToThread(_run, "dpkg", "--force-depends", "--install", installed)
        assert CONFIGURATION.read_text("utf-8") == written
        await stand.stop_gateway()
        # twistd dies of the signal it was stopped by, once everything is closed: the trail has its end.
        search = ("drimbox", "audit", "search", "--event", "marche", "--limit", "1", "--format", "xml")
        assert "Application Stop" in await deferToThread(_run, *ACCOUNT, *search)
    finally:
        await stand.stop()

    await deferToThread(_run, "dpkg", "--remove", "drimbox")
    assert not Path("/opt/drimbox/bin").exists()
    assert not UNIT.exists()
    assert CONFIGURATION.read_text("utf-8") == written
    said = await deferToThread(_run, "dpkg", "--purge", "drimbox")
    assert "sont conservés" in said
    assert not CONFIGURATION.exists()
    assert any((stand.folder / "state").glob("*.db"))

"""The container file, kept honest without an engine: what it says, and its steps done in a plain folder."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import free_port
from drimbox.sim.ris import build_message
from drimbox.sim.stand import PacsAddress, Stand

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "packaging" / "drimbox.service"
MANUAL = ROOT / "docs" / "exploitation-installation.md"
#: Where the steps of the file put things, and nothing else.
PLACES = ("/opt/drimbox", "/opt/build", "/opt/wheel")
CONFIGURATION = "/etc/drimbox/drimbox.toml"


@attrs.frozen
class Step:
    """One instruction of a stage."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """Its words: of the exec form those of the list, else those between blanks; without options."""
        if self.value.startswith("["):
            return list(json.loads(self.value))
        return [word for word in shlex.split(self.value) if not word.startswith("--")]


def read_stages() -> list[list[Step]]:
    """Read the file: its stages, each begun by its FROM."""
    text = (ROOT / "packaging" / "Containerfile").read_text("utf-8")
    text = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    steps = [Step(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]
    starts = [place for place, step in enumerate(steps) if step.name == "FROM"]
    assert starts[0] == 0
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def named(stage: list[Step], name: str) -> list[Step]:
    return [step for step in stage if step.name == name]


def only(stage: list[Step], name: str) -> Step:
    (step,) = named(stage, name)
    return step


def command_line(stage: list[Step]) -> list[str]:
    return only(stage, "ENTRYPOINT").words + only(stage, "CMD").words


def health_check(stage: list[Step]) -> list[str]:
    return list(json.loads(only(stage, "HEALTHCHECK").value.partition(" CMD ")[2]))


def unit(key: str) -> list[str]:
    (line,) = [line for line in UNIT.read_text("utf-8").splitlines() if line.startswith(f"{key}=")]
    return shlex.split(line.partition("=")[2])


# --- what it says -----------------------------------------------------------------------------------


def test_it_starts_what_the_unit_starts_and_stops_as_it_stops() -> None:
    *_, last = read_stages()
    assert command_line(last) == unit("ExecStart")
    for name in ("ENTRYPOINT", "CMD", "VOLUME"):
        # The shell form would put a shell before it, which passes no signal on.
        assert only(last, name).value.startswith("[")
    assert [only(last, "STOPSIGNAL").value] == unit("KillSignal")
    environment = shlex.split(only(last, "ENV").value)
    assert set(unit("Environment")) <= set(environment)
    assert health_check(last) == ["/opt/drimbox/bin/drimbox", "status", "--live"]


def test_it_runs_as_nobody_in_particular_and_writes_on_volumes_alone() -> None:
    *_, last = read_stages()
    user, _, group = only(last, "USER").value.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    made = " ".join(step.value for step in named(last, "RUN"))
    assert f"--uid {user} " in made
    assert f"--gid {group} " in made
    after = last[last.index(only(last, "USER")) :]
    assert not any(step.name in ("RUN", "COPY", "ADD") for step in after)
    # Those of the unit, and its ports that need no privilege.
    volumes = only(last, "VOLUME").words
    assert volumes == [f"/var/lib/{unit('StateDirectory')[0]}", f"/var/log/{unit('LogsDirectory')[0]}"]
    assert all(f"drimbox {volume}" in made for volume in volumes)
    assert only(last, "WORKDIR").value in volumes
    assert all(int(port) > 1023 for port in only(last, "EXPOSE").words)


def test_it_takes_everything_from_the_locks_and_copies_what_there_is() -> None:
    build, last = read_stages()
    for stage in (build, last):
        image = stage[0].words[0]
        # A short name, of one version: no registry, no "latest".
        assert re.fullmatch(r"python:3\.11-slim-[a-z]+", image), image
    assert stage[0].words[0] == build[0].words[0]
    for step in named(build, "COPY"):
        *sources, _ = step.words
        for source in sources:
            assert (ROOT / source).exists(), source
    for step in named(last, "COPY"):
        assert step.value.startswith("--from=build ")
        assert step.words == ["/opt/drimbox", "/opt/drimbox"]
    for step in named(build, "RUN"):
        if " install " in step.value:
            assert "--require-hashes" in step.value or "--no-index --no-deps" in step.value
    assert not [step for stage in (build, last) for step in stage if step.name == "ADD"]
    text = (ROOT / "packaging" / "Containerfile").read_text("utf-8")
    assert "://" not in text


def test_the_manual_runs_it_without_privileges() -> None:
    *_, last = read_stages()
    text = MANUAL.read_text("utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("podman run ")]
    said = shlex.split(line)
    assert {"--read-only", "--cap-drop", "--security-opt", "--tmpfs"} <= set(said)
    assert said[said.index("--cap-drop") + 1] == "all"
    assert said[said.index("--security-opt") + 1] == "no-new-privileges"
    published = {word.rpartition(":")[2] for before, word in pairwise(said) if before == "--publish"}
    assert published == set(only(last, "EXPOSE").words)
    mounted = [word for before, word in pairwise(said) if before == "--volume"]
    assert {volume.split(":")[1] for volume in mounted} == {*only(last, "VOLUME").words, "/etc/drimbox"}
    assert "/etc/drimbox:/etc/drimbox:ro" in mounted
    # As long as the unit waits.
    assert said[said.index("--stop-timeout") + 1] == unit("TimeoutStopSec")[0]


# --- what it does -----------------------------------------------------------------------------------


class Image:
    """The first stage done in a folder: each path of its own under `root`, whatever the file says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "src"
        build, self.last = read_stages()
        for step in build:
            if step.name == "COPY":
                self._copy(*step.words)
            elif step.name == "RUN":
                self._run(step.value)
            else:
                assert step.name in ("FROM", "WORKDIR"), step

    def place(self, text: str) -> str:
        """Return a command with its places under the folder."""
        for place in PLACES:
            text = text.replace(place, f"{self.root}{place}")
        return text

    def _copy(self, *words: str) -> None:
        *sources, target = words
        for name in sources:
            source, into = ROOT / name, self.source / target
            if source.is_dir():
                # Of a folder, its content.
                shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, into)

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-euc", self.place(command)],
            cwd=self.source,
            # Compiling every library takes longer than all the rest.
            env={**os.environ, "LC_ALL": "C.UTF-8", "PIP_NO_COMPILE": "1"},
            check=False,
            capture_output=True,
            text=True,
            timeout=550,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


class Contained(Stand):
    """A stand whose gateway is that of the image, by its own command line."""

    image: Image

    def _arguments(self) -> list[str]:
        return [
            self.image.place(word).replace(CONFIGURATION, str(self.config))
            for word in command_line(self.image.last)
        ]

    def healthy(self) -> int:
        """Run the health check of the image; return its exit status."""
        command = [self.image.place(word) for word in health_check(self.image.last)]
        done = subprocess.run(
            [*command, "--config", str(self.config)], check=False, capture_output=True, timeout=60
        )
        return done.returncode


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


def canonical(name: str) -> str:
    """Return a project's name as an index writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_image_holds_the_locked_versions_and_nothing_of_the_checkout(image: Image) -> None:
    assert len(glob.glob(f"{image.root}/opt/wheel/drimbox-*.whl")) == 1
    done = subprocess.run(
        [image.place("/opt/drimbox/bin/pip"), "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    held = {canonical(each["name"]): each["version"] for each in json.loads(done.stdout)}
    locked = (ROOT / "requirements" / "runtime.txt").read_text("utf-8")
    wanted = dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^ ;]+)", locked, re.MULTILINE))
    assert {name: held.get(name) for name in wanted} == wanted
    assert set(held) - set(wanted) <= {"drimbox", "pip", "setuptools"}
    assert b"drimbox" in Path(image.root, "opt/wheel/help").read_bytes()


@pytest_twisted.ensureDeferred
async def test_the_image_runs_is_healthy_and_stops_in_order(image: Image, tmp_path: Path) -> None:
    stand = Contained(tmp_path / "stand", reactor, [PacsAddress("PACS", free_port(), ("DRIMBOX1",))])
    stand.image = image
    await stand.start()
    try:
        assert await deferToThread(stand.healthy) == 1
        await stand.start_gateway()
        assert (await stand.send(build_message())).code == "AA"
        assert await deferToThread(stand.healthy) == 0
        await stand.stop_gateway()
        assert await deferToThread(stand.healthy) == 1
    finally:
        await stand.stop()

"""Real PACS started by a test: they answer, they move, they die when told and when we do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.uid import JPEGLSLossless

from drimbox.sim import peers
from drimbox.sim.peers import (
    Dcmqrscp,
    Orthanc,
    Peer,
    PeerFailed,
    PeerMissing,
    echo,
    find_program,
    free_port,
)
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.sim.dicom_peer import Asker, Receiver

Maker = Callable[[Path, dict[str, tuple[str, int]]], Peer]


def make_dcmqrscp(folder: Path, destinations: dict[str, tuple[str, int]]) -> Peer:
    return Dcmqrscp(folder, move_destinations=destinations)


def make_orthanc(folder: Path, destinations: dict[str, tuple[str, int]]) -> Peer:
    return Orthanc(folder, modalities=destinations, clients=["DRIMBOX"])


@pytest.fixture(
    params=[
        pytest.param(make_dcmqrscp, id="dcmqrscp", marks=pytest.mark.peer("dcmqrscp")),
        pytest.param(make_orthanc, id="Orthanc", marks=pytest.mark.peer("Orthanc")),
    ]
)
def maker(request: pytest.FixtureRequest) -> Maker:
    """Each real PACS in turn; skipped when its package is absent."""
    try:
        find_program(request.node.callspec.id)
        find_program("echoscu")
    except PeerMissing as missing:
        pytest.skip(str(missing))
    made: Maker = request.param
    return made


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    return make_study(tmp_path_factory.mktemp("study"), instances=3, transfer_syntax=JPEGLSLossless)


def is_alive(pid: int) -> bool:
    """Say whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def group_of(leader: int) -> list[int]:
    """List the processes of a group."""
    found = subprocess.run(["pgrep", "-g", str(leader)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_moves_jpeg_ls_as_it_is_stored(maker: Maker, tmp_path: Path, study: GeneratedStudy) -> None:
    with Receiver() as receiver, maker(tmp_path, {"DRIM1": receiver.address}) as peer:
        assert peer.version.count(".") == 2
        assert echo(peer.host, peer.port, peer.ae_title)
        peer.load(study.files)
        asker = Asker(peer.host, peer.port, called=peer.ae_title)
        answers = asker.move(
            "DRIM1",
            QueryRetrieveLevel="SERIES",
            StudyInstanceUID=study.study_uid,
            SeriesInstanceUID=study.series[0].series_uid,
        )
    assert answers[-1].Status == 0x0000
    assert sorted(receiver.uids) == sorted(instance.sop_instance_uid for instance in study.instances)
    assert {stored.transfer_syntax for stored in receiver.stored} == {JPEGLSLossless}
    assert {stored.originator[0] for stored in receiver.stored} == {"DRIMBOX"}


def test_stops_with_its_children_and_starts_again(
    maker: Maker, tmp_path: Path, study: GeneratedStudy
) -> None:
    peer = maker(tmp_path, {})
    with peer:
        peer.load(study.files)
        pid, port = peer.pid, peer.port
        assert pid is not None
        # An open association makes dcmqrscp fork: the child must go too.
        held = Asker(peer.host, peer.port, called=peer.ae_title).associate()
        assert held.is_established
        assert len(group_of(pid)) == (2 if isinstance(peer, Dcmqrscp) else 1)
        with pytest.raises(PeerFailed, match="already started"):
            peer.start()
    assert peer.pid is None
    assert not is_alive(pid)
    eventually(lambda: not any(is_alive(member) for member in group_of(pid)))
    assert not echo(peer.host, port, peer.ae_title, timeout=1)
    peer.stop()
    with peer:
        keys = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ""}
        answers, status = Asker(peer.host, peer.port, called=peer.ae_title).find(**keys)
        assert ([answer.StudyInstanceUID for answer in answers], status) == ([study.study_uid], 0x0000)
    held.abort()


def test_pauses_resumes_and_crashes(maker: Maker, tmp_path: Path) -> None:
    with maker(tmp_path, {}) as peer:
        peer.pause()
        assert not echo(peer.host, peer.port, peer.ae_title, timeout=1)
        peer.resume()
        assert echo(peer.host, peer.port, peer.ae_title)
        peer.kill()
        assert peer.pid is None
        with pytest.raises(PeerFailed, match="not running"):
            peer.pause()


@pytest.mark.peer("Orthanc")
def test_orthanc_takes_files_that_come_slowly(tmp_path: Path, study: GeneratedStudy) -> None:
    def files() -> Iterator[Path]:
        for file in study.files:
            yield file
            # Longer than it keeps a silent connection.
            time.sleep(1.5)

    with Orthanc(tmp_path, "PACS") as peer:
        peer.load(files())
        assert peer.count() == len(study.files) > 1


@pytest.mark.peer("Orthanc")
def test_orthanc_counts_and_refuses(tmp_path: Path, study: GeneratedStudy) -> None:
    try:
        orthanc = Orthanc(tmp_path / "orthanc")
    except PeerMissing as missing:
        pytest.skip(str(missing))
    with orthanc:
        orthanc.load(study.files)
        assert (orthanc.count(), orthanc.count(study.study_uid), orthanc.count("1.2.3")) == (3, 3, 0)
        nonsense = tmp_path / "nonsense.dcm"
        nonsense.write_bytes(b"not DICOM")
        with pytest.raises(PeerFailed, match="refused nonsense"):
            orthanc.load([nonsense])


def test_says_why_a_peer_does_not_start(maker: Maker, tmp_path: Path) -> None:
    peer = maker(tmp_path, {})
    options = ["-c"] if isinstance(peer, Dcmqrscp) else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "_prepare", lambda: [peer._path, *options, str(tmp_path / "absent")])
        with pytest.raises(PeerFailed, match="did not answer"):
            peer.start()
    assert peer.pid is None


def test_names_the_package_of_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(PeerMissing, match="package orthanc") as caught:
        Orthanc(tmp_path)
    assert (caught.value.program, caught.value.package) == ("Orthanc", "orthanc")


def test_free_port_is_free() -> None:
    ports = {free_port() for _ in range(5)}
    assert all(1024 <= port < 65536 for port in ports)


_STARTER = """
import sys, time
from pathlib import Path
from drimbox.sim.peers import Dcmqrscp
peer = Dcmqrscp(Path(sys.argv[1]))
peer.start()
print(peer.pid, flush=True)
if sys.argv[2] == "crash":
    raise RuntimeError("crash")
time.sleep(60)
"""


@pytest.mark.peer("dcmqrscp")
@pytest.mark.parametrize("how", ["crash", "killed"])
def test_peers_do_not_outlive_us(tmp_path: Path, how: str) -> None:
    try:
        find_program("dcmqrscp")
    except PeerMissing as missing:
        pytest.skip(str(missing))
    command = [sys.executable, "-c", _STARTER, str(tmp_path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        if how == "killed":
            assert is_alive(pid)
            os.kill(starter.pid, signal.SIGKILL)
        starter.wait(20)
    eventually(lambda: not is_alive(pid))

"""Real peers on loopback: DCMTK's `dcmqrscp` and Orthanc, started, filled and stopped by a test.

Theory of operation. A peer is one child process in a process group of its own, with its configuration,
its storage and its log in a folder the caller gives. It is started on ports that were free a moment
before, waited for until it answers a C-ECHO, and stopped by its process id: on leaving the `with`
block, at exit of this process, and by the kernel when the thread that runs Python's main program dies
without having the time to say so. A peer that dies while starting is started again on other ports,
because a free port may be taken between the look and the use. A missing program raises `PeerMissing`
with the name of the package that brings it.

What is stock and what is not is said in the docstring of each class, because the whole value of a
peer is that it behaves as the one in the hospital. Neither program can bind its DICOM port to one
address: they listen on all of them for as long as they run, so they belong on a bench, not on a
hospital's machine.
"""

from __future__ import annotations

import abc
import atexit
import contextlib
import ctypes
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

#: Debian package that brings each program.
PACKAGES = {
    "dcmqrscp": "dcmtk",
    "dcmqridx": "dcmtk",
    "echoscu": "dcmtk",
    "storescu": "dcmtk",
    "Orthanc": "orthanc",
    "promtool": "prometheus",
}
LOOPBACK = "127.0.0.1"
_ATTEMPTS = 3
_PR_SET_PDEATHSIG = 1
_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT
#: Where a move destination that is only a calling AE title is said to be: the discard port.
_NOWHERE = (LOOPBACK, 9)

#: Move destinations: AE title to (host, port).
Destinations = Mapping[str, tuple[str, int]]

_running: set[Peer] = set()

#: Below Linux's ephemeral range, above the usual services.
PORTS = range(15_000, 32_000)
#: Environment variable, "FIRST-LAST": the part of `PORTS` that this process and its children may take.
PORTS_VARIABLE = "DRIMBOX_SIM_PORTS"
_random = random.SystemRandom()
_given: set[int] = set()


class PeerMissing(Exception):
    """A peer program is not installed; `package` is what brings it."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.package = PACKAGES.get(program, program)
        super().__init__(f"{program} is not installed (Debian package {self.package})")


class PeerFailed(Exception):
    """A peer program did not start, or did not do what it was asked; the end of its log follows."""


def find_program(name: str) -> str:
    """Return the path of a peer program; raises `PeerMissing`."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise PeerMissing(name)
    return path


def free_port() -> int:
    """Return a TCP port nobody listens on.

    Outside the range from which the system takes ports for outgoing connections: one of those would be
    given away again between this call and the moment somebody listens. Never the same twice. Processes that
    run side by side are given ranges of their own (`PORTS_VARIABLE`), or one would take what the other has
    just been promised.
    """
    first, _, last = os.environ.get(PORTS_VARIABLE, f"{PORTS[0]}-{PORTS[-1]}").partition("-")
    while True:
        port = _random.randint(int(first), int(last))
        if port in _given:
            continue
        with socket.socket() as trial:
            try:
                trial.bind((LOOPBACK, port))
            except OSError:
                continue
        _given.add(port)
        return port


def echo(host: str, port: int, ae_title: str, *, timeout: float = 5.0) -> bool:
    """Say whether a DICOM node answers a C-ECHO, asked by DCMTK's `echoscu`."""
    wait = str(max(1, round(timeout)))
    command = [find_program("echoscu"), "-to", wait, "-ta", wait, "-td", wait]
    try:
        done = subprocess.run(
            [*command, "-aet", "DRIMBOX-TEST", "-aec", ae_title, host, str(port)],
            capture_output=True,
            timeout=timeout + 5,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


class Peer(abc.ABC):
    """One peer program as a child process; use it as a context manager."""

    program: str

    def __init__(self, folder: Path, ae_title: str, *, start_timeout: float = 30.0) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.host = LOOPBACK
        #: DICOM port, known once started.
        self.port = 0
        self.start_timeout = start_timeout
        self._path = find_program(self.program)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{self.program}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def version(self) -> str:
        """Version the program says it has, `3.6.7`."""
        said = subprocess.run(
            [self._path, "--version"], capture_output=True, timeout=20, check=False
        ).stdout
        found = re.search(rb"\d+\.\d+(?:\.\d+)?", said)
        if found is None:
            raise PeerFailed(f"{self.program} --version says no version: {said[:200]!r}")
        return found.group().decode()

    def start(self) -> None:
        """Start the program and wait until it answers; raises `PeerFailed` with the end of its log."""
        if self._process is not None:
            raise PeerFailed(f"{self.program} is already started")
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            command = self._prepare()
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    start_new_session=True,
                    preexec_fn=_die_with_parent(),
                )
            _running.add(self)
            if self._wait_ready():
                return
            died = os.waitid(os.P_PID, self._process.pid, _PEEK) is not None
            tail = self.log.read_bytes()[-1500:].decode(errors="replace")
            self.stop()
            if not died or attempt == _ATTEMPTS - 1:
                raise PeerFailed(f"{self.program} did not answer on port {self.port}:\n{tail}")

    def stop(self, *, patience: float = 5.0) -> None:
        """Stop the program and its children; does nothing when it is not running."""
        process, self._process = self._process, None
        _running.discard(self)
        if process is None:
            return
        # The group was made for this child alone (start_new_session), so its id is the child's.
        _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        # Looked at, not yet reaped: until `wait` its id, and so its group's, cannot become another's.
        while time.monotonic() < deadline and not os.waitid(os.P_PID, process.pid, _PEEK):
            time.sleep(0.02)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()

    def pause(self) -> None:
        """Freeze the program and its children (SIGSTOP): a PACS that hangs with its sockets open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen program go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the program without notice: a PACS that crashes."""
        self._signal(signal.SIGKILL)
        self.stop()

    @abc.abstractmethod
    def load(self, files: Iterable[Path]) -> None:
        """Put these DICOM files into the peer."""

    @abc.abstractmethod
    def _prepare(self) -> list[str]:
        """Choose ports, write the configuration, return the command line."""

    def _ready(self) -> bool:
        return echo(self.host, self.port, self.ae_title, timeout=2)

    def _wait_ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + self.start_timeout
        pid = self._process.pid
        while time.monotonic() < deadline and not os.waitid(os.P_PID, pid, _PEEK):
            if self._ready():
                # Another program may have answered on a port that ours failed to get.
                return os.waitid(os.P_PID, pid, _PEEK) is None
            time.sleep(0.05)
        return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise PeerFailed(f"{self.program} is not running")
        _signal_group(self._process.pid, number)


class Dcmqrscp(Peer):
    """DCMTK's image archive. It gives no SOPClassUID in C-FIND answers and refuses relational queries.

    `options` are its transfer syntaxes: `+xt -xt` by default, which accepts and proposes JPEG-LS
    lossless beside the uncompressed ones. Without `-xt` it proposes no JPEG-LS, so every sub-operation
    of a JPEG-LS study fails. Not stock: PDUs of 128 KiB instead of 16, quotas at their maximum (500
    studies of 1 GB), 64 associations.
    """

    program = "dcmqrscp"

    def __init__(
        self,
        folder: Path,
        ae_title: str = "DCMQRSCP",
        *,
        move_destinations: Destinations | None = None,
        options: Iterable[str] = ("+xt", "-xt"),
        maximum_pdu: int = 131072,
        start_timeout: float = 30.0,
    ) -> None:
        super().__init__(folder, ae_title, start_timeout=start_timeout)
        self.move_destinations = dict(move_destinations or {})
        self.options = tuple(options)
        self.maximum_pdu = maximum_pdu
        self.storage = folder / "storage"

    def load(self, files: Iterable[Path]) -> None:
        """Register files in the index where they lie (`dcmqridx`); they must stay there."""
        self.storage.mkdir(parents=True, exist_ok=True)
        paths = [str(file.resolve()) for file in files]
        for batch in _batches(paths, 500):
            _run([find_program("dcmqridx"), str(self.storage), *batch])

    def _prepare(self) -> list[str]:
        self.storage.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        hosts = "\n".join(
            f"host{number} = ({title}, {host}, {port})"
            for number, (title, (host, port)) in enumerate(sorted(self.move_destinations.items()))
        )
        configuration = self.folder / "dcmqrscp.cfg"
        configuration.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = {self.maximum_pdu}\nMaxAssociations = 64\n"
            f"HostTable BEGIN\n{hosts}\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{self.ae_title} {self.storage.resolve()} RW (500, 1024mb) ANY\nAETable END\n"
        )
        return [self._path, "-c", str(configuration.resolve()), *self.options]


class Orthanc(Peer):
    """Orthanc. It drops a whole move 10 s after an instance it sent without an answer.

    Stock, as Debian ships it: DicomScuTimeout 10 s, DicomScpTimeout 30 s, PDUs of 16 KiB, two
    concurrent jobs, 4 DICOM threads, transcoding for peers that refuse a syntax, C-FIND and C-MOVE
    only from known modalities. Its C-MOVE destinations are `modalities`; `clients` are further AE
    titles that may only ask. Not stock: no `fsync` when loading, no plugin, no authentication (HTTP
    answers loopback only). `settings` overrides any key of its configuration.
    """

    program = "Orthanc"

    def __init__(
        self,
        folder: Path,
        ae_title: str = "ORTHANC",
        *,
        modalities: Destinations | None = None,
        clients: Iterable[str] = (),
        settings: Mapping[str, object] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        super().__init__(folder, ae_title, start_timeout=start_timeout)
        self.modalities = {**dict.fromkeys(clients, _NOWHERE), **(modalities or {})}
        self.settings = dict(settings or {})
        #: Port of its REST interface, known once started.
        self.http_port = 0

    def load(self, files: Iterable[Path]) -> None:
        """Send files to its REST interface over one connection; raises `PeerFailed` on a refusal."""
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=60)
        with contextlib.closing(connection):
            for file in files:
                data = file.read_bytes()
                try:
                    status, body = _post_instance(connection, data)
                except ConnectionError:
                    # It closes a connection that says nothing for a second; an instance counts once.
                    connection.close()
                    status, body = _post_instance(connection, data)
                if status != 200:
                    raise PeerFailed(f"Orthanc refused {file.name}: {status} {body[:300]!r}")

    def count(self, study_uid: str | None = None) -> int:
        """Return how many instances it holds, in all or of one study."""
        query: dict[str, object] = {"Level": "Instance", "Query": {}}
        if study_uid is not None:
            query["Query"] = {"StudyInstanceUID": study_uid}
        found = self.rest("POST", "/tools/find", query)
        if not isinstance(found, list):
            raise PeerFailed(f"Orthanc answered no list: {found!r}")
        return len(found)

    def rest(self, method: str, path: str, body: object = None) -> object:
        """Call its REST interface with a JSON body and return the JSON answer."""
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise PeerFailed(f"Orthanc answered {response.status} to {method} {path}: {data[:300]!r}")
            answer: object = json.loads(data)
        return answer

    def _ready(self) -> bool:
        return super()._ready() and self._rest_ready()

    def _rest_ready(self) -> bool:
        try:
            self.rest("GET", "/system")
        except (OSError, http.client.HTTPException, PeerFailed, ValueError):
            return False
        return True

    def _prepare(self) -> list[str]:
        storage = self.folder.resolve() / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        self.port, self.http_port = free_port(), free_port()
        configuration = self.folder.resolve() / "orthanc.json"
        settings: dict[str, object] = {
            "Name": self.ae_title,
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "SyncStorageArea": False,
            "Plugins": [],
            "DicomModalities": {
                title: [title, host, port] for title, (host, port) in sorted(self.modalities.items())
            },
            **self.settings,
        }
        configuration.write_text(json.dumps(settings, indent=1))
        return [self._path, str(configuration)]


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    if done.returncode != 0:
        raise PeerFailed(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout)[-800:]!r}")


def _post_instance(connection: http.client.HTTPConnection, data: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/instances", data)
    response = connection.getresponse()
    return response.status, response.read()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs before `exec` so that the kernel ends it with us; Linux only.

    The kernel watches the *thread* that forked: from a thread other than the main one, whose end is
    not ours, the exit handler alone must do.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(os, "pidfd_open"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@atexit.register
def _stop_all() -> None:
    for peer in list(_running):
        peer.stop(patience=1.0)

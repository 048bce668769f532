"""The receivers the gateway is compared with, each in a process of its own.

Theory of operation. Three kinds, all of which throw away what they get:
- `null`: `bench.null_receiver`, the floor: what the PACS and the wire cost;
- `pynetdicom`: `AE.start_server` with 128 KiB PDUs and a handler that answers success;
- `storescp`: DCMTK's, with `--ignore`. (DCMTK's other receiver, `movescu +P`, is also the one that
  asks: see `bench.move`.)

The first two are this module run as a program: it prints one JSON line when it listens, answers every
line on its standard input with what it received since the last one, and ends with its standard input.
They are processes, not threads, so that a receiver never shares an interpreter with the one who asks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, Self

import attrs

from bench.null_receiver import MAXIMUM_PDU, NullReceiverFactory
from bench.reception import Reception
from drimbox.sim.peers import LOOPBACK, echo, find_program

Kind = Literal["null", "pynetdicom", "storescp"]


class Receiver:
    """One receiver process listening on loopback; a context manager."""

    def __init__(self, kind: Kind, port: int, *, ae_title: str = "BENCH") -> None:
        self.kind: Kind = kind
        self.port = port
        self.ae_title = ae_title
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if self.kind == "storescp":
            command = [find_program("storescp"), "--ignore", "+xt", "-pdu", str(MAXIMUM_PDU)]
            command += ["-aet", self.ae_title, str(self.port)]
        else:
            command = [sys.executable, "-m", "bench.receivers", self.kind, str(self.port), self.ae_title]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def report(self) -> Reception | None:
        """Return what was received since the last report; None from a kind that does not count."""
        if self.kind == "storescp":
            return None
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        return Reception(**self._read())

    def _wait_ready(self) -> None:
        assert self._process is not None
        if self.kind != "storescp":
            self._read()
            return
        for _ in range(100):
            if self._process.poll() is not None:
                break
            if echo(LOOPBACK, self.port, self.ae_title, timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"storescp does not answer on port {self.port}")

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.kind} receiver ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if self.kind == "storescp":  # ours end with their standard input
            process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_null(port: int) -> None:
    """Run the null receiver on a Twisted reactor until the standard input ends."""
    from twisted.internet import reactor as installed
    from twisted.internet import stdio
    from twisted.protocols.basic import LineReceiver

    reactor: Any = installed
    factory = NullReceiverFactory()
    listening = reactor.listenTCP(port, factory, interface=LOOPBACK)

    class Control(LineReceiver):
        delimiter = b"\n"

        def connectionMade(self) -> None:
            _say(port=listening.getHost().port)

        def lineReceived(self, line: bytes) -> None:
            # The associations hold the same object: it is emptied, not replaced.
            _say(**attrs.asdict(factory.reception))
            factory.reception.clear()

        def connectionLost(self, reason: object = None) -> None:
            if reactor.running:
                reactor.stop()

    stdio.StandardIO(Control())
    reactor.run()


def run_pynetdicom(port: int, ae_title: str) -> None:
    """Run pynetdicom's storage provider until the standard input ends."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    reception, lock = Reception(), threading.Lock()

    def on_store(event: Any) -> int:
        with lock:
            reception.count(time.monotonic())
            reception.bytes += event.request.DataSet.getbuffer().nbytes
        return 0x0000

    def on_open(event: Any) -> None:
        with lock:
            reception.associations += 1

    entity = AE(ae_title=ae_title)
    entity.maximum_pdu_size = MAXIMUM_PDU
    for context in AllStoragePresentationContexts:
        syntaxes = [JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        entity.add_supported_context(str(context.abstract_syntax), syntaxes)
    handlers: list[Any] = [(evt.EVT_C_STORE, on_store), (evt.EVT_CONN_OPEN, on_open)]
    server: Any = entity.start_server((LOOPBACK, port), block=False, evt_handlers=handlers)
    _say(port=server.server_address[1])
    for _ in sys.stdin:
        with lock:
            _say(**attrs.asdict(reception))
            reception.clear()
    entity.shutdown()


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    _, wanted, wanted_port, wanted_title = sys.argv
    if wanted == "null":
        run_null(int(wanted_port))
    else:
        run_pynetdicom(int(wanted_port), wanted_title)

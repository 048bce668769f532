"""The receivers the gateway is compared with, each in a process of its own.

Theory of operation. Three kinds, all of which throw away what they get:
- `null`: `bench.null_receiver`, the floor: what the PACS and the wire cost;
- `pynetdicom`: `AE.start_server` with 128 KiB PDUs and a handler that answers success;
- `storescp`: DCMTK's, with `--ignore`. (DCMTK's other receiver, `movescu +P`, is also the one that
  asks: see `bench.move`.)

The first two are this module run as a program (`bench.program`): it answers every line with what it
received since the last one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.python.failure import Failure

from bench.move import CALLING, Archive, MoveFailed, MoveTime
from bench.mover import Mover, OneMover
from bench.null_receiver import JPEG_LS_LOSSLESS, MAXIMUM_PDU, NullReceiverFactory
from bench.program import Program, ProgramFailed, answer_lines, say
from bench.reception import Reception
from drimbox.sim.peers import LOOPBACK, echo, find_program
from drimbox.sim.studies import GeneratedStudy

Kind = Literal["null", "pynetdicom", "storescp"]
#: Most seconds that moves may take together.
_LONGEST = 600.0


class Receiver:
    """One receiver process listening on loopback; a context manager. `log` gets its error output.

    The null receiver takes the transfer syntax `preferred` wherever it is proposed: a PACS that cannot
    convert proposes others than the one it holds.
    """

    def __init__(
        self,
        kind: Kind,
        port: int,
        *,
        log: Path,
        ae_title: str = "BENCH",
        preferred: str = JPEG_LS_LOSSLESS.decode(),
    ) -> None:
        self.kind: Kind = kind
        self.port = port
        self.ae_title = ae_title
        self._log = log
        self._program = Program("bench.receivers", kind, str(port), ae_title, preferred, log=log)
        self._storescp: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Process number while it runs."""
        return self._program.pid if self._storescp is None else self._storescp.pid

    def report(self) -> Reception | None:
        """Return what was received since the last report; None from a kind that does not count."""
        if self.kind == "storescp":
            return None
        return Reception(**self._program.ask(report=True))

    def move(self, pacs: Archive, study: GeneratedStudy, at_once: int) -> tuple[MoveTime, Reception]:
        """Ask the PACS for the only series of a study, so many times at once, from this very process.

        Raises `MoveFailed` unless every move ended in success.
        """
        (series,) = study.series
        order = {
            "port": pacs.port,
            "called": pacs.ae_title,
            "destination": self.ae_title,
            "study": study.study_uid,
            "series": series.series_uid,
            "at_once": at_once,
        }
        try:
            answer = self._program.ask(move=order, timeout=_LONGEST)
        except ProgramFailed as failed:
            raise MoveFailed(str(failed)) from failed
        taken = MoveTime(answer.pop("started_at"), answer.pop("ended_at"))
        return taken, Reception(**answer)

    def _start(self) -> None:
        if self.kind != "storescp":
            self._program.start()
            self._program.read()
            return
        command = [find_program("storescp"), "--ignore", "+xt", "-pdu", str(MAXIMUM_PDU)]
        command += ["-aet", self.ae_title, str(self.port)]
        with self._log.open("wb") as log:
            self._storescp = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(100):
            if self._storescp.poll() is not None:
                break
            if echo(LOOPBACK, self.port, self.ae_title, timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"storescp does not answer on port {self.port}")

    def _stop(self) -> None:
        self._program.stop()
        process, self._storescp = self._storescp, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_null(port: int, preferred: str) -> None:
    """Run the null receiver on a Twisted reactor until the standard input ends."""
    from twisted.internet import reactor as installed
    from twisted.internet import stdio
    from twisted.protocols.basic import LineReceiver

    reactor: Any = installed
    factory = NullReceiverFactory(preferred.encode("ascii"))
    listening = reactor.listenTCP(port, factory, interface=LOOPBACK)

    class Control(LineReceiver):
        delimiter = b"\n"

        def connectionMade(self) -> None:
            say(port=listening.getHost().port)

        def lineReceived(self, line: bytes) -> None:
            order = json.loads(line)
            if "move" in order:
                moving = Deferred.fromCoroutine(run_moves(reactor, **order["move"]))
                moving.addCallbacks(self.moved, self.not_moved)
            else:
                self.moved({})

        def moved(self, times: dict[str, float]) -> None:
            # The associations hold the same object: it is emptied, not replaced.
            say(**attrs.asdict(factory.reception), **times)
            factory.reception.clear()

        def not_moved(self, failure: Failure) -> None:
            factory.reception.clear()
            say(failed=failure.getErrorMessage())

        def connectionLost(self, reason: object = None) -> None:
            if reactor.running:
                reactor.stop()

    stdio.StandardIO(Control())
    reactor.run()


async def run_moves(
    reactor: Any, *, port: int, called: str, destination: str, study: str, series: str, at_once: int
) -> dict[str, float]:
    """Ask for a series so many times at once; return when asked, and when the last move had ended."""
    movers = [Mover(CALLING, called, destination, study, series) for _ in range(at_once)]
    started_at = time.monotonic()
    for mover in movers:
        # A connection that cannot be opened ends the wait below too.
        TCP4ClientEndpoint(reactor, LOOPBACK, port).connect(OneMover(mover)).addErrback(mover.refused)
    ended = await gatherResults([mover.done for mover in movers], consumeErrors=True)
    return {"started_at": started_at, "ended_at": max(ended)}


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

    def report(order: dict[str, Any]) -> dict[str, object]:
        with lock:
            counted = attrs.asdict(reception)
            reception.clear()
        return counted

    say(port=server.server_address[1])
    answer_lines(report)
    entity.shutdown()


if __name__ == "__main__":
    _, wanted, wanted_port, wanted_title, wanted_syntax = sys.argv
    if wanted == "null":
        run_null(int(wanted_port), wanted_syntax)
    else:
        run_pynetdicom(int(wanted_port), wanted_title)

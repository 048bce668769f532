"""A RIS in a process of its own: sends reports over MLLP, and notes when each left and was acknowledged.

Theory of operation. Each report is about a study of its own, so each ends in a publication of its own.
They are built before the clock starts. Each connection sends its next report when the last one is
acknowledged, as interfaces.md 1.1 has it, from a thread with a blocking socket. All instants are of the
system's monotonic clock, one for all processes: a report has left when the kernel has its last byte.

`python -m bench.ris` answers each line {"port", "first", "count", "connections", "pdf"} with
{"started", "sent": [...], "acked": [...], "size", "refused"}.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from bench.program import Program, answer_lines, say
from drimbox.sim.peers import LOOPBACK
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message, parse_ack

#: Bytes of the PDF of a small report.
SMALL = 2_000
#: Bytes of the PDF that makes a CDA of 10 MB.
LARGE = 7_500_000
#: Seconds without an acknowledgement after which a report counts as lost.
_SILENCE = 120.0
#: Studies and documents of the bench; `number` is added.
_STUDIES = 349 * 10**30
_DOCUMENTS = 350 * 10**30


class NotAccepted(Exception):
    """The gateway did not acknowledge every report by AA: the figure would be worth nothing."""


@attrs.frozen
class Sending:
    """What became of a batch of reports, in the order they were sent."""

    #: Bytes of one message.
    size: int
    #: Instants of the monotonic clock: the first byte of all, and the last one of each.
    started: float
    sent: Sequence[float]
    acked: Sequence[float]
    #: Reports not acknowledged by AA.
    refused: int

    @property
    def rate(self) -> float:
        """Reports accepted a second, from the first byte to the last acknowledgement."""
        return len(self.acked) / (max(self.acked) - self.started)

    @property
    def waits(self) -> list[float]:
        """Seconds from each report's last byte to its acknowledgement."""
        return [acked - sent for sent, acked in zip(self.sent, self.acked, strict=True)]


def study_of(number: int) -> str:
    """Return the StudyInstanceUID that report `number` is about."""
    return f"2.25.{_STUDIES + number}"


def message(number: int, pdf: int = SMALL) -> bytes:
    """Build report `number`, with a PDF of so many bytes, unframed."""
    report = SimReport(
        acts=(SimAct(study_uid=study_of(number), modalities=("CT",)),),
        document_id=f"2.25.{_DOCUMENTS + number}",
        pdf_size=pdf,
    )
    return build_message(report, SimMessage(control_id=str(number)))


class Ris:
    """The RIS as a process; a context manager."""

    def __init__(self, *, log: Path) -> None:
        self._program = Program("bench.ris", log=log, timeout=900.0)

    def __enter__(self) -> Self:
        self._program.start()
        self._program.read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.stop()

    @property
    def pid(self) -> int:
        """Process number while it runs."""
        return self._program.pid

    def send(self, port: int, first: int, count: int, *, connections: int = 1, pdf: int = SMALL) -> Sending:
        """Send reports `first` to `first + count - 1`. Raises `NotAccepted`, `ProgramFailed`."""
        answer = self._program.ask(port=port, first=first, count=count, connections=connections, pdf=pdf)
        sending = Sending(**answer)
        if sending.refused:
            raise NotAccepted(f"{sending.refused} reports of {count} were not acknowledged by AA")
        return sending


def send(order: dict[str, Any]) -> dict[str, object]:
    """Carry out one order of `Ris.send`."""
    numbers = range(order["first"], order["first"] + order["count"])
    frames = [b"\x0b" + message(number, order["pdf"]) + b"\x1c\r" for number in numbers]
    turns, lock = iter(enumerate(frames)), threading.Lock()
    sent, acked, codes = [0.0] * len(frames), [0.0] * len(frames), [""] * len(frames)

    def work() -> None:
        with socket.create_connection((LOOPBACK, order["port"]), timeout=_SILENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number, frame in _shared(turns, lock):
                connection.sendall(frame)
                sent[number] = time.monotonic()
                answer = _answer(connection)
                acked[number] = time.monotonic()
                codes[number] = parse_ack(answer).code

    threads = [threading.Thread(target=work) for _ in range(order["connections"])]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = sum(code != "AA" for code in codes)
    return {
        "size": len(frames[0]),
        "started": started,
        "sent": sent,
        "acked": acked,
        "refused": refused,
    }


def _shared(turns: Iterator[tuple[int, bytes]], lock: threading.Lock) -> Iterator[tuple[int, bytes]]:
    """Yield what no other connection has taken."""
    for _ in itertools.count():
        with lock:
            turn = next(turns, None)
        if turn is None:
            return
        yield turn


def _answer(connection: socket.socket) -> bytes:
    """Read one acknowledgement, unframed."""
    data = b""
    while not data.endswith(b"\x1c\r"):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("the gateway closed the connection")
        data += piece
    return data[1:-2]


def main() -> None:
    """Serve the bench until the standard input ends."""
    say(ready=True)
    answer_lines(send)


if __name__ == "__main__":
    main()

"""The gateway as it is deployed, in a process that a test disturbs from outside.

Run in the place of `twistd`: `python -m tests.integration.disturbed -n drimbox --config FILE`. The product
knows nothing of it. Files in the folder `DRIMBOX_DISTURBED`, read again each time they matter, say what is
done to it; `Disturbance` writes them.

- `kill`: `SERIAL TAB PASSAGE TAB N`. The process kills itself (SIGKILL) when it comes by that passage for
  the Nth time since the file was written. Passages are the moments between which a crash can make a
  difference: before and after each commit that changed something, and each exchange with the outside.
- `passages`: the passages it came by, one a line.
- `shift`: seconds by which the clock of this machine is wrong.
- `store`: `readonly` lets no transaction write, `full` lets the database grow no further.
- `busy`: seconds a transaction waits for somebody else's lock, read once at the start.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

VARIABLE = "DRIMBOX_DISTURBED"


@attrs.define
class Disturbance:
    """What a test does to a gateway, by files in `folder`."""

    folder: Path
    _serial: int = 0

    def watch(self, passage: str = "", number: int = 0) -> None:
        """Count passages from now on, and die at one of them, if any is named."""
        self._serial += 1
        (self.folder / "passages").write_bytes(b"")
        self.write("kill", f"{self._serial}\t{passage}\t{number}")

    def passages(self) -> list[str]:
        """Return the passages since `watch`."""
        return (self.folder / "passages").read_text("utf-8").splitlines()

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole: its reader is in another process."""
        new = self.folder / f".{name}"
        new.write_text(text, "utf-8")
        new.replace(self.folder / name)

    def read(self, name: str) -> str:
        """Return the text of a file, empty when there is none."""
        try:
            return (self.folder / name).read_text("utf-8")
        except FileNotFoundError:
            return ""


class Passages:
    """Counts the passages of this process, and kills it at the one ordered."""

    def __init__(self, disturbance: Disturbance) -> None:
        self._disturbance = disturbance
        self._lock = threading.Lock()
        self._order = ""
        self._counts: Counter[str] = Counter()
        self._log = os.open(disturbance.folder / "passages", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, passage: str) -> None:
        """Come by `passage`."""
        with self._lock:
            order = self._disturbance.read("kill")
            if order != self._order:
                self._order = order
                self._counts.clear()
            self._counts[passage] += 1
            os.write(self._log, f"{passage}\n".encode())
            if order.split("\t")[1:] == [passage, str(self._counts[passage])]:
                os.kill(os.getpid(), signal.SIGKILL)


def _name(work: Any) -> str:
    """Name a transaction by the function of the store that made it."""
    function = work.func if isinstance(work, functools.partial) else work
    return re.sub(r"\.<locals>.*|(?<=\.)_", "", str(function.__qualname__))


def _around_commits(passages: Passages, disturbance: Disturbance) -> None:
    from drimbox.store.database import Database

    plain = Database.run

    def run(self: Any, work: Callable[[Any], Any]) -> Any:
        name, changed = _name(work), []

        def watched(connection: Any) -> Any:
            raw = connection.connection.driver_connection
            before = raw.total_changes
            with _spoilt(raw, disturbance.read("store")):
                result = work(connection)
            if raw.total_changes != before:
                changed.append(True)
                passages(f"before commit of {name}")
            return result

        def committed(result: Any) -> Any:
            if changed:
                passages(f"after commit of {name}")
            return result

        return plain(self, watched).addCallback(committed)

    Database.run = run  # type: ignore[method-assign]


@contextmanager
def _spoilt(raw: Any, fault: str) -> Iterator[None]:
    """Let a connection write nothing, or let its database not grow, for one transaction."""
    if fault == "readonly":
        raw.execute("PRAGMA query_only = ON")
    elif fault == "full":
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        if fault:
            raw.execute("PRAGMA query_only = OFF")
            raw.execute(f"PRAGMA max_page_count = {2**31}")


def _around(passages: Passages, owner: Any, method: str, name: str, *, before: bool = True) -> None:
    """Come by a passage before (unless told not to) and after an asynchronous method."""
    plain: Callable[..., Awaitable[Any]] = getattr(owner, method)

    @functools.wraps(plain)
    async def passed(*arguments: Any, **keywords: Any) -> Any:
        if before:
            passages(f"before {name}")
        result = await plain(*arguments, **keywords)
        passages(f"after {name}")
        return result

    setattr(owner, method, passed)


def _around_exchanges(passages: Passages) -> None:
    from drimbox.dicom.dimse import CommandField
    from drimbox.dicom.requestor import Links, Requestor
    from drimbox.hl7.server import MllpFactory
    from drimbox.source.changenotes import ChangeNotes
    from drimbox.xds.client import DmpClient

    for method, transaction in (
        ("patient_exists", "TD0.2"),
        ("publish", "TD2.1"),
        ("remove", "TD3.3c"),
        ("find_entry", "TD3.1"),
    ):
        _around(passages, DmpClient, method, transaction)
    _around(passages, Links, "open", "association with the PACS")
    # Stored, and the sender not yet told.
    _around(passages, MllpFactory, "take", "the making of an ACK", before=False)
    _around(passages, ChangeNotes, "take", "the making of a C-STORE response", before=False)

    begin, answer = Requestor.begin, Requestor._answer

    def asked(self: Requestor, syntax: str, command: Any, identifier: Any = None) -> int:
        passages(f"before {CommandField(command.field).name}")
        number = begin(self, syntax, command, identifier)
        passages(f"after {CommandField(command.field).name}")
        return number

    def answered(self: Requestor, command: Any) -> None:
        passages(f"before an answer to {CommandField(command.field).name}")
        answer(self, command)

    Requestor.begin = asked  # type: ignore[method-assign]
    Requestor._answer = answered  # type: ignore[method-assign]


def _shift_clock(disturbance: Disturbance) -> None:
    """Make the wall clock wrong by what the file says, for Python and so for Twisted; not the monotonic."""
    plain = time.time

    def shift() -> float:
        return float(disturbance.read("shift") or 0)

    time.time = lambda: plain() + shift()

    from drimbox import clock

    right = clock.SystemClock.now

    def now(self: clock.SystemClock) -> datetime:
        return right(self) + timedelta(seconds=shift())

    clock.SystemClock.now = now  # type: ignore[method-assign]


def main() -> None:
    """Disturb what has to be, then be `twistd`."""
    disturbance = Disturbance(Path(os.environ[VARIABLE]))
    # Before Twisted is imported, which keeps the function it finds.
    _shift_clock(disturbance)
    if busy := disturbance.read("busy"):
        from drimbox.store import engine

        engine.BUSY_TIMEOUT = float(busy)
    passages = Passages(disturbance)
    _around_commits(passages, disturbance)
    _around_exchanges(passages)

    from twisted.scripts.twistd import run

    sys.argv[0] = "twistd"
    run()


if __name__ == "__main__":
    main()

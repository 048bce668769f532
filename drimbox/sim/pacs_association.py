"""What the simulated PACS does with an association beyond pynetdicom: wait, notice its end, misbehave."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from drimbox.sim.pacs_behaviour import GARBAGE

_STEP = 0.02


def is_over(association: Any) -> bool:
    """Say whether the other side aborted or closed this association, read from outside its loop."""
    return not association.dul.is_alive() or association.acse.is_aborted()


def wait(association: Any, seconds: float | None, stopping: threading.Event) -> bool:
    """Wait so long, for ever when None; False when the association or the PACS ended before."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        if is_over(association) or stopping.wait(_STEP):
            return False
    return True


def cut(association: Any) -> None:
    """Close the connection without a word."""
    with contextlib.suppress(OSError, AttributeError):
        association.dul.socket.close()


def abort(association: Any) -> None:
    """Send A-ABORT; what does not leave within a second is dropped with the connection."""
    association.abort(block=False)
    for _ in range(50):
        if association.dul.state_machine.current_state in ("Sta1", "Sta13"):
            return
        time.sleep(_STEP)
    cut(association)


def misbehave(association: Any, how: str, stopping: threading.Event) -> bool:
    """Do what the behaviour says instead of answering; True when it says to answer."""
    if how == "answer":
        return True
    if how == "silent":
        wait(association, None, stopping)
    elif how == "abort":
        abort(association)
    elif how == "garbage":
        association.dul.socket.send(GARBAGE)
        wait(association, 2.0, stopping)
        cut(association)
    else:
        cut(association)
    return False

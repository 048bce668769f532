"""Connections that take places and give nothing: half open, dripping, not reading."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from drimbox.sim.ris import build_message
from tests.dicom.box import storing
from tests.integration.hostile.target import Attack, Target

#: Seconds such a crowd stays, longer than the gateway has patience; and its size.
STAY, CROWD = 10.0, 12


def _crowd(
    stack: ExitStack, connect: Callable[[], socket.socket], size: int = CROWD
) -> list[socket.socket]:
    found = []
    for _ in range(size):
        with suppress(OSError):
            found.append(stack.enter_context(connect()))
    return found


def half_open(target: Target, chance: random.Random, source: str) -> None:
    """Connections that say nothing, at every door."""
    port = chance.choice((target.wado, target.dicom, target.hl7))
    with ExitStack() as stack:
        _crowd(stack, lambda: target.connect(port, source))
        time.sleep(STAY)


def drip(target: Target, chance: random.Random, source: str) -> None:
    """A byte at a time, of what might become something."""
    what = chance.randrange(3)
    port, data = (
        (target.wado, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500),
        (target.dicom, storing()),
        (target.hl7, b"\x0b" + build_message()),
    )[what]
    with ExitStack() as stack:
        _drip(_crowd(stack, lambda: target.connect(port, source)), data)


def drip_request(target: Target, chance: random.Random, source: str) -> None:
    """The same behind a handshake."""
    with ExitStack() as stack:
        _drip(_crowd(stack, lambda: target.tls(source), 4), target.request)


def _drip(connections: list[socket.socket], data: bytes) -> None:
    end, place = time.monotonic() + STAY, 0
    while time.monotonic() < end and place < len(data):
        for each in connections:
            with suppress(OSError):
                each.sendall(data[place : place + 1])
        place += 1
        time.sleep(0.2)


def reads_nothing(target: Target, chance: random.Random, source: str) -> None:
    """Good requests whose answers nobody reads."""
    with ExitStack() as stack:
        for each in _crowd(stack, lambda: target.tls(source), 2):
            with suppress(OSError):
                each.sendall(target.request)
        time.sleep(STAY)


ATTACKS: dict[str, tuple[Attack, ...]] = {
    "slowloris, stalled reader": (half_open, drip, drip_request, reads_nothing),
}

"""Those who ask, one or many at once, each a process (`bench.client`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from bench.program import Program

#: Most seconds one delivery may take.
_LONGEST = 600.0
#: Seconds between "all are ready" and the instant at which all ask.
_LEAD = 0.05

Order = Mapping[str, Any]


class DeliveryFailed(Exception):
    """A client did not get the whole answer: there is no figure to report."""


@attrs.frozen
class Delivery:
    """One answer as its client saw it; instants are of the monotonic clock."""

    started_at: float
    first_at: float
    ended_at: float
    #: Bytes of the body, chunk heads included.
    size: int
    #: Processor time of the client, seconds.
    cpu: float

    @property
    def first(self) -> float:
        """Seconds from the request to the last byte of the first part."""
        return self.first_at - self.started_at

    @property
    def seconds(self) -> float:
        """Seconds from the request to the last byte."""
        return self.ended_at - self.started_at


def fetch(order: Order, folder: Path, *, at_least: int = 0) -> Delivery:
    """Have one client ask; see `fetch_together`."""
    return fetch_together([order], folder, at_least=at_least)[0]


def fetch_together(orders: Sequence[Order], folder: Path, *, at_least: int = 0) -> list[Delivery]:
    """Have as many clients ask at the same instant, each on a connection that is open.

    `folder` gets their logs. Raises `DeliveryFailed` unless each got the whole answer, of `at_least`
    bytes.
    """
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Program("bench.client", log=folder / f"client-{number}.log"))
            for number in range(len(orders))
        ]
        for client, order in zip(clients, orders, strict=True):
            client.tell(**order)
        for client in clients:
            client.read()
        at = time.monotonic() + _LEAD
        for client in clients:
            client.tell(at=at)
        return [_delivery(client.read(timeout=_LONGEST), at_least) for client in clients]


def _delivery(answer: dict[str, Any], at_least: int) -> Delivery:
    if not answer.get("complete"):
        raise DeliveryFailed(f"answer not complete: {answer}")
    if answer["bytes"] < at_least:
        raise DeliveryFailed(f"{answer['bytes']} bytes of at least {at_least}")
    return Delivery(
        answer["started_at"], answer["first_at"], answer["ended_at"], answer["bytes"], answer["cpu"]
    )

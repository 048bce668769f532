"""Waiting for work that belongs to others: its result stays theirs, and no wait needs to be endless."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime


def settled(work: Deferred[Any]) -> Deferred[None]:
    """Return what fires when `work` is over, leaving its result to whoever else waits for it."""
    waiting: Deferred[None] = Deferred()

    def over(result: Any) -> Any:
        if not waiting.called:
            waiting.callback(None)
        return result

    work.addBoth(over)
    return waiting


async def at_most(work: Deferred[Any], seconds: float, clock: IReactorTime) -> None:
    """Wait for `work`, no longer than `seconds`; it is not cancelled."""
    waiting = settled(work)
    timer = clock.callLater(seconds, waiting.callback, None)
    await waiting
    if timer.active():
        timer.cancel()

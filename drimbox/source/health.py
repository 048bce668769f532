"""What the weather service of the agency is told: which parts work (DB.SO.182, 183; requirements.md 3.13).

Looking costs something, a C-ECHO for each PACS at least, and anybody polls as often as they like: so an
answer is remembered for a few seconds, and whoever comes while somebody looks waits for the same look.
A PACS that does not answer costs one question at a time, however many ask; the answer does not wait for it
beyond its time.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.errors import PacsCommunicationError


@attrs.frozen
class Check:
    """One part and whether it works."""

    name: str
    up: bool


@attrs.frozen
class Answer:
    """What is answered: one part that does not work makes the whole `DOWN`."""

    up: bool
    #: The JSON of interfaces.md 12.2.
    body: bytes


def answer_of(checks: Sequence[Check]) -> Answer:
    """Return the answer that these checks make."""
    up = all(check.up for check in checks)
    document = {
        "status": _word(up),
        "checks": [{"name": check.name, "status": _word(check.up)} for check in checks],
    }
    return Answer(up, json.dumps(document, separators=(",", ":")).encode("ascii"))


def _word(up: bool) -> str:
    return "UP" if up else "DOWN"


class Remembered:
    """The answer to one question, found by `look` and good for `keep` seconds."""

    def __init__(
        self, look: Callable[[], Awaitable[Sequence[Check]]], clock: IReactorTime, keep: float
    ) -> None:
        self._look = look
        self._clock = clock
        self._keep = keep
        self._last: Answer | None = None
        self._until = 0.0
        #: Who waits for the look that is under way; None while there is none.
        self._waiting: list[Deferred[Answer]] | None = None

    def fresh(self) -> Answer | None:
        """Return the last answer while it is good."""
        return self._last if self._clock.seconds() < self._until else None

    async def answer(self) -> Answer:
        """Return the last answer while it is good, else look. Raises what `look` raises."""
        last = self.fresh()
        if last is not None:
            return last
        waiting: Deferred[Answer] = Deferred()
        if self._waiting is None:
            self._waiting = [waiting]
            # Not as a part of whoever asked first, who may go away.
            Deferred.fromCoroutine(self._renew()).addBoth(self._tell)
        else:
            self._waiting.append(waiting)
        return await waiting

    async def _renew(self) -> Answer:
        self._last = answer_of(await self._look())
        self._until = self._clock.seconds() + self._keep
        return self._last

    def _tell(self, result: Answer | Failure) -> None:
        waiting, self._waiting = self._waiting, None
        for each in waiting or ():
            # Whoever has gone away has cancelled his own.
            if not each.called:
                each.callback(result)  # a Failure makes it an errback


class ArchiveChecks:
    """Asks every PACS, or archive, whether it is there: all at once, one question each at a time.

    `verify` maps the name of each to the question, which raises `PacsCommunicationError` when it is not;
    what has not answered within `timeout` seconds counts as down.
    """

    log = Logger()

    def __init__(
        self, verify: Mapping[str, Callable[[], Awaitable[None]]], clock: IReactorTime, timeout: float
    ) -> None:
        self._verify = verify
        self._clock = clock
        self._timeout = timeout
        self._running: dict[str, Deferred[bool]] = {}

    async def look(self) -> list[Check]:
        """Return whether each works, in the order of the configuration."""
        asked = [Deferred.fromCoroutine(self._one(name)) for name in self._verify]
        states = await gatherResults(asked)
        return [Check(name, up) for name, up in zip(self._verify, states, strict=True)]

    async def _one(self, name: str) -> bool:
        running = self._running.get(name)
        if running is None:
            running = self._running[name] = Deferred.fromCoroutine(self._ask(name))
            running.addBoth(self._over, name)
        # The question itself is not cancelled: it ends in its own time and lets go of what it holds.
        waiting: Deferred[bool] = Deferred()
        running.addBoth(_pass_on, waiting)
        timer = self._clock.callLater(self._timeout, _pass_on, False, waiting)
        up = await waiting
        if timer.active():
            timer.cancel()
        return up

    async def _ask(self, name: str) -> bool:
        try:
            await self._verify[name]()
        except PacsCommunicationError as error:
            self.log.info("health: {name} does not answer: {why}", name=name, why=error.detail)
            return False
        return True

    def _over(self, result: bool | Failure, name: str) -> bool:
        del self._running[name]
        if isinstance(result, Failure):
            self.log.failure("health: question to {name} failed", failure=result, name=name)
            return False
        return result


def _pass_on(result: bool, waiting: Deferred[bool]) -> bool:
    if not waiting.called:
        waiting.callback(result)
    return result

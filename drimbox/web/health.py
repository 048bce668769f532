"""`/healthcheck/drimbox` and `/healthcheck/pacs` on the viewer names (DB.SO.182, 183; interfaces.md 12.2).

Anybody on the Internet reaches these names, so only the addresses of the weather service get an answer
(`probes`); the others learn nothing, not even which paths exist. An answer is remembered for a few seconds
and sent as it is, and a poll that repeats the last one of its connection is not read anew (`wado.repeats`):
polling costs what TLS costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import resource, server
from twisted.web.http import RESPONSES, datetimeToString

from drimbox import metrics
from drimbox.source.health import Answer, Remembered

#: The first part of the path.
PATH = b"healthcheck"
_HEAD = (
    b"HTTP/1.1 %d %b\r\nServer: DRIMbox\r\nDate: %b\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"
    b"X-Content-Type-Options: nosniff\r\n%b\r\n"
)
_JSON = b"Content-Type: application/json\r\n"
_UP, _DOWN = metrics.HEALTH_POLLS.labels("up"), metrics.HEALTH_POLLS.labels("down")


class Callers(Protocol):
    """Who may ask."""

    def allows(self, address: str) -> bool:
        """Say whether a caller at `address` gets an answer."""


class _Question:
    """One question, and the bytes of its answer to a GET, which change with the answer or the second."""

    def __init__(self, remembered: Remembered, down_status: int) -> None:
        self.remembered = remembered
        self._down_status = down_status
        self._made_of: tuple[Answer | None, int] = None, 0
        self._made = b""

    def whole(self, answer: Answer) -> bytes:
        """Return the answer with its head."""
        made_of = answer, int(time.time())
        if made_of != self._made_of:
            self._made_of, self._made = made_of, self.head(answer) + answer.body
        return self._made

    def head(self, answer: Answer) -> bytes:
        """Return the head of the answer."""
        return _head(200 if answer.up else self._down_status, len(answer.body), _JSON)


class HealthResource(resource.Resource):
    """Answers every path below `/healthcheck/`."""

    isLeaf = True
    log = Logger()

    def __init__(
        self,
        gateway: Mapping[str, Remembered],
        pacs: Remembered,
        callers: Callers,
        *,
        site_of: Callable[[Any], str],
        down_is_503: bool,
    ) -> None:
        """`gateway` holds the checks of each site, by its name; `site_of` tells whose viewer name a
        transport was opened to.
        """
        super().__init__()
        down = 503 if down_is_503 else 200
        self._gateway = {name: _Question(each, down) for name, each in gateway.items()}
        self._pacs = _Question(pacs, down)
        self._callers = callers
        self._site_of = site_of

    def render(self, request: server.Request) -> int:
        """Answer at once when the answer is known, else when it has been found."""
        transport: Any = request.channel.transport if request.channel is not None else None
        address = str(getattr(transport.getPeer(), "host", ""))
        if not self._callers.allows(address):
            _refuse(request, 403, "refused")
            return server.NOT_DONE_YET
        question = self._question(request, transport)
        if question is None:
            _refuse(request, 404, "unknown")
        elif request.method not in (b"GET", b"HEAD"):
            _refuse(request, 405, "unknown", b"Allow: GET, HEAD\r\n")
        else:
            answer = question.remembered.fresh()
            if answer is not None:
                channel: Any = request.channel
                channel.repeatable(partial(self._again, address, question))
                _send(request, question, answer)
            else:
                looking = Deferred.fromCoroutine(question.remembered.answer())
                request.notifyFinish().addErrback(lambda _: looking.cancel())
                looking.addCallbacks(self._found, self._failed, (request, question), errbackArgs=(request,))
        return server.NOT_DONE_YET

    def _question(self, request: server.Request, transport: Any) -> _Question | None:
        path = request.uri.partition(b"?")[0].rstrip(b"/")
        if path == b"/healthcheck/drimbox":
            return self._gateway[self._site_of(transport)]
        return self._pacs if path == b"/healthcheck/pacs" else None

    def _again(self, address: str, question: _Question) -> bytes | None:
        """Answer the same GET from the same address once more, if it still may ask."""
        if not self._callers.allows(address):
            return None
        answer = question.remembered.fresh()
        if answer is None:
            return None
        (_UP if answer.up else _DOWN).inc()
        return question.whole(answer)

    def _found(self, answer: Answer, request: server.Request, question: _Question) -> None:
        if not request._disconnected:
            _send(request, question, answer)

    def _failed(self, failure: Failure, request: server.Request) -> None:
        if not request._disconnected:
            self.log.failure("health: no answer found", failure=failure)
            _refuse(request, 500, "failed")


def _send(request: server.Request, question: _Question, answer: Answer) -> None:
    _write(request, question.head(answer) if request.method == b"HEAD" else question.whole(answer))
    (_UP if answer.up else _DOWN).inc()


def _refuse(request: server.Request, status: int, result: str, more: bytes = b"") -> None:
    channel: Any = request.channel
    if channel is not None:
        channel.persistent = False
    _write(request, _head(status, 0, b"Connection: close\r\n" + more))
    metrics.HEALTH_POLLS.labels(result).inc()


def _head(status: int, length: int, more: bytes) -> bytes:
    return _HEAD % (status, RESPONSES[status], datetimeToString(int(time.time())), length, more)


def _write(request: server.Request, answer: bytes) -> None:
    """Send an answer in one piece: one TLS record and one packet, at half the price of Twisted's way."""
    channel: Any = request.channel
    if channel is None:
        return
    channel.writeSequence((answer,))
    request.startedWriting = 1
    request.finish()

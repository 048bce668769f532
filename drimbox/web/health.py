"""`/healthcheck/drimbox` and `/healthcheck/pacs` on the viewer names (DB.SO.182, 183; interfaces.md 12.2).

Anybody on the Internet reaches these names, so only the addresses of the weather service get an answer
(`probes`); the others learn nothing, not even which paths exist. An answer is remembered for a few seconds
and sent as it is: polling costs what HTTP costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class Callers(Protocol):
    """Who may ask."""

    def allows(self, address: str) -> bool:
        """Say whether a caller at `address` gets an answer."""


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
        self._gateway = gateway
        self._pacs = pacs
        self._callers = callers
        self._site_of = site_of
        self._down_status = 503 if down_is_503 else 200

    def render(self, request: server.Request) -> int:
        """Answer at once when the answer is known, else when it has been found."""
        transport: Any = request.channel.transport if request.channel is not None else None
        if not self._callers.allows(str(getattr(transport.getPeer(), "host", ""))):
            _refuse(request, 403, "refused")
            return server.NOT_DONE_YET
        question = self._question(request, transport)
        if question is None:
            _refuse(request, 404, "unknown")
        elif request.method not in (b"GET", b"HEAD"):
            _refuse(request, 405, "unknown", b"Allow: GET, HEAD\r\n")
        else:
            answer = question.fresh()
            if answer is not None:
                self._send(request, answer)
            else:
                looking = Deferred.fromCoroutine(question.answer())
                request.notifyFinish().addErrback(lambda _: looking.cancel())
                looking.addCallbacks(self._found, self._failed, (request,), errbackArgs=(request,))
        return server.NOT_DONE_YET

    def _question(self, request: server.Request, transport: Any) -> Remembered | None:
        path = request.uri.partition(b"?")[0].rstrip(b"/")
        if path == b"/healthcheck/drimbox":
            return self._gateway[self._site_of(transport)]
        return self._pacs if path == b"/healthcheck/pacs" else None

    def _found(self, answer: Answer, request: server.Request) -> None:
        if not request._disconnected:
            self._send(request, answer)

    def _failed(self, failure: Failure, request: server.Request) -> None:
        if not request._disconnected:
            self.log.failure("health: no answer found", failure=failure)
            _refuse(request, 500, "failed")

    def _send(self, request: server.Request, answer: Answer) -> None:
        _write(request, 200 if answer.up else self._down_status, answer.body, _JSON)
        metrics.HEALTH_POLLS.labels("up" if answer.up else "down").inc()


def _refuse(request: server.Request, status: int, result: str, more: bytes = b"") -> None:
    channel: Any = request.channel
    if channel is not None:
        channel.persistent = False
    _write(request, status, b"", b"Connection: close\r\n" + more)
    metrics.HEALTH_POLLS.labels(result).inc()


def _write(request: server.Request, status: int, body: bytes, more: bytes) -> None:
    """Send an answer in one piece: one TLS record and one packet, at half the price of Twisted's way."""
    channel: Any = request.channel
    if channel is None:
        return
    shown = b"" if request.method == b"HEAD" else body
    head = _HEAD % (status, RESPONSES[status], datetimeToString(), len(body), more)
    channel.writeSequence((head, shown))
    request.startedWriting = 1
    request.finish()

"""Bodies of HTTP exchanges: one read to its end, within a limit, or not at all; one sent that is there.

Twisted's `readBody` has no limit. What is read here is whole: a body cut short is an error, one longer than
agreed is cut by us.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer


class BodyRefused(Exception):
    """The body is longer than agreed, or did not come whole."""


class BodyTooLong(BodyRefused):
    """The body is longer than agreed: asking again would not help."""


def read_body(response: IResponse, limit: int) -> Deferred[bytes]:
    """Return what fires with the whole body, or fails with `BodyRefused`.

    Cancelling it stops the reading. An answer without length, ended by the closing of its connection, is
    taken for whole: whoever reads a format that does not show where it was cut must ask for more.
    """
    collector = _Collector(limit)
    response.deliverBody(collector)
    return collector.finished


def discard(response: IResponse) -> None:
    """Want no body: the connection is cut once the head of the answer is there."""
    response.deliverBody(_Unwanted())


class _Unwanted(Protocol):
    def connectionMade(self) -> None:
        # The body's transport only stands in for the connection, and cannot cut it itself.
        proxy: Any = self.transport
        abort = getattr(getattr(proxy, "_producer", None), "abortConnection", None)
        if abort is not None:
            abort()
        else:
            proxy.stopProducing()


class _Collector(Protocol):
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._over = False
        self.finished: Deferred[bytes] = Deferred(lambda _: self._stop())

    def dataReceived(self, data: bytes) -> None:
        if len(self._data) + len(data) > self._limit:
            self._over = True
            self._stop()
        elif not self._over:
            self._data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.finished.called:
            return
        if self._over:
            self.finished.errback(BodyTooLong("réponse trop longue"))
        elif reason.check(ResponseDone, PotentialDataLoss) is None:
            self.finished.errback(BodyRefused("réponse interrompue"))
        else:
            self.finished.callback(bytes(self._data))

    def _stop(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.stopProducing()


@implementer(IBodyProducer)
class WholeBody:
    """A request body that is there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write all of it."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing to pause: all of it was written at once."""

    def resumeProducing(self) -> None:
        """Nothing to resume."""

    def stopProducing(self) -> None:
        """Nothing to stop."""

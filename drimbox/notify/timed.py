"""A way out that takes no longer than it may, and says in French why something did not leave."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from twisted.internet.defer import CancelledError, Deferred

from drimbox.notify.channel import NotDelivered
from drimbox.ports import Digest, InThread, Severity
from drimbox.trust.reach import reason_of

T = TypeVar("T")


class TimedChannel:
    """Sends one digest within `timeout` seconds; `where` is named when it cannot."""

    name: ClassVar[str]

    def __init__(
        self, where: str, severity: str, timeout: float, reactor: Any, in_thread: InThread
    ) -> None:
        self.severity = Severity(severity)
        self._where = where
        self._timeout = timeout
        self._reactor = reactor
        self._in_thread = in_thread

    async def send(self, digest: Digest) -> str:
        """Deliver one digest; return a remark in French, mostly empty. Raises `NotDelivered`."""
        return await self._in_time(self._send(digest))

    async def _in_time(self, task: Coroutine[Deferred[Any], Any, T]) -> T:
        """Do something within the time-out. Raises `NotDelivered`."""
        work = Deferred.fromCoroutine(task)
        work.addTimeout(self._timeout, self._reactor)
        try:
            return await work
        except (NotDelivered, CancelledError):
            raise
        except Exception as error:
            # Never the text of an error nobody knows: it may repeat what was sent.
            raise NotDelivered(f"{self._where} : {self._reason(error)}") from None

    async def _send(self, digest: Digest) -> str:
        raise NotImplementedError

    def _reason(self, error: Exception) -> str:
        """Say in French what went wrong, never quoting what we sent."""
        return reason_of(error)

"""Remembers for a few seconds that a token was good, where the operator has asked for it (DB.SO.32).

A study of ten series is ten requests with one token; where the proxy is far away or counts its questions,
one answer may serve for all of them. The price is that a token revoked in between still opens: so this is
off unless configured, lasts seconds, and never beyond the token's own expiry. Only positive answers are
kept.

What is kept says nothing: the key is a digest, under a secret of this process, of the token and of the
Consumer that presented it, so that a token cannot be used again by another Consumer without being verified.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

import attrs
from twisted.internet.interfaces import IReactorTime

from drimbox import metrics
from drimbox.ports import Introspection, Introspector


@attrs.frozen
class _Kept:
    answer: Introspection
    #: Until when it counts: by the clock that never jumps, and by the calendar.
    until: float
    expires_at: int


class RememberingIntrospector:
    """Implements `ports.Introspector` over another one; `seconds` and `most` bound what it remembers."""

    def __init__(
        self,
        inner: Introspector,
        clock: IReactorTime,
        now: Callable[[], datetime],
        *,
        seconds: float,
        most: int,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._now = now
        self._seconds = seconds
        self._most = most
        self._secret = secrets.token_bytes(32)
        #: The oldest first: each lasts as long as the others at most.
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    async def introspect(self, token: str, consumer: str) -> Introspection:
        """Return who is behind `token`, asking unless `consumer` has just been told. Raises as `inner`."""
        key = hmac.digest(self._secret, f"{token}\0{consumer}".encode("utf-8", "surrogatepass"), "sha256")
        kept = self._kept.get(key)
        if kept is not None and self._counts(kept):
            metrics.INTROSPECTIONS.labels("remembered").inc()
            return kept.answer
        self._kept.pop(key, None)
        answer = await self._inner.introspect(token, consumer)
        if answer.expires_at is not None:
            self._kept[key] = _Kept(answer, self._clock.seconds() + self._seconds, answer.expires_at)
            self._kept.move_to_end(key)
            self._trim()
        return answer

    def _counts(self, kept: _Kept) -> bool:
        return self._clock.seconds() < kept.until and self._now().timestamp() < kept.expires_at

    def _trim(self) -> None:
        while len(self._kept) > self._most or not self._counts(next(iter(self._kept.values()))):
            self._kept.popitem(last=False)
            if not self._kept:
                return

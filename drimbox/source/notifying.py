"""Notices leave the machine: by mail, by webhook, in digests, each notice once (DB.SO.21).

Theory of operation. Every channel is looked after on its own: `look` finds the open notices that have not
left by it yet and sends them in one digest, then keeps quiet for `interval`, however often the notices
repeat themselves. So the first notice leaves at once, and those of a bad quarter of an hour together. A
digest that is not taken is tried again with back-off; what left, and when a channel may speak again, is
in the store, and survives a stop. That a channel fails is itself a notice, for the list and for the other
channel. Nothing here is on the way of the feed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import Appliance, NotificationSettings
from drimbox.ports import Clock, Digest, Notice, Severity
from drimbox.source.backoff import backoff
from drimbox.source.outage import OutageNotices

#: Notices of one digest; the others leave with the next.
MAX_NOTICES = 50
#: Code of the notice about a channel that does not deliver.
CODE = "NOTIFICATION"
_SEVERITIES = list(Severity)


class Channel(Protocol):
    """A way out."""

    @property
    def name(self) -> str:
        """Its name in the store and for operators."""

    @property
    def severity(self) -> Severity:
        """The least severity that leaves by it."""

    async def send(self, digest: Digest) -> str:
        """Deliver one digest; return a remark (French). Raises an exception with a French text."""


class State(Protocol):
    """When a channel may speak again."""

    @property
    def next_at(self) -> datetime: ...
    @property
    def failures(self) -> int: ...


class Deliveries(Protocol):
    """What has left by which channel."""

    async def state(self, channel: str) -> State | None:
        """Return the state of a channel, None when it never spoke."""

    async def due(
        self, channel: str, severities: Collection[Severity], limit: int, *, but: str
    ) -> tuple[list[Notice], int]:
        """Return open notices that have not left by a channel, and how many more there are."""

    async def delivered(self, channel: str, ids: Collection[int], next_at: datetime) -> None:
        """Note that notices left by a channel, which keeps quiet until `next_at`."""

    async def failed(self, channel: str, failures: int, next_at: datetime, error: str) -> None:
        """Note that a digest could not be delivered."""


@attrs.frozen
class Trial:
    """How a test of a channel ended: `error` is empty when the digest was taken."""

    channel: str
    error: str
    remark: str


class Notifier:
    """Sends notices by the configured channels."""

    log = Logger()

    def __init__(
        self,
        appliance: Appliance,
        settings: NotificationSettings,
        channels: Sequence[Channel],
        deliveries: Deliveries,
        notices: OutageNotices,
        clock: Clock,
    ) -> None:
        self._appliance = appliance
        self._settings = settings
        self._deliveries = deliveries
        self._notices = notices
        self._clock = clock
        self.channels = tuple(channels)
        self._sending: set[Deferred[str]] = set()
        self._stopped = False

    def stop(self) -> None:
        """Cut short what is being sent, and send no more: it leaves after the next start."""
        self._stopped = True
        for sending in list(self._sending):
            sending.cancel()

    async def look(self, channel: Channel) -> None:
        """Send what has not left by a channel yet, if it may speak now."""
        if self._stopped:
            return
        state, now = await self._deliveries.state(channel.name), self._clock.now()
        # Further away than any wait, it was written under a clock that has been set back since.
        longest = timedelta(seconds=max(self._settings.interval, self._settings.retry_max))
        if state is not None and now < state.next_at <= now + longest:
            return
        wanted = _SEVERITIES[_SEVERITIES.index(channel.severity) :]
        own = f"notification-{channel.name}"
        notices, more = await self._deliveries.due(channel.name, wanted, MAX_NOTICES, but=own)
        if not notices:
            return
        failures = state.failures if state is not None else 0
        try:
            remark = await self._send(channel, self._digest(channel, notices, more))
        except CancelledError:
            return
        except Exception as error:
            await self._failed(channel, own, failures + 1, str(error))
            return
        next_at = self._clock.now() + timedelta(seconds=self._settings.interval)
        await self._deliveries.delivered(channel.name, [each.id for each in notices], next_at)
        metrics.NOTIFICATIONS.labels(channel.name, "sent").inc()
        if remark:
            self.log.warn("digest by {channel}: {remark}", channel=channel.name, remark=remark)
        if failures:
            await self._notices.resolve(own)

    async def test(self) -> list[Trial]:
        """Send a test by every channel at once, whatever its state; return how each ended."""
        trials = [Deferred.fromCoroutine(self._try(channel)) for channel in self.channels]
        return [await trial for trial in trials]

    async def _try(self, channel: Channel) -> Trial:
        digest = trial_digest(self._appliance, channel.name, self._clock.now())
        try:
            return Trial(channel.name, "", await self._send(channel, digest))
        except CancelledError:
            return Trial(channel.name, "interrompu", "")
        except Exception as error:
            return Trial(channel.name, str(error), "")

    async def _send(self, channel: Channel, digest: Digest) -> str:
        sending = Deferred.fromCoroutine(channel.send(digest))
        self._sending.add(sending)
        try:
            return await sending
        finally:
            self._sending.discard(sending)

    async def _failed(self, channel: Channel, key: str, failures: int, reason: str) -> None:
        self.log.warn("no digest by {channel}: {reason}", channel=channel.name, reason=reason)
        metrics.NOTIFICATIONS.labels(channel.name, "failed").inc()
        wait = backoff(failures, self._settings.retry_first, self._settings.retry_max)
        await self._deliveries.failed(channel.name, failures, self._clock.now() + wait, reason)
        await self._notices.post(
            key=key, code=CODE, text=f"Envoi des avis ({channel.name}) impossible : {reason}"
        )

    def _digest(self, channel: Channel, notices: Sequence[Notice], more: int) -> Digest:
        numbers = ",".join(str(each.id) for each in notices)
        digest = _empty(self._appliance, f"{channel.name}:{numbers}", self._clock.now())
        return attrs.evolve(digest, notices=tuple(notices), more=more)


def trial_digest(appliance: Appliance, channel: str, now: datetime) -> Digest:
    """Return a digest that says it is a test, for one channel."""
    return attrs.evolve(_empty(appliance, f"{channel}:{now.isoformat()}", now), test=True)


def _empty(appliance: Appliance, mark: str, now: datetime) -> Digest:
    """Return a digest without notices; the same mark gives the same identifier."""
    return Digest(
        id=f"avis-{hashlib.sha256(mark.encode()).hexdigest()[:32]}",
        name=appliance.name,
        system_id=appliance.system_id,
        sent_at=now,
        notices=(),
    )

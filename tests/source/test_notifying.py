"""Digests: at once, then no more often than the interval; tried again; each notice once (DB.SO.21)."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from drimbox import metrics
from drimbox.config import NotificationSettings
from drimbox.ports import Digest, Notice, Severity
from drimbox.source.notifying import MAX_NOTICES, Notifier
from tests.source.fakes import Clock, Notices, config, run

pytestmark = pytest.mark.requirement("DB.SO.21")
SETTINGS = NotificationSettings(interval=900.0, retry_first=30.0, retry_max=600.0)


class Channel:
    name = "mail"

    def __init__(self, severity: Severity = Severity.INFORMATION) -> None:
        self.severity = severity
        self.sent: list[Digest] = []
        self.error: Exception | None = None
        self.gate: Deferred[None] | None = None
        self.remark = ""

    async def send(self, digest: Digest) -> str:
        if self.gate is not None:
            await self.gate
        if self.error is not None:
            raise self.error
        self.sent.append(digest)
        return self.remark

    @property
    def said(self) -> list[list[int]]:
        return [[each.id for each in digest.notices] for digest in self.sent]


@attrs.define
class State:
    next_at: datetime
    failures: int


class Deliveries:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.states: dict[str, State] = {}
        self.open: list[Notice] = []
        self.left: set[int] = set()
        self.errors: list[str] = []

    def add(self, *numbers: int, severity: Severity = Severity.ATTENTION) -> None:
        now = self.clock.now()
        self.open += [Notice(each, f"k{each}", "E004", severity, "t", 1, now, now) for each in numbers]

    async def state(self, channel: str) -> State | None:
        return self.states.get(channel)

    async def due(
        self, channel: str, severities: Collection[Severity], limit: int, *, but: str
    ) -> tuple[list[Notice], int]:
        found = [
            each
            for each in self.open
            if each.id not in self.left and each.severity in severities and each.key != but
        ]
        return found[:limit], max(0, len(found) - limit)

    async def delivered(self, channel: str, ids: Collection[int], next_at: datetime) -> None:
        self.left |= set(ids)
        self.states[channel] = State(next_at, 0)

    async def failed(self, channel: str, failures: int, next_at: datetime, error: str) -> None:
        self.states[channel] = State(next_at, failures)
        self.errors.append(error)


class Stage:
    def __init__(self, **options: Any) -> None:
        self.clock, self.notices, self.channel = Clock(), Notices(), Channel(**options)
        self.deliveries = Deliveries(self.clock)
        self.notifier = Notifier(
            config().drimbox, SETTINGS, [self.channel], self.deliveries, self.notices, self.clock
        )

    def look(self, after: float = 0.0) -> None:
        self.clock.advance(after)
        run(self.notifier.look(self.channel))


def test_the_first_notice_leaves_at_once_and_the_next_ones_together() -> None:
    stage = Stage()
    stage.look()
    assert stage.channel.sent == []
    stage.deliveries.add(1)
    stage.look()
    stage.deliveries.add(2, 3)
    stage.look(300)
    stage.look(300)
    assert stage.channel.said == [[1]]
    stage.look(301)
    assert stage.channel.said == [[1], [2, 3]]
    assert b'drimbox_notifications_total{channel="mail",result="sent"}' in metrics.exposition()
    stage.look(2000)
    assert len(stage.channel.sent) == 2, "nothing new, nothing said"


def test_only_what_is_grave_enough_leaves() -> None:
    stage = Stage(severity=Severity.GRAVE)
    stage.deliveries.add(1)
    stage.deliveries.add(2, severity=Severity.GRAVE)
    stage.look()
    assert stage.channel.said == [[2]]


def test_many_notices_leave_in_several_digests() -> None:
    stage = Stage()
    stage.deliveries.add(*range(1, MAX_NOTICES + 4))
    stage.look()
    stage.look(901)
    assert [(len(each.notices), each.more) for each in stage.channel.sent] == [(MAX_NOTICES, 3), (3, 0)]


def test_a_failure_waits_longer_and_longer_is_told_and_forgotten_when_over() -> None:
    stage = Stage()
    stage.deliveries.add(1)
    stage.channel.error = OSError("connexion refusée")
    waits = []
    for failures in range(1, 8):
        stage.look()
        state = stage.deliveries.states["mail"]
        assert state.failures == failures
        waits.append((state.next_at - stage.clock.now()).total_seconds())
        stage.look(waits[-1] - 1)
        assert len(stage.deliveries.errors) == failures, "not before its time"
        stage.clock.advance(1)
    for wait, step in zip(waits, (30, 60, 120, 240, 480, 600, 600), strict=True):
        assert step / 2 <= wait <= step
    code, text = stage.notices.open["notification-mail"]
    assert code == "NOTIFICATION"
    assert "connexion refusée" in text
    stage.channel.error = None
    stage.look()
    assert stage.channel.said == [[1]]
    assert "notification-mail" not in stage.notices.open
    assert stage.deliveries.states["mail"].failures == 0


def test_the_same_notices_have_the_same_mark_and_others_another() -> None:
    stage = Stage()
    stage.deliveries.add(1)
    stage.look()
    stage.deliveries.left.clear()  # as after a stop between the answer and its record
    stage.look(901)
    stage.deliveries.add(2)
    stage.look(901)
    first, again, other = (each.id for each in stage.channel.sent)
    assert first == again != other


def test_a_clock_set_back_silences_no_channel() -> None:
    stage = Stage()
    stage.deliveries.states["mail"] = State(stage.clock.now() + timedelta(days=300), 0)
    stage.deliveries.add(1)
    stage.look()
    assert stage.channel.said == [[1]]


def test_a_stop_cuts_short_and_what_did_not_leave_leaves_later() -> None:
    stage = Stage()
    stage.deliveries.add(1)
    stage.channel.gate = Deferred()
    looking = Deferred.fromCoroutine(stage.notifier.look(stage.channel))
    stage.notifier.stop()
    assert looking.called
    assert (stage.deliveries.states, stage.notices.posted) == ({}, [])
    stage.look()
    assert stage.channel.sent == []


def test_channels_are_tried_side_by_side() -> None:
    stage = Stage()
    slow, quick = Channel(), Channel()
    slow.gate = Deferred()
    stage.notifier.channels = (slow, quick)
    trying = Deferred.fromCoroutine(stage.notifier.test())
    assert len(quick.sent) == 1
    assert not trying.called
    slow.gate.callback(None)
    assert trying.called


def test_a_test_goes_out_whatever_the_state_and_changes_nothing() -> None:
    stage = Stage()
    stage.deliveries.states["mail"] = State(stage.clock.now() + timedelta(seconds=60), 3)
    stage.channel.remark = "1 destinataire refusé"
    (result,) = run(stage.notifier.test())
    assert (result.channel, result.error, result.remark) == ("mail", "", "1 destinataire refusé")
    assert [(each.test, each.notices) for each in stage.channel.sent] == [(True, ())]
    stage.channel.error = OSError("refusé (535)")
    (result,) = run(stage.notifier.test())
    assert result.error == "refusé (535)"
    assert stage.deliveries.states["mail"].failures == 3
    assert stage.notices.posted == []

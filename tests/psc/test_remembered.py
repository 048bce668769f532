"""Answers about tokens that count again for a few seconds: when, for whom, and never for longer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from drimbox.errors import IntrospectionUnavailable, TokenInvalid
from drimbox.ports import Introspection
from drimbox.psc.remembered import RememberingIntrospector

START = datetime(2026, 5, 4, 12, tzinfo=UTC)


class World:
    """Counts what is asked; its two clocks move apart when told so."""

    def __init__(self, seconds: float = 10.0, most: int = 3) -> None:
        self.clock = Clock()
        self.jump = timedelta()
        self.asked: list[tuple[str, str]] = []
        self.expires_at: int | None = int(START.timestamp()) + 3600
        self.error: Exception | None = None
        self.cache = RememberingIntrospector(self, self.clock, self.now, seconds=seconds, most=most)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock.seconds()) + self.jump

    async def introspect(self, token: str, consumer: str) -> Introspection:
        self.asked.append((token, consumer))
        if self.error is not None:
            raise self.error
        return Introspection(f"8{token}", None, self.expires_at)

    async def asks(self, token: str = "t", consumer: str = "CN=a") -> bool:
        """Put a question; say whether it went further."""
        before = len(self.asked)
        answer = await self.cache.introspect(token, consumer)
        assert answer.professional == f"8{token}"
        return len(self.asked) > before


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_an_answer_counts_again_for_its_seconds_and_its_consumer_only() -> None:
    world = World()
    assert await world.asks()
    world.clock.advance(9.9)
    assert not await world.asks()
    # Neither another token nor another Consumer has been told anything; nor do their names run together.
    assert await world.asks(token="u")
    assert await world.asks(consumer="CN=b")
    assert await world.asks(token="tC", consumer="N=a")
    # Used again or not, it lasts no longer.
    world.clock.advance(0.1)
    assert await world.asks()


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("jumps", [False, True])
@pytest_twisted.ensureDeferred
async def test_no_answer_outlives_its_token(jumps: bool) -> None:
    world = World(seconds=60.0)
    world.expires_at = int(START.timestamp()) + 5
    assert await world.asks()
    if jumps:
        world.jump = timedelta(seconds=5)
    else:
        world.clock.advance(5)
    assert await world.asks()


@pytest_twisted.ensureDeferred
async def test_a_clock_set_back_makes_no_answer_last_longer() -> None:
    world = World()
    assert await world.asks()
    world.jump = timedelta(days=-1)
    world.clock.advance(10)
    assert await world.asks()


@pytest_twisted.ensureDeferred
async def test_an_answer_without_expiry_is_not_kept() -> None:
    world = World()
    world.expires_at = None
    assert await world.asks()
    assert await world.asks()


@pytest.mark.parametrize("error", [TokenInvalid("x"), IntrospectionUnavailable("x")])
@pytest_twisted.ensureDeferred
async def test_a_refusal_is_not_kept_and_does_not_open(error: Exception) -> None:
    world = World()
    world.error = error
    for _ in range(2):
        with pytest.raises(type(error)):
            await world.cache.introspect("t", "CN=a")
    assert len(world.asked) == 2
    world.error = None
    assert await world.asks()


@pytest.mark.threat("tokens: oversize, odd, logged, of others")
@pytest_twisted.ensureDeferred
async def test_what_is_kept_is_bounded_and_holds_no_token() -> None:
    world = World(most=3)
    for number in range(1000):
        assert await world.asks(token=f"secret-{number}")
    kept = world.cache._kept
    assert len(kept) == 3
    assert not any(b"secret" in key for key in kept)
    assert not await world.asks(token="secret-999")
    assert await world.asks(token="secret-1")
    # What has run out goes when something new comes, not only when the place is needed.
    world.clock.advance(11)
    assert await world.asks(token="new")
    assert len(kept) == 1

"""Questions to the DMP share a connection for a moment; what changes the DMP never does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.task import deferLater

from drimbox.config import Structure
from drimbox.ports import Accepted, DmpUnavailable
from drimbox.trust.outgoing import client_policy
from drimbox.xds.client import DmpClient
from tests.xds.builders import KOS_UID, REPORT, SUBMISSION, make_config
from tests.xds.conftest import Pki
from tests.xds.scripted import CUT, Script, ScriptedDmp, http, registry, soap_body

SUCCESS = http(soap_body(registry("Success")))


class FixedClock:
    """An instant that never moves."""

    def now(self) -> datetime:
        return datetime(2026, 1, 12, 9, 50, tzinfo=UTC)


Make = Callable[..., DmpClient]


@pytest.fixture
def client(pki: Pki, structure: Structure) -> Make:
    """Return a function that makes a client towards a base URL."""

    def make(base_url: str, **settings: Any) -> DmpClient:
        config = make_config(base_url, pki.roots, structure, **{"timeout": 5.0, **settings})
        return DmpClient(config, reactor, clock=FixedClock(), tls_policy=client_policy)

    return make


@contextlib.asynccontextmanager
async def dmp(pki: Pki, script: Script) -> AsyncIterator[tuple[ScriptedDmp, str]]:
    """Run a scripted DMP that leaves its connections open."""
    server = ScriptedDmp(script, persistent=True)
    url = server.listen(pki.server, pki.roots)
    try:
        yield server, url
    finally:
        await maybeDeferred(server.close)


async def look(client: DmpClient, structure: Structure) -> Any:
    return await client.find_entry(structure, REPORT, KOS_UID)


async def publish(client: DmpClient, structure: Structure) -> Any:
    return await client.publish(structure, SUBMISSION, None)


@pytest_twisted.ensureDeferred
async def test_questions_share_a_connection_and_a_publication_has_its_own(
    pki: Pki, structure: Structure, client: Make
) -> None:
    async with dmp(pki, lambda request: SUCCESS) as (server, url):
        ours = client(url)
        assert await look(ours, structure) is None
        assert isinstance(await publish(ours, structure), Accepted)
        assert await look(ours, structure) is None
        assert isinstance(await publish(ours, structure), Accepted)
        assert len(server.requests) == 4
        assert server.accepted == 3, "one of the two questions, one of each publication"
        await ours.close()


@pytest_twisted.ensureDeferred
async def test_a_publication_that_finds_nobody_has_surely_not_left(
    pki: Pki, structure: Structure, client: Make
) -> None:
    """Were the open connection used for it, nobody could tell."""
    async with dmp(pki, lambda request: SUCCESS) as (server, url):
        ours = client(url)
        await look(ours, structure)
        await maybeDeferred(server.stop)
        assert len(server.connections) == 1
        with pytest.raises(DmpUnavailable) as caught:
            await publish(ours, structure)
        assert caught.value.sent is False
        await look(ours, structure)
        await ours.close()


@pytest_twisted.ensureDeferred
async def test_a_question_cut_on_a_used_connection_is_worth_putting_again(
    pki: Pki, structure: Structure, client: Make
) -> None:
    answers: list[bytes | str] = [SUCCESS, CUT, SUCCESS]
    async with dmp(pki, lambda request: answers.pop(0)) as (server, url):
        ours = client(url)
        await look(ours, structure)
        with pytest.raises(DmpUnavailable) as caught:
            await look(ours, structure)
        assert (caught.value.sent, caught.value.stale) == (True, True)
        assert await look(ours, structure) is None
        assert (len(server.requests), server.accepted) == (3, 2)
        first, second = server.requests[1:]
        assert KOS_UID.encode() in first, "the question"
        assert KOS_UID.encode() in second, "the same question"
        # Whoever read the first one takes nothing of it twice.
        for identifier in (rb"MessageID[^>]*>(urn:uuid:[^<]+)<", rb'Assertion[^>]* ID="([^"]+)"'):
            assert re.findall(identifier, first) != re.findall(identifier, second) != []
        await ours.close()


@pytest_twisted.ensureDeferred
async def test_a_question_cut_on_a_connection_of_its_own_is_not(
    pki: Pki, structure: Structure, client: Make
) -> None:
    answers: list[bytes | str] = [SUCCESS, CUT, CUT]
    async with dmp(pki, lambda request: answers.pop(0)) as (server, url):
        ours = client(url)
        await look(ours, structure)
        seen = []
        for _ in range(2):
            with pytest.raises(DmpUnavailable) as caught:
                await look(ours, structure)
            seen.append((caught.value.sent, caught.value.stale))
        assert seen == [(True, True), (True, False)]
        assert len(server.requests) == 3


@pytest_twisted.ensureDeferred
async def test_a_question_that_takes_too_long_is_not_put_again(
    pki: Pki, structure: Structure, client: Make
) -> None:
    answers = [SUCCESS]
    async with dmp(pki, lambda request: answers.pop() if answers else "hang") as (server, url):
        ours = client(url, timeout=0.5)
        await look(ours, structure)
        with pytest.raises(DmpUnavailable, match="délai") as caught:
            await look(ours, structure)
        assert (caught.value.sent, caught.value.stale) == (True, False)
        assert len(server.requests) == 2


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("seconds", [0.0, 0.2])
async def test_a_connection_is_not_kept_longer_than_configured(
    pki: Pki, structure: Structure, client: Make, seconds: float
) -> None:
    async with dmp(pki, lambda request: SUCCESS) as (server, url):
        ours = client(url, keep_alive=seconds)
        await look(ours, structure)
        limit = 200
        while server.connections and limit:
            await deferLater(reactor, 0.05)
            limit -= 1
        assert not server.connections
        await look(ours, structure)
        assert server.accepted == 2
        await ours.close()


@pytest_twisted.ensureDeferred
async def test_two_questions_at_once_have_a_connection_each(
    pki: Pki, structure: Structure, client: Make
) -> None:
    async with dmp(pki, lambda request: SUCCESS) as (server, url):
        ours = client(url)
        both: list[Deferred[Any]] = [ensureDeferred(look(ours, structure)) for _ in range(2)]
        for each in both:
            assert await each is None
        assert server.accepted == 2
        await look(ours, structure)
        assert server.accepted == 2
        await ours.close()

"""Which notices have left by which channel; their severity, their history, and how long they are kept."""

from __future__ import annotations

from datetime import timedelta

import pytest
import pytest_twisted
from sqlalchemy import func, select

from drimbox.ports import Severity
from drimbox.store.deliveries import ChannelState, NoticeDeliveries
from drimbox.store.schema import notice_delivery
from tests.store.conftest import Stores

pytestmark = pytest.mark.requirement("DB.SO.21")
ALL = list(Severity)


async def post(stores: Stores, *keys: str, code: str = "E004") -> None:
    for key in keys:
        await stores.notices.post(key=key, code=code, text="t")


@pytest_twisted.ensureDeferred
async def test_a_code_has_its_severity_and_a_post_may_have_another(stores: Stores) -> None:
    await post(stores, "a")
    await post(stores, "b", code="E008")
    await post(stores, "c", code="CACHE")
    await stores.notices.post(key="d", code="E004", text="t", severity=Severity.GRAVE)
    found = {each.key: each.severity for each in await stores.notices.open()}
    assert found == {
        "a": Severity.ATTENTION,
        "b": Severity.GRAVE,
        "c": Severity.INFORMATION,
        "d": Severity.GRAVE,
    }
    await stores.notices.post(key="a", code="E008", text="t")
    grave = await stores.notices.page(severities=[Severity.GRAVE])
    assert {each.key for each in grave} == {"a", "b", "d"}, "as it is now"
    assert [each.key for each in await stores.notices.page(code="CACHE")] == ["c"]


@pytest_twisted.ensureDeferred
async def test_acknowledged_notices_are_kept_with_who_and_when_then_purged(stores: Stores) -> None:
    await post(stores, "a", "b", "c")
    first, second, third = sorted(await stores.notices.open(), key=lambda each: each.id)
    await stores.notices.acknowledge(first.id, "admin (marie)")
    stores.clock.advance(86400)
    await stores.notices.acknowledge(second.id, "admin")
    assert [each.id for each in await stores.notices.open()] == [third.id]
    history = await stores.notices.page(every=True)
    assert [each.id for each in history] == [third.id, second.id, first.id]
    assert (history[2].acknowledged_by, history[0].acknowledged_at) == ("admin (marie)", None)
    (before,) = await stores.notices.page(every=True, before=third.id, limit=1)
    assert before.id == second.id
    deliveries = NoticeDeliveries(stores.database, clock=stores.clock)
    await deliveries.delivered("mail", [first.id, second.id, third.id], stores.clock.now())
    assert await stores.notices.purge(timedelta(hours=12)) == 1
    assert [each.id for each in await stores.notices.page(every=True)] == [third.id, second.id]
    stores.clock.advance(10**8)
    assert await stores.notices.purge(timedelta(hours=12)) == 1
    assert [each.id for each in await stores.notices.page(every=True)] == [third.id], "open ones stay"
    count = select(func.count()).select_from(notice_delivery)
    assert await stores.database.read(lambda c: c.execute(count).scalar_one()) == 1


@pytest_twisted.ensureDeferred
async def test_a_notice_leaves_once_by_each_channel_while_it_is_open(stores: Stores) -> None:
    deliveries = NoticeDeliveries(stores.database, clock=stores.clock)
    assert await deliveries.state("mail") is None
    assert await deliveries.due("mail", ALL, 10, but="") == ([], 0)
    await post(stores, "a", "b", "own")
    found, more = await deliveries.due("mail", ALL, 1, but="own")
    assert ([each.key for each in found], more) == (["a"], 1)
    later = stores.clock.now() + timedelta(minutes=15)
    await deliveries.delivered("mail", [found[0].id, 999], later)
    assert await deliveries.state("mail") == ChannelState(later, 0)
    await post(stores, "a")
    found, more = await deliveries.due("mail", ALL, 10, but="own")
    assert ([each.key for each in found], more) == (["b"], 0), "its repetition is not sent"
    assert len((await deliveries.due("webhook", ALL, 10, but=""))[0]) == 3
    assert await deliveries.due("mail", [Severity.GRAVE], 10, but="own") == ([], 0)
    await stores.notices.resolve("b")
    assert await deliveries.due("mail", ALL, 10, but="own") == ([], 0), "what is over is not sent"
    await post(stores, "b")
    assert len((await deliveries.due("mail", ALL, 10, but="own"))[0]) == 1, "but what comes back is"


@pytest_twisted.ensureDeferred
async def test_failures_in_a_row_are_kept(stores: Stores) -> None:
    deliveries = NoticeDeliveries(stores.database, clock=stores.clock)
    later = stores.clock.now() + timedelta(minutes=1)
    await deliveries.failed("mail", 1, later, "connexion refusée")
    await deliveries.failed("mail", 2, later, "connexion refusée")
    assert await deliveries.state("mail") == ChannelState(later, 2)
    assert await deliveries.state("webhook") is None
    await deliveries.delivered("mail", [], later)
    assert await deliveries.state("mail") == ChannelState(later, 0)

"""Notices stay until somebody has read them, and do not repeat themselves (DB.SO.21)."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.store.conftest import Stores


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_a_notice_is_shown_until_it_is_acknowledged(stores: Stores) -> None:
    start = stores.clock.now()
    await stores.notices.post(key="pacs:a", code="E003", text="PACS « a » muet")
    (notice,) = await stores.notices.open()
    assert (notice.key, notice.code, notice.text) == ("pacs:a", "E003", "PACS « a » muet")
    assert (notice.count, notice.first_at, notice.last_at) == (1, start, start)
    assert await stores.notices.count_open() == 1
    assert await stores.notices.acknowledge(notice.id, "admin")
    assert not await stores.notices.acknowledge(notice.id, "admin")
    assert not await stores.notices.acknowledge(notice.id + 1, "admin")
    assert await stores.notices.open() == []
    assert await stores.notices.count_open() == 0


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_the_same_trouble_is_counted_and_not_repeated(stores: Stores) -> None:
    start = stores.clock.now()
    await stores.notices.post(key="k", code="E003", text="avant")
    later = stores.clock.advance(60)
    await stores.notices.post(key="k", code="E007", text="après")
    (notice,) = await stores.notices.open()
    assert (notice.count, notice.code, notice.text) == (2, "E007", "après")
    assert (notice.first_at, notice.last_at) == (start, later)


@pytest_twisted.ensureDeferred
async def test_trouble_that_returns_after_having_been_read_is_new(stores: Stores) -> None:
    await stores.notices.post(key="k", code="E003", text="t")
    (notice,) = await stores.notices.open()
    await stores.notices.acknowledge(notice.id, "admin")
    stores.clock.advance(60)
    await stores.notices.post(key="k", code="E003", text="t")
    (again,) = await stores.notices.open()
    assert again.id != notice.id
    assert again.count == 1


@pytest_twisted.ensureDeferred
async def test_the_most_recent_notices_come_first_and_are_bounded(stores: Stores) -> None:
    for number in range(5):
        await stores.notices.post(key=f"k{number}", code="E008", text="t")
        stores.clock.advance(1)
    await stores.notices.post(key="k1", code="E008", text="t")
    assert [notice.key for notice in await stores.notices.open(limit=3)] == ["k1", "k4", "k3"]
    assert await stores.notices.count_open() == 5


@pytest_twisted.ensureDeferred
async def test_the_same_trouble_reported_at_once_is_one_notice(stores: Stores) -> None:
    await gatherResults(
        [ensureDeferred(stores.notices.post(key="k", code="E003", text="t")) for _ in range(20)]
    )
    (notice,) = await stores.notices.open()
    assert notice.count == 20


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_what_is_over_is_closed_and_its_next_occurrence_shown_anew(stores: Stores) -> None:
    assert not await stores.notices.resolve("dmp")
    await stores.notices.post(key="dmp", code="E007", text="DMP indisponible")
    await stores.notices.post(key="pacs", code="E003", text="PACS muet")
    assert await stores.notices.resolve("dmp")
    assert not await stores.notices.resolve("dmp")
    assert [notice.key for notice in await stores.notices.open()] == ["pacs"]
    await stores.notices.post(key="dmp", code="E007", text="DMP de nouveau indisponible")
    (again, _) = sorted(await stores.notices.open(), key=lambda notice: notice.key)
    assert (again.key, again.count) == ("dmp", 1)

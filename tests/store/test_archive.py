"""The archive answers by study and site, with the bytes only when asked."""

from __future__ import annotations

import pytest
import pytest_twisted
from sqlalchemy import update

from drimbox.model import KosState
from drimbox.store.schema import kos
from tests.store.conftest import Stores
from tests.store.test_outbox import queue, take

#: The DMP lets nobody else replace what a structure published, so another one's stands beside it.
OTHER = {"site": "site-2", "structure_id": "1888888888"}


async def publish(
    stores: Stores, sop: str, study: str = "2.25.1", site: str = "site-1", **changes: str
) -> int:
    number = await queue(stores, sop, study, site, **changes)
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, f"urn:uuid:{sop}")
    return number


@pytest.mark.requirement("DB.SO.22", "DB.SO.13")
@pytest_twisted.ensureDeferred
async def test_the_latest_is_the_newest_alive_of_any_site(stores: Stores) -> None:
    assert await stores.archive.latest("2.25.1") is None
    one = await publish(stores, "2.25.501")
    latest = await stores.archive.latest("2.25.1")
    assert latest is not None
    assert latest.id == one
    assert latest.data[128:132] == b"DICM"
    two = await queue(stores, "2.25.502", site="site-2")
    latest = await stores.archive.latest("2.25.1")
    assert latest is not None
    assert (latest.id, latest.state) == (two, KosState.PENDING)
    (item,) = await take(stores)
    await stores.outbox.refused(item.id, "E007", "non")
    latest = await stores.archive.latest("2.25.1")
    assert latest is not None
    assert latest.id == one, "a refused one is nothing to compare with"
    assert await stores.archive.latest("2.25.2") is None


@pytest_twisted.ensureDeferred
async def test_the_current_one_is_by_site(stores: Stores) -> None:
    one = await publish(stores, "2.25.501")
    await publish(stores, "2.25.502", **OTHER)
    await queue(stores, "2.25.503")
    current = await stores.archive.published("site-1", "2.25.1")
    assert current is not None
    assert (current.id, current.entry_uuid) == (one, "urn:uuid:2.25.501")
    assert await stores.archive.published("site-3", "2.25.1") is None


@pytest_twisted.ensureDeferred
async def test_a_study_that_moved_to_another_pacs_has_one_current_kos(stores: Stores) -> None:
    """The same structure published it at both: the DMP has replaced the first by the second."""
    await publish(stores, "2.25.501")
    two = await publish(stores, "2.25.502", site="site-2")
    assert await stores.archive.published("site-1", "2.25.1") is None
    current = await stores.archive.published("site-2", "2.25.1")
    assert current is not None
    assert current.id == two


@pytest.mark.requirement("DB.SO.38")
@pytest_twisted.ensureDeferred
async def test_candidates_are_what_a_consumer_may_know(stores: Stores) -> None:
    assert await stores.archive.candidates("site-1", "2.25.1") == []
    await publish(stores, "2.25.501")
    await publish(stores, "2.25.502")
    await publish(stores, "2.25.510", **OTHER)
    await publish(stores, "2.25.511", study="2.25.2")
    await queue(stores, "2.25.503")

    async def seen() -> list[tuple[str, KosState]]:
        found = await stores.archive.candidates("site-1", "2.25.1")
        assert all(one.data == b"" and one.metadata == b"" for one in found)
        return [(one.sop_instance_uid, one.state) for one in found]

    known = [("2.25.502", KosState.PUBLISHED), ("2.25.501", KosState.REPLACED)]
    assert await seen() == known, "a KOS whose first byte has not left is unknown to everybody"
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    assert await seen() == [("2.25.503", KosState.PENDING), *known]
    await stores.outbox.refused(item.id, "E007", "non")
    assert await seen() == known
    current = await stores.archive.published("site-1", "2.25.1")
    assert current is not None
    await stores.archive.depublished(current.id)
    assert (await seen())[0] == ("2.25.502", KosState.DEPUBLISHED)
    with_bytes = await stores.archive.candidates("site-1", "2.25.1", with_data=True)
    assert with_bytes[0].metadata == b"m2.25.502"


@pytest_twisted.ensureDeferred
async def test_only_a_published_kos_is_depublished(stores: Stores) -> None:
    number = await queue(stores, "2.25.501")
    await stores.archive.depublished(number)
    assert (await stores.archive.get(number)).state is KosState.PENDING


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_reports_are_kept_once_and_in_order(stores: Stores) -> None:
    number = await publish(stores, "2.25.501")
    for report in ("2.25.9", "2.25.8", "2.25.9"):
        await stores.archive.add_report(number, report)
    assert (await stores.archive.get(number)).report_ids == ("2.25.900", "2.25.9", "2.25.8")
    with pytest.raises(KeyError):
        await stores.archive.add_report(number + 1, "2.25.9")
    with pytest.raises(KeyError):
        await stores.archive.get(number + 1)
    assert await stores.archive.submission(number + 1) is None


@pytest_twisted.ensureDeferred
async def test_the_counts_name_every_state(stores: Stores) -> None:
    await publish(stores, "2.25.501")
    await publish(stores, "2.25.502")
    await queue(stores, "2.25.503")
    assert await stores.archive.counts() == {
        KosState.PENDING: 1,
        KosState.PUBLISHED: 1,
        KosState.REPLACED: 1,
        KosState.DEPUBLISHED: 0,
        KosState.REFUSED: 0,
    }


@pytest_twisted.ensureDeferred
async def test_big_objects_come_back_whole(stores: Stores) -> None:
    number = await publish(stores, "2.25.501")
    big = bytes(range(256)) * 20_000
    await stores.database.run(lambda c: c.execute(update(kos).values(data=big)))
    assert (await stores.archive.get(number)).data == big
    assert (await stores.archive.get(number, with_data=False)).data == b""

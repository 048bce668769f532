"""What is remembered of the studies of native archives: no change is passed over (DB.SO.27)."""

from __future__ import annotations

import pytest
import pytest_twisted

from drimbox.ports import KnownStudy
from drimbox.store.native import NativeMemory
from tests.store.conftest import Stores
from tests.store.test_archive import publish
from tests.store.test_outbox import queue, take

HERE = "site-1"


@pytest.fixture
def memory(stores: Stores) -> NativeMemory:
    return NativeMemory(stores.database)


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_studies_with_a_kos_are_known_once_and_in_order(stores: Stores, memory: NativeMemory) -> None:
    await publish(stores, "2.25.501", "2.25.3")
    await publish(stores, "2.25.502", "2.25.1")
    await publish(stores, "2.25.503", "2.25.1")
    await publish(stores, "2.25.505", "2.25.2", site="site-2")
    await queue(stores, "2.25.504", "2.25.1")
    assert await memory.known(HERE, "", 10) == [
        KnownStudy("2.25.1", None, False),
        KnownStudy("2.25.3", None, False),
    ]
    assert [each.study_uid for each in await memory.known(HERE, "", 1)] == ["2.25.1"]
    assert [each.study_uid for each in await memory.known(HERE, "2.25.1", 10)] == ["2.25.3"]
    assert [each.study_uid for each in await memory.known("site-2", "", 10)] == ["2.25.2"]


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_a_refused_kos_makes_no_study_known(stores: Stores, memory: NativeMemory) -> None:
    await queue(stores, "2.25.501", "2.25.1")
    (item,) = await take(stores)
    await stores.outbox.refused(item.id, "E007", "non")
    assert await memory.known(HERE, "", 10) == []
    assert await memory.note(HERE, ["2.25.1"], "7") == []


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_a_change_is_due_until_it_is_settled(stores: Stores, memory: NativeMemory) -> None:
    for number in (1, 2):
        await publish(stores, f"2.25.50{number}", f"2.25.{number}")
    assert await memory.cursor(HERE) is None
    assert len(await memory.known(HERE, "", 10, only="new")) == 2
    await memory.settle(HERE, {"2.25.1": "a", "2.25.2": "b"})
    assert await memory.known(HERE, "", 10, only="new") == []
    assert await memory.known(HERE, "", 10, only="due") == []
    assert await memory.note(HERE, ["2.25.2", "2.25.77"], "cursor 1") == ["2.25.2"]
    assert await memory.cursor(HERE) == "cursor 1"
    assert await memory.known(HERE, "", 10, only="due") == [KnownStudy("2.25.2", "b", True)]
    # Again, and without a cursor.
    assert await memory.note(HERE, ["2.25.2"], None) == ["2.25.2"]
    assert await memory.cursor(HERE) == "cursor 1"
    await memory.settle(HERE, {"2.25.2": ""})
    assert await memory.known(HERE, "2.25.1", 10) == [KnownStudy("2.25.2", "", False)]
    await memory.settle(HERE, {})
    assert await memory.cursor("site-2") is None


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_many_changes_at_once(stores: Stores, memory: NativeMemory) -> None:
    await publish(stores, "2.25.501", "2.25.1")
    changed = ["2.25.1", *(f"2.25.{number}" for number in range(2000, 4500))]
    assert await memory.note(HERE, changed, "9") == ["2.25.1"]

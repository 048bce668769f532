"""Test KOS are apart from the archive, and looked at behind it."""

from __future__ import annotations

import pytest_twisted
from sqlalchemy import func, select

from drimbox.kos.reading import read_manifest
from drimbox.model import KosState
from drimbox.store.exports import ArchiveListing
from drimbox.store.homologation import ArchiveWithLoaded, LoadedKos
from drimbox.store.imports import Imports
from drimbox.store.schema import feed_job, inbox, kos, outbox
from tests.store.conftest import Stores
from tests.store.test_imports import record
from tests.xdm.builders import published


@pytest_twisted.ensureDeferred
async def test_a_test_kos_is_answered_for_and_nothing_else(stores: Stores) -> None:
    loaded = LoadedKos(stores.database, clock=stores.clock)
    known = ArchiveWithLoaded(stores.archive, loaded)
    data = published().submission.kos
    assert await loaded.load("site1", read_manifest(data), data)
    assert not await loaded.load("site1", read_manifest(data), data)
    count = await loaded.count()
    assert (count.kos, count.patients) == (1, 1)
    (found,) = await known.candidates("site1", "2.25.1")
    assert (found.sop_instance_uid, found.state, found.data) == ("2.25.5001", KosState.PUBLISHED, b"")
    assert (await known.get(found.id)).data == data
    assert await known.candidates("site2", "2.25.1") == []
    # No queue, no archive, no export, no comparison.
    for table in (kos, inbox, feed_job, outbox):
        query = select(func.count()).select_from(table)
        assert await stores.database.read(lambda c, query=query: c.execute(query).scalar_one()) == 0
    assert await stores.archive.candidates("site1", "2.25.1") == []
    assert await ArchiveListing(stores.database).span("site1") is None
    assert not await stores.jobs.again("2.25.1")
    assert await loaded.clear() == 1
    assert await known.candidates("site1", "2.25.1") == []


@pytest_twisted.ensureDeferred
async def test_the_archive_counts_first(stores: Stores) -> None:
    loaded = LoadedKos(stores.database, clock=stores.clock)
    known = ArchiveWithLoaded(stores.archive, loaded)
    await Imports(stores.database, clock=stores.clock).take(record())
    data = published().submission.kos
    # What the archive holds is not loaded beside it.
    assert not await loaded.load("site1", read_manifest(data), data)
    other = published(2).submission.kos
    assert await loaded.load("site1", read_manifest(other), other)
    (real,) = await known.candidates("site1", "2.25.1")
    assert real.id > 0
    assert (await known.get(real.id)).sop_instance_uid == "2.25.5001"

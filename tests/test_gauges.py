"""What is looked at when somebody scrapes, whichever node does the work it is about."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.gauges import Gauges
from drimbox.ports import ExportBacklog
from drimbox.store.queue import Backlog

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def series(text: bytes, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
    return float(found)


def answer(value: object) -> Callable[[], Awaitable[Any]]:
    async def asked() -> object:
        return value

    return asked


@pytest.mark.requirement("DB.CS.96", "DB.SO.35")
@pytest_twisted.ensureDeferred
async def test_a_node_shows_the_store_as_it_is_though_another_does_the_work(tmp_path: Path) -> None:
    """One that sent the audit trail on, and does no more, must not alert for ever of what waited then."""
    queue = SimpleNamespace(backlog=answer(Backlog(2, 1, NOW - timedelta(seconds=90))))
    stores: Any = SimpleNamespace(
        queues={"inbox": queue},
        notices=SimpleNamespace(count_open=answer(3)),
        audit_export=SimpleNamespace(backlog=answer(ExportBacklog(7, NOW - timedelta(hours=2)))),
    )
    config: Any = SimpleNamespace(
        sites=(),
        drimbox=SimpleNamespace(state_dir=tmp_path),
        audit=SimpleNamespace(atna=object()),
        backup=SimpleNamespace(folder=None),
        store_url=f"sqlite:///{tmp_path}/drimbox.db",
    )

    async def in_thread(work: Callable[[], Any]) -> Any:
        return work()

    clock: Any = SimpleNamespace(now=lambda: NOW)
    whitelist: Any = None
    gauges = Gauges(config, Clock(), clock, stores, whitelist, in_thread)
    text = await gauges.exposition()
    assert series(text, "drimbox_audit_waiting") == 7
    assert series(text, "drimbox_audit_waiting_seconds") == 7200
    assert series(text, 'drimbox_queue_depth{queue="inbox"}') == 2
    assert series(text, 'drimbox_queue_oldest_seconds{queue="inbox"}') == 90
    assert series(text, "drimbox_notices_open") == 3
    stores.audit_export.backlog = answer(ExportBacklog(0, None))
    queue.backlog = answer(Backlog(0, 0, None))
    text = await gauges.exposition()
    assert series(text, "drimbox_audit_waiting") == 0
    assert series(text, "drimbox_audit_waiting_seconds") == 0
    assert series(text, 'drimbox_queue_oldest_seconds{queue="inbox"}') == 0


@pytest.mark.requirement("DB.SO.24")
@pytest_twisted.ensureDeferred
async def test_the_newest_backup_is_shown_and_a_folder_that_does_not_answer_holds_up_nothing(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "sauvegardes"
    stores: Any = SimpleNamespace(queues={}, notices=SimpleNamespace(count_open=answer(0)))
    config: Any = SimpleNamespace(
        sites=(),
        ris=(),
        drimbox=SimpleNamespace(state_dir=tmp_path, system_id="349"),
        audit=SimpleNamespace(atna=None),
        backup=SimpleNamespace(folder=folder),
        store_url=f"sqlite:///{tmp_path}/drimbox.db",
    )
    stuck: list[Deferred[None]] = []
    hangs = False

    async def in_thread(work: Callable[[], Any]) -> Any:
        if hangs and not stuck:
            stuck.append(Deferred())
            await stuck[0]
        return work()

    clock: Any = SimpleNamespace(now=lambda: NOW)
    whitelist: Any = None
    gauges = Gauges(config, Clock(), clock, stores, whitelist, in_thread)

    async def shown() -> float:
        await gauges.exposition()
        return series(await gauges.exposition(), "drimbox_backup_made_seconds")

    gauges.start()
    assert series(await gauges.exposition(), "drimbox_backup_expected") == 1
    assert await shown() == 0  # No such folder.
    folder.mkdir()
    assert await shown() == 0
    for name in (
        "drimbox-349-20260228T023000Z",
        "drimbox-349-20260227T023000Z",
        "drimbox-3491-20260301T023000Z",
    ):
        (folder / f"{name}.tar.gz.age").touch()
    (folder / ".drimbox-349-20260301T023000Z.tar.gz.part").touch()
    last = datetime(2026, 2, 28, 2, 30, tzinfo=UTC).timestamp()
    assert await shown() == last
    hangs = True
    (folder / "drimbox-349-20260301T023000Z.tar.gz").touch()
    assert (await shown(), len(stuck)) == (last, 1)
    stuck[0].callback(None)
    assert await shown() == last + 86400
    await gauges.stop()

"""The whitelist kept fresh: what comes, what does not, what is told, what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from drimbox.trust.download import FetchFailed
from drimbox.trust.listkeeper import KEPT, MEMORY, REFUSED, ListKeeper, Refreshed
from drimbox.trust.whitelist import WhitelistHolder, WhitelistRefused
from tests.trust.conftest import NOW
from tests.trust.lists import document, entry, sign
from tests.trust.test_whitelist import DN, lists

__all__ = ["lists"]
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def made(lists: Any, *entries: str, day: int = 12) -> bytes:
    text = document(*entries).replace("2026-01-12T04", f"2026-01-{day}T04")
    return sign(text, lists.signer)


class FakeNotices:
    def __init__(self) -> None:
        self.open: dict[str, str] = {}

    async def post(self, *, key: str, code: str, text: str) -> None:
        assert code == "LISTEBLANCHE"
        self.open[key] = text

    async def resolve(self, key: str) -> bool:
        return self.open.pop(key, None) is not None


class World:
    """A keeper between a server that says what the test wants and a clock of the test's."""

    def __init__(
        self, lists: Any, world: Any, folder: Path, *, url: bool = True, both: bool = False, **settings: Any
    ) -> None:
        self.lists = lists
        self.folder = folder
        self.url = url
        self.trust = attrs.evolve(
            world.trust, whitelist=folder / "configured.xml", whitelist_roots=lists.roots, **settings
        )
        self.trust.whitelist.write_bytes(lists.good)
        # The good list has db1.349.example, our first site, not our second.
        self.sites = world.sites[: 2 if both else 1]
        self.answer: bytes | Exception | Deferred[bytes] = lists.good
        self.asked = 0
        self.now = NOW
        self.notices = FakeNotices()
        self.restart()

    def restart(self) -> None:
        self.holder = WhitelistHolder(self.trust, self.sites, lambda: NOW, kept=self.folder / KEPT)
        self.keeper = ListKeeper(
            self.trust,
            self.holder,
            self.notices,
            fetch=self.fetch if self.url else None,
            now=lambda: self.now,
            in_thread=_at_once,
            folder=self.folder,
            random=lambda: 0.5,
        )

    async def fetch(self) -> bytes:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return await self.answer if isinstance(self.answer, Deferred) else self.answer

    def start(self) -> None:
        done(self.keeper.start())

    def refresh(self, **options: bool) -> Refreshed:
        result: Refreshed = done(self.keeper.refresh(**options))
        return result

    def look(self, after: timedelta) -> None:
        self.now += after
        done(self.keeper.refresh_if_due())


async def _at_once(work: Callable[[], object]) -> object:
    return work()


def done(coroutine: Any) -> Any:
    waiting = Deferred.fromCoroutine(coroutine)
    found: list[Any] = []
    waiting.addBoth(found.append)
    assert found, "it waits for something"
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


@pytest.fixture
def kept(lists: Any, world: Any, tmp_path: Path) -> World:
    kept = World(lists, world, tmp_path)
    kept.start()
    return kept


@pytest.mark.requirement("DB.CS.147", "DB.CS.148")
def test_a_new_list_is_kept_as_it_came_and_counts_at_once(kept: World) -> None:
    kept.answer = made(kept.lists, entry("CN=db9.349.example,OU=3490"), entry(DN), day=13)
    assert kept.refresh() == Refreshed("new")
    assert kept.holder.current is not None
    assert kept.holder.current.lists("db9.349.example", "3490")
    assert (kept.folder / KEPT).read_bytes() == kept.answer
    assert kept.trust.whitelist.read_bytes() == kept.lists.good
    assert kept.refresh() == Refreshed("same")


@pytest.mark.requirement("DB.CS.147")
def test_it_is_fetched_once_a_day_and_at_once_when_never(kept: World) -> None:
    kept.look(timedelta())
    assert kept.asked == 1
    kept.look(23 * HOUR)
    assert kept.asked == 1
    kept.look(HOUR)
    assert kept.asked == 2
    # The day counts from the fetch, over a restart too.
    kept.restart()
    kept.start()
    kept.look(23 * HOUR)
    assert kept.asked == 2
    kept.look(HOUR)
    assert kept.asked == 3


@pytest.mark.requirement("DB.CS.147", "DB.CS.148")
def test_after_a_restart_the_newest_good_list_on_disk_counts(kept: World) -> None:
    kept.answer = made(kept.lists, entry(DN), entry("CN=db9.349.example,OU=3490"), day=13)
    kept.refresh()
    kept.restart()
    kept.start()
    assert kept.holder.current.lists("db9.349.example", "3490")  # type: ignore[union-attr]
    # An operator's newer file beats it.
    kept.trust.whitelist.write_bytes(made(kept.lists, entry(DN), day=14))
    kept.restart()
    kept.start()
    assert not kept.holder.current.lists("db9.349.example", "3490")  # type: ignore[union-attr]
    # And what is spoilt on disk is no loss while the other is good.
    (kept.folder / KEPT).write_bytes(b"spoilt")
    kept.restart()
    kept.start()
    assert kept.holder.current is not None
    assert not kept.notices.open


@pytest.mark.requirement("DB.CS.151", "DB.CS.186")
def test_a_bad_list_is_told_at_once_kept_aside_and_the_last_good_one_stays(kept: World) -> None:
    good = kept.holder.current
    for bad in (b"", kept.lists.good[:-100], kept.lists.good.replace(b"3490", b"3491")):
        kept.answer = bad
        result = kept.refresh()
        assert result.outcome == "refused"
        assert result.reasons
        assert not result.good
        assert kept.holder.current is good
        assert "inutilisable" in kept.notices.open["whitelist"]
        assert "reste en vigueur" in kept.notices.open["whitelist"]
        assert (kept.folder / REFUSED).read_bytes() == bad
        assert not (kept.folder / KEPT).exists()
    kept.answer = kept.lists.good
    assert kept.refresh().good
    assert not kept.notices.open


@pytest.mark.requirement("DB.CS.186")
def test_two_days_without_a_list_are_told_and_not_one(kept: World) -> None:
    kept.answer = FetchFailed("serveur injoignable")
    for hours in range(48):
        kept.look(HOUR if hours else timedelta())
    assert kept.asked == 48
    assert not kept.notices.open
    assert kept.keeper.failing_since == NOW
    # Not even a restart makes it forget since when.
    kept.restart()
    kept.start()
    kept.look(HOUR)
    assert "serveur injoignable" in kept.notices.open["whitelist-silence"]
    assert kept.holder.current is not None
    kept.answer = kept.lists.good
    kept.look(HOUR)
    assert not kept.notices.open
    assert kept.keeper.failing_since is None


@pytest.mark.requirement("DB.CS.147")
def test_failing_is_tried_again_every_hour_not_at_every_look(kept: World) -> None:
    kept.answer = FetchFailed("serveur injoignable")
    for _ in range(12):
        kept.look(timedelta(minutes=10))
    assert kept.asked == 2


@pytest.mark.threat("old lists played again")
def test_an_older_list_played_again_is_refused_unless_an_administrator_takes_it(kept: World) -> None:
    kept.answer = made(kept.lists, entry(DN), day=13)
    kept.refresh()
    old = made(kept.lists, entry(DN), entry("CN=put.out.example,OU=1"), day=11)
    kept.answer = old
    result = kept.refresh()
    assert result.outcome == "older"
    assert "plus ancienne" in kept.notices.open["whitelist"]
    assert not kept.holder.current.lists("put.out.example", "1")  # type: ignore[union-attr]
    assert kept.refresh(take_older=True).good
    assert kept.holder.current.lists("put.out.example", "1")  # type: ignore[union-attr]
    assert (kept.folder / KEPT).read_bytes() == old


@pytest.mark.requirement("DB.CS.164")
def test_our_own_absence_is_told_at_each_load_and_taken_back(
    lists: Any, world: Any, tmp_path: Path
) -> None:
    kept = World(lists, world, tmp_path, both=True)
    kept.start()
    assert list(kept.notices.open) == [f"unlisted-{kept.sites[1].name}"]
    kept.answer = made(kept.lists, entry("CN=db2.349.example,OU=3490"), day=13)
    kept.refresh()
    assert f"unlisted-{kept.sites[0].name}" in kept.notices.open
    assert f"unlisted-{kept.sites[1].name}" not in kept.notices.open
    assert not kept.holder.serves(kept.sites[0])
    kept.answer = made(kept.lists, entry(DN), entry("CN=db2.349.example,OU=3490"), day=14)
    kept.refresh()
    assert not kept.notices.open
    assert kept.holder.serves(kept.sites[0])


def test_two_refreshes_at_once_are_one(kept: World) -> None:
    kept.answer = waiting = Deferred()
    first = Deferred.fromCoroutine(kept.keeper.refresh())
    assert kept.refresh().outcome == "busy"
    waiting.callback(kept.lists.good)
    assert first.called
    assert kept.asked == 1


def test_a_disk_that_takes_nothing_costs_the_file_not_the_list(
    kept: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("drimbox.trust.listkeeper.write_whole", full)
    kept.answer = made(kept.lists, entry(DN), entry("CN=db9.349.example,OU=3490"), day=13)
    result = kept.refresh()
    assert not result.good
    assert "non enregistrée" in kept.notices.open["whitelist"]
    assert kept.holder.current.lists("db9.349.example", "3490")  # type: ignore[union-attr]


def test_what_is_remembered_may_be_lost_or_spoilt(kept: World) -> None:
    kept.refresh()
    for spoilt in (b"", b"[]", b'{"fetched_at": 3, "failing_since": null}', b'{"fetched_at": "x"}'):
        (kept.folder / MEMORY).write_bytes(spoilt)
        kept.restart()
        assert kept.keeper.fetched_at is None
        kept.start()
        before = kept.asked
        kept.look(timedelta())
        assert kept.asked == before + 1


def test_without_an_address_the_file_is_read_again(lists: Any, world: Any, tmp_path: Path) -> None:
    kept = World(lists, world, tmp_path, url=False)
    kept.start()
    kept.trust.whitelist.write_bytes(made(lists, entry(DN), entry("CN=db9.349.example,OU=3490"), day=13))
    assert kept.refresh().outcome == "new"
    assert kept.holder.current.lists("db9.349.example", "3490")  # type: ignore[union-attr]
    assert not (tmp_path / KEPT).exists()
    kept.trust.whitelist.unlink()
    assert kept.refresh().outcome == "unreachable"
    assert kept.holder.current is not None


def test_nothing_good_anywhere_refuses_to_start_and_says_why(
    lists: Any, world: Any, tmp_path: Path
) -> None:
    kept = World(lists, world, tmp_path)
    kept.trust.whitelist.write_bytes(b"")
    (tmp_path / KEPT).write_bytes(b"spoilt")
    with pytest.raises(WhitelistRefused):
        kept.start()
    assert "inutilisable" in kept.notices.open["whitelist"]


def test_instants_without_zone_are_of_no_harm(kept: World) -> None:
    (kept.folder / MEMORY).write_text('{"fetched_at": "2026-01-12T04:00:00", "failing_since": null}')
    kept.restart()
    assert kept.keeper.fetched_at is not None
    assert isinstance(kept.keeper.fetched_at, datetime)
    kept.look(timedelta())

"""Noticing that a study changed in a native archive: nothing is passed over, nothing compared in vain."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from drimbox.errors import PacsCommunicationError
from drimbox.native.store import Changes
from drimbox.ports import KnownStudy
from drimbox.source import watch as watching
from drimbox.source.watch import Watch
from tests.source.fakes import Notices, run

ONE, TWO, THREE = "2.25.1", "2.25.2", "2.25.3"


class World:
    """An archive, what is remembered of it, and what is done about it."""

    name = "ARCHIVE"

    def __init__(self) -> None:
        #: Instances by study, and how often each was changed.
        self.held: dict[str, int] = {}
        self.log: list[tuple[str, bool]] = []
        self.names_all = True
        self.silent = False
        self.on_changes: Any = lambda: None
        self.asked: list[str] = []
        # What is remembered.
        self.kos: set[str] = set()
        self.rows: dict[str, tuple[str | None, bool]] = {}
        self.kept: str | None = None
        # What is done.
        self.compared: list[str] = []
        self.busy: set[str] = set()
        self.forgotten: list[str] = []
        self.notices = Notices()
        self.watch = self.make()

    def make(self) -> Watch:
        return Watch(
            "site1",
            self,
            self,
            self.notices,
            compare=self._compare,
            forget=self._forget,
        )

    async def _compare(self, study_uid: str) -> bool:
        if study_uid in self.busy:
            return False
        self.compared.append(study_uid)
        return True

    async def _forget(self, site: str, study_uid: str) -> None:
        assert site == "site1"
        self.forgotten.append(study_uid)

    # -- the archive -------------------------------------------------------------------------------

    def add(self, study_uid: str) -> None:
        self.held[study_uid] = self.held.get(study_uid, 0) + 1
        self.log.append((study_uid, True))

    def remove(self, study_uid: str) -> None:
        del self.held[study_uid]
        self.log.append((study_uid, False))

    async def changes(self, cursor: str | None) -> Changes:
        self._answer()
        since = len(self.log) if cursor is None else int(cursor)
        fresh = self.log[since:]
        named = {study_uid for study_uid, added in fresh if added or self.names_all}
        complete = cursor is not None and (self.names_all or all(added for _, added in fresh))
        end = str(len(self.log))
        self.on_changes()
        return Changes(named, end, complete)

    async def mark(self, study_uid: str) -> str | None:
        self._answer()
        self.asked.append(study_uid)
        return f"v{self.held[study_uid]}" if study_uid in self.held else None

    def _answer(self) -> None:
        if self.silent:
            raise PacsCommunicationError("muette")

    # -- the memory --------------------------------------------------------------------------------

    async def cursor(self, site: str) -> str | None:
        return self.kept

    async def known(self, site: str, after: str, limit: int, *, only: str = "") -> list[KnownStudy]:
        found = []
        for study_uid in sorted(self.kos):
            mark, due = self.rows.get(study_uid, (None, False))
            if study_uid > after and (
                not only or (only == "due" and due) or (only == "new" and study_uid not in self.rows)
            ):
                found.append(KnownStudy(study_uid, mark, due))
        return found[:limit]

    async def note(self, site: str, changed: Collection[str], cursor: str | None) -> list[str]:
        due = sorted(self.kos & set(changed))
        for study_uid in due:
            self.rows[study_uid] = (self.rows.get(study_uid, (None, False))[0], True)
        self.kept = cursor or self.kept
        return due

    async def settle(self, site: str, marks: Mapping[str, str]) -> None:
        for study_uid, mark in marks.items():
            self.rows[study_uid] = (mark, False)

    # -- for tests ---------------------------------------------------------------------------------

    def publish(self, study_uid: str) -> None:
        self.kos.add(study_uid)

    def look(self, times: int = 1) -> list[str]:
        """Look, and return what was compared."""
        before = len(self.compared)
        for _ in range(times):
            run(self.watch.look())
        return self.compared[before:]

    def settled(self) -> World:
        """Let the first looks pass."""
        self.look(3)
        assert self.look() == []
        self.forgotten.clear()
        return self


@pytest.fixture
def world() -> World:
    world = World()
    for study_uid in (ONE, TWO):
        world.add(study_uid)
        world.publish(study_uid)
    return world.settled()


@pytest.mark.requirement("DB.SO.27")
def test_the_first_look_compares_what_there_is() -> None:
    world = World()
    world.add(ONE)
    world.publish(ONE)
    assert world.look(2) == [ONE]
    assert world.look(3) == []


@pytest.mark.requirement("DB.SO.27")
@pytest.mark.parametrize("names_all", [True, False])
def test_an_addition_is_compared_once_it_has_settled(world: World, names_all: bool) -> None:
    world.names_all = names_all
    world.add(TWO)
    world.add(THREE)
    assert world.look() == []
    # From the cache at once, whatever is still being added.
    assert world.forgotten == [TWO]
    world.add(TWO)
    assert world.look() == []
    assert world.look() == [TWO]
    assert world.look(3) == []


@pytest.mark.requirement("DB.SO.27")
@pytest.mark.parametrize("names_all", [True, False])
def test_a_removal_is_compared_at_once(world: World, names_all: bool) -> None:
    world.names_all = names_all
    world.remove(ONE)
    assert world.look() == [ONE]
    assert world.forgotten == [ONE]
    assert world.look(3) == []
    # Gone is gone: not compared again because something else was removed.
    world.remove(TWO)
    assert world.look(2) == [TWO]
    # And back again is a change.
    world.add(ONE)
    assert world.look(2) == [ONE]


@pytest.mark.requirement("DB.SO.27")
def test_a_study_that_never_rests_is_compared_all_the_same(world: World) -> None:
    compared: list[str] = []
    for _ in range(watching.PATIENCE + 2):
        world.add(ONE)
        compared += world.look()
    assert compared == [ONE]


@pytest.mark.requirement("DB.SO.27")
def test_a_study_whose_job_is_on_its_way_waits_for_it(world: World) -> None:
    world.busy.add(ONE)
    world.remove(ONE)
    assert world.look(3) == []
    world.busy.clear()
    assert world.look() == [ONE]
    assert world.look() == []


@pytest.mark.requirement("DB.SO.27")
def test_a_study_without_kos_is_nobodys_business(world: World) -> None:
    world.add(THREE)
    world.remove(THREE)
    assert world.look(3) == []
    assert world.forgotten == []


@pytest.mark.requirement("DB.SO.27")
def test_a_new_kos_is_not_compared_for_nothing(world: World) -> None:
    world.names_all = False
    world.add(THREE)
    world.look()
    world.publish(THREE)
    assert world.look(3) == []
    assert world.rows[THREE] == ("v1", False)


@pytest.mark.requirement("DB.SO.27")
def test_what_is_removed_just_after_the_kos_was_made_is_seen(world: World) -> None:
    """Between the reading of the first mark and the question for changes, and right after that question."""
    world.names_all = False
    world.add(THREE)
    world.look()
    world.publish(THREE)
    world.on_changes = lambda: (setattr(world, "on_changes", lambda: None), world.remove(THREE))
    assert THREE in world.look(2)


@pytest.mark.requirement("DB.SO.27")
def test_a_restart_goes_on_where_it_was(world: World) -> None:
    world.add(ONE)
    world.watch = world.make()
    world.remove(TWO)
    world.names_all = False
    assert sorted(world.look(2)) == [ONE, TWO]
    world.watch = world.make()
    assert world.look(3) == []


@pytest.mark.requirement("DB.SO.27")
def test_a_silent_archive_is_told_of_and_nothing_is_lost(world: World) -> None:
    world.silent = True
    world.add(ONE)
    assert world.look(2) == []
    assert world.notices.open == {}
    world.look()
    assert list(world.notices.open) == ["changements-site1"]
    code, text = world.notices.open["changements-site1"]
    assert code == "E003"
    assert "ARCHIVE" in text
    world.look(5)
    assert world.notices.posted == ["changements-site1"]
    world.silent = False
    assert world.look(2) == [ONE]
    assert world.notices.open == {}


def test_a_stop_cuts_a_look_short_and_nothing_is_lost(world: World) -> None:
    waiting: Deferred[Any] = Deferred()
    answer = world.changes

    async def slow(cursor: str | None) -> Changes:
        await waiting
        return await answer(cursor)

    world.changes = slow  # type: ignore[method-assign]
    world.add(ONE)
    looking = Deferred.fromCoroutine(world.watch.look())
    assert not looking.called
    world.watch.stop()
    assert looking.called
    world.changes = answer  # type: ignore[method-assign]
    assert world.look() == []
    world.watch = world.make()
    assert world.look(2) == [ONE]


def test_large_sites_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAGE", 3)
    world = World()
    names = [f"2.25.{number}" for number in range(10, 30)]
    for study_uid in names:
        world.add(study_uid)
        world.publish(study_uid)
    assert sorted(world.look(2)) == names


@pytest.mark.requirement("DB.SO.27")
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "look", "publish", "restart", "busy"]), st.integers(1, 3)
        ),
        max_size=30,
    ),
    names_all=st.booleans(),
)
def test_whatever_happens_every_last_state_is_compared(
    steps: list[tuple[str, int]], names_all: bool
) -> None:
    world = World()
    world.names_all = names_all
    #: State of each study when it was last compared, or when its KOS was made.
    agreed: dict[str, Any] = {}

    async def compare(study_uid: str) -> bool:
        if study_uid in world.busy:
            return False
        agreed[study_uid] = world.held.get(study_uid)
        return True

    world._compare = compare  # type: ignore[method-assign]
    world.watch = world.make()
    for step, number in steps:
        study_uid = f"2.25.{number}"
        if step == "add":
            world.add(study_uid)
        elif step == "remove" and study_uid in world.held:
            world.remove(study_uid)
        elif step == "publish" and study_uid in world.held and study_uid not in world.kos:
            world.publish(study_uid)
            agreed[study_uid] = world.held[study_uid]
        elif step == "look":
            world.look()
        elif step == "restart":
            world.watch = world.make()
        elif step == "busy":
            world.busy ^= {study_uid}
    world.busy.clear()
    world.look(3)
    assert agreed == {study_uid: world.held.get(study_uid) for study_uid in world.kos}

"""The caches of several nodes: what one lets go all let go, and nothing is given out that another has."""

from __future__ import annotations

from pathlib import Path

import pytest

from drimbox.ports import ForgottenStudy
from drimbox.source import sharedcache
from drimbox.source.sharedcache import SharedCache
from tests.store.cache_scene import CT, EXPLICIT, Scene, content, now

pytestmark = pytest.mark.requirement("DB.SO.35", "DB.SO.40")


class Told:
    """What the nodes have told each other; may be away."""

    def __init__(self) -> None:
        self.rows: list[ForgottenStudy] = []
        self.away = False

    async def tell(self, site: str, study_uid: str) -> None:
        if self.away:
            raise OSError("no database")
        self.rows.append(ForgottenStudy(len(self.rows) + 1, site, study_uid))

    async def since(self, number: int, most: int) -> list[ForgottenStudy]:
        if self.away:
            raise OSError("no database")
        return [row for row in self.rows if row.number > number][:most]


class Two:
    """Two nodes on one store."""

    def __init__(self, folder: Path) -> None:
        self.told = Told()
        self.scenes = [Scene(folder / name) for name in ("a", "b")]
        self.nodes = [SharedCache(scene.cache, self.told) for scene in self.scenes]

    def keep(self, study: str, series: str = "1.5") -> None:
        """Keep a series in both."""
        kept = [scene.keep(series, study=study) for scene in self.scenes]
        assert kept == [True] * len(self.scenes)

    def found(self, node: int, study: str, series: str = "1.5") -> bool:
        reader = now(self.nodes[node].find("site", study, series, set(content(series, 0, 2))))
        if reader is not None:
            now(reader.close())
        return reader is not None

    def files(self, node: int) -> int:
        return len(self.scenes[node].files())


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def test_what_one_forgets_leaves_the_disk_of_the_other(two: Two) -> None:
    two.keep("1.4")
    two.keep("1.4", "1.6")
    two.keep("1.7")
    kept = two.files(1)
    now(two.nodes[0].purge("site", "1.4"))
    assert two.files(1) == kept
    now(two.nodes[1].look())
    assert two.files(0) == two.files(1) == kept // 3
    assert two.found(1, "1.7")
    # What comes back from the PACS afterwards stays.
    two.keep("1.4")
    now(two.nodes[1].look())
    assert two.found(1, "1.4")


def test_nothing_another_has_forgotten_is_given_out_before_it_was_looked_at(two: Two) -> None:
    two.keep("1.4")
    assert two.found(1, "1.4")
    now(two.nodes[0].purge("site", "1.4"))
    assert not two.found(1, "1.4")
    assert two.files(1) == 0


def test_what_is_being_written_when_another_forgets_it_is_not_kept(two: Two) -> None:
    writer = two.nodes[1].begin("site", "1.4", "1.5")
    assert writer is not None
    instance = writer.add("1.5.1", CT, EXPLICIT)
    instance.write(b"pixels")
    now(two.nodes[0].purge("site", "1.4"))
    now(two.nodes[1].look())
    instance.end()
    assert not now(writer.commit({"1.5.1"}))
    assert not two.found(1, "1.4")
    assert two.files(1) == 0


def test_a_node_that_was_down_forgets_when_it_is_back(two: Two) -> None:
    two.keep("1.4")
    two.keep("1.7")
    now(two.nodes[1].look())
    now(two.nodes[0].purge("site", "1.4"))
    two.nodes[1] = SharedCache(two.scenes[1].reopen(), two.told)
    assert two.scenes[1].has(study="1.4")
    now(two.nodes[1].look())
    assert not two.scenes[1].has(study="1.4")
    assert two.found(1, "1.7")


def test_a_store_that_is_away_costs_the_use_of_the_cache_only(two: Two) -> None:
    two.keep("1.4")
    two.told.away = True
    assert not two.found(1, "1.4")
    # What it does not hold costs no question.
    assert not two.found(1, "1.9")
    # Whoever forgets is told that the others were not, and forgets all the same.
    with pytest.raises(OSError, match="no database"):
        now(two.nodes[0].purge("site", "1.4"))
    two.told.away = False
    assert not two.found(0, "1.4")
    assert two.found(1, "1.4")


def test_more_than_a_page_is_followed_to_its_end(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharedcache, "_PAGE", 2)
    for number in range(5):
        two.keep(f"1.4.{number}")
    for number in range(5):
        now(two.nodes[0].purge("site", f"1.4.{number}"))
    now(two.nodes[1].look())
    assert two.files(1) == 0

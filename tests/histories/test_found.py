"""Histories of the feed that random ones found to end badly, each in its smallest form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.histories.gateway import template
from tests.histories.operations import Again, Move, Report, Wait
from tests.histories.simulated import happen


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp("template"))


@pytest.mark.requirement("DB.SO.13", "DB.SO.26")
def test_a_study_that_moved_leaves_no_manifest_behind_in_the_archive(tmp_path: Path, empty: Path) -> None:
    """Replaced in the record, the manifest of the first PACS went on being published in the archive."""
    play(tmp_path, empty, Report(0, (0,)), Wait(5.0), Move(0, told="omi"))


@pytest.mark.requirement("DB.SO.12", "DB.SO.97")
def test_a_message_that_comes_again_does_not_take_the_word_back(tmp_path: Path, empty: Path) -> None:
    """The first report, sent again after the second reading, took its accession number out."""
    play(tmp_path, empty, Report(0, (0,)), Report(1, (0,), accessions=("B",)), Again(back=1))


def play(folder: Path, empty: Path, *operations: Any, seeds: int = 3) -> None:
    """Let a history happen, with several orders of what happens at once."""
    for seed in range(seeds):
        happen(operations, folder / str(seed), empty, seed)

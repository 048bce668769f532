"""Histories of the feed that random ones found to end badly, each in its smallest form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.histories.gateway import template
from tests.histories.operations import Again, Calm, DmpNext, Move, Report, Wait, Withdraw
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


@pytest.mark.requirement("DB.SO.13", "DB.SO.97")
@pytest.mark.threat("a KOS in the record of another patient")
def test_a_report_corrected_to_another_patient_leaves_nothing_in_the_first_record(
    tmp_path: Path, empty: Path
) -> None:
    """The manifest stayed in the record of a patient who is not on the images, for somebody to remove."""
    corrected = Report(1, (0,), replaces=0, patient=1)
    play(tmp_path / "1", empty, Report(0, (0,)), Calm(), corrected)
    play(tmp_path / "2", empty, Report(0, (0,)), corrected, Move(0), Withdraw(1, (0,)))
    play(tmp_path / "3", empty, Report(0, (0,)), Calm(), DmpNext("refuse", "TD3.3c"), corrected)
    # The same document, said again for the right patient, and then another one.
    wrong, right = Report(2, (0,), patient=1), Report(2, (0,))
    play(tmp_path / "4", empty, wrong, Calm(), right, Report(1, (0,)))


@pytest.mark.requirement("DB.SO.16")
@pytest.mark.threat("a KOS in the record of another patient")
def test_a_report_that_claims_the_study_of_another_patient_gets_nothing(
    tmp_path: Path, empty: Path
) -> None:
    """The images of one patient were published in the record of another, beside the first manifest."""
    claim = (Report(0, (0,)), Calm(), Report(1, (0,), patient=1), Calm())
    play(tmp_path / "1", empty, *claim)
    play(tmp_path / "2", empty, *claim, Withdraw(0, (0,)))
    play(tmp_path / "3", empty, *claim, Withdraw(1, (0,)))


def play(folder: Path, empty: Path, *operations: Any, seeds: int = 3) -> None:
    """Let a history happen, with several orders of what happens at once."""
    for seed in range(seeds):
        happen(operations, folder / str(seed), empty, seed)

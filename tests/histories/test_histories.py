"""Random histories of the feed: when everything is up again, record and archive mirror PACS and reports.

A history is a list of what happened (`operations`), played against the whole gateway under a simulated
clock, a strict registry and two PACS (`world`), and judged by a model that knows no product code
(`model`). Hypothesis makes hundreds of them, many more with DRIMBOX_SOAK=1, and shrinks one that ends
badly to the few operations it needs.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.histories import operations as ops
from tests.histories.gateway import template
from tests.histories.simulated import happen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.requirement(
        "DB.SO.12", "DB.SO.13", "DB.SO.15", "DB.SO.25", "DB.SO.26", "DB.SO.97", "DB.SO.133"
    ),
]
SOAK = bool(os.environ.get("DRIMBOX_SOAK"))


def runs(in_ci: int, in_soak: int) -> settings:
    """Return how many histories are made."""
    return settings(
        max_examples=in_soak if SOAK else in_ci,
        deadline=None,
        database=None,
        derandomize=not SOAK,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories")


@pytest.fixture(scope="module")
def empty(folder: Path) -> Path:
    return template(folder)


_numbers = itertools.count()


def play(history: tuple[object, ...], seed: int, folder: Path, empty: Path) -> None:
    """Let a history happen; show it line by line when it ends badly."""
    for operation in history:
        note(repr(operation))
    place = folder / str(next(_numbers))
    happen(history, place, empty, seed)
    shutil.rmtree(place)


@runs(160, 10_000)
@given(history=ops.histories(ops.ANYTHING), seed=st.integers(0, 1 << 16))
def test_whatever_happens_the_record_mirrors_pacs_and_reports(
    history: tuple[object, ...], seed: int, folder: Path, empty: Path
) -> None:
    play(history, seed, folder, empty)


@pytest.mark.requirement("DB.SO.11")
@runs(80, 5_000)
@given(history=ops.histories(ops.SPOKEN), seed=st.integers(0, 1 << 16))
def test_whatever_order_reports_come_in_the_last_valid_one_has_the_word(
    history: tuple[object, ...], seed: int, folder: Path, empty: Path
) -> None:
    play(history, seed, folder, empty)

"""Random histories of deliveries over the AE-title pool: no mix-up, no loss, no false completeness.

A history is a handful of clients, a plan for each C-MOVE of the PACS, and the conditions of the gateway;
everything happens under a simulated clock, through the gateway's own code, and the same history is
always the same run. Hypothesis makes hundreds of them (many more with DRIMBOX_SOAK=1) and shrinks the
one that breaks a promise (`verdict.judge`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.properties import clients, plans, world
from tests.properties.verdict import judge
from tests.properties.world import Conditions, History, World

pytestmark = pytest.mark.slow
SOAK = bool(os.environ.get("DRIMBOX_SOAK"))
RUNS = settings(
    max_examples=20_000 if SOAK else 600,
    deadline=None,
    database=None,
    derandomize=not SOAK,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)

#: Anything may go wrong, on either side.
WILD = st.builds(
    History,
    world.CONDITIONS,
    st.lists(clients.ANY, min_size=1, max_size=5).map(tuple),
    st.lists(plans.ANY | plans.GOOD, max_size=6).map(tuple),
)
#: Nobody has an excuse: there is room for everyone, the PACS is good, the clients are patient.
ORDERLY = st.builds(
    History,
    st.builds(
        Conditions,
        seed=st.integers(0, 1 << 16),
        titles=st.just(4),
        window=st.sampled_from((1 << 20, 4000, 500)),
        total_window=st.sampled_from((1 << 20, 2000)),
    ),
    st.lists(clients.PATIENT, min_size=1, max_size=4).map(tuple),
    st.lists(plans.TIDY, max_size=8).map(tuple),
)
#: The same series for everybody, few titles: what is late for one arrives while another waits for it.
CONTENDED = st.builds(
    History,
    st.builds(Conditions, seed=st.integers(0, 1 << 16), titles=st.integers(1, 2)),
    st.lists(clients.ANY, min_size=2, max_size=5).map(tuple),
    st.lists(plans.ANY, min_size=1, max_size=5).map(tuple),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


def happen(history: History, folder: Path) -> World:
    """Let a history happen and judge it."""
    happened = World(history, folder)
    happened.run()
    judge(happened)
    return happened


@pytest.mark.requirement("DB.SO.32", "DB.SO.85")
@pytest.mark.threat("images of another patient")
@RUNS
@given(history=WILD)
def test_whatever_happens_no_answer_lies(history: History, folder: Path) -> None:
    happened = happen(history, folder)
    for client in happened.clients:
        assert client.result is not None
        event("complete" if client.finished else "cut" if client.content_type else "refused")
        event(type(client.result.error).__name__)


@pytest.mark.requirement("DB.SO.32", "DB.SO.35")
@RUNS
@given(history=ORDERLY)
def test_a_good_pacs_and_patient_clients_always_end_well(history: History, folder: Path) -> None:
    happened = happen(history, folder)
    for client in happened.clients:
        assert client.finished or not client.wish.servable or client.wish.due is None


@pytest.mark.threat("images of another patient")
@RUNS
@given(history=CONTENDED)
def test_few_titles_pass_from_hand_to_hand_without_a_mix_up(history: History, folder: Path) -> None:
    happen(history, folder)

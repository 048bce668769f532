"""The root filter keeps what is under its roots inside, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.model import Instance, Series, Study
from drimbox.source.filters import UidRootFilter

UIDS = st.lists(st.integers(0, 40).map(str), min_size=1, max_size=6).map(".".join)


@pytest.mark.parametrize(
    ("root", "uid", "excluded"),
    [
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2.3.4", True),
        ("1.2.3.", "1.2.3.4", True),
        (" 1.2.3 ", "1.2.3.4", True),
        ("1.2.3", "1.2.30", False),
        ("1.2.3", "1.2.30.4", False),
        ("1.2.3", "1.2", False),
        ("1.2.3", "11.2.3.4", False),
        ("1.2.3", "5.1.2.3.4", False),
    ],
)
def test_a_root_ends_at_a_component(root: str, uid: str, excluded: bool) -> None:
    assert UidRootFilter([root]).excludes(uid) is excluded


@given(st.lists(UIDS, max_size=4), UIDS)
def test_it_agrees_with_the_components(roots: list[str], uid: str) -> None:
    parts = uid.split(".")
    expected = any(parts[: len(root.split("."))] == root.split(".") for root in roots)
    assert UidRootFilter(roots).excludes(uid) is expected
    assert UidRootFilter(roots).kept([uid]) == (frozenset() if expected else {uid})


def test_without_roots_everything_leaves() -> None:
    nothing = UidRootFilter()
    assert not nothing
    assert UidRootFilter(["1.2"])
    assert nothing.kept(["1.2.3", "4.5"]) == {"1.2.3", "4.5"}


@pytest.mark.parametrize("root", ["", ".", "1..2", "1.2.*", "a", "1.2\n3", "1" * 65])
def test_what_is_no_root_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        UidRootFilter([root])


def test_a_study_shows_what_may_leave_and_no_empty_series() -> None:
    images = Series("2.1", "CT", (Instance("9.1", "1"), Instance("1.2.3.7", "1")))
    made = Series("2.2", "SR", (Instance("1.2.3.8", "1"),))
    study = Study("2", (images, made), description="TDM")
    kept = UidRootFilter(["1.2.3"]).study(study)
    assert [(s.series_uid, [i.sop_instance_uid for i in s.instances]) for s in kept.series] == [
        ("2.1", ["9.1"])
    ]
    assert kept.description == "TDM"
    assert UidRootFilter().study(study) is study

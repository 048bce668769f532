"""Names that FAT16 knows, and that every maker's archive can be read by."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.xdm import names

pytestmark = pytest.mark.requirement("DB.SO.29")
_SITE = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(st.lists(_SITE, min_size=1, max_size=12, unique=True))
def test_every_site_has_its_own_prefix(sites: list[str]) -> None:
    found = names.prefixes(sites)
    assert list(found) == sites
    assert len({each.upper() for each in found.values()}) == len(sites)
    for prefix in found.values():
        assert re.fullmatch(r"[A-Z0-9_]{0,16}", prefix)
        month = names.Month(2026, 12)
        assert names.archive_month(names.archive_name(prefix, month) + ".zip") == month
        assert names.archive_prefix(names.archive_name(prefix, month)) == prefix
    assert (found[sites[0]] == "") == (len(sites) == 1)


def test_names_are_those_of_the_specification() -> None:
    assert names.archive_name("", names.Month(2026, 1)) == "KA202601"
    assert names.archive_name("PACS1", names.Month(2026, 1)) == "PACS1_KA202601"
    assert (names.set_name(7), names.kos_name(7)) == ("SS000007", "KOS_7_1.DCM")
    assert names.Month(2026, 12).next == names.Month(2027, 1)


@pytest.mark.parametrize("name", ["KOS_1_1.DCM", "KOS_11.DCM", "kos_1_1.dcm", "KOS1_2.DCM"])
def test_manifests_of_every_maker_are_known(name: str) -> None:
    assert names.is_kos(name)
    assert names.is_of_set(name)


@pytest.mark.parametrize(
    "name", ["SIGN_1.XML", "KOS.DCM", "KOS_1_1.DCM.EXE", "XKOS_1_1.DCM", "KOS_1\n.DCM"]
)
def test_other_files_are_left_alone(name: str) -> None:
    assert not names.is_of_set(name)


@pytest.mark.parametrize("name", ["KA202613", "KA20261", "XKA202601", "KA202601.TAR", "archive.zip"])
def test_a_name_without_month_says_none(name: str) -> None:
    assert names.archive_month(name) is None

"""Dates, times and text from a PACS become valid values or empty ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.kos.classes import value_type
from drimbox.kos.values import Fitter, clean, date, time


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20260112", "20260112"),
        (" 20260112 ", "20260112"),
        ("2026.01.12", "20260112"),
        ("2026-01-12", "20260112"),
        ("20260231", ""),
        ("00000000", ""),
        ("", ""),
        ("hier", ""),
        ("20260112-20260113", ""),
    ],
)
def test_dates(text: str, value: str) -> None:
    assert date(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("08", "08"),
        ("0830", "0830"),
        ("083000", "083000"),
        ("083000.123", "083000.123"),
        ("08:30:00", "083000"),
        ("235960", "235960"),
        ("240000", ""),
        ("086000", ""),
        ("8h30", ""),
        ("083000.", ""),
        ("", ""),
    ],
)
def test_times(text: str, value: str) -> None:
    assert time(text) == value


def test_clean_text_is_one_line_without_separators() -> None:
    assert clean(" a\r\n\tb\\c\x00\x85d  e\ud800 ") == "a b/c d e"


@given(st.text(), st.integers(-5, 80), st.sampled_from(["a", "Ω"]))
def test_cutting_never_passes_the_room_nor_breaks_a_character(text: str, room: int, kind: str) -> None:
    fit = Fitter([kind, clean(text)])
    cut = fit.cut(clean(text), room)
    assert len(cut.encode(fit.codec)) <= max(room, 0)
    assert clean(text).startswith(cut)


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.77.1.6", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.1.2", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.6.2", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.4.2", "COMPOSITE"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "COMPOSITE"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "COMPOSITE"),
        ("1.2.840.10008.5.1.4.1.1.66", "COMPOSITE"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "COMPOSITE"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "COMPOSITE"),
        ("1.3.46.670589.11.0.0.12.1", "COMPOSITE"),
    ],
)
def test_value_types(sop_class: str, kind: str) -> None:
    assert value_type(sop_class) == kind

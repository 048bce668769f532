"""One instance: nothing leaves before the data set itself has said whose it is."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from drimbox.source.parts import Part, PartRefused
from tests.dicom.datasets import IMPLICIT, JPEG_LS, pieces
from tests.source.answers import CT, EXPLICIT, SERIES, STUDY, command, dataset


def part(syntax: str = EXPLICIT, instance: str = "2.25.103", sop_class: str = CT) -> Part:
    return Part(command(instance, sop_class), syntax, study_uid=STUDY, series_uid=SERIES)


def run(part: Part, data: bytes, cuts: list[int]) -> bytes:
    out = b""
    cut = pieces(data, cuts)
    for number, piece in enumerate(cut):
        out += b"".join(bytes(chunk) for chunk in part.feed(piece, number == len(cut) - 1))
    return out


def feed_held(part: Part, cut: list[bytes]) -> None:
    """Feed a part of which nothing may leave."""
    for number, piece in enumerate(cut):
        assert part.feed(piece, number == len(cut) - 1) == []


@pytest.mark.requirement("DB.SO.32")
@given(st.lists(st.integers(0, 4000), max_size=8))
def test_the_data_set_leaves_as_it_came_at_any_cut(cuts: list[int]) -> None:
    data = dataset()
    out = run(part(), data, cuts)
    assert out.endswith(data)
    read = dcmread(BytesIO(out))
    assert read.file_meta.TransferSyntaxUID == EXPLICIT
    assert read.file_meta.MediaStorageSOPInstanceUID == read.SOPInstanceUID == "2.25.103"
    assert out[:128] == bytes(128)


@pytest.mark.requirement("DB.SO.41")
@given(st.lists(st.integers(0, 4000), max_size=8))
def test_implicit_leaves_as_explicit_at_any_cut(cuts: list[int]) -> None:
    one = part(IMPLICIT)
    out = run(one, dataset(syntax=IMPLICIT), cuts)
    assert one.syntax == EXPLICIT
    read = dcmread(BytesIO(out))
    assert read.file_meta.TransferSyntaxUID == EXPLICIT
    expected = dcmread(BytesIO(dataset()), force=True)
    for element in expected:
        if not element.tag.is_private:
            assert read[element.tag].value == element.value, element


def test_an_encapsulated_syntax_keeps_its_name() -> None:
    one = part(JPEG_LS)
    out = run(one, dataset(), [])
    assert one.syntax == JPEG_LS
    assert dcmread(BytesIO(out), stop_before_pixels=True).file_meta.TransferSyntaxUID == JPEG_LS


@pytest.mark.threat("images of another patient")
@given(
    st.sampled_from(
        [
            ({"StudyInstanceUID": "2.25.901"}, 0x0124),
            ({"SeriesInstanceUID": "2.25.902"}, 0x0124),
            ({"SOPInstanceUID": "2.25.903"}, 0xA900),
            ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, 0xA900),
        ]
    ),
    st.lists(st.integers(0, 4000), max_size=5),
)
def test_what_the_data_set_denies_is_refused_before_its_first_byte(
    lie: tuple[dict[str, str], int], cuts: list[int]
) -> None:
    changes, status = lie
    one = part()
    data = dataset(**changes)
    with pytest.raises(PartRefused) as refusal:
        feed_held(one, pieces(data, cuts))
    assert refusal.value.status == status
    assert not one.verified


def test_a_data_set_that_never_says_whose_it_is_is_refused() -> None:
    with pytest.raises(PartRefused):
        run(part(), dataset()[:200], [])


def test_an_implicit_data_set_cut_short_is_refused() -> None:
    one = part(IMPLICIT)
    with pytest.raises(PartRefused) as refusal:
        run(one, dataset(syntax=IMPLICIT)[:-20], [1500])
    assert refusal.value.status == 0xC000


def test_nothing_is_verified_before_the_header_is_whole() -> None:
    one = part()
    assert one.feed(dataset()[:300], False) == []
    assert not one.verified
    assert not one.ended

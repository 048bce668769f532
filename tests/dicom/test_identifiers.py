"""Identifiers: what is written is read, what is not one is refused, and nothing leaks on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataset import Dataset

from drimbox.dicom.identifiers import decode_dataset, encode_dataset, read_identifier
from drimbox.errors import PacsCommunicationError
from tests.dicom.box import (
    EXPLICIT,
    IMPLICIT,
)


def match(**values: object) -> Dataset:
    data = Dataset()
    data.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


# -- identifiers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_identifiers_survive_the_way(syntax: str) -> None:
    data = match(
        StudyDescription="Écho œil", SeriesNumber=3, OtherPatientIDsSequence=[match(PatientID="1")]
    )
    data.SpecificCharacterSet = "ISO_IR 192"
    back = decode_dataset(encode_dataset(data, syntax), syntax)
    assert back == data


@pytest.mark.parametrize(
    ("good", "bad"), [(b"IS\x02\x007 ", b"IS\x02\x00x!"), (b"SH\x02\x00A ", b"US\x02\x00A ")]
)
def test_one_bad_value_does_not_hide_the_others(good: bytes, bad: bytes) -> None:
    data = match(StudyInstanceUID="1.2.3", InstanceNumber=7, AccessionNumber="A")
    encoded = encode_dataset(data, EXPLICIT)
    assert good in encoded
    assert decode_dataset(encoded.replace(good, bad), EXPLICIT).StudyInstanceUID == "1.2.3"


_UIDS = st.from_regex(r"[0-2](\.(0|[1-9][0-9]{0,8})){1,6}", fullmatch=True)
_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "PatientID",
    "PatientBirthDate",
    "StudyDescription",
    "Rows",
]


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "SOPClassUID": _UIDS,
            "SOPInstanceUID": _UIDS,
            "StudyInstanceUID": _UIDS,
            "SeriesInstanceUID": _UIDS,
            "InstanceNumber": st.integers(-9999, 99999),
            "SpecificCharacterSet": st.just("ISO_IR 192"),
            "RetrieveAETitle": st.sampled_from(["PACS", ""]),
            "PatientID": st.just("P1"),
            "StudyDescription": st.just("Écho"),
            "OtherPatientIDsSequence": st.just([match(PatientID="1")]),
            "Rows": st.just(5),
        },
    ),
    syntax=st.sampled_from([EXPLICIT, IMPLICIT]),
    cut=st.integers(0, 8),
)
def test_answers_of_images_read_the_same_with_and_without_pydicom(
    values: dict[str, object], syntax: str, cut: int
) -> None:
    encoded = encode_dataset(match(**values), syntax)
    encoded = encoded[: len(encoded) - cut]

    def seen(read: Callable[[bytes, str], Any]) -> list[str] | None:
        try:
            answer = read(encoded, syntax)
        except PacsCommunicationError:
            return None
        values = [answer.get(keyword) for keyword in _KEYWORDS]
        return ["" if value is None else str(value).strip() for value in values]

    assert seen(read_identifier) == seen(decode_dataset)


def test_an_answer_of_an_image_is_read_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drimbox.dicom.identifiers.read_dataset", None)
    data = match(SOPInstanceUID="1.2.3", InstanceNumber=7)
    for syntax in (EXPLICIT, IMPLICIT):
        answer = read_identifier(encode_dataset(data, syntax), syntax)
        assert (answer.get("SOPInstanceUID"), answer.get("InstanceNumber")) == ("1.2.3", "7")


def test_a_value_that_cannot_be_decoded_is_left_out() -> None:
    data = match(StudyInstanceUID="1.2.3", SeriesNumber=7)
    data.add_new(0x00280010, "US", 5)
    encoded = encode_dataset(data, EXPLICIT).replace(b"US\x02\x00\x05\x00", b"US\x01\x00\x05")
    back = decode_dataset(encoded, EXPLICIT)
    assert back.StudyInstanceUID == "1.2.3"
    assert "Rows" not in back


def test_values_of_a_patient_do_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with config.disable_value_validation():
        data = encode_dataset(match(PatientID="SECRET" * 20, StudyDate="SECRET!"), EXPLICIT)
    assert "SECRET" in str(decode_dataset(data, EXPLICIT).PatientID)
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_an_identifier_cut_anywhere_is_never_taken_for_another(syntax: str) -> None:
    """Only a cut between two elements can go unseen, and the message's own end rules it out."""
    data = match(StudyInstanceUID="1.2.3", StudyDescription="TDM", PatientID="42")
    whole = encode_dataset(data, syntax)
    survived = 0
    for end in range(1, len(whole)):
        with contextlib.suppress(PacsCommunicationError):
            part = decode_dataset(whole[:end], syntax)
            assert all(part[element.tag] == data[element.tag] for element in part)
            survived += 1
    assert survived == len(data) - 1


@pytest.mark.threat("nested sequences, recursion")
def test_an_identifier_nested_without_end_is_refused() -> None:
    body = b""
    for _ in range(5000):
        body = b"\x10\0\x02\x10\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" + body
    with pytest.raises(PacsCommunicationError):
        decode_dataset(body, IMPLICIT)

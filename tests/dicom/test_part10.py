"""The header we write is the one pydicom and DCMTK read; the one others write is read within limits."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    FileMeta,
    file_preamble,
    read_file_meta,
)
from drimbox.model import is_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
JPEG_LS = "1.2.840.10008.1.2.4.80"
UIDS = st.lists(st.integers(0, 10**9), min_size=2, max_size=6).map(lambda ns: ".".join(map(str, ns)))


def test_pydicom_reads_every_element_of_the_header() -> None:
    header = file_preamble(CT, "2.25.1234", JPEG_LS, "PACS")
    meta = pydicom.dcmread(io.BytesIO(header)).file_meta
    assert header[:132] == b"\0" * 128 + b"DICM"
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.MediaStorageSOPClassUID == CT
    assert meta.MediaStorageSOPInstanceUID == "2.25.1234"
    assert meta.TransferSyntaxUID == JPEG_LS
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "PACS"
    assert [element.tag.element for element in meta] == [0, 1, 2, 3, 0x10, 0x12, 0x13, 0x16]


@given(UIDS, UIDS, UIDS, st.sampled_from(["", "A", "PACS", "SIXTEEN-LETTERS1"]))
def test_the_group_length_is_right_whatever_the_lengths(
    sop_class: str, instance: str, syntax: str, title: str
) -> None:
    header = file_preamble(sop_class, instance, syntax, title)
    assert len(header) % 2 == 0
    length = int.from_bytes(header[140:144], "little")
    assert len(header) == 144 + length
    assert read_file_meta(header + b"\x08\x00\x05\x00CS\x00\x00") == FileMeta(
        sop_class, instance, syntax, len(header)
    )


def test_a_blank_title_is_left_out() -> None:
    meta = pydicom.dcmread(io.BytesIO(file_preamble(CT, "2.25.1", JPEG_LS, "   "))).file_meta
    assert "SourceApplicationEntityTitle" not in meta


def test_the_implementation_uid_is_a_uid_of_the_uuid_arc() -> None:
    assert is_uid(IMPLEMENTATION_CLASS_UID)
    assert IMPLEMENTATION_CLASS_UID.startswith("2.25.")
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16


@pytest.mark.threat("response header injection")
@pytest.mark.parametrize("bad", ["", "1.2.3\r\n", "../etc", "1.2\0", "1." + "2" * 64, "é"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_uid_is_refused(bad: str, place: int) -> None:
    arguments = [CT, "2.25.1", JPEG_LS]
    arguments[place] = bad
    with pytest.raises(DatasetRefused):
        file_preamble(*arguments)


def test_what_is_no_ae_title_is_refused() -> None:
    with pytest.raises(DatasetRefused):
        file_preamble(CT, "2.25.1", JPEG_LS, "A" * 17)


@pytest.mark.threat("DICOM preamble polyglot")
def test_the_preamble_is_always_zero() -> None:
    assert set(file_preamble(CT, "2.25.1", JPEG_LS, "PACS")[:128]) == {0}


@pytest.mark.parametrize("cut", [0, 131, 135, 140, 150, 180, 220])
def test_a_cut_file_meta_is_refused(cut: int) -> None:
    with pytest.raises(DatasetRefused):
        read_file_meta(file_preamble(CT, "2.25.1234", JPEG_LS)[:cut])


def test_a_wrong_group_length_does_not_mislead() -> None:
    header = bytearray(file_preamble(CT, "2.25.1234", JPEG_LS))
    header[140:144] = (9999).to_bytes(4, "little")
    assert read_file_meta(header).dataset_offset == len(header)


def test_a_file_meta_that_claims_megabytes_is_refused() -> None:
    private = b"\x02\x00\x02\x01OB\x00\x00" + (2**31).to_bytes(4, "little")
    with pytest.raises(DatasetRefused):
        read_file_meta(file_preamble(CT, "2.25.1234", JPEG_LS) + private + b"\0" * 1000)


@pytest.mark.peer("dcmdump")
def test_dcmtk_accepts_the_header(tmp_path: Path) -> None:
    file = tmp_path / "image.dcm"
    file.write_bytes(file_preamble(CT, "2.25.1234", "1.2.840.10008.1.2.1", "PACS"))
    run = subprocess.run(["dcmdump", "-M", str(file)], capture_output=True, timeout=20, check=False)
    assert run.returncode == 0
    assert b"(0002,0016) AE [PACS]" in run.stdout
    assert run.stderr == b""

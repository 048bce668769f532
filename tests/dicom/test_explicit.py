"""Implicit data sets come out explicit with the same values, whatever the cutting; pydicom is the judge."""

from __future__ import annotations

import io
import struct
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence

from drimbox.dicom.explicit import DatasetRefused, ImplicitToExplicit
from drimbox.dicom.part10 import file_preamble, read_file_meta
from tests.dicom.datasets import EXPLICIT, IMPLICIT, code, ct, encode, pieces

ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def convert(*parts: bytes, **limits: int) -> bytes:
    converter = ImplicitToExplicit(**limits)
    return b"".join(converter.feed(part) for part in parts) + converter.finish()


def read(data: bytes, *, implicit: bool = False) -> Dataset:
    return read_dataset(io.BytesIO(data), implicit, True)


def plain(ds: Dataset) -> list[Any]:
    """Flatten a data set to comparable values: tag, VR, value; group lengths left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = []
        for element in ds:
            if element.tag.element == 0:
                continue
            if element.VR == "SQ":
                rows.append((element.tag, "SQ", [plain(item) for item in element.value]))
            else:
                rows.append((element.tag, element.VR, element.value))
        return rows


def head(tag: int, length: int) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def raw(tag: int, value: bytes) -> bytes:
    return head(tag, len(value)) + value


def vr_of(data: bytes, tag: int) -> str:
    return str(read(data).get_item(tag).VR)


@pytest.mark.requirement("DB.SO.41")
@pytest.mark.parametrize("undefined", [False, True])
def test_an_image_comes_out_explicit_with_the_same_values(undefined: bool) -> None:
    ds = ct(undefined=undefined)
    out = convert(encode(ds, IMPLICIT))
    assert plain(read(out)) == plain(read(encode(ds, IMPLICIT), implicit=True))
    assert out.index(b"\xe0\x7f\x10\x00OW\0\0") > 0


@pytest.mark.requirement("DB.SO.41")
@pytest.mark.parametrize(
    "name",
    [
        "MR_small_implicit.dcm",
        "rtplan.dcm",
        "rtdose.dcm",
        "SC_rgb_jpeg_dcmd.dcm",
        "priv_SQ.dcm",
        "empty_charset_LEI.dcm",
    ],
)
def test_real_implicit_objects_read_the_same(name: str) -> None:
    data = Path(str(get_testdata_file(name, download=False))).read_bytes()
    data = data[read_file_meta(data).dataset_offset :]
    assert plain(read(convert(data))) == plain(read(data, implicit=True))


@pytest.mark.requirement("DB.SO.41")
@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "reportsi.dcm", "test-SR.dcm", "waveform_ecg.dcm", "UN_sequence.dcm"],
)
def test_real_objects_made_implicit_come_back(name: str) -> None:
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    data = encode(ds, IMPLICIT)
    assert plain(read(convert(data))) == plain(read(data, implicit=True))


@given(
    st.lists(st.integers(0, 10_000), max_size=12),
    st.booleans(),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_any_cutting_gives_the_same_bytes(cuts: list[int], undefined: bool, kind: type) -> None:
    data = encode(ct(undefined=undefined), IMPLICIT)
    assert convert(*(kind(piece) for piece in pieces(data, cuts))) == convert(data)


def test_byte_by_byte_gives_the_same_bytes() -> None:
    data = encode(ct(undefined=True), IMPLICIT)
    assert convert(*(data[i : i + 1] for i in range(len(data)))) == convert(data)


#: Nothing longer than an SH holds, or pydicom fills the log.
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"), max_size=16)
LEAF = st.fixed_dictionaries(
    {},
    optional={
        "CodeValue": TEXTS,
        "StudyDescription": TEXTS,
        "PatientID": TEXTS,
        "TextValue": st.text(max_size=0) | TEXTS,
        "Rows": st.integers(0, 65535),
        "PixelRepresentation": st.integers(0, 1),
        "PixelPaddingValue": st.integers(0, 32767),
        "RedPaletteColorLookupTableDescriptor": st.just([256, 0, 16]),
        "RescaleSlope": st.decimals(-1000, 1000, places=2).map(str),
        "TriggerTime": st.integers(0, 999).map(str),
        "SliceProgressionDirection": st.sampled_from(["", "APEX_TO_BASE"]),
        "RecommendedDisplayFrameRateInFloat": st.floats(width=32, allow_nan=False, allow_infinity=False),
        "SelectorFDValue": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        "SelectorATValue": st.lists(st.integers(0x00080000, 0x7FE00010), max_size=3),
        "SelectorSLValue": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "SelectorUVValue": st.lists(st.integers(0, 2**64 - 1), max_size=3),
        "ICCProfile": st.binary(max_size=20).map(lambda b: b + b"\0" * (len(b) % 2)),
    },
)


def build(tree: Any) -> Dataset:
    values, children, undefined = tree
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    if children is not None:
        ds.ContentSequence = Sequence([build(child) for child in children])
        ds["ContentSequence"].is_undefined_length = undefined
    ds.is_undefined_length_sequence_item = undefined
    return ds


TREES = st.recursive(
    st.tuples(LEAF, st.none(), st.booleans()),
    lambda inner: st.tuples(LEAF, st.lists(inner, max_size=3), st.booleans()),
    max_leaves=8,
)


@given(TREES, st.lists(st.integers(0, 5000), max_size=6))
def test_any_tree_reads_the_same_as_pydicom_writes_it_explicit(tree: Any, cuts: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = encode(build(tree), IMPLICIT)
        out = convert(*pieces(data, cuts))
        theirs = encode(build(tree), EXPLICIT)
    assert plain(read(out)) == plain(read(theirs))


# --- VRs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signed", "vr"), [(b"\0\0", "US"), (b"\1\0", "SS")])
def test_pixel_representation_decides_signed_values(signed: bytes, vr: str) -> None:
    data = raw(0x00280103, signed) + raw(0x00280106, b"\xff\xff") + raw(0x00280120, b"\0\x80")
    out = convert(data)
    assert [vr_of(out, tag) for tag in (0x00280103, 0x00280106, 0x00280120)] == ["US", vr, vr]


def test_pixel_representation_reaches_into_sequences_but_not_out_of_them() -> None:
    item = ITEM + raw(0x00280103, b"\1\0") + raw(0x00283002, b"\0\1\0\0\x10\0") + ITEM_END
    other = ITEM + raw(0x00283002, b"\0\1\0\0\x10\0") + ITEM_END
    sequence = head(0x00283000, 0xFFFFFFFF) + item + other + SEQUENCE_END
    unsigned = read(convert(raw(0x00280103, b"\0\0") + sequence + raw(0x00281101, b"\0\1\0\0\x10\0")))
    assert [entry[0x00283002].VR for entry in unsigned[0x00283000].value] == ["SS", "US"]
    assert unsigned[0x00281101].VR == "US"
    signed = read(convert(raw(0x00280103, b"\1\0") + sequence))
    assert [entry[0x00283002].VR for entry in signed[0x00283000].value] == ["SS", "SS"]


def test_lut_data_of_one_entry_is_a_number_and_of_several_are_words() -> None:
    one = raw(0x00283002, b"\1\0\0\0\x10\0") + raw(0x00283006, b"\5\0")
    many = raw(0x00283002, b"\2\0\0\0\x10\0") + raw(0x00283006, b"\5\0\6\0")
    assert vr_of(convert(one), 0x00283006) == "US"
    assert vr_of(convert(many), 0x00283006) == "OW"


def test_an_overlay_and_a_curve_of_any_repeating_group_have_their_vr() -> None:
    for group in (0x6000, 0x6002, 0x601E):
        data = raw(group << 16 | 0x0010, b"\x08\0") + raw(group << 16 | 0x0050, b"\1\0\1\0")
        data += raw(group << 16 | 0x3000, b"\0" * 8)
        out = convert(data)
        assert [vr_of(out, group << 16 | n) for n in (0x10, 0x50, 0x3000)] == ["US", "SS", "OW"]
    assert vr_of(convert(raw(0x50023000, b"\0\0")), 0x50023000) == "OW"
    assert vr_of(convert(raw(0x50020020, b"ECG ")), 0x50020020) == "CS"


def test_private_elements_are_unknown_and_their_creators_are_not() -> None:
    data = raw(0x00290010, b"SIEMENS CSA HEADER") + raw(0x00291008, b"IMAGE NUM 4 ")
    out = convert(data)
    assert out.startswith(b"\x29\x00\x10\x00LO\x12\x00SIEMENS")
    assert b"\x29\x00\x08\x10UN\x00\x00\x0c\x00\x00\x00IMAGE NUM 4 " in out


def test_a_private_sequence_of_undefined_length_is_a_sequence() -> None:
    data = head(0x00291010, 0xFFFFFFFF) + ITEM + encode(code("X"), IMPLICIT) + ITEM_END + SEQUENCE_END
    out = convert(data)
    assert out.startswith(b"\x29\x00\x10\x10SQ\0\0\xff\xff\xff\xff")
    assert read(out)[0x00291010].value[0].CodeValue == "X"


def test_an_unknown_standard_element_is_unknown() -> None:
    assert convert(raw(0x00080FFE, b"abcd")) == b"\x08\x00\xfe\x0fUN\0\0\4\0\0\0abcd"


@pytest.mark.parametrize(("length", "vr"), [(65534, "DS"), (65536, "UN")])
def test_a_value_too_long_for_its_vr_becomes_unknown(length: int, vr: str) -> None:
    """PS3.5 6.2.2; pydicom does the same when it writes."""
    data = raw(0x00101030, b"1" * length)
    out = convert(data)
    assert out[4:6] == vr.encode()
    assert out.endswith(b"1" * length)


def test_a_number_of_the_wrong_size_becomes_unknown() -> None:
    out = convert(raw(0x00280010, b"\1\2\3"))
    assert out == b"\x28\x00\x10\x00UN\0\0\4\0\0\0\1\2\3\0"


@pytest.mark.parametrize(
    ("tag", "value", "padded"), [(0x00100020, b"ABC", b"ABC "), (0x00080018, b"1.2.3", b"1.2.3\0")]
)
def test_odd_values_are_padded_as_their_vr_wants(tag: int, value: bytes, padded: bytes) -> None:
    assert convert(raw(tag, value)).endswith(struct.pack("<H", len(padded)) + padded)
    assert convert(*(bytes([b]) for b in raw(tag, value))).endswith(padded)


def test_group_lengths_and_length_to_end_are_dropped() -> None:
    data = raw(0x00080000, b"\4\0\0\0") + raw(0x00080001, b"\4\0\0\0") + raw(0x00080060, b"CT")
    assert convert(data) == b"\x08\x00\x60\x00CS\2\0CT"


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("cut head", b"\x08\x00\x60"),
        ("cut value", head(0x00080060, 20) + b"CT"),
        ("open sequence", head(0x00081140, 0xFFFFFFFF)),
        ("open item", head(0x00081140, 0xFFFFFFFF) + ITEM),
        ("item at the root", ITEM),
        ("delimiter at the root", SEQUENCE_END),
        ("item delimiter at the root", ITEM_END),
        ("command group", raw(0x00000100, b"\1\0")),
        ("meta group", raw(0x00020010, b"1.2\0")),
        ("element between items", head(0x00081140, 0xFFFFFFFF) + raw(0x00080060, b"CT")),
        ("element in a short sequence", head(0x00081140, 10) + raw(0x00080060, b"CT")),
        ("item longer than its sequence", head(0x00081140, 10) + head(0xFFFEE000, 100) + b"\0" * 100),
        (
            "value longer than its item",
            head(0x00081140, 18) + head(0xFFFEE000, 10) + head(0x00080060, 8) + b"CT345678",
        ),
        (
            "delimiter in an item of known length",
            head(0x00081140, 16) + head(0xFFFEE000, 8) + ITEM_END,
        ),
        ("delimiter in a sequence of known length", head(0x00081140, 8) + SEQUENCE_END),
        ("a value that is no sequence, without length", head(0x00080060, 0xFFFFFFFF)),
        ("encapsulated pixels", head(0x7FE00010, 0xFFFFFFFF) + head(0xFFFEE000, 0) + SEQUENCE_END),
        ("group length without length", head(0x00080000, 0xFFFFFFFF)),
        ("delimiter with a length", head(0x00081140, 0xFFFFFFFF) + head(0xFFFEE0DD, 4) + b"abcd"),
        ("explicit data", encode(ct(), EXPLICIT)),
    ],
)
def test_what_is_no_implicit_data_set_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(DatasetRefused):
        convert(data)


@pytest.mark.threat("nested sequences, recursion")
def test_sequences_beyond_the_depth_are_refused() -> None:
    level = head(0x00081140, 0xFFFFFFFF) + ITEM
    closed = level * 32 + (ITEM_END + SEQUENCE_END) * 32
    assert convert(closed).count(b"SQ") == 32
    with pytest.raises(DatasetRefused, match="nest"):
        convert(level * 33)
    with pytest.raises(DatasetRefused, match="nest"):
        convert(level * 100_000)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_random_bytes_give_the_same_answer_at_any_cutting(data: bytes, cuts: list[int]) -> None:
    def outcome(parts: list[bytes]) -> object:
        try:
            return convert(*parts)
        except DatasetRefused:
            return "refused"

    assert outcome([data]) == outcome(pieces(data, cuts))


def test_memory_does_not_grow_with_the_pixels() -> None:
    converter = ImplicitToExplicit()
    converter.feed(encode(ct(), IMPLICIT)[: -(8 + 128)])
    converter.feed(head(0x7FE00010, 4_000_000_000))
    block = b"\1" * 65536
    for _ in range(20):
        assert converter.feed(block) == block
    assert len(converter._rest) == 0


@pytest.mark.peer("dcmdump", "dcmconv")
def test_dcmtk_finds_the_same_values(tmp_path: Path) -> None:
    """The dump of our conversion is the dump of DCMTK's own, but for what the private VR becomes."""
    data = encode(ct(undefined=True), IMPLICIT)
    class_uid, uid = "1.2.840.10008.5.1.4.1.1.2", "2.25.103"
    (tmp_path / "in.dcm").write_bytes(file_preamble(class_uid, uid, IMPLICIT) + data)
    (tmp_path / "ours.dcm").write_bytes(file_preamble(class_uid, uid, EXPLICIT) + convert(data))
    subprocess.run(
        ["dcmconv", "+te", "-e", tmp_path / "in.dcm", tmp_path / "theirs.dcm"], check=True, timeout=20
    )
    dumps = []
    for name in ("ours.dcm", "theirs.dcm"):
        run = subprocess.run(
            ["dcmdump", "-q", "+E", tmp_path / name], capture_output=True, timeout=20, check=False
        )
        assert run.stderr == b""
        lines = [line for line in run.stdout.splitlines() if not line.startswith((b"#", b"(0002"))]
        dumps.append([line.split(b"#")[0] for line in lines])
    assert dumps[0] == dumps[1]


def test_a_value_that_passes_its_item_is_refused_at_its_head_not_at_the_end() -> None:
    converter = ImplicitToExplicit()
    converter.feed(head(0x00081140, 18) + head(0xFFFEE000, 10))
    with pytest.raises(DatasetRefused, match="passes the end"):
        converter.feed(head(0x00080060, 8))

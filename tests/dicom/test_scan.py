"""The identity of an instance is found in any encoding and at any cutting, and never in garbage."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from drimbox.dicom.scan import DatasetRefused, Header, HeaderScanner
from drimbox.model import Identifier
from tests.dicom.datasets import BIG, EXPLICIT, IMPLICIT, JPEG_LS, code, ct, encode, pieces

WHOLE = Header("1.2.840.10008.5.1.4.1.1.2", "2.25.103", "2.25.101", "2.25.102", "IPP-42")
SYNTAXES = [IMPLICIT, EXPLICIT, BIG, JPEG_LS]


def scan(data: bytes, syntax: str, **limits: int) -> Header | None:
    return HeaderScanner(syntax, **limits).feed(data)


def elements(*parts: tuple[int, bytes, bytes]) -> bytes:
    return b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value for tag, vr, value in parts
    )


@pytest.mark.requirement("DB.SO.38")
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_identity_is_found(syntax: str, undefined: bool) -> None:
    assert scan(encode(ct(undefined=undefined), syntax), syntax) == WHOLE


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_it_is_found_byte_by_byte_as_soon_as_its_last_byte_is_there(syntax: str, undefined: bool) -> None:
    data = encode(ct(undefined=undefined), syntax)
    end = data.index(b"2.25.102") + 8
    scanner = HeaderScanner(syntax)
    for place in range(end - 1):
        assert scanner.feed(data[place : place + 1]) is None
    assert scanner.feed(data[end - 1 : end]) == WHOLE
    assert scanner.feed(data[end:]) == WHOLE


@given(
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from(SYNTAXES),
    st.booleans(),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_any_cutting_gives_the_same_header(
    cuts: list[int], syntax: str, undefined: bool, kind: type
) -> None:
    scanner = HeaderScanner(syntax)
    found = [scanner.feed(kind(piece)) for piece in pieces(encode(ct(undefined=undefined), syntax), cuts)]
    assert found[-1] == WHOLE


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "rtplan.dcm"])
def test_real_objects_read_as_pydicom_reads_them(name: str) -> None:
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    syntax = str(ds.file_meta.TransferSyntaxUID)
    header = scan(encode(ds, syntax), syntax)
    assert header == Header(
        ds.SOPClassUID,
        ds.SOPInstanceUID,
        ds.StudyInstanceUID,
        ds.SeriesInstanceUID,
        ds.get("PatientID"),
        ds.get("IssuerOfPatientID") or None,
    )


def test_what_is_missing_is_none_once_its_place_has_passed() -> None:
    ds = ct()
    del ds.PatientID
    ds.StudyInstanceUID = ""
    header = scan(encode(ds, EXPLICIT), EXPLICIT)
    assert header == Header(WHOLE.sop_class_uid, WHOLE.sop_instance_uid, None, "2.25.102", None)


# --- the other identifiers of the patient ---------------------------------------------------------

NIR, NIA = "1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9"


def identified(*others: tuple[str, str], undefined: bool = False) -> Dataset:
    """Make an image whose patient has an issuer, its domain, and other identifiers by domain."""

    def authority(item: Dataset, oid: str) -> None:
        qualifier = Dataset()
        qualifier.UniversalEntityID, qualifier.UniversalEntityIDType = oid, "ISO"
        qualifier.is_undefined_length_sequence_item = undefined
        item.IssuerOfPatientIDQualifiersSequence = Sequence([qualifier])
        item["IssuerOfPatientIDQualifiersSequence"].is_undefined_length = undefined
        item.is_undefined_length_sequence_item = undefined

    ds = ct(undefined=undefined)
    ds.IssuerOfPatientID = "CH-EXEMPLE"
    authority(ds, "1.2.250.1.71.4.2.7.1")
    items = []
    for value, oid in others:
        item = Dataset()
        item.PatientID = value
        if oid:
            authority(item, oid)
        items.append(item)
    ds.OtherPatientIDsSequence = Sequence(items)
    ds["OtherPatientIDsSequence"].is_undefined_length = undefined
    return ds


IDENTIFIED = Header(
    *("1.2.840.10008.5.1.4.1.1.2", "2.25.103", "2.25.101", "2.25.102", "IPP-42"),
    "CH-EXEMPLE",
    "1.2.250.1.71.4.2.7.1",
    (Identifier("275061234567890", NIR), Identifier("275061234567891", NIA)),
)
OTHERS = (("X", "1.2.3"), ("275061234567890", NIR), ("Y", ""), ("275061234567891", NIA), ("", NIR))


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_ins_and_who_gave_the_local_identifier_are_found(syntax: str, undefined: bool) -> None:
    data = encode(identified(*OTHERS, undefined=undefined), syntax)
    assert scan(data, syntax) == IDENTIFIED
    scanner = HeaderScanner(syntax)
    found = [scanner.feed(data[place : place + 1]) for place in range(len(data))]
    assert found[-1] == IDENTIFIED


@given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(SYNTAXES), st.booleans())
def test_any_cutting_gives_the_same_ins(cuts: list[int], syntax: str, undefined: bool) -> None:
    scanner = HeaderScanner(syntax)
    data = encode(identified(*OTHERS, undefined=undefined), syntax)
    assert [scanner.feed(piece) for piece in pieces(data, cuts)][-1] == IDENTIFIED


@pytest.mark.parametrize("undefined", [False, True])
def test_identifiers_that_came_as_unknown_are_read(undefined: bool) -> None:
    """PS3.5 6.2.2: what has VR UN is in Implicit VR."""
    ds = identified(("275061234567890", NIR))
    implicit = encode(ds, IMPLICIT)
    start = implicit.index(b"\x10\x00\x02\x10") + 8
    end = implicit.index(b"\x18\x00\x50\x00")
    value, length = implicit[start:end], end - start
    if undefined:
        value, length = value + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF
    del ds.OtherPatientIDsSequence
    data = encode(ds, EXPLICIT)
    place = data.index(b"\x18\x00\x50\x00")
    unknown = struct.pack("<HH2sHI", 0x0010, 0x1002, b"UN", 0, length) + value
    header = scan(data[:place] + unknown + data[place:], EXPLICIT)
    assert header is not None
    assert header.ins == (Identifier("275061234567890", NIR),)


def other_ids(value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH2sHI", 0x10, 0x1002, b"SQ", 0, len(value) if length is None else length)
    return elements((0x00100020, b"LO", b"IPP ")) + head + value


def bare(tag: int, length: int, value: bytes = b"") -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + value


ITEM, ITEM_END, SEQUENCE_END, OPEN = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFFFFFF


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("twice", other_ids(b"") + other_ids(b"")[12:]),
        ("longer than identifiers are", other_ids(b"", 40_000)),
        ("no item", other_ids(bare(0x00100020, 0))),
        ("an item past its sequence", other_ids(bare(ITEM, 100, b"\0" * 8))),
        (
            "a nested item past its sequence",
            other_ids(
                bare(
                    ITEM,
                    44,
                    struct.pack("<HH2sHI", 0x10, 0x24, b"SQ", 0, 8)
                    + bare(ITEM, 24)
                    + struct.pack("<HH2sHI", 0x40, 0x32, b"UT", 0, 12)
                    + b"1.2.3.4.5.6 ",
                )
            ),
        ),
        ("half an item head", other_ids(b"\xfe\xff\x00\xe0")),
        ("an element past its item", other_ids(bare(ITEM, 8, b"\x10\x00\x20\x00LO\x09\x00"))),
        ("an element without VR", other_ids(bare(ITEM, 8, b"\x10\x00\x20\x00\0\0\0\0"))),
        ("a long head cut short", other_ids(bare(ITEM, 8, b"\x10\x00\x24\x00SQ\0\0"))),
        ("a delimiter in an item of known length", other_ids(bare(ITEM, 8, bare(ITEM_END, 0)))),
        ("an item that never ends", other_ids(bare(ITEM, OPEN))),
        ("an identifier twice", other_ids(bare(ITEM, 20, elements((0x00100020, b"LO", b"A "))[:10] * 2))),
        ("a sequence as patient id", elements((0x00080060, b"CS", b"CT")) + bare(0x00100020, OPEN)),
    ],
)
def test_garbage_among_the_identifiers_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(DatasetRefused):
        scan(data + elements((0x00280002, b"US", b"\1\0")), EXPLICIT)


def test_identifiers_without_length_and_without_end_are_refused_before_they_fill_the_memory() -> None:
    scanner = HeaderScanner(EXPLICIT)
    scanner.feed(other_ids(b"", OPEN))
    item = bare(ITEM, 8, elements((0x00100020, b"LO", b"")))
    for _ in range(2048):
        assert scanner.feed(item) is None
    with pytest.raises(DatasetRefused, match="too many"):
        scanner.feed(item)


@pytest.mark.threat("nested sequences, recursion")
def test_identifiers_that_nest_too_deep_are_refused() -> None:
    deep = (struct.pack("<HH2sHI", 0x10, 0x24, b"SQ", 0, OPEN) + bare(ITEM, OPEN)) * 1000
    with pytest.raises(DatasetRefused, match="nest"):
        scan(other_ids(bare(ITEM, len(deep), deep)), EXPLICIT)
    with pytest.raises(DatasetRefused, match="nest"):
        scan(other_ids(bare(ITEM, OPEN) + deep, OPEN), EXPLICIT)


def test_a_data_set_that_ends_early_is_said_by_finish() -> None:
    ds = Dataset()
    ds.SOPInstanceUID = "1.2.3"
    scanner = HeaderScanner(IMPLICIT)
    assert scanner.feed(encode(ds, IMPLICIT)) is None
    assert scanner.finish() == Header(None, "1.2.3", None, None, None)


@pytest.mark.parametrize("cut", [3, 9, 40, 400])
def test_a_data_set_that_ends_inside_an_element_is_refused(cut: int) -> None:
    scanner = HeaderScanner(EXPLICIT)
    scanner.feed(encode(ct(undefined=True), EXPLICIT)[:cut])
    with pytest.raises(DatasetRefused):
        scanner.finish()


def test_identity_inside_a_sequence_is_not_the_identity() -> None:
    inner = Dataset()
    inner.StudyInstanceUID, inner.SeriesInstanceUID, inner.PatientID = "9.9.9", "9.9.8", "AUTRE"
    for undefined in (False, True):
        ds = ct()
        ds.RequestAttributesSequence = Sequence([])
        ds.ReferencedStudySequence = Sequence([inner])
        ds["ReferencedStudySequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined
        for syntax in SYNTAXES:
            assert scan(encode(ds, syntax), syntax) == WHOLE


def test_unknown_sequences_of_undefined_length_hold_implicit_items() -> None:
    """PS3.5 6.2.2: the items of a UN of undefined length are in Implicit VR."""
    item = encode(code("X"), IMPLICIT)
    value = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    value += struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    value += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0009, 0x1003, b"UN", 0, 0xFFFFFFFF) + value
    data = encode(ct(), EXPLICIT)
    place = data.index(b"\x10\x00\x10\x00PN")
    assert scan(data[:place] + unknown + data[place:], EXPLICIT) == WHOLE


def test_long_values_are_jumped_over_without_being_kept() -> None:
    ds = ct()
    ds.add_new(0x00091010, "OB", b"\0" * 900_000)
    data = encode(ds, EXPLICIT)
    scanner = HeaderScanner(EXPLICIT)
    tracemalloc.start()
    for start in range(0, 890_000, 1000):
        assert scanner.feed(memoryview(data)[start : start + 1000]) is None
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20_000
    assert scanner.feed(data[890_000:]) == WHOLE


@pytest.mark.threat("nested sequences, recursion")
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_sequences_beyond_the_depth_are_refused(syntax: str) -> None:
    if syntax == EXPLICIT:
        head = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    else:
        head = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF)
    level = head + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    assert scan(level * 32, syntax) is None
    with pytest.raises(DatasetRefused, match="nest"):
        scan(level * 33, syntax)
    with pytest.raises(DatasetRefused, match="nest"):
        scan(level * 4, syntax, max_depth=3)


@pytest.mark.threat("DICOM deflate bomb")
def test_deflated_syntaxes_are_refused() -> None:
    for syntax in ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"):
        with pytest.raises(DatasetRefused, match="deflated"):
            HeaderScanner(syntax)


@pytest.mark.threat("PDU length bomb")
def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    head = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 2**31)
    with pytest.raises(DatasetRefused):
        scan(head, EXPLICIT)


def test_a_header_that_never_ends_is_refused_at_the_limit() -> None:
    element = struct.pack("<HHI", 0x0008, 0x0005, 8) + b"12345678"
    scanner = HeaderScanner(IMPLICIT, max_bytes=4096)
    for _ in range(256):
        assert scanner.feed(element) is None
    with pytest.raises(DatasetRefused):
        scanner.feed(element)


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("no value representation", b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100"),
        ("meta in the data set", elements((0x00020010, b"UI", b"1.2\0"))),
        ("command in the data set", elements((0x00000100, b"US", b"\1\0"))),
        ("item at the root", b"\xfe\xff\x00\xe0\0\0\0\0"),
        ("delimiter at the root", b"\xfe\xff\xdd\xe0\0\0\0\0"),
        ("a UID that is none", elements((0x00080018, b"UI", b"../../etc "))),
        ("a UID too long", elements((0x00080018, b"UI", b"1." + b"2" * 64))),
        ("an identity twice", elements((0x00080018, b"UI", b"1.2\0"), (0x00080018, b"UI", b"1.3\0"))),
        ("a patient id of a kilobyte", elements((0x00100020, b"LO", b"x" * 1024))),
        ("an identity without end", struct.pack("<HH2sHI", 8, 0x18, b"UN", 0, 0xFFFFFFFF)),
        (
            "an element between items",
            struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
            + elements((0x00080018, b"UI", b"1.2\0")),
        ),
        (
            "a sequence delimiter inside an item",
            struct.pack("<HH2sHIHHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
            + b"\xfe\xff\xdd\xe0\0\0\0\0",
        ),
    ],
)
def test_garbage_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(DatasetRefused):
        scan(data + elements((0x00280002, b"US", b"\1\0")), EXPLICIT)


def test_a_mislabelled_encoding_is_refused() -> None:
    with pytest.raises(DatasetRefused):
        scan(encode(ct(), IMPLICIT), EXPLICIT)
    scanner = HeaderScanner(IMPLICIT)
    # "CS" read as a length is 676 kB to jump over; the end of the data comes first.
    assert scanner.feed(encode(ct(), EXPLICIT)) is None
    with pytest.raises(DatasetRefused):
        scanner.finish()
    # Little read as big puts every tag far behind the identity: nothing is found, and nobody is served.
    assert scan(encode(ct(), EXPLICIT), BIG) == Header(None, None, None, None, None)


@given(st.binary(max_size=300), st.sampled_from(SYNTAXES), st.lists(st.integers(0, 300), max_size=4))
def test_random_bytes_give_an_answer_or_a_refusal_and_cuts_change_nothing(
    data: bytes, syntax: str, cuts: list[int]
) -> None:
    def outcome(parts: list[bytes]) -> object:
        scanner = HeaderScanner(syntax)
        try:
            found = None
            for part in parts:
                found = scanner.feed(part)
        except DatasetRefused:
            return "refused"
        return found

    assert outcome([data]) == outcome(pieces(data, cuts))


@given(st.data())
def test_damaged_headers_never_raise_anything_else(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from(SYNTAXES))
    whole = bytearray(encode(ct(undefined=True), syntax))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    scanner = HeaderScanner(syntax)
    with contextlib.suppress(DatasetRefused):
        scanner.feed(bytes(whole))
        scanner.finish()


def test_a_header_costs_microseconds() -> None:
    """The hot path of every image; the bound is loose for slow machines, bench/ measures it."""
    data = encode(ct(), EXPLICIT)
    start = time.thread_time()
    for _ in range(500):
        HeaderScanner(EXPLICIT).feed(data)
    assert (time.thread_time() - start) / 500 < 0.001

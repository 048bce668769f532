"""Every reader of data sets under fire: an answer or a refusal, nothing kept, bounded work per byte."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from drimbox.dicom.bigendian import to_little
from drimbox.dicom.elements import DatasetRefused, Encoding
from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.dicom.fragments import MAX_FRAGMENTS, split
from drimbox.dicom.outline import outline
from drimbox.dicom.part10 import file_preamble, read_file_meta
from drimbox.dicom.pixels import read_image_facts
from drimbox.dicom.scan import HeaderScanner
from drimbox.dicom.streams import read_head
from drimbox.dicom.syntaxes import (
    JPEG2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
)
from drimbox.dicom.tree import read_tree
from tests.dicom.datasets import BIG, EXPLICIT, IMPLICIT, ct, encode
from tests.dicom.fuzzing import assert_keeps_nothing, assert_linear, cut, damages
from tests.dicom.images import frames_of
from tests.dicom.test_scan import OTHERS, identified
from tests.dicom.test_transcode_hostile import SAMPLES

#: Some seconds each in CI, forty times as many mutations in `make soak`.
pytestmark = pytest.mark.slow

ENCODINGS = {
    EXPLICIT: Encoding.EXPLICIT_LITTLE,
    IMPLICIT: Encoding.IMPLICIT_LITTLE,
    BIG: Encoding.EXPLICIT_BIG,
}
SYNTAXES = tuple(ENCODINGS)


def samples(syntax: str) -> list[bytes]:
    """Whole data sets of one encoding: lengths known and not, identifiers in sequences, encapsulated."""
    found = [encode(ct(undefined=undefined), syntax) for undefined in (False, True)]
    found += [encode(identified(*OTHERS, undefined=undefined), syntax) for undefined in (False, True)]
    if syntax == EXPLICIT:
        found += [encode(ds, EXPLICIT) for ds in SAMPLES.values()]
    return found


def scanned(data: bytes, syntax: str, cuts: int) -> None:
    """Read the identity as it streams by; what is kept between two pieces stays small."""
    scanner = HeaderScanner(syntax)
    for piece in cut(data, cuts):
        if scanner.feed(piece) is not None:
            return
        assert len(scanner._rest) <= 33 * 1024
        assert len(scanner._nesting.stack) <= 33
    scanner.finish()


def converted(data: bytes, syntax: str, cuts: int) -> None:
    """Convert as it streams by; the output may be no longer than heads and delimiters make it."""
    converter = ImplicitToExplicit()
    out = 0
    for piece in cut(data, cuts):
        out += len(converter.feed(piece))
        assert len(converter._rest) < 16
        assert len(converter._stack) <= 66
    out += len(converter.finish())
    # An item of 8 bytes becomes 16, an element of 8 becomes 12, a sequence 20.
    assert out <= 2.5 * len(data) + 20


def facts(data: bytes, syntax: str, cuts: int) -> None:
    read_image_facts(data, syntax)


def rooted(data: bytes, syntax: str, cuts: int) -> None:
    for element in outline(data, ENCODINGS[syntax]):
        assert element.start < element.value <= element.end <= len(data)


def turned(data: bytes, syntax: str, cuts: int) -> None:
    assert len(to_little(data)) == len(data)


def planted(data: bytes, syntax: str, cuts: int) -> None:
    read_tree(data, syntax, max_elements=5000)


READERS: dict[str, tuple[Callable[[bytes, str, int], None], tuple[str, ...]]] = {
    "scan": (scanned, SYNTAXES),
    "explicit": (converted, (IMPLICIT,)),
    "pixels": (facts, SYNTAXES),
    "outline": (rooted, SYNTAXES),
    "bigendian": (turned, (BIG,)),
    "tree": (planted, (EXPLICIT, IMPLICIT)),
}


@pytest.mark.threat("nested sequences, recursion", "forged dimensions, codec out of bounds")
@pytest.mark.parametrize(
    ("reader", "syntax"), [(name, syntax) for name, (_, all_) in READERS.items() for syntax in all_]
)
def test_a_damaged_data_set_is_read_or_refused(reader: str, syntax: str) -> None:
    read = READERS[reader][0]
    refused = 0
    for number, (name, data) in enumerate(damages(samples(syntax), 800, 11)):
        try:
            read(data, syntax, number)
        except DatasetRefused:
            refused += 1
        except BaseException as bug:
            raise AssertionError(name) from bug
    # The damage is real, and not so gross that nothing ever gets past the first element.
    assert 0 < refused < 800 * 40


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_bigendian.dcm", "rtplan.dcm", "waveform_ecg.dcm"]
)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not ship {name}")
    with open(str(path), "rb") as file:
        whole = file.read()
    for where, data in damages([whole[:4000]], 400, 12):
        try:
            meta = read_file_meta(data)
            read_tree(data[meta.dataset_offset :], meta.transfer_syntax_uid, max_elements=5000)
        except DatasetRefused:
            continue
        except BaseException as bug:
            raise AssertionError(where) from bug


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.parametrize("syntax", [JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000])
def test_a_damaged_stream_head_is_read_or_refused(syntax: str) -> None:
    (stream,) = frames_of(encode(SAMPLES[syntax], EXPLICIT))
    for where, data in damages([stream, stream[:300]], 800, 13):
        try:
            read_head(syntax, data)
        except DatasetRefused:
            continue
        except BaseException as bug:
            raise AssertionError(where) from bug


def test_damaged_fragments_are_shared_out_or_refused() -> None:
    items = [b"", b"\xff\xd8one\xff\xd9", b"\xff\xd8two", b"and\xff\xd9 "]
    value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    value += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    assert len(split(value, 0, len(value), 2)) == 2
    for where, data in damages([value], 3000, 14):
        for frames in (1, 2, 3):
            try:
                assert len(split(data, 0, len(data), frames)) == frames, where
            except DatasetRefused:
                continue


@pytest.mark.threat("memory leaks by repeated requests")
def test_damaged_data_sets_leave_nothing_behind() -> None:
    def work() -> None:
        for name, (read, syntaxes) in READERS.items():
            for syntax in syntaxes:
                for number, (_, data) in enumerate(damages(samples(syntax), 2, len(name))):
                    with contextlib.suppress(DatasetRefused):
                        read(data, syntax, number)

    assert_keeps_nothing(work)


# -- work as the input is long -------------------------------------------------------------------------


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def bare(tag: int, length: int) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def many_elements(size: int) -> bytes:
    """`size` distinct private elements of the root, before the identity."""
    return b"".join(element(0x00091000 + number, b"LO", b"") for number in range(size))


def many_items(size: int) -> bytes:
    """One sequence of undefined length with `size` items of undefined length."""
    item = bare(0xFFFEE000, 0xFFFFFFFF) + element(0x00080100, b"SH", b"1 ") + bare(0xFFFEE00D, 0)
    head = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    return head + item * size + bare(0xFFFEE0DD, 0)


def implicit_items(size: int) -> bytes:
    """The same in Implicit VR."""
    item = bare(0xFFFEE000, 0xFFFFFFFF) + bare(0x00080100, 2) + b"1 " + bare(0xFFFEE00D, 0)
    return bare(0x00081140, 0xFFFFFFFF) + item * size + bare(0xFFFEE0DD, 0)


def dripped(reader: Any, data: bytes) -> None:
    for position in range(len(data)):
        reader.feed(data[position : position + 1])


LONG: dict[str, tuple[Callable[[int], bytes], Callable[[bytes], object]]] = {
    "scan, items": (many_items, lambda data: HeaderScanner(EXPLICIT).feed(data)),
    "scan, byte by byte": (many_items, lambda data: dripped(HeaderScanner(EXPLICIT), data)),
    "scan, elements": (many_elements, lambda data: HeaderScanner(EXPLICIT).feed(data)),
    "explicit, items": (implicit_items, lambda data: ImplicitToExplicit().feed(data)),
    "explicit, byte by byte": (implicit_items, lambda data: dripped(ImplicitToExplicit(), data)),
    "outline, items": (many_items, lambda data: outline(data, Encoding.EXPLICIT_LITTLE)),
    "outline, elements": (many_elements, lambda data: outline(data, Encoding.EXPLICIT_LITTLE)),
    "tree, items": (many_items, lambda data: read_tree(data, EXPLICIT)),
    "tree, implicit items": (implicit_items, lambda data: read_tree(data, IMPLICIT)),
}


@pytest.mark.parametrize("name", LONG)
def test_reading_costs_as_much_as_there_is_to_read(name: str) -> None:
    build, read = LONG[name]

    def make(size: int) -> Callable[[], object]:
        data = build(size)
        return lambda: read(data)

    assert_linear(make, 2_000)


def test_big_endian_costs_as_much_as_there_is_to_turn() -> None:
    def make(size: int) -> Callable[[], object]:
        number = struct.pack(">HH2sHH", 0x0028, 0x0010, b"US", 2, 7)
        item = struct.pack(">HHI", 0xFFFE, 0xE000, len(number)) + number
        head = struct.pack(">HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(item) * size)
        data = head + item * size
        return lambda: to_little(data)

    assert_linear(make, 3_000)


def test_fragments_cost_as_much_as_there_are() -> None:
    def make(size: int) -> Callable[[], object]:
        table = bare(0xFFFEE000, 4 * size) + struct.pack(f"<{size}I", *(20 * n for n in range(size)))
        parts = (bare(0xFFFEE000, 2) + b"ab" + bare(0xFFFEE000, 2) + b"cd") * size
        data = table + parts + bare(0xFFFEE0DD, 0)

        def work() -> None:
            assert len(split(data, 0, len(data), size)) == size

        return work

    assert_linear(make, 5_000)


def test_more_fragments_than_any_image_has_are_refused() -> None:
    data = bare(0xFFFEE000, 0) * (MAX_FRAGMENTS + 3) + bare(0xFFFEE0DD, 0)
    with pytest.raises(DatasetRefused, match="fragments"):
        split(data, 0, len(data), 1)


def test_a_file_meta_of_many_elements_is_bounded() -> None:
    sample = file_preamble("1.2.3", "1.2.4", EXPLICIT)
    many = sample + element(0x00020102, b"OB", b"") * 10_000
    with pytest.raises(DatasetRefused):
        read_file_meta(many)

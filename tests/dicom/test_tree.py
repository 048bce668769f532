"""A small data set becomes nested dictionaries, in both encodings, within its limits."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.tree import read_tree
from tests.dicom.datasets import BIG, EXPLICIT, IMPLICIT, ct, encode

SEQUENCE = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize("undefined", [False, True])
def test_values_and_sequences_are_found(syntax: str, undefined: bool) -> None:
    root = read_tree(encode(ct(undefined=undefined), syntax), syntax)
    assert root.text(0x0020000D) == "2.25.101"
    assert root.value(0x00100010) == "NOM^PRÉNOM".encode("latin-1")
    assert len(root.items(0x00081140)) == 2
    purposes = root.items(0x00081140)[1].items(0x0040A170)
    assert [purpose.text(0x00080100) for purpose in purposes] == ["121311", "2"]
    assert root.items(0x00082112) == []
    assert root.first(0x00082112).text(0x00080100) == ""


@pytest.mark.threat("nested sequences, recursion")
def test_depth_is_capped_without_recursion() -> None:
    level = SEQUENCE + ITEM
    closed = level * 32 + (ITEM_END + SEQUENCE_END) * 32
    assert read_tree(closed, EXPLICIT).items(0x00081140)
    for depth in (33, 100_000):
        with pytest.raises(DatasetRefused):
            read_tree(level * depth + (ITEM_END + SEQUENCE_END) * depth, EXPLICIT)


@pytest.mark.threat("nested sequences, recursion")
def test_the_number_of_elements_is_capped() -> None:
    items = SEQUENCE + (ITEM + ITEM_END) * 2000 + SEQUENCE_END
    assert len(read_tree(items, EXPLICIT).items(0x00081140)) == 2000
    with pytest.raises(DatasetRefused, match="too many"):
        read_tree(items, EXPLICIT, max_elements=3000)


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("a tag twice", b"\x08\0\x60\0CS\2\0CT" * 2),
        ("no VR", b"\x08\0\x60\0\2\0\0\0CT"),
        ("cut value", b"\x08\0\x60\0CS\4\0CT"),
        ("cut head", b"\x08\0\x60\0CS"),
        ("open sequence", SEQUENCE),
        ("open item", SEQUENCE + ITEM),
        ("stray item", ITEM),
        ("stray delimiter", ITEM_END),
        ("stray sequence delimiter", SEQUENCE_END),
        ("element between items", SEQUENCE + b"\x08\0\x60\0CS\2\0CT"),
        ("item past its sequence", SEQUENCE[:8] + b"\x0a\0\0\0" + ITEM[:4] + b"\x0a\0\0\0" + b"\0" * 10),
        ("unknown without length", b"\x08\0\x60\0UN\0\0\xff\xff\xff\xff" + ITEM + ITEM_END + SEQUENCE_END),
    ],
)
def test_what_is_damaged_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(DatasetRefused):
        read_tree(data, EXPLICIT)


def test_big_endian_and_deflated_are_refused() -> None:
    for syntax in (BIG, "1.2.840.10008.1.2.1.99"):
        with pytest.raises(DatasetRefused):
            read_tree(b"", syntax)


@given(st.data(), st.sampled_from([IMPLICIT, EXPLICIT]))
def test_damage_never_raises_anything_else(data: st.DataObject, syntax: str) -> None:
    whole = bytearray(encode(ct(undefined=data.draw(st.booleans())), syntax))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetRefused):
        read_tree(bytes(whole), syntax)

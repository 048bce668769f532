"""The INS and its traits go into an image as it streams, and nothing else of it changes."""

from __future__ import annotations

import io
import struct
import subprocess
import tracemalloc
from pathlib import Path

import attrs
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence

from drimbox.dicom.elements import ITEM, ITEM_END, SEQUENCE_END
from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.dicom.part10 import file_preamble
from drimbox.dicom.scan import HeaderScanner
from drimbox.dicom.traits import DatasetRefused, TraitInserter
from drimbox.model import Identifier, Patient
from tests.dicom.datasets import EXPLICIT, IMPLICIT, ct, encode, pieces

TEST_OID, NIA_OID = "1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.9"
PATIENT = Patient(
    ins="275061234567890",
    ins_oid=TEST_OID,
    family="PAT-TROIS",
    given="DOMINIQUE",
    birth_date="19750612",
    sex="F",
    birth_place="75056",
    given_list="DOMINIQUE MARIE",
)
#: What the inserter may touch.
TOUCHED = {0x00100010, 0x00100030, 0x00100040, 0x00101001, 0x00101002, 0x00104000}


def run(parts: list[bytes], patient: Patient = PATIENT) -> tuple[bytes, tuple[str, ...]]:
    inserter = TraitInserter(patient)
    out = b"".join(bytes(inserter.feed(part)) for part in parts) + inserter.finish()
    return out, inserter.left


def insert(data: bytes, patient: Patient = PATIENT) -> bytes:
    return run([data], patient)[0]


def read(data: bytes) -> Dataset:
    ds = read_dataset(io.BytesIO(data), False, True)
    ds.decode()
    return ds


def identifier(value: str, oid: str | None = None, *, undefined: bool = False) -> Dataset:
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = value, "TEXT"
    if oid is not None:
        qualifier = Dataset()
        qualifier.UniversalEntityID, qualifier.UniversalEntityIDType = oid, "ISO"
        qualifier.is_undefined_length_sequence_item = undefined
        item.IssuerOfPatientIDQualifiersSequence = Sequence([qualifier])
        item["IssuerOfPatientIDQualifiersSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    return item


def with_ids(*items: Dataset, undefined: bool = False) -> Dataset:
    ds = ct()
    ds.OtherPatientIDsSequence = Sequence(list(items))
    ds["OtherPatientIDsSequence"].is_undefined_length = undefined
    return ds


def ids(data: bytes) -> list[tuple[str, str]]:
    return [
        (
            item.PatientID,
            item.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID
            if "IssuerOfPatientIDQualifiersSequence" in item
            else "",
        )
        for item in read(data).OtherPatientIDsSequence
    ]


def test_every_trait_is_there_and_the_local_identifier_stays() -> None:
    ds = ct()
    ds.IssuerOfPatientID = "CH-EXEMPLE"
    out = read(insert(encode(ds, EXPLICIT)))
    assert str(out.PatientName) == "PAT-TROIS^DOMINIQUE"
    assert (out.PatientID, out.IssuerOfPatientID) == ("IPP-42", "CH-EXEMPLE")
    assert (out.PatientBirthDate, out.PatientSex) == ("19750612", "F")
    assert str(out.OtherPatientNames) == "^DOMINIQUE MARIE"
    assert out.PatientComments == "75056"
    (item,) = out.OtherPatientIDsSequence
    assert (item.PatientID, item.IssuerOfPatientID) == (PATIENT.ins, "ASIP-SANTE-INS-NIR")
    assert item.TypeOfPatientID == "TEXT"
    (qualifier,) = item.IssuerOfPatientIDQualifiersSequence
    assert (qualifier.UniversalEntityID, qualifier.UniversalEntityIDType) == (TEST_OID, "ISO")


def test_the_scanner_finds_the_ins_that_was_put_in() -> None:
    header = HeaderScanner(EXPLICIT).feed(insert(encode(ct(), EXPLICIT)))
    assert header is not None
    assert header.ins == (Identifier(PATIENT.ins, TEST_OID),)


def test_a_nia_says_so() -> None:
    out = read(insert(encode(ct(), EXPLICIT), attrs.evolve(PATIENT, ins_oid=NIA_OID)))
    assert out.OtherPatientIDsSequence[0].IssuerOfPatientID == "ASIP-SANTE-INS-NIA"


@pytest.mark.parametrize("undefined", [False, True])
def test_every_other_byte_is_the_one_that_came(undefined: bool) -> None:
    data = encode(ct(undefined=undefined), EXPLICIT)
    out = insert(data)
    name = data.index(b"\x10\x00\x10\x00PN")
    assert out[:name] == data[:name]
    behind = data.index(b"\x18\x00\x50\x00")
    assert out.endswith(data[behind:])
    before, after = read(data), read(out)
    for element in before:
        if element.tag not in TOUCHED:
            assert after[element.tag] == element
    assert {e.tag for e in after} - {e.tag for e in before} <= TOUCHED


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm"])
def test_real_objects_change_in_these_elements_only(name: str) -> None:
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    data = encode(ds, EXPLICIT)
    if ds.file_meta.TransferSyntaxUID == IMPLICIT:
        converter = ImplicitToExplicit()
        data = bytes(converter.feed(encode(ds, IMPLICIT)) + converter.finish())
    out = insert(data)
    before, after = read(data), read(out)
    stale = {0x00080001} | {e.tag for e in before if e.tag == 0x00100000}
    for element in before:
        if element.tag not in TOUCHED | stale:
            assert after[element.tag] == element
    assert not stale & {e.tag for e in after}
    assert str(after.PatientName) == "PAT-TROIS^DOMINIQUE"


# --- any cut --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10_000), max_size=12), st.booleans(), st.booleans())
def test_any_cutting_gives_the_same_bytes(cuts: list[int], undefined: bool, kept: bool) -> None:
    ds = ct(undefined=undefined)
    if kept:
        ds.OtherPatientIDsSequence = Sequence(
            [identifier("A", "1.2.3", undefined=undefined), identifier("B", TEST_OID, undefined=undefined)]
        )
        ds["OtherPatientIDsSequence"].is_undefined_length = undefined
        ds.PatientComments = "Allergie à l'iode"
    data = encode(ds, EXPLICIT)
    assert run(pieces(data, cuts)) == run([data])


def test_byte_by_byte() -> None:
    data = encode(with_ids(identifier("A", "1.2.3", undefined=True), undefined=True), EXPLICIT)
    assert run([data[i : i + 1] for i in range(len(data))]) == run([data])


@given(st.data())
def test_damaged_data_sets_are_refused_or_rewritten_and_cuts_change_nothing(data: st.DataObject) -> None:
    whole = bytearray(encode(with_ids(identifier("A", "1.2.3")), EXPLICIT))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))

    def outcome(parts: list[bytes]) -> object:
        try:
            return run(parts)
        except DatasetRefused:
            return "refused"

    cuts = data.draw(st.lists(st.integers(0, 2000), max_size=5))
    assert outcome([bytes(whole)]) == outcome(pieces(bytes(whole), cuts))


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_random_bytes_give_the_same_answer_at_any_cutting(data: bytes, cuts: list[int]) -> None:
    def outcome(parts: list[bytes]) -> object:
        try:
            return run(parts)
        except DatasetRefused:
            return "refused"

    assert outcome([data]) == outcome(pieces(data, cuts))


# --- other identifiers ----------------------------------------------------------------------------


@pytest.mark.parametrize("undefined", [False, True])
def test_other_items_are_kept_and_the_ins_stands_behind_them(undefined: bool) -> None:
    first, second = identifier("A", "1.2.3", undefined=undefined), identifier("B", undefined=undefined)
    data = encode(with_ids(first, second, undefined=undefined), EXPLICIT)
    out = insert(data)
    assert ids(out) == [("A", "1.2.3"), ("B", ""), (PATIENT.ins, TEST_OID)]
    # Kept to the byte, whatever the way their lengths are written.
    head = struct.pack("<HH", 0xFFFE, 0xE000)
    place = data.index(b"\x10\x00\x02\x10SQ") + 12
    end = data.index(b"\x18\x00\x50\x00") - (8 if undefined else 0)
    assert data[place : place + 4] == head
    assert data[place:end] in out


def test_the_item_of_the_same_domain_is_replaced_where_it_stood() -> None:
    data = encode(
        with_ids(identifier("1" * 15, TEST_OID), identifier("A", "1.2.3"), identifier("2" * 15, TEST_OID)),
        EXPLICIT,
    )
    assert ids(insert(data)) == [(PATIENT.ins, TEST_OID), ("A", "1.2.3")]


def test_an_ins_of_another_domain_is_another_identifier() -> None:
    data = encode(with_ids(identifier("1" * 15, NIA_OID)), EXPLICIT)
    assert ids(insert(data)) == [("1" * 15, NIA_OID), (PATIENT.ins, TEST_OID)]


@pytest.mark.parametrize("undefined", [False, True])
def test_a_sequence_that_came_as_unknown_is_kept_as_one(undefined: bool) -> None:
    """PS3.5 6.2.2: what has VR UN is in Implicit VR."""
    item = encode(identifier("A", "1.2.3"), IMPLICIT)
    value = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    length = len(value)
    if undefined:
        value += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        length = 0xFFFFFFFF
    data = encode(ct(), EXPLICIT)
    place = data.index(b"\x18\x00\x50\x00")
    unknown = struct.pack("<HH2sHI", 0x0010, 0x1002, b"UN", 0, length) + value
    assert ids(insert(data[:place] + unknown + data[place:])) == [
        ("A", "1.2.3"),
        (PATIENT.ins, TEST_OID),
    ]


def test_twice_is_once() -> None:
    once = insert(encode(with_ids(identifier("A", "1.2.3")), EXPLICIT))
    assert insert(once) == once
    ds = ct()
    ds.OtherPatientNames = "ALIAS^X"
    once = insert(encode(ds, EXPLICIT))
    assert insert(once) == once


# --- what stands there already --------------------------------------------------------------------


def test_other_names_stay_behind_those_of_the_ins() -> None:
    ds = ct()
    ds.OtherPatientNames = ["ALIAS^UN", "ALIAS^DEUX"]
    out = read(insert(encode(ds, EXPLICIT)))
    assert [str(name) for name in out.OtherPatientNames] == [
        "^DOMINIQUE MARIE",
        "",
        "ALIAS^UN",
        "ALIAS^DEUX",
    ]
    used = attrs.evolve(PATIENT, used_family="DURAND", used_given="DOMI")
    out = read(insert(encode(ds, EXPLICIT), used))
    assert [str(name) for name in out.OtherPatientNames][:3] == [
        "^DOMINIQUE MARIE",
        "DURAND^DOMI",
        "ALIAS^UN",
    ]


def test_a_clinical_comment_is_never_lost() -> None:
    ds = ct()
    ds.PatientComments = "Allergie à l'iode"
    out, left = run([encode(ds, EXPLICIT)])
    assert read(out).PatientComments == "Allergie à l'iode"
    assert left == ("PatientComments",)


@pytest.mark.parametrize("comment", ["", "  ", "2A004", "69123"])
def test_an_empty_comment_or_another_place_gives_way(comment: str) -> None:
    ds = ct()
    ds.PatientComments = comment
    assert read(insert(encode(ds, EXPLICIT))).PatientComments == "75056"


def test_what_the_manifest_does_not_say_leaves_the_image_as_it_was() -> None:
    bare = Patient(PATIENT.ins, TEST_OID, "", "", "0000", "I")
    data = encode(ct(), EXPLICIT)
    out, left = run([data], bare)
    before, after = read(data), read(out)
    assert (after.PatientName, after.PatientBirthDate) == (before.PatientName, before.PatientBirthDate)
    assert after.PatientSex == "F"
    assert "OtherPatientNames" not in after
    assert ids(out) == [(PATIENT.ins, TEST_OID)]
    assert set(left) == {
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "OtherPatientNames",
        "PatientComments",
    }


def test_a_data_set_that_ends_before_its_patient_gets_him_at_the_end() -> None:
    ds = Dataset()
    ds.SOPInstanceUID = "1.2.3"
    out = read(insert(encode(ds, EXPLICIT)))
    assert (out.SOPInstanceUID, str(out.PatientName)) == ("1.2.3", "PAT-TROIS^DOMINIQUE")


def test_lengths_that_the_change_makes_wrong_are_dropped() -> None:
    group = struct.pack("<HH2sHI", 0x0010, 0, b"UL", 4, 30)
    to_end = struct.pack("<HH2sHI", 0x0008, 1, b"UL", 4, 30)
    data = encode(ct(), EXPLICIT)
    place = data.index(b"\x10\x00\x10\x00PN")
    assert insert(to_end + data[:place] + group + data[place:]) == insert(data)


@pytest.mark.parametrize("ins", ["", "2750612345678é", "2750612\\5678", "275 061"])
def test_what_is_no_ins_is_refused_at_once(ins: str) -> None:
    with pytest.raises(ValueError, match="INS"):
        TraitInserter(attrs.evolve(PATIENT, ins=ins))


# --- character sets -------------------------------------------------------------------------------

ACCENTED = attrs.evolve(
    PATIENT, family="LEFÈVRE", given="ZOÉ", given_list="ZOÉ MAÏTÉ", used_family="D'ÂGE", used_given="ZOÉ"
)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (None, "LEFEVRE^ZOE"),
        ("ISO_IR 6", "LEFEVRE^ZOE"),
        ("ISO_IR 100", "LEFÈVRE^ZOÉ"),
        ("ISO_IR 192", "LEFÈVRE^ZOÉ"),
        ("ISO_IR 148", "LEFÈVRE^ZOÉ"),
        ("GB18030", "LEFÈVRE^ZOÉ"),
        (["", "ISO 2022 IR 100"], "LEFÈVRE^ZOÉ"),
        (["ISO 2022 IR 6", "ISO 2022 IR 144", "ISO 2022 IR 100"], "LEFÈVRE^ZOÉ"),
        (["ISO 2022 IR 144", "ISO 2022 IR 100"], "LEFÈVRE^ZOÉ"),
        # Latin-2 has É but not È: each part goes as far as its set does.
        ("ISO_IR 101", "LEFEVRE^ZOÉ"),
        ("ISO_IR 144", "LEFEVRE^ZOE"),
        (["", "ISO 2022 IR 87"], "LEFEVRE^ZOE"),
        # An extension without its escapes is none.
        (["", "ISO_IR 100"], "LEFEVRE^ZOE"),
    ],
)
def test_names_are_written_in_the_character_set_of_the_image(
    character_set: str | list[str] | None, name: str
) -> None:
    ds = ct()
    del ds.StudyDescription
    ds.PatientName = "X"
    if character_set is None:
        del ds.SpecificCharacterSet
    else:
        ds.SpecificCharacterSet = character_set
    out = read(insert(encode(ds, EXPLICIT), ACCENTED))
    assert str(out.PatientName) == name
    assert str(out.OtherPatientNames[1]).endswith(name.rpartition("^")[2])
    assert out.get("SpecificCharacterSet") == ds.get("SpecificCharacterSet")


def test_an_unknown_character_set_gets_ascii() -> None:
    data = encode(ct(), EXPLICIT).replace(b"ISO_IR 100", b"MY CHARSET")
    assert b"LEFEVRE^ZOE " in insert(data, ACCENTED)


def test_ligatures_are_spelt_out_when_the_set_has_none() -> None:
    out = read(insert(encode(ct(), EXPLICIT), attrs.evolve(PATIENT, family="LEBŒUF", given="GIŁ")))
    assert str(out.PatientName) == "LEBOEUF^GIL"


@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192"])
def test_a_name_keeps_within_its_64_bytes(character_set: str) -> None:
    ds = ct()
    del ds.StudyDescription
    ds.PatientName, ds.SpecificCharacterSet = "X", character_set
    out = insert(encode(ds, EXPLICIT), attrs.evolve(PATIENT, family="É" * 80, given="Z"))
    place = out.index(b"\x10\x00\x10\x00PN")
    assert 60 <= struct.unpack_from("<H", out, place + 6)[0] <= 64


def test_another_alphabet_leaves_the_name_and_says_so() -> None:
    data = encode(ct(), EXPLICIT)
    out, left = run([data], attrs.evolve(PATIENT, family="ИВАНОВ"))
    assert read(out).PatientName == read(data).PatientName
    assert left == ("PatientName",)
    ds = ct()
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 144"]
    out, left = run([encode(ds, EXPLICIT)], attrs.evolve(PATIENT, family="ИВАНОВ"))
    assert str(read(out).PatientName) == "ИВАНОВ^DOMINIQUE"
    assert left == ()


@given(st.text(max_size=80), st.sampled_from(["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 100"]]))
def test_any_name_leaves_a_data_set_that_reads_back(family: str, character_set: str | list[str]) -> None:
    ds = ct()
    del ds.StudyDescription
    ds.PatientName, ds.SpecificCharacterSet = "X^Y", character_set
    patient = attrs.evolve(PATIENT, family=family, given=family, given_list=family, used_family=family)
    out = read(insert(encode(ds, EXPLICIT), patient))
    assert out.PatientID == "IPP-42"
    assert "\\" not in str(out.PatientName)
    assert out.SeriesInstanceUID == "2.25.102"


# --- bounds ---------------------------------------------------------------------------------------


def test_pixels_pass_without_being_looked_at() -> None:
    data = encode(ct(), EXPLICIT)
    inserter = TraitInserter(PATIENT)
    inserter.feed(data[:-136])
    assert inserter.done
    block = b"\xff" * 65536
    assert inserter.feed(block) is block


def test_memory_does_not_grow_with_what_stands_before_the_patient() -> None:
    ds = ct()
    ds.add_new(0x00091010, "OB", b"\0" * 900_000)
    data = encode(ds, EXPLICIT)
    inserter = TraitInserter(PATIENT)
    tracemalloc.start()
    for start in range(0, 890_000, 1000):
        inserter.feed(memoryview(data)[start : start + 1000])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20_000


def raw(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


SEQUENCE = struct.pack("<HH2sHI", 0x0010, 0x1002, b"SQ", 0, 0xFFFFFFFF)
NAME = raw(0x00100010, b"PN", b"A^B ")


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("a name twice", NAME + NAME),
        ("a name behind its place", raw(0x00100030, b"DA", b"") + NAME),
        ("a name behind the patient's group", raw(0x00180050, b"DS", b"1 ") + NAME),
        ("no value representation", b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100"),
        ("a delimiter at the root", struct.pack("<HHI", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)),
        ("file meta", raw(0x00020010, b"UI", b"1.2\0")),
        ("cut in a head", NAME[:6]),
        ("cut in a value", NAME[:-1]),
        ("cut in the identifiers", SEQUENCE + struct.pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, 0xFFFFFFFF)),
        ("garbage in the identifiers", raw(0x00101002, b"SQ", b"")[:6] + b"\0\0\4\0\0\0abcd"),
        (
            "an identifier's element past its item",
            raw(0x00101002, b"SQ", b"")[:6]
            + struct.pack("<HI", 0, 18)
            + struct.pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, 10)
            + raw(0x00100020, b"LO", b"AB")[:6]
            + b"\x20\0AB",
        ),
        ("an item delimiter at the root", struct.pack("<HHI", ITEM_END >> 16, ITEM_END & 0xFFFF, 0)),
        ("a name without length", struct.pack("<HH2sHI", 0x0010, 0x0010, b"UN", 0, 0xFFFFFFFF)),
        ("a value longer than a header", struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, 2**31)),
    ],
)
def test_what_is_no_data_set_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(DatasetRefused):
        insert(data)


def test_a_header_that_never_ends_is_refused_at_the_limit() -> None:
    inserter = TraitInserter(PATIENT, max_bytes=4096)
    element = raw(0x00080070, b"LO", b"12345678")
    for _ in range(256):
        inserter.feed(element)
    with pytest.raises(DatasetRefused):
        inserter.feed(element)


def test_sequences_that_never_end_are_refused_at_the_limit() -> None:
    item = struct.pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, 1000) + bytes(1000)
    other = TraitInserter(PATIENT, max_bytes=8192)
    other.feed(struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF))
    for _ in range(8):
        other.feed(item)
    with pytest.raises(DatasetRefused):
        other.feed(item)
    ids = TraitInserter(PATIENT)
    ids.feed(SEQUENCE)
    for _ in range(65):
        ids.feed(item)
    with pytest.raises(DatasetRefused, match="too many"):
        ids.feed(item)


@pytest.mark.threat("nested sequences, recursion")
def test_sequences_beyond_the_depth_are_refused() -> None:
    level = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    level += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(DatasetRefused, match="nest"):
        insert(level * 33)
    deep = (
        struct.pack("<HH2sHI", 0x10, 0x24, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ) * 2000
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(deep)) + deep
    data = struct.pack("<HH2sHI", 0x10, 0x1002, b"SQ", 0, len(item)) + item
    with pytest.raises(DatasetRefused):
        insert(data)


# --- second opinions ------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(file_preamble("1.2.840.10008.5.1.4.1.1.2", "2.25.103", EXPLICIT) + data)
    return path


@pytest.mark.peer("dciodvfy")
def test_dciodvfy_has_no_new_error(tmp_path: Path) -> None:
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    del ds[0x00101002]
    data = encode(ds, EXPLICIT)

    def errors(name: str, data: bytes) -> set[bytes]:
        run = subprocess.run(
            ["dciodvfy", write(tmp_path / name, data)], capture_output=True, timeout=30, check=False
        )
        assert b"CTImage" in run.stderr
        return {line for line in run.stderr.splitlines() if line.startswith(b"Error")}

    assert errors("after.dcm", insert(data, ACCENTED)) <= errors("before.dcm", data)


@pytest.mark.peer("dcmdump")
@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 100"]])
def test_dcmtk_reads_the_same_name(tmp_path: Path, character_set: str | list[str]) -> None:
    ds = ct()
    del ds.StudyDescription
    ds.PatientName, ds.SpecificCharacterSet = "X", character_set
    path = write(tmp_path / "out.dcm", insert(encode(ds, EXPLICIT), ACCENTED))
    run = subprocess.run(
        ["dcmdump", "-q", "+U8", "+P", "0010,0010", path], capture_output=True, timeout=20, check=False
    )
    if b"not available" in run.stderr or b"unsupported" in run.stderr.lower():
        pytest.skip("dcmdump without character set conversion")
    assert "[LEFÈVRE^ZOÉ]" in run.stdout.decode()

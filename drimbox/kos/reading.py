"""Reading a manifest, ours or anybody's: what it points to, and for whom.

The Consumer downloads manifests made by every vendor's Source; the Source reads back its own, and those
it takes over in a migration. All the published variants are read (interfaces.md 3.5): implicit or
explicit, text at the root or in a content item, with or without numbers, folded lines, blanks around
values. What cannot be worked with is refused as a whole: no study, another key object than a manifest,
evidence of several studies, identifiers that are not UIDs.

A manifest is a file from another organisation: it is capped in size, walked by a reader that counts
what it makes (`dicom.tree`), never inflated, and its addresses are data, judged by whoever calls them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from pydicom.charset import convert_encodings, decode_bytes

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.tree import Item, read_tree
from drimbox.model import Identifier, Patient, RequestIds, is_uid

KOS_SOP_CLASS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
MANIFEST_CODE: Final = "113030"
_OF_INTEREST_CODE: Final = "113000"
#: Largest file read, bytes; a manifest holds some 400 bytes an instance.
MAX_BYTES: Final = 16 * 1024 * 1024

_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_CHARACTER_SET = 0x00080005
_CODE_VALUE = 0x00080100
_REFERENCED_CLASS, _REFERENCED_INSTANCE = 0x00081150, 0x00081155
_SERIES_SEQUENCE, _SOP_SEQUENCE, _RETRIEVE_URL = 0x00081115, 0x00081199, 0x00081190
_PATIENT_ID, _PATIENT_ID_QUALIFIERS, _OTHER_IDS = 0x00100020, 0x00100024, 0x00101002
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_UNIVERSAL_ID = 0x00400032
_VALUE_TYPE, _CONCEPT, _TEXT_VALUE, _CONTENT = 0x0040A040, 0x0040A043, 0x0040A160, 0x0040A730
_REQUESTS, _EVIDENCE, _LOCATION = 0x0040A370, 0x0040A375, 0x0040E011

_SERIES_LINE = re.compile(r"S\S{1,3}rie-([0-9.]+)\s*:\s*([^\s:@]*)\s*@?\s*:\s*(.*)")
_ACT_LINE = re.compile(r"Acte\s*=?\s*:?\s*(.*)")
_FOLD = re.compile(r"\n[ \t]+")
_BLANKS = re.compile(r"\s+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)


class ManifestRefused(Exception):
    """This file is no manifest we can work with; the text, in French, says why without patient data."""


@attrs.frozen
class KeyImage:
    """A key image note that cites an instance (interfaces.md 3.4): the note, and what it says."""

    sop_instance_uid: str
    series_uid: str
    description: str = ""


@attrs.frozen
class ManifestInstance:
    """One instance a manifest points to."""

    sop_instance_uid: str
    sop_class_uid: str
    number: int | None = None
    key_images: tuple[KeyImage, ...] = ()


@attrs.frozen
class ManifestSeries:
    """One series a manifest points to; modality and description come from its text, empty without one."""

    series_uid: str
    instances: tuple[ManifestInstance, ...]
    #: Address to fetch it at, blanks removed and nothing else checked; empty when absent.
    retrieve_url: str = ""
    retrieve_location_uid: str = ""
    number: int | None = None
    modality: str = ""
    description: str = ""


@attrs.frozen
class Manifest:
    """What a manifest says. Dates and times are DICOM `DA`, `TM` and `±HHMM`, as written."""

    study_uid: str
    sop_instance_uid: str
    series_uid: str
    transfer_syntax_uid: str
    title_code: str
    patient: Patient
    requests: tuple[RequestIds, ...]
    series: tuple[ManifestSeries, ...]
    institution_name: str = ""
    #: Struct_IdNat, empty in the oldest manifests.
    institution_id: str = ""
    manufacturer: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    #: « Acte = » of the text.
    act: str = ""
    creation_date: str = ""
    creation_time: str = ""
    timezone: str = ""

    @property
    def instance_count(self) -> int:
        """Number of instances in all series."""
        return sum(len(series.instances) for series in self.series)


def read_manifest(data: bytes) -> Manifest:
    """Read a Part 10 file that must be a manifest (interfaces.md 3).

    Raises `ManifestRefused` for anything else, including what is too large, damaged or nested too deep.
    """
    if len(data) > MAX_BYTES:
        raise ManifestRefused(f"fichier de plus de {MAX_BYTES // 2**20} Mio")
    try:
        meta = read_file_meta(data)
        root = read_tree(data[meta.dataset_offset :], meta.transfer_syntax_uid)
    except DatasetRefused as refusal:
        raise ManifestRefused(f"fichier DICOM illisible ({refusal})") from refusal
    title = root.first(_CONCEPT).text(_CODE_VALUE)
    if root.text(_SOP_CLASS) != KOS_SOP_CLASS or title != MANIFEST_CODE:
        raise ManifestRefused("cet objet DICOM n'est pas un manifeste (titre 113030 attendu)")
    return _Reader(root).manifest(meta.transfer_syntax_uid, title)


def gives_address(data: bytes, base: str) -> bool:
    """Say whether every series of a manifest is to be fetched under `base` (DB.SO.31).

    A file that cannot be read, or a series without address, gives another one.
    """
    try:
        manifest = read_manifest(data)
    except ManifestRefused:
        return False
    return all(series.retrieve_url.startswith(f"{base}/studies/") for series in manifest.series)


class _Reader:
    """Takes the values out of the tree; holds the character set they are written in."""

    def __init__(self, root: Item) -> None:
        self._root = root
        self._decode = text_decoder(root)

    def manifest(self, transfer_syntax_uid: str, title: str) -> Manifest:
        root = self._root
        study = _uid(root, _STUDY, "StudyInstanceUID")
        lines = self._text_lines()
        institution = self._string(root, 0x00080080).split("^")
        return Manifest(
            study_uid=study,
            sop_instance_uid=_uid(root, _SOP_INSTANCE, "SOPInstanceUID"),
            series_uid=root.text(_SERIES),
            transfer_syntax_uid=transfer_syntax_uid,
            title_code=title,
            patient=self._patient(),
            requests=tuple(self._request(item) for item in root.items(_REQUESTS)),
            series=self._all_series(study, lines),
            institution_name=institution[0].strip(),
            institution_id=institution[9].strip() if len(institution) > 9 else "",
            manufacturer=self._string(root, 0x00080070),
            study_date=root.text(0x00080020),
            study_time=root.text(0x00080030),
            study_description=self._string(root, 0x00081030),
            act=next((match[1].strip() for line in lines if (match := _ACT_LINE.fullmatch(line))), ""),
            creation_date=root.text(0x00080012),
            creation_time=root.text(0x00080013),
            timezone=root.text(0x00080201),
        )

    def _string(self, item: Item, tag: int) -> str:
        """Return a text on one line, trimmed: one validator's manifest has line breaks around values."""
        return _BLANKS.sub(" ", self._decode(item.value(tag) or b"")).strip()

    def _patient(self) -> Patient:
        root = self._root
        ins = self._string(root, _PATIENT_ID)
        oid = root.first(_PATIENT_ID_QUALIFIERS).text(_UNIVERSAL_ID)
        if not oid:
            others = (item for item in root.items(_OTHER_IDS) if self._string(item, _PATIENT_ID) == ins)
            oid = next((item.first(_PATIENT_ID_QUALIFIERS).text(_UNIVERSAL_ID) for item in others), "")
        family, given = _name(self._string(root, 0x00100010))
        # Newer objects: the list of given names, then the used names; older ones repeat the family name.
        others_names = self._string(root, 0x00101001).split("\\")
        listed = others_names[0].startswith("^")
        used = _name(others_names[1]) if listed and len(others_names) > 1 else ("", "")
        if not others_names[0] and len(others_names) > 1:
            used = _name(others_names[1])
        return Patient(
            ins=ins,
            ins_oid=oid,
            family=family,
            given=given,
            birth_date=root.text(0x00100030),
            sex=root.text(0x00100040),
            birth_place=self._string(root, 0x00104000),
            given_list=_name(others_names[0])[1] if listed else "",
            used_family=used[0],
            used_given=used[1],
        )

    def _request(self, item: Item) -> RequestIds:
        return RequestIds(
            accession=Identifier(
                self._string(item, 0x00080050), item.first(0x00080051).text(_UNIVERSAL_ID)
            ),
            order=Identifier(self._string(item, 0x00402016), item.first(0x00400026).text(_UNIVERSAL_ID)),
        )

    def _text_lines(self) -> list[str]:
        root = self._root
        found = (
            item.value(_TEXT_VALUE) for item in root.items(_CONTENT) if item.text(_VALUE_TYPE) == "TEXT"
        )
        raw = next((each for each in found if each), None) or root.value(_TEXT_VALUE) or b""
        text = _FOLD.sub(" ", self._decode(raw))
        return [line.strip() for line in re.split(r"\r\n|\r|\n", text)]

    def _all_series(self, study: str, lines: Sequence[str]) -> tuple[ManifestSeries, ...]:
        spoken: dict[str, tuple[str, str]] = {}
        for line in lines:
            match = _SERIES_LINE.fullmatch(line)
            if match is not None:
                spoken.setdefault(match[1], (match[2], match[3].strip()))
        found: dict[str, ManifestSeries] = {}
        for evidence in self._root.items(_EVIDENCE):
            if _uid(evidence, _STUDY, "StudyInstanceUID") != study:
                raise ManifestRefused("le manifeste référence un autre examen que le sien")
            for item in evidence.items(_SERIES_SEQUENCE):
                series = self._series(item, spoken)
                known = found.get(series.series_uid)
                if known is not None:
                    # The same series at a second location: one address is enough, no instance is lost.
                    instances = dict.fromkeys(known.instances + series.instances)
                    series = attrs.evolve(known, instances=_distinct(list(instances)))
                found[series.series_uid] = series
        if not any(series.instances for series in found.values()):
            raise ManifestRefused("le manifeste ne référence aucune instance")
        return tuple(found.values())

    def _series(self, item: Item, spoken: dict[str, tuple[str, str]]) -> ManifestSeries:
        uid = _uid(item, _SERIES, "SeriesInstanceUID")
        modality, description = spoken.get(uid, ("", ""))
        return ManifestSeries(
            series_uid=uid,
            instances=_distinct([self._instance(each) for each in item.items(_SOP_SEQUENCE)]),
            retrieve_url=_BLANKS.sub("", item.text(_RETRIEVE_URL)),
            retrieve_location_uid=item.text(_LOCATION),
            number=_integer(item.text(0x00200011)),
            modality=modality,
            description=description,
        )

    def _instance(self, item: Item) -> ManifestInstance:
        notes = item.items(_SOP_SEQUENCE)
        return ManifestInstance(
            sop_instance_uid=_uid(item, _REFERENCED_INSTANCE, "ReferencedSOPInstanceUID"),
            sop_class_uid=_uid(item, _REFERENCED_CLASS, "ReferencedSOPClassUID"),
            number=_integer(item.text(0x00200013)),
            key_images=tuple(
                KeyImage(
                    sop_instance_uid=_uid(note, _REFERENCED_INSTANCE, "ReferencedSOPInstanceUID"),
                    series_uid=_uid(note, _SERIES, "SeriesInstanceUID"),
                    description=self._decode(note.first(_CONTENT).value(_TEXT_VALUE) or b"").strip(),
                )
                for note in notes
                if note.first(_CONCEPT).text(_CODE_VALUE) in ("", _OF_INTEREST_CODE)
            ),
        )


def _distinct(instances: Sequence[ManifestInstance]) -> tuple[ManifestInstance, ...]:
    """Keep the first of the references to each instance."""
    found: dict[str, ManifestInstance] = {}
    for instance in instances:
        found.setdefault(instance.sop_instance_uid, instance)
    return tuple(found.values())


def text_decoder(root: Item) -> Callable[[bytes], str]:
    """Return what turns the texts of a data set into `str`, by its SpecificCharacterSet; it never fails."""
    encodings = _encodings(root.text(_CHARACTER_SET))

    def decode(raw: bytes) -> str:
        try:
            text = decode_bytes(raw, encodings, {0x0A, 0x0C, 0x0D, 0x5C, 0x5E, 0x3D})
        except (LookupError, ValueError):
            text = raw.decode("latin-1")
        return text.rstrip("\0")

    return decode


def _encodings(character_set: str) -> list[str]:
    try:
        return list(convert_encodings(character_set.split("\\") if character_set else "ISO_IR 100"))
    except (LookupError, ValueError):
        return ["latin-1"]


def _name(text: str) -> tuple[str, str]:
    family, _, rest = text.partition("=")[0].partition("^")
    return family.strip(), rest.partition("^")[0].strip()


def _uid(item: Item, tag: int, keyword: str) -> str:
    value = item.text(tag)
    if not is_uid(value):
        raise ManifestRefused(f"{keyword} absent ou mal formé")
    return value


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None

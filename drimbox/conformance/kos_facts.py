"""What a manifest says, read for the validators alone (CI-SIS IMG-KOS, PS3.3 A.35.4).

Only the generic tree of the data set (`dicom.tree`, judged by pydicom in the tests) and pydicom's
character sets are shared with the gateway; what the elements mean is read here a second time, so that a
fault of `kos.reading` or `kos.manifest` cannot hide itself. Nothing is refused but what is no data set:
absent values are empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.tree import Item, read_tree
from drimbox.kos.reading import text_decoder

MAX_BYTES: Final = 16 * 1024 * 1024
KEY_OBJECT: Final = "1.2.840.10008.5.1.4.1.1.88.59"

_SERIES_LINE = re.compile(r"S\S{1,3}rie-([0-9.]+)\s*:\s*([^\s:@]*)")
_ACT_LINE = re.compile(r"Acte\s*=?[\s:]*(.*)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)

_CLASS, _INSTANCE, _STUDY, _SERIES = 0x00081150, 0x00081155, 0x0020000D, 0x0020000E
_SOPS, _SERIES_SEQUENCE, _EVIDENCE = 0x00081199, 0x00081115, 0x0040A375
_CONCEPT, _CODE, _CONTENT, _TEXT = 0x0040A043, 0x00080100, 0x0040A730, 0x0040A160
_PATIENT_ID, _QUALIFIERS, _UNIVERSAL_ID = 0x00100020, 0x00100024, 0x00400032


class KosUnreadable(Exception):
    """This is no DICOM file that can be read; the text, in French, holds no value of it."""


@attrs.frozen
class Mark:
    """A key image note cited behind an instance."""

    note_uid: str
    series_uid: str
    text: str


@attrs.frozen
class Reference:
    """One instance of the evidence, and the series that holds it."""

    instance_uid: str
    sop_class_uid: str
    number: int | None
    study_uid: str
    series_uid: str
    series_number: int | None
    marks: tuple[Mark, ...]


@attrs.frozen
class Request:
    """One item of ReferencedRequestSequence: (value, authority) of accession and order, and its study."""

    accession: tuple[str, str]
    order: tuple[str, str]
    study_uid: str


@attrs.frozen
class KosFacts:
    """The values compared; dates and times as written, empty when absent."""

    instance_uid: str
    sop_class_uid: str
    title: str
    study_uid: str
    patient_id: str
    patient_oid: str
    issuer: str
    #: Each name as (family, given).
    name: tuple[str, str]
    other_names: tuple[tuple[str, str], ...]
    birth_date: str
    sex: str
    comments: str
    institution: str
    institution_id: str
    study_date: str
    created: str
    zone: str
    requests: tuple[Request, ...]
    references: tuple[Reference, ...]
    #: Lines of the text: act, None without such a line; modality by series.
    act: str | None
    modalities: dict[str, str]


def read_kos(data: bytes) -> KosFacts:
    """Read a manifest file. Raises `KosUnreadable`."""
    return facts_of(read_root(data))


def read_root(data: bytes, max_bytes: int = MAX_BYTES) -> Item:
    """Read a Part 10 file as a tree. Raises `KosUnreadable`."""
    if len(data) > max_bytes:
        raise KosUnreadable(f"fichier de plus de {max_bytes // 2**20} Mio")
    try:
        meta = read_file_meta(data)
        return read_tree(data[meta.dataset_offset :], meta.transfer_syntax_uid)
    except DatasetRefused as refused:
        raise KosUnreadable(f"fichier DICOM illisible ({refused})") from None


def facts_of(root: Item) -> KosFacts:
    """Take the values out of the tree of a key object."""
    decode = text_decoder(root)

    def text(item: Item, tag: int) -> str:
        return " ".join(decode(item.value(tag) or b"").split())

    institution = text(root, 0x00080080).split("^")
    lines = _lines(root, decode)
    acts = [match[1].strip() for line in lines if (match := _ACT_LINE.fullmatch(line))]
    names = [_name(each) for each in text(root, 0x00101001).split("\\")]
    return KosFacts(
        instance_uid=root.text(0x00080018),
        sop_class_uid=root.text(0x00080016),
        title=root.first(_CONCEPT).text(_CODE),
        study_uid=root.text(_STUDY),
        patient_id=text(root, _PATIENT_ID),
        patient_oid=root.first(_QUALIFIERS).text(_UNIVERSAL_ID) or _other_oid(root),
        issuer=text(root, 0x00100021),
        name=_name(text(root, 0x00100010)),
        other_names=tuple(names) if any(map(any, names)) else (),
        birth_date=root.text(0x00100030),
        sex=root.text(0x00100040),
        comments=text(root, 0x00104000),
        institution=institution[0].strip(),
        institution_id=institution[9].strip() if len(institution) > 9 else "",
        study_date=root.text(0x00080020),
        created=root.text(0x00080012) + root.text(0x00080013).split(".")[0],
        zone=root.text(0x00080201),
        requests=tuple(
            Request(
                (text(item, 0x00080050), item.first(0x00080051).text(_UNIVERSAL_ID)),
                (text(item, 0x00402016), item.first(0x00400026).text(_UNIVERSAL_ID)),
                item.text(_STUDY),
            )
            for item in root.items(0x0040A370)
        ),
        references=tuple(_references(root, decode)),
        act=acts[0] if acts else None,
        modalities={
            match[1]: match[2] for line in lines if (match := _SERIES_LINE.match(line)) and match[2]
        },
    )


def cited(root: Item) -> frozenset[str]:
    """Return the instances that the evidence of a key object names."""
    return frozenset(
        reference.text(_INSTANCE)
        for evidence in root.items(_EVIDENCE)
        for series in evidence.items(_SERIES_SEQUENCE)
        for reference in series.items(_SOPS)
    )


def _references(root: Item, decode: Callable[[bytes], str]) -> Iterator[Reference]:
    for evidence in root.items(_EVIDENCE):
        for series in evidence.items(_SERIES_SEQUENCE):
            for item in series.items(_SOPS):
                yield Reference(
                    instance_uid=item.text(_INSTANCE),
                    sop_class_uid=item.text(_CLASS),
                    number=integer(item.text(0x00200013)),
                    study_uid=evidence.text(_STUDY),
                    series_uid=series.text(_SERIES),
                    series_number=integer(series.text(0x00200011)),
                    marks=tuple(
                        Mark(
                            note.text(_INSTANCE),
                            note.text(_SERIES),
                            " ".join(decode(note.first(_CONTENT).value(_TEXT) or b"").split()),
                        )
                        for note in item.items(_SOPS)
                        if note.first(_CONCEPT).text(_CODE) in ("", "113000")
                    ),
                )


def _lines(root: Item, decode: Callable[[bytes], str]) -> list[str]:
    """Return the lines of the description, wherever it stands; folded lines are joined."""
    texts = [item.value(_TEXT) for item in root.items(_CONTENT) if item.text(0x0040A040) == "TEXT"]
    raw = next((each for each in texts if each), None) or root.value(_TEXT) or b""
    unfolded = re.sub(r"\n[ \t]+", " ", decode(raw))
    return [line.strip() for line in re.split(r"\r\n|\r|\n", unfolded)]


def _other_oid(root: Item) -> str:
    ids = root.items(0x00101002)
    return next((oid for item in ids if (oid := item.first(_QUALIFIERS).text(_UNIVERSAL_ID))), "")


def _name(text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split("=")[0].split("^")]
    return parts[0], parts[1] if len(parts) > 1 else ""


def integer(text: str) -> int | None:
    """Return an IS value as a number, None when it is none."""
    return int(text) if _INTEGER.fullmatch(text) else None

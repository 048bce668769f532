"""What the files of a folder say they are: identity of each instance, and key objects whole.

A folder of images comes from anywhere and may be large: links are not followed, files are counted, only
the head of a file is read (up to the instance number, within a limit), and key objects, which are small,
wholly. The identity is found by the scanner of deliveries (`dicom.scan`, judged by pydicom and real peers
in the tests): which elements it reads is not what is judged here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from drimbox.conformance import kos_facts
from drimbox.conformance.dataset_walk import DatasetWalk
from drimbox.dicom.elements import DatasetRefused, Encoding, encoding_of
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.scan import HeaderScanner
from drimbox.model import INS_OIDS, Identifier

#: Files looked at, and bytes of one that are read to find who it is.
MAX_FILES: Final = 100_000
MAX_HEAD: Final = 8 * 1024 * 1024
_CHUNK: Final = 256 * 1024
_MAX_KEY_OBJECT: Final = 8 * 1024 * 1024

_MODALITY, _STUDY_DATE, _BIRTH_DATE = 0x00080060, 0x00080020, 0x00100030
_SERIES_NUMBER, _NUMBER = 0x00200011, 0x00200013
_ALSO: Final = frozenset({_MODALITY, _STUDY_DATE, _BIRTH_DATE, _SERIES_NUMBER, _NUMBER})


class NotDicom(Exception):
    """This file is no Part 10 file, or its head cannot be read."""


class TooManyFiles(Exception):
    """The folder holds more files than are looked at."""


@attrs.frozen
class KeyObject:
    """A key object of the folder: what it is (code of its title), what it cites, what it says."""

    title: str
    cited: frozenset[str]


@attrs.frozen
class ImageFacts:
    """One instance; empty texts and None for what it does not say."""

    sop_class_uid: str
    instance_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    patient_authority: str
    ins: tuple[Identifier, ...]
    modality: str
    study_date: str
    birth_date: str
    series_number: int | None
    number: int | None
    key_object: KeyObject | None = None


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the regular files under a folder, links left out. Raises `TooManyFiles`, `OSError`."""

    def refuse(error: OSError) -> None:
        raise error

    count = 0
    for where, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            if path.is_symlink() or not path.is_file():
                continue
            count += 1
            if count > MAX_FILES:
                raise TooManyFiles(f"plus de {MAX_FILES} fichiers")
            yield path


def read_image(path: Path) -> ImageFacts:
    """Read who a file is. Raises `NotDicom`, `OSError`."""
    with path.open("rb") as file:
        data = file.read(_CHUNK)
        try:
            meta = read_file_meta(data)
            syntax = meta.transfer_syntax_uid
            scanner = HeaderScanner(syntax, max_bytes=MAX_HEAD)
            walk = None
            if (encoding := encoding_of(syntax)) is not Encoding.EXPLICIT_BIG:
                walk = DatasetWalk(implicit=encoding is Encoding.IMPLICIT_LITTLE, also=_ALSO)
            piece, read, header = data[meta.dataset_offset :], 0, None
            while piece:
                header = scanner.feed(piece)
                if walk is not None:
                    walk.feed(piece)
                read += len(piece)
                if header is not None and (walk is None or walk.last > _NUMBER or read > MAX_HEAD):
                    break
                piece = file.read(_CHUNK)
            header = header or scanner.finish()
        except DatasetRefused as refused:
            raise NotDicom(str(refused)) from None
        key = None
        if header.sop_class_uid == kos_facts.KEY_OBJECT:
            file.seek(0)
            key = _key_object(file.read(_MAX_KEY_OBJECT + 1))

    if not header.sop_instance_uid or not header.study_uid:
        raise NotDicom("no instance of a study")

    def text(tag: int) -> str:
        return walk.text(tag) if walk is not None else ""

    return ImageFacts(
        sop_class_uid=header.sop_class_uid or "",
        instance_uid=header.sop_instance_uid or "",
        study_uid=header.study_uid or "",
        series_uid=header.series_uid or "",
        patient_id=header.patient_id or "",
        patient_authority=header.patient_id_authority or "",
        ins=_ins(header.ins, header.patient_id, header.patient_id_authority, header.patient_id_issuer),
        modality=text(_MODALITY),
        study_date=text(_STUDY_DATE),
        birth_date=text(_BIRTH_DATE),
        series_number=kos_facts.integer(text(_SERIES_NUMBER)),
        number=kos_facts.integer(text(_NUMBER)),
        key_object=key,
    )


def _key_object(data: bytes) -> KeyObject | None:
    try:
        root = kos_facts.read_root(data, _MAX_KEY_OBJECT)
    except kos_facts.KosUnreadable:
        return None
    return KeyObject(kos_facts.facts_of(root).title, kos_facts.cited(root))


def _ins(
    listed: tuple[Identifier, ...], patient_id: str | None, authority: str | None, issuer: str | None
) -> tuple[Identifier, ...]:
    """Return every INS an instance carries; PatientID is one when its issuer says so."""
    own = authority in INS_OIDS or (not authority and (issuer or "").startswith("ASIP-SANTE-INS"))
    if patient_id and own:
        return (*listed, Identifier(patient_id, authority or ""))
    return listed

"""Judging one part of an answer as it streams by: its headers, its Part 10 file, its data set.

The rules: each part names its transfer syntax (DB.SO.85), one of tables 4 to 7 (DB.CS.83), never
Implicit VR (DB.SO.41); it is a Part 10 file (PS3.10 7.1) whose meta information says the same syntax
and the same UIDs as the headers and the data set; the data set is whole and in order (PS3.5 7), and its
pixels are held as the syntax wants them (PS3.5 A.4).

The first kilobytes are kept until the file meta information has been read; the rest is walked over.
"""

from __future__ import annotations

from typing import Final

import attrs

from drimbox.conformance import dataset_walk
from drimbox.conformance.codestream import codec_of, contradicts
from drimbox.conformance.dataset_walk import DatasetWalk, Pixels
from drimbox.conformance.file_meta import CLASS, INSTANCE, PREFIX, SYNTAX, meta_end, meta_faults
from drimbox.conformance.report import Report, shown
from drimbox.dicom import syntaxes
from drimbox.dicom.elements import DEFLATED, DatasetRefused, tag_text
from drimbox.dicom.part10 import MAX_FILE_META
from drimbox.model import is_uid
from drimbox.wado.fields import Element, FieldError, parse_media_type
from drimbox.wado.multipart import PartBegin

_IDENTITY: Final = (
    (dataset_walk.SOP_CLASS, "SOPClassUID"),
    (dataset_walk.SOP_INSTANCE, "SOPInstanceUID"),
    (dataset_walk.STUDY, "StudyInstanceUID"),
    (dataset_walk.SERIES, "SeriesInstanceUID"),
)
#: Photometric interpretations whose native form holds less than samples x bits (PS3.5 8.2).
_SUBSAMPLED = ("422", "420")


@attrs.frozen
class PartFacts:
    """What a part turned out to be; a UID is empty when the part does not give a legal one."""

    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    size: int


class PartCheck:
    """Judges one part: `feed` its bytes, then `finish`."""

    def __init__(self, begin: PartBegin, number: int, report: Report) -> None:
        """`number` counts from 1."""
        self._report = report
        self._number = number
        self._head = bytearray()
        self._meta: dict[int, str] | None = None
        self._broken = False
        self._walk: DatasetWalk | None = None
        self._size = 0
        self._syntax = self._headers(begin)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the part."""
        self._size += len(data)
        if self._broken:
            return
        if self._meta is None:
            self._head += data
            data = self._read_head(final=False)
        self._walk_on(data)

    def finish(self) -> PartFacts:
        """Say that the part has ended; return what it was."""
        if self._announced is not None and self._announced != self._size:
            self._error(
                f"Content-Length {shown(str(self._announced))} mais {self._size} octets", "RFC 9110 8.6"
            )
        if self._meta is None and not self._broken:
            self._walk_on(self._read_head(final=True))
        walk = self._walk
        if walk is not None and not self._broken:
            try:
                walk.finish()
            except DatasetRefused as refused:
                self._error(f"jeu de données tronqué ({refused})", "PS3.5 7")
            self._judge(walk)
        return self._facts(walk)

    # --- headers of the part ---

    def _headers(self, begin: PartBegin) -> str:
        """Judge the part's headers; return the transfer syntax they name, empty without one."""
        kinds = [value for name, value in begin.headers if name == "content-type"]
        for name, value in begin.headers:
            plain = value.lower() in ("binary", "8bit", "identity", "")
            if name in ("content-encoding", "content-transfer-encoding") and not plain:
                self._error(f"{name} : {shown(value, 40)} ; octets bruts attendus", "RFC 9110 8.4")
        length = begin.get("content-length")
        self._announced = int(length) if length and length.isdigit() and len(length) < 16 else None
        if len(kinds) != 1:
            self._error("Content-Type absent" if not kinds else "Content-Type en double", "DB.SO.85")
            return ""
        try:
            element = parse_media_type(kinds[0].encode("utf-8"))
            syntax = element.get("transfer-syntax")
        except FieldError:
            self._error("Content-Type illisible", "DB.SO.85")
            return ""
        return self._check_syntax(element, syntax)

    def _check_syntax(self, element: Element, syntax: str | None) -> str:
        if element.head != "application/dicom":
            self._error(f"type {shown(element.head)} : application/dicom attendu", "PS3.18 8.7.1")
        if not syntax:
            self._error("Content-Type sans transfer-syntax", "DB.SO.85")
            return ""
        if not is_uid(syntax):
            self._error(f"transfer-syntax {shown(syntax)} : pas un UID", "DB.SO.85")
            return ""
        self._check_allowed(syntax)
        return syntax

    def _check_allowed(self, syntax: str) -> None:
        if syntax == syntaxes.IMPLICIT_LE:
            self._error("Implicit VR Little Endian, interdite dans WADO-RS", "DB.SO.41 ; PS3.18 8.7.3")
        elif syntax == syntaxes.EXPLICIT_BE:
            self._error("Explicit VR Big Endian, interdite dans WADO-RS", "PS3.18 8.7.3")
        elif not syntaxes.is_shared(syntax):
            self._error(f"{syntaxes.describe(syntax)} : hors des tables 4 à 7", "DB.CS.83")

    # --- Part 10 ---

    def _read_head(self, *, final: bool) -> bytes:
        """Read preamble and file meta when they are there; return the bytes of the data set behind."""
        head = bytes(self._head)
        if len(head) < PREFIX + 8 and not final:
            return b""
        if head[128:PREFIX] != b"DICM":
            self._break("pas un fichier DICOM : « DICM » absent à l'octet 128", "PS3.10 7.1")
            return b""
        elements: dict[int, bytes] = {}
        end = meta_end(head, elements, final=final)
        if end is None:
            if final or len(head) > MAX_FILE_META:
                self._break("informations de fichier (groupe 0002) tronquées ou sans fin", "PS3.10 7.1")
            return b""
        self._head.clear()
        self._meta = {number: value.decode("latin-1").strip("\0 ") for number, value in elements.items()}
        self._check_meta(head, elements, end)
        return head[end:]

    def _check_meta(self, head: bytes, elements: dict[int, bytes], end: int) -> None:
        assert self._meta is not None
        if any(head[:128]):
            self._report.warning(
                "préambule non nul : place possible d'un programme", "PS3.10 7.1", part=self._number
            )
        for fault in meta_faults(elements, end):
            self._error(fault, "PS3.10 7.1")
        syntax = self._meta.get(SYNTAX, "")
        if self._syntax and syntax and syntax != self._syntax:
            self._error(
                f"transfer-syntax {self._syntax} dans l'en-tête, {shown(syntax)} dans le fichier",
                "DB.SO.85 ; PS3.10 7.1",
            )
            self._check_allowed(syntax)
        elif syntax and not self._syntax:
            self._check_allowed(syntax)
        syntax = syntax or self._syntax
        if syntax == syntaxes.EXPLICIT_BE or syntax in DEFLATED:
            self._broken = True  # told already; its elements are not ours to walk
        else:
            self._walk = DatasetWalk(implicit=syntax == syntaxes.IMPLICIT_LE)

    # --- data set ---

    def _walk_on(self, data: bytes) -> None:
        if self._walk is None or self._broken or not data:
            return
        try:
            self._walk.feed(data)
        except DatasetRefused as refused:
            self._break(f"jeu de données illisible ({refused})", "PS3.5 7")

    def _judge(self, walk: DatasetWalk) -> None:
        assert self._meta is not None
        for tag, name in _IDENTITY:
            value = walk.text(tag)
            if not value:
                self._error(f"{name} absent", "PS3.3 C.12.1")
            elif not is_uid(value):
                self._error(f"{name} : pas un UID", "PS3.5 9.1")
        for number, tag, name in (
            (INSTANCE, dataset_walk.SOP_INSTANCE, "SOPInstanceUID"),
            (CLASS, dataset_walk.SOP_CLASS, "SOPClassUID"),
        ):
            told, held = self._meta.get(number, ""), walk.text(tag)
            if told and held and told != held:
                self._error(f"{name} : le groupe 0002 et le jeu de données diffèrent", "PS3.10 7.1")
        if walk.disorder is not None:
            first, second = walk.disorder
            self._error(f"{tag_text(second)} après {tag_text(first)} : ordre croissant exigé", "PS3.5 7.1")
        if walk.odd is not None:
            self._error(f"{tag_text(walk.odd)} de longueur impaire", "PS3.5 7.1")
        if walk.pixels is not None:
            self._judge_pixels(walk, walk.pixels)

    def _judge_pixels(self, walk: DatasetWalk, pixels: Pixels) -> None:
        assert self._meta is not None
        syntax = self._meta.get(SYNTAX, "") or self._syntax
        if syntax not in syntaxes.TABLE:
            return
        if syntax not in syntaxes.ENCAPSULATED:
            if pixels.length is None:
                self._error("pixels encapsulés sous une syntaxe native", "PS3.5 A.4")
            else:
                self._judge_size(walk, pixels.length)
            return
        if pixels.length is not None:
            self._error("pixels natifs sous une syntaxe compressée", "PS3.5 A.4")
        elif pixels.fragments == 0:
            self._error("aucun fragment de pixels", "PS3.5 A.4")
        elif (codec := codec_of(pixels.first)) is not None and contradicts(codec, syntax):
            self._error(f"pixels en {codec.value} sous {syntaxes.describe(syntax)}", "PS3.5 A.4")

    def _judge_size(self, walk: DatasetWalk, length: int) -> None:
        numbers = [
            walk.number(tag)
            for tag in (
                dataset_walk.ROWS,
                dataset_walk.COLUMNS,
                dataset_walk.SAMPLES,
                dataset_walk.BITS_ALLOCATED,
            )
        ]
        frames = walk.text(dataset_walk.FRAMES) or "1"
        subsampled = walk.text(dataset_walk.PHOTOMETRIC).endswith(_SUBSAMPLED)
        if None in numbers or not frames.isdigit() or len(frames) > 9 or subsampled:
            return
        bits = int(frames)
        for number in numbers:
            bits *= number or 0
        due = (bits + 7) // 8
        if length != due + due % 2:
            self._error(
                f"{length} octets de pixels, {due + due % 2} attendus d'après l'en-tête", "PS3.5 8.1.1"
            )

    def _facts(self, walk: DatasetWalk | None) -> PartFacts:
        def uid(tag: int) -> str:
            value = walk.text(tag) if walk is not None else ""
            return value if is_uid(value) else ""

        syntax = self._syntax or (self._meta or {}).get(SYNTAX, "")
        return PartFacts(
            transfer_syntax=syntax if is_uid(syntax) else "",
            sop_class_uid=uid(dataset_walk.SOP_CLASS),
            sop_instance_uid=uid(dataset_walk.SOP_INSTANCE),
            study_uid=uid(dataset_walk.STUDY),
            series_uid=uid(dataset_walk.SERIES),
            patient_id=walk.text(dataset_walk.PATIENT_ID) if walk is not None else "",
            size=self._size,
        )

    def _break(self, text: str, clause: str) -> None:
        self._broken = True
        self._head.clear()
        self._error(text, clause)

    def _error(self, text: str, clause: str) -> None:
        self._report.error(text, clause, part=self._number)

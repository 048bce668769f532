"""Validating a captured WADO-RS answer of any size: is it whole, is it what a Source must send?

`ResponseCheck` takes the raw bytes of the answer, status line first, as they come; nothing is held but
the part being read's first kilobytes and the list of instances seen. It reads with the gateway's own
readers (`wado.answer`, `wado.multipart`), told not to stop at the first fault. Three questions in turn:
is the HTTP whole (RFC 9112), is the multipart what PS3.18 and DRIM-M want, is each part a sound instance
of the series asked for (`part_rules`). With a manifest, a fourth: is everything there that it lists.

Reports hold UIDs, never a patient's traits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from drimbox.conformance.part_rules import PartCheck, PartFacts
from drimbox.conformance.problem_rules import check_problem
from drimbox.conformance.report import Report, Severity, shown
from drimbox.dicom import syntaxes
from drimbox.kos.reading import Manifest
from drimbox.wado.answer import AnswerReader, Body, End, Event, Fault, Gravity, Head
from drimbox.wado.fields import FieldError, parse_media_type
from drimbox.wado.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    boundary_of,
)
from drimbox.wado.query import MAX_SMALL_BODY

#: Instances whose identity is remembered; a series has some thousands.
MAX_PARTS: Final = 100_000
_CHUNK: Final = 256 * 1024
_MISSING_SHOWN: Final = 3
_TYPE_QUOTED = re.compile(r';\s*type\s*=\s*"', re.IGNORECASE)
_SEVERITY = {
    Gravity.FATAL: Severity.ERROR,
    Gravity.WRONG: Severity.ERROR,
    Gravity.ODD: Severity.INFORMATION,
}


@attrs.frozen
class Expected:
    """What an answer should hold; empty strings and mappings say nothing."""

    study_uid: str = ""
    series_uid: str = ""
    #: SOP class by SOPInstanceUID, of every instance due; None when that is not known.
    instances: Mapping[str, str] | None = None


def expected_of(manifest: Manifest, series_uid: str) -> Expected:
    """Return what a manifest lists of a series; an empty `series_uid` means whatever series comes."""
    found = [series for series in manifest.series if series.series_uid == series_uid]
    instances = {each.sop_instance_uid: each.sop_class_uid for series in found for each in series.instances}
    return Expected(manifest.study_uid, series_uid, instances)


def validate_response(source: Path | BinaryIO, *, manifest: Manifest | None = None) -> Report:
    """Judge a captured answer (DB.SO.32, 41, 85; DB.CS.83; PS3.18 10.4; PS3.10).

    `source` is a file, read in pieces. `manifest` says which instances the series must hold. Raises
    `OSError` when the file cannot be read.
    """
    check = ResponseCheck(manifest=manifest)
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _read(check, file)
    return _read(check, source)


def _read(check: ResponseCheck, file: BinaryIO) -> Report:
    while data := file.read(_CHUNK):
        check.feed(data)
    return check.finish()


class ResponseCheck:
    """Judges one answer: `feed` its raw bytes, then `finish` once."""

    def __init__(self, *, expected: Expected | None = None, manifest: Manifest | None = None) -> None:
        """`expected` when the request is known; `manifest` alone finds the series in the answer."""
        self.report = Report("réponse WADO-RS")
        self._expected = expected
        self._manifest = manifest
        self._reader = AnswerReader(strict=False)
        self._head: Head | None = None
        self._ended = False
        self._small = bytearray()
        self._size = 0
        self._parser: MultipartParser | None = None
        self._part: PartCheck | None = None
        self._number = 0
        #: Parts by SOPInstanceUID; the class is what a manifest is compared with.
        self._seen: dict[str, str] = {}
        self._first: PartFacts | None = None
        self._syntaxes: dict[str, int] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the answer."""
        for event in self._reader.feed(data):
            self._event(event)

    def finish(self) -> Report:
        """Say that the capture has ended; return the report."""
        for event in self._reader.finish():
            self._event(event)
        head, report = self._head, self.report
        if head is None:
            return report
        report.facts["body_bytes"] = self._size
        if head.status == 200:
            self._finish_parts()
        else:
            check_problem(head, bytes(self._small), report)
        return report

    def _event(self, event: Event) -> None:
        match event:
            case Head():
                self._begin(event)
            case Body(data):
                self._body(data)
            case End(by_close):
                self._ended = True
                if by_close:
                    self.report.warning(
                        "fin donnée par la seule fermeture de la connexion : ni morceaux ni longueur",
                        "RFC 9112 6.3",
                    )
            case Fault():
                self.report.add(_SEVERITY[event.gravity], event.text, event.clause)

    # --- head ---

    def _begin(self, head: Head) -> None:
        report = self.report
        self._head = head
        report.facts["status"] = head.status
        if (coding := head.get("content-encoding")) not in (None, "identity"):
            report.error(f"Content-Encoding {shown(coding or '', 20)} non demandé", "RFC 9110 8.4")
        if head.status != 200:
            if head.status < 300:
                report.error(f"statut {head.status} : 200 attendu", "PS3.18 10.4.3")
            return
        kinds = head.all("content-type")
        if len(kinds) != 1:
            what = "absent" if not kinds else "en double"
            report.error(f"Content-Type {what}", "DB.SO.32 ; PS3.18 8.7.1")
        if kinds:
            self._content_type(kinds[0])

    def _content_type(self, value: str) -> None:
        report = self.report
        try:
            element = parse_media_type(value.encode("latin-1"))
            kind, syntax = element.get("type"), element.get("transfer-syntax")
        except FieldError:
            report.error("Content-Type illisible", "RFC 9110 8.3")
            return
        if element.head != "multipart/related":
            report.error(f"type {shown(element.head)} : multipart/related attendu", "PS3.18 8.7.1")
            return
        if kind is None:
            report.error('paramètre type="application/dicom" absent', "RFC 2387 3.1 ; PS3.18 8.7.1")
        elif kind.lower() != "application/dicom":
            report.error(f"type={shown(kind)} : application/dicom attendu", "PS3.18 8.7.1")
        elif _TYPE_QUOTED.search(value) is None:
            report.warning("type=application/dicom sans guillemets", "RFC 2045 5.1")
        if syntax is not None:
            report.inform(
                f"transfer-syntax={shown(syntax)} au niveau de la réponse : seul celui des parties compte",
                "DB.SO.85",
            )
        try:
            boundary = boundary_of(value.encode("latin-1"))
        except MultipartError:
            report.error("boundary absent ou illégal", "RFC 2046 5.1.1")
            return
        if len(boundary) < 16:
            report.warning("boundary court : qu'une image pourrait contenir", "RFC 2046 5.1.1")
        self._parser = MultipartParser(boundary)

    # --- body ---

    def _body(self, data: bytes) -> None:
        self._size += len(data)
        if self._parser is None:
            self._small += data[: MAX_SMALL_BODY - len(self._small)]
            return
        if self._parser.complete:
            if data.strip(b" \t\r\n"):
                self.report.warning("octets après le délimiteur de fin", "RFC 2046 5.1.1")
            return
        try:
            events = self._parser.feed(data)
        except MultipartError as error:
            self.report.error(f"multipart illisible ({error})", "RFC 2046 5.1", part=self._number or None)
            self._parser = None
            self._part = None
            return
        for event in events:
            match event:
                case PartData(piece):
                    if self._part is not None:
                        self._part.feed(piece)
                case PartBegin():
                    self._number += 1
                    self._part = PartCheck(event, self._number, self.report)
                case PartEnd():
                    self._part_ends()
                case _:
                    pass

    def _part_ends(self) -> None:
        assert self._part is not None
        facts = self._part.finish()
        self._part = None
        number, report = self._number, self.report
        if len(self._syntaxes) < len(syntaxes.TABLE) or facts.transfer_syntax in self._syntaxes:
            self._syntaxes[facts.transfer_syntax] = self._syntaxes.get(facts.transfer_syntax, 0) + 1
        self._same_series(facts)
        uid = facts.sop_instance_uid
        if not uid:
            return
        if uid in self._seen:
            report.error(f"instance {uid} envoyée deux fois", "PS3.18 10.4", part=number)
        elif len(self._seen) < MAX_PARTS:
            self._seen[uid] = facts.sop_class_uid
        elif len(self._seen) == MAX_PARTS:
            report.warning(f"plus de {MAX_PARTS} instances : la suite n'est plus comparée", "PS3.18 10.4")

    def _same_series(self, facts: PartFacts) -> None:
        """Hold a part against the first one, and against what was asked for."""
        number, report, expected = self._number, self.report, self._expected
        if self._first is None:
            self._first = facts
        for name, mine, first, due in (
            ("StudyInstanceUID", facts.study_uid, self._first.study_uid, expected and expected.study_uid),
            (
                "SeriesInstanceUID",
                facts.series_uid,
                self._first.series_uid,
                expected and expected.series_uid,
            ),
        ):
            if due and mine and mine != due:
                report.error(f"{name} : pas celui de la requête", "DB.SO.32", part=number)
            elif mine and first and mine != first:
                report.error(f"{name} différent de celui de la première partie", "DB.SO.32", part=number)
        if facts.patient_id != self._first.patient_id:
            report.warning("PatientID différent de celui de la première partie", "DB.SO.134", part=number)

    # --- end ---

    def _finish_parts(self) -> None:
        report = self.report
        if self._parser is not None and not self._parser.complete:
            where = f" (dans la partie {self._number})" if self._part is not None else ""
            report.error(f"délimiteur de fin absent : réponse tronquée{where}", "RFC 2046 5.1.1")
        elif self._parser is not None and self._number == 0:
            report.error("aucune partie", "PS3.18 10.4.3")
        report.facts["parts"] = self._number
        report.facts["instances"] = len(self._seen)
        report.facts["transfer_syntaxes"] = dict(self._syntaxes)
        if self._first is not None:
            report.facts["study_uid"] = self._first.study_uid
            report.facts["series_uid"] = self._first.series_uid
        report.facts["complete"] = self._ended and self._parser is not None and self._parser.complete
        expected = self._expected
        if self._manifest is not None and expected is None and self._first is not None:
            expected = expected_of(self._manifest, self._first.series_uid)
            if self._first.study_uid and self._first.study_uid != self._manifest.study_uid:
                report.error("l'examen n'est pas celui du KOS", "DB.SO.38")
                return
            if not expected.instances:
                report.error("le KOS ne liste pas cette série", "DB.CO.122")
                return
        if expected is not None and expected.instances is not None:
            self._compare(expected.instances)

    def _compare(self, due: Mapping[str, str]) -> None:
        report = self.report
        missing = [uid for uid in due if uid not in self._seen]
        if missing:
            some = ", ".join(missing[:_MISSING_SHOWN]) + (", …" if len(missing) > _MISSING_SHOWN else "")
            report.error(f"{len(missing)} instance(s) attendue(s) absente(s) : {some}", "DB.SO.32")
        extra = [uid for uid in self._seen if uid not in due]
        if extra:
            report.inform(
                f"{len(extra)} instance(s) en plus de celles attendues : le PACS a changé", "DB.SO.190"
            )
        other = [uid for uid, kind in self._seen.items() if kind and (due.get(uid) or kind) != kind]
        if other:
            report.error(f"SOPClassUID autre que dans le KOS : {other[0]}", "DB.SO.18")
        report.facts["missing"] = len(missing)
        report.facts["extra"] = len(extra)

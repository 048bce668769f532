"""Judging the `Accept` lines of a request: which transfer syntaxes, with which rank (DB.CO.84, DB.CS.83).

The tokenizer and the meaning are those of the gateway (`wado.fields`, `wado.accept`): what it would
refuse is an error here, with the status it would answer. What it forgives is told beside, range by
range, because another Source may not forgive it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from drimbox.conformance.report import Report, Severity, shown
from drimbox.conformance.request_text import HeaderLine
from drimbox.dicom import syntaxes
from drimbox.errors import DrimboxError
from drimbox.model import is_uid
from drimbox.wado.accept import Acceptable, parse
from drimbox.wado.fields import Element, FieldError, parse_elements

_Q = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?", re.ASCII)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]", re.ASCII)
_KNOWN = frozenset({"type", "transfer-syntax", "q", "boundary"})
_NEVER = {
    syntaxes.IMPLICIT_LE: "Implicit VR Little Endian, interdite dans WADO-RS",
    syntaxes.EXPLICIT_BE: "Explicit VR Big Endian, interdite dans WADO-RS",
}


def check_accept(lines: Sequence[HeaderLine], report: Report) -> Acceptable | None:
    """Judge every Accept line; return what they ask for, None when the gateway would refuse them."""
    ranges: list[tuple[int, Element]] = []
    before = report.counts[Severity.ERROR]
    for line in lines:
        try:
            found = parse_elements(line.value)
        except FieldError:
            report.error("en-tête Accept illisible", "RFC 9110 12.5.1", line=line.number)
            continue
        if _has_empty(line.value):
            report.warning(
                "élément vide dans la liste (virgule en trop)", "RFC 9110 5.6.1", line=line.number
            )
        ranges += [(line.number, element) for element in found]
    for number, element in ranges:
        _check_range(element, number, report)
    _check_repeats(ranges, report)
    try:
        acceptable = parse(line.value for line in lines)
    except DrimboxError as error:
        # The gateway's own words, unless the fault has just been told, range by range.
        if report.counts[Severity.ERROR] == before:
            where = lines[0].number if lines else None
            report.error(
                f"{error.title} : {error.detail} (réponse {error.status})", "DB.CO.123", line=where
            )
        return None
    _check_wishes(acceptable, report)
    return acceptable


def _has_empty(value: bytes) -> bool:
    """Say whether a list has an empty element; quoted strings do not count."""
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b'""', value)
    return any(not element.strip(b" \t") for element in bare.split(b","))


def _check_range(element: Element, line: int, report: Report) -> None:
    if element.head == "*/*":
        report.warning("« */* » vaut Explicit VR Little Endian seulement", "PS3.18 8.7.3", line=line)
        return
    if element.head and element.head != "multipart/related":
        report.inform(f"type {shown(element.head)} ignoré", "DB.SO.32", line=line)
        return
    names = [name for name, _ in element.parameters]
    for name in sorted({name for name in names if names.count(name) > 1}):
        report.error(f"paramètre {shown(name, 40)} donné deux fois", "RFC 9110 5.6.6", line=line)
    values = dict(element.parameters)
    if not element.head:
        report.warning(
            'type absent : écrire multipart/related; type="application/dicom"', "PS3.18 8.7.1", line=line
        )
    _check_type(element, values.get("type"), line, report)
    _check_syntax(values.get("transfer-syntax"), line, report)
    _check_q(values.get("q"), line, report)
    boundary = values.get("boundary")
    if boundary is not None and _BOUNDARY.fullmatch(boundary) is None:
        report.inform(
            "boundary illégal, que la source ignore : elle choisit le sien", "RFC 2046 5.1.1", line=line
        )
    for name in names:
        if name not in _KNOWN:
            report.inform(f"paramètre {shown(name, 40)} sans effet", "PS3.18 8.7.1", line=line)


def _check_type(element: Element, kind: str | None, line: int, report: Report) -> None:
    if kind is None:
        if element.head:
            report.error('paramètre type="application/dicom" absent', "PS3.18 8.7.1", line=line)
    elif kind.lower() != "application/dicom":
        report.inform(
            f"type {shown(kind)} ignoré : seul application/dicom est servi", "DB.SO.32", line=line
        )


def _check_syntax(uid: str | None, line: int, report: Report) -> None:
    if uid is None:
        report.warning(
            "transfer-syntax absent : vaut Explicit VR Little Endian", "PS3.18 8.7.3.5.2", line=line
        )
    elif uid == "*":
        report.warning("transfer-syntax=* : la source choisit, même avec perte", "DB.CO.84", line=line)
    elif not is_uid(uid):
        report.error(f"transfer-syntax {shown(uid)} : pas un UID", "PS3.5 9.1", line=line)
    elif uid in _NEVER:
        report.error(f"{uid} : {_NEVER[uid]}", "PS3.18 8.7.3", line=line)
    elif not syntaxes.is_shared(uid):
        report.warning(
            f"{syntaxes.describe(uid)} : hors des tables 4 à 7, aucune source ne l'enverra",
            "DB.CS.83",
            line=line,
        )


def _check_q(q: str | None, line: int, report: Report) -> None:
    if q is None:
        report.warning("q absent : vaut 1 ; classer les syntaxes par q", "DB.CO.84", line=line)
    elif _Q.fullmatch(q) is None:
        try:
            parse([b'multipart/related; type="application/dicom"; q=%s' % q.encode("ascii", "replace")])
            good = True
        except DrimboxError as error:
            good = error.status != 400
        if good:
            report.warning(
                f"q={shown(q, 20)} : au plus trois décimales, un chiffre avant le point",
                "RFC 9110 12.4.2",
                line=line,
            )
        else:
            report.error(f"q={shown(q, 20)} : un nombre de 0 à 1 attendu", "RFC 9110 12.4.2", line=line)


def _check_repeats(ranges: Sequence[tuple[int, Element]], report: Report) -> None:
    seen: dict[str, str] = {}
    for line, element in ranges:
        values = dict(element.parameters)
        uid, q = values.get("transfer-syntax"), values.get("q", "1")
        if uid is None:
            continue
        if seen.setdefault(uid, q) != q:
            report.warning(f"{shown(uid)} demandée deux fois avec des q différents", "DB.CO.84", line=line)


def _check_wishes(acceptable: Acceptable, report: Report) -> None:
    """Say what the whole list asks for."""
    if not acceptable.q(syntaxes.EXPLICIT_LE):
        report.warning(
            "Explicit VR Little Endian non acceptée : une image qu'aucune autre syntaxe ne porte "
            "ne pourra pas être envoyée",
            "PS3.18 8.7.3",
        )
    ranked = acceptable.ranked
    if ranked and not syntaxes.is_lossless(ranked[0][0]):
        report.inform(
            f"une syntaxe avec perte est préférée : {syntaxes.describe(ranked[0][0])}", "DB.CO.84"
        )
    missing = [uid for uid in syntaxes.SHARED if not acceptable.q(uid)]
    if missing:
        report.inform(
            "syntaxes des tables 4 à 7 non demandées : " + ", ".join(map(_short, missing)), "DB.CS.83"
        )


def _short(uid: str) -> str:
    """Return the end of a syntax's UID, as people call it."""
    return uid.removeprefix("1.2.840.10008.1.2")

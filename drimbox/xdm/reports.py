"""CR.TXT: which reports a manifest was published for, and for whom (requirements.md 3.11).

Two dialects are read: `idCR;root_INS;extension_INS` of the specification, which is the one written, and
`idCR_root;idCR_ext;INS_ext;INS_root;IPP_ext;IPP_root` of the public proof of concept. The domain of the
INS tells them apart: it is one of a closed list (interfaces.md 0.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

from drimbox.model import INS_OIDS, Identifier

#: Largest file read, bytes, and reports of one manifest: more than any study ever has.
MAX_BYTES: Final = 64 * 1024
MAX_LINES: Final = 100
#: Longest document identifier.
_MAX_ID = 1024
_BREAKS = re.compile(r"[\r\n]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ReportsRefused(Exception):
    """This CR.TXT cannot be used; the text, in French, says why without patient data."""


@attrs.frozen
class ReportLine:
    """One report of one patient."""

    #: CDA id: its root, or `root^extension`.
    document_id: str
    ins: str
    ins_oid: str
    ipp: Identifier | None = None


def read_reports(data: bytes) -> tuple[ReportLine, ...]:
    """Read a CR.TXT of either dialect; the same report twice counts once.

    Raises `ReportsRefused` for lines of neither dialect.
    """
    if len(data) > MAX_BYTES:
        raise ReportsRefused(f"CR.TXT de plus de {MAX_BYTES // 1024} Kio")
    text = data.decode("utf-8-sig", "replace") if _is_utf8(data) else data.decode("latin-1")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    found = dict.fromkeys(_line(line) for line in lines if line)
    if len(found) > MAX_LINES:
        raise ReportsRefused(f"CR.TXT de plus de {MAX_LINES} lignes")
    return tuple(found)


def write_reports(lines: Iterable[ReportLine]) -> bytes:
    """Write the lines in the dialect of the specification, each ended by CRLF.

    A line with an IPP is for ourselves alone and written in the other one, which has room for it.
    """
    return "".join(f"{_written(line)}\r\n" for line in lines).encode("utf-8")


def _written(line: ReportLine) -> str:
    document = _BREAKS.sub(" ", line.document_id)
    if line.ipp is not None and not _BREAKS.search(line.ipp.value + line.ipp.authority):
        root, _, extension = document.partition("^")
        if ";" not in document + line.ipp.value + line.ipp.authority:
            return ";".join((root, extension, line.ins, line.ins_oid, line.ipp.value, line.ipp.authority))
    return ";".join((document, line.ins_oid, line.ins))


def _line(line: str) -> ReportLine:
    fields = [field.strip() for field in line.split(";")]
    if len(fields) >= 3 and fields[-2] in INS_OIDS:
        # An identifier may hold a semicolon, an INS never does.
        found = ReportLine(";".join(fields[:-2]), fields[-1], fields[-2])
    elif len(fields) == 6 and fields[3] in INS_OIDS:
        root, extension, ins, oid, ipp, authority = fields
        document = f"{root}^{extension}" if extension else root
        found = ReportLine(document, ins, oid, Identifier(ipp, authority) if ipp and authority else None)
    else:
        raise ReportsRefused("ligne de CR.TXT sans domaine d'INS connu à sa place")
    if _CONTROL.search(line):
        raise ReportsRefused("CR.TXT avec un caractère de contrôle")
    if not found.document_id.strip("^") or not found.ins or len(found.document_id) > _MAX_ID:
        raise ReportsRefused("ligne de CR.TXT sans compte rendu ou sans INS")
    return found


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True

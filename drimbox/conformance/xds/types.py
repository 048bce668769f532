"""Forms of the HL7 v2 data types in XDS metadata: DTM, CX, XCN, XON (ITI TF-3 4.2.3.1.7).

Each function says whether a value has the form; none says more about it, so nothing of a patient gets
into a text.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from drimbox.model import INS_OIDS

_OID: Final = r"[0-2](?:\.(?:0|[1-9][0-9]*))+"
#: What completes a DTM of less than seconds.
_FIRST: Final = "00000101000000"
_DTM = re.compile(r"([0-9]{4}(?:[0-9]{2}){0,5})([+-][0-9]{4})?", re.ASCII)
_CX = re.compile(rf"([^\^&~|]+)\^\^\^&({_OID})&ISO\^(NH|PI)", re.ASCII)
_REFERENCE = re.compile(
    rf"([^\^&~|]+)\^\^\^(?:&({_OID})&ISO)?\^(urn:ihe:iti:xds:[0-9]{{4}}:[A-Za-z]+)", re.ASCII
)
_PERSON = re.compile(
    r"([^\^&~|]+)\^([^\^&~|]+)\^([^\^&~|]*)\^{6}&1\.2\.250\.1\.71\.4\.2\.1&ISO\^(D\^\^\^IDNPS|U\^\^\^EI)",
    re.ASCII,
)
_INSTITUTION = re.compile(
    r"([^\^&~|]+)\^{5}&1\.2\.250\.1\.71\.4\.2\.2&ISO\^IDNST\^\^\^([^\^&~|]+)", re.ASCII
)
_STRUCTURE = re.compile(r"[0-9AB]{9}|[12][0-9AB]{9}|[34][0-9]{14}|[0-9]{14}", re.ASCII)
_ESCAPE = re.compile(r"\\([FSTRE])\\")
_DELIMITERS: Final = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}
_MATRICULE = re.compile(r"[1-478][0-9]{4}(?:[0-9]{2}|2[AB])[0-9]{8}", re.ASCII)


def is_oid(value: str) -> bool:
    """Say whether this is an OID of at most 64 characters."""
    return len(value) <= 64 and re.fullmatch(_OID, value, re.ASCII) is not None


def time_fault(value: str) -> str:
    """Return what is wrong with a DTM: `form`, `zone` (one follows), `short` (no seconds), or nothing."""
    match = _DTM.fullmatch(value)
    if match is None or instant(value) is None:
        return "form"
    if match[2]:
        return "zone"
    return "short" if len(match[1]) < 14 else ""


def instant(value: str) -> datetime | None:
    """Return the digits of a DTM as if they were UTC, whatever zone follows; None when it is none."""
    match = _DTM.fullmatch(value)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1] + _FIRST[len(match[1]) :] + "+0000", "%Y%m%d%H%M%S%z")
    except ValueError:
        return None


def patient(value: str, kinds: tuple[str, ...] = ("NH",)) -> tuple[str, str] | None:
    """Return (INS, domain) of a CX whose authority is an INS domain and whose type is allowed, or None."""
    match = _CX.fullmatch(value)
    if match is None or match[3] not in kinds or match[2] not in INS_OIDS:
        return None
    return match[1], match[2]


def local_patient(value: str) -> bool:
    """Say whether this is the CX of a patient in any domain."""
    return _CX.fullmatch(value) is not None


def key_holds(matricule: str) -> bool:
    """Say whether this has the form of an INS and its two-digit key is right."""
    if _MATRICULE.fullmatch(matricule) is None:
        return False
    number = int(matricule[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(matricule[13:])


def person(value: str) -> bool:
    """Say whether this is the XCN of a professional (`D…IDNPS`) or of a device (`U…EI`)."""
    return _PERSON.fullmatch(value) is not None


def is_device(value: str) -> bool:
    """Say whether this XCN names a device."""
    match = _PERSON.fullmatch(value)
    return match is not None and match[4].startswith("U")


def institution(value: str) -> str | None:
    """Return the structure identifier of an XON, None when it is none."""
    match = _INSTITUTION.fullmatch(value)
    return None if match is None else match[2]


def is_structure(identifier: str) -> bool:
    """Say whether this may be a Struct_IdNat: FINESS, SIREN, SIRET, RPPS-rank or technical number."""
    return _STRUCTURE.fullmatch(identifier) is not None


def reference(value: str) -> tuple[str, str, str] | None:
    """Return (identifier, authority, type) of a CXi of referenceIdList, None when it is none."""
    match = _REFERENCE.fullmatch(value)
    return None if match is None else (match[1], match[2] or "", match[3])


def unescaped(identifier: str) -> str:
    """Undo the escapes of HL7 v2 in an identifier (HL7 v2.5 2.7)."""
    return _ESCAPE.sub(lambda found: _DELIMITERS[found[1]], identifier)


def letters(name: str) -> str:
    """Return a name without case and punctuation: delimiters of HL7 inside it became blanks."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())

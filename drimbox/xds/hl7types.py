"""HL7 v2 data types as XDS writes them inside slots: CX, XCN, XON, CE, and points in time.

Theory of operation. Every value is built from fields that came from outside, so the delimiters of HL7
are neutralised: in an identifier by HL7's own escapes (nothing is lost, two identifiers never become
one), in a name or a title by a blank (nobody reads `\\T\\` in a name). Instants leave as digits only:
in UTC when the configuration says "utc" (ITI TF-3), else as the local digits the samples carry.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from drimbox.model import RPPS_OID, STRUCTURE_OID, Identifier, Organization, Patient, Person

_ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
_DELIMITERS = re.compile(r"[\\|^&~\s]+")
_TS = re.compile(r"(\d{4}(?:\d\d){0,5})(?:\.\d{1,6})?([+-]\d{4})?", re.ASCII)
#: HL7 v2.5 XON.1 holds 50 characters; a slot value 256 in all.
_MAX_NAME = 50


def escaped(identifier: str) -> str:
    """Return the identifier with HL7 delimiters escaped, lossless (HL7 v2.5 2.7)."""
    return "".join(_ESCAPES.get(c, c) for c in identifier)


def words(text: str) -> str:
    """Return the text with HL7 delimiters and runs of blanks made one blank, at most 50 characters."""
    return _DELIMITERS.sub(" ", text).strip()[:_MAX_NAME].rstrip()


def cx(value: str, authority: str, kind: str) -> str:
    """Return `value^^^&authority&ISO^kind`: CX, and CXi for referenceIdList."""
    return f"{escaped(value)}^^^&{escaped(authority)}&ISO^{kind}"


def patient_id(patient: Patient, kind: str = "NH") -> str:
    """Return the INS as patientId (NH), or as another CX type."""
    return cx(patient.ins, patient.ins_oid, kind)


def xcn_professional(person: Person) -> str:
    """Return a health professional as XCN; empty when the report gives no identifier."""
    if not person.id:
        return ""
    name = f"{words(person.family)}^{words(person.given)}"
    return f"{escaped(person.id)}^{name}^^^^^^&{RPPS_OID}&ISO^D^^^IDNPS"


def xcn_device(device_id: str, name: str, vendor: str) -> str:
    """Return this gateway as XCN, the way the newest samples name the author."""
    return f"{escaped(device_id)}^{words(name)}^{words(vendor)}^^^^^^&{RPPS_OID}&ISO^U^^^EI"


def xon(organization: Organization) -> str:
    """Return a health structure as XON: the name is cut if it must be, the identifier never."""
    name = words(organization.name)
    return f"{name}^^^^^&{STRUCTURE_OID}&ISO^IDNST^^^{escaped(organization.id)}"


def source_patient_info(patient: Patient) -> tuple[str, ...]:
    """Return the PID fields of sourcePatientInfo, those the report gives (interfaces.md 4.3)."""
    lines = [f"PID-5|{words(patient.family)}^{words(patient.given)}^^^^^L"]
    if patient.birth_date:
        lines.append(f"PID-7|{escaped(patient.birth_date)}")
    if patient.sex:
        lines.append(f"PID-8|{escaped(patient.sex)}")
    if patient.birth_place:
        lines.append(f"PID-11|^^^^^^BDL^^{escaped(patient.birth_place)}")
    return tuple(lines)


def source_patient_id(patient: Patient, ipp: Identifier | None, which: str) -> str:
    """Return sourcePatientId: the INS, or the IPP when `which` is "ipp" and the report has one."""
    if which == "ipp" and ipp is not None:
        return cx(ipp.value, ipp.authority, "PI")
    return patient_id(patient, "PI")


def digits(moment: datetime, local_zone: timezone | None) -> str:
    """Return `YYYYMMDDHHMMSS` of an aware instant: in `local_zone`, or in UTC when it is None."""
    if moment.tzinfo is None:
        raise ValueError("an instant without time zone names no instant")
    return moment.astimezone(local_zone or UTC).strftime("%Y%m%d%H%M%S")


def zone_of(ts: str) -> timezone | None:
    """Return the zone an HL7 TS carries (`+0100`), None when it carries none or is no TS."""
    match = _TS.fullmatch(ts.strip())
    return parse_offset(match[2]) if match and match[2] else None


def parse_offset(offset: str) -> timezone | None:
    """Return the zone of `+HHMM` (HL7 TS, DICOM 0008,0201), None when it is not one."""
    match = re.fullmatch(r"([+-])(\d\d)(\d\d)", offset.strip(), re.ASCII)
    if match is None or int(match[2]) > 14 or int(match[3]) > 59:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes))


def service_time(ts: str, zone: timezone, local: bool) -> str:
    """Return an act's HL7 TS as XDS DTM: 14 digits in UTC, or its own digits when `local`.

    `zone` is assumed when the value carries none. A value of less than minutes has no place in UTC: it
    is returned as it is (a DTM may stop at the day). Anything that is not a TS gives the empty string,
    because this date is optional and a wrong one would hide the exam from searches.
    """
    match = _TS.fullmatch(ts.strip())
    if match is None:
        return ""
    value = match[1]
    if len(value) < 12:
        return value[:8] if len(value) == 10 else value
    own_zone = parse_offset(match[2]) if match[2] else None
    try:
        moment = datetime.strptime(value.ljust(14, "0"), "%Y%m%d%H%M%S").replace(tzinfo=own_zone or zone)
        return value.ljust(14, "0") if local else digits(moment, None)
    except (ValueError, OverflowError):
        return ""

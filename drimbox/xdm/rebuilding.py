"""From a manifest loaded from an archive to the report and the submission it once came from (DB.SO.30).

The report itself is not in an archive. What an update or a withdrawal needs of it is: the patient is in
manifest and metadata, orders and study too, the act in the codes and the text, who vouches for it and for
which structure in the metadata (VIHF from the archived submission, requirements.md 5.5), visibility in the
confidentiality codes. Instants in metadata carry no zone; the manifest's creation, which does, tells which
one they are written in.
"""

from __future__ import annotations

from datetime import UTC, datetime, timezone

import attrs

from drimbox.model import (
    INS_OIDS,
    Identifier,
    Instance,
    MessageAction,
    Organization,
    Patient,
    Report,
    ReportMessage,
    RequestIds,
    Series,
    Study,
    StudyAct,
    Visibility,
)
from drimbox.ports import Submission
from drimbox.xdm import entries
from drimbox.xdm.checking import TakenKos
from drimbox.xdm.reports import ReportLine
from drimbox.xds import codes
from drimbox.xds.hl7types import parse_offset

#: Years in which a manifest can have been submitted.
_YEARS = range(1970, 2200)
#: Confidentiality codes of HL7; the others are flags.
_HL7_CONFIDENTIALITY = "2.16.840.1.113883.5.25"


def submitted_at(taken: TakenKos) -> datetime:
    """Return when it was submitted, as far as can be told; never raises."""
    for digits in (taken.submission_set.submission_time, taken.entry.submission_time):
        instant = _instant(digits, _zone(taken))
        if instant is not None:
            return instant
    manifest = taken.manifest
    return (
        _instant(manifest.creation_date + manifest.creation_time[:6], parse_offset(manifest.timezone))
        or _instant(taken.entry.creation_time, _zone(taken))
        or datetime(1970, 1, 1, tzinfo=UTC)
    )


def structure_of(taken: TakenKos) -> Organization:
    """Return the structure that published it; empty when the metadata name none."""
    for found in (taken.entry.institution, taken.submission_set.institution):
        if found.id:
            return found
    return Organization(taken.manifest.institution_id, taken.manifest.institution_name)


def report_of(taken: TakenKos, line: ReportLine | None) -> Report:
    """Return the report `line` names, as far as manifest and metadata tell it."""
    entry, manifest = taken.entry, taken.manifest
    author = entry.author if entry.author.id else taken.submission_set.author
    plain = [code.value for code in entry.confidentiality if code.scheme == _HL7_CONFIDENTIALITY]
    zone = _zone(taken)
    return Report(
        document_id=line.document_id if line is not None else "",
        set_id="",
        version="",
        patient=_patient(taken),
        ipp=_ipp(entry, line),
        requests=_requests(taken),
        acts=(
            StudyAct(
                study_uid=manifest.study_uid,
                modalities=entry.modalities,
                regions=entry.regions,
                description=manifest.act,
                start=_zoned(entry.service_start, zone),
                stop=_zoned(entry.service_stop, zone),
                practice_setting=entry.practice,
            ),
        ),
        structure=structure_of(taken),
        author=author,
        author_organization=structure_of(taken),
        author_role="",
        legal_authenticator=entry.legal_authenticator if entry.legal_authenticator.id else author,
        effective_time=_zoned(entry.creation_time, zone),
        confidentiality=next((value for value in ("V", "R") if value in plain), "N"),
        language=entry.language or "fr-FR",
        title="",
        replaces=None,
        facility_type=entry.facility,
    )


def message_of(taken: TakenKos, line: ReportLine | None) -> ReportMessage:
    """Return the message that such a report would have come in."""
    report = report_of(taken, line)
    return ReportMessage(
        control_id=taken.manifest.sop_instance_uid,
        trigger="XDM",
        sending_application="",
        sending_facility="",
        action=MessageAction.NEW,
        ipp=report.ipp,
        ins_qualified=True,
        visibility=_visibility(taken.entry),
        to_dmp=True,
        secret_connection=False,
        visibility_change_only=False,
        patient_class=codes.patient_class(taken.submission_set.content_type),
        prt_structure=None,
        document=b"",
        ins=Identifier(report.patient.ins, report.patient.ins_oid),
        announced_id=report.document_id,
        sent_at=submitted_at(taken),
    )


def study_of(taken: TakenKos) -> Study:
    """Return the study as the manifest lists it."""
    manifest = taken.manifest
    return Study(
        study_uid=manifest.study_uid,
        series=tuple(
            Series(
                each.series_uid,
                each.modality,
                tuple(
                    Instance(one.sop_instance_uid, one.sop_class_uid, one.number) for one in each.instances
                ),
                each.number,
                each.description,
            )
            for each in manifest.series
        ),
        date=manifest.study_date,
        time=manifest.study_time,
        description=manifest.study_description,
    )


def submission_of(taken: TakenKos, line: ReportLine | None, structure_id: str) -> Submission:
    """Return what was submitted, for later updates and withdrawals; it is never sent again as it is."""
    message = message_of(taken, line)
    return Submission(
        kos=taken.kos,
        sop_instance_uid=taken.manifest.sop_instance_uid,
        submission_uid=taken.submission_set.unique_id,
        signature_uid=taken.signature_uid,
        submission_time=submitted_at(taken),
        report=report_of(taken, line),
        visibility=message.visibility,
        secret_connection=message.secret_connection,
        patient_class=message.patient_class,
        study=study_of(taken),
        structure_id=structure_id,
    )


# --- parts ------------------------------------------------------------------------------------------


def _patient(taken: TakenKos) -> Patient:
    """Return the patient of the manifest; what it leaves out is taken from the metadata."""
    known, told = taken.manifest.patient, taken.entry.patient_info
    name = [part.strip() for part in [*told.get("PID-5", "").split("^"), ""][:2]]
    place = [*told.get("PID-11", "").split("^"), *[""] * 9][8]
    return attrs.evolve(
        known,
        ins=taken.entry.patient.value,
        ins_oid=taken.entry.patient.authority,
        family=known.family or name[0],
        given=known.given or name[1],
        birth_date=known.birth_date or told.get("PID-7", ""),
        sex=known.sex or told.get("PID-8", ""),
        birth_place=known.birth_place or place.strip(),
    )


def _ipp(entry: entries.DocumentEntry, line: ReportLine | None) -> Identifier | None:
    told = entries.identifier(entry.source_patient)
    if told is not None and told.authority not in INS_OIDS:
        return told
    return line.ipp if line is not None else None


def _requests(taken: TakenKos) -> tuple[RequestIds, ...]:
    """Return the orders of the manifest; of its metadata when it has none, paired by their place."""
    whole = tuple(pair for pair in taken.manifest.requests if pair.accession.value and pair.order.value)
    if whole:
        return whole
    found = [
        [Identifier(each.value, each.authority) for each in taken.entry.references if each.kind == kind]
        for kind in (codes.ACCESSION_TYPE, codes.ORDER_TYPE)
    ]
    return tuple(RequestIds(accession, order) for accession, order in zip(*found, strict=False))


def _visibility(entry: entries.DocumentEntry) -> Visibility:
    values = {code.value for code in entry.confidentiality}
    return Visibility(
        masked_to_professionals=codes.MASKED.value in values,
        hidden_from_patient=codes.HIDDEN_FROM_PATIENT.value in values,
        hidden_from_representatives=codes.HIDDEN_FROM_REPRESENTATIVES.value in values,
    )


def _zone(taken: TakenKos) -> timezone:
    """Return the zone of the metadata's instants: the manifest's own, or UTC (interfaces.md 4.3)."""
    manifest = taken.manifest
    zone = parse_offset(manifest.timezone)
    if zone is None:
        return UTC
    created = _instant(manifest.creation_date + manifest.creation_time[:6], zone)
    if created is not None and taken.entry.creation_time[:14] == f"{created.astimezone(UTC):%Y%m%d%H%M%S}":
        return UTC
    return zone


def _instant(digits: str, zone: timezone | None) -> datetime | None:
    whole = digits[:14]
    if len(whole) < 8 or not whole.isdigit():
        return None
    try:
        instant = datetime.strptime(whole.ljust(14, "0"), "%Y%m%d%H%M%S").replace(tzinfo=zone or UTC)
    except ValueError:
        return None
    return instant if instant.year in _YEARS else None


def _zoned(digits: str, zone: timezone) -> str:
    """Return the HL7 TS of digits written in `zone`; as they are when they stop before the minutes."""
    if len(digits) < 12 or not digits.isdigit():
        return digits
    minutes = int((zone.utcoffset(None)).total_seconds()) // 60
    sign = "-" if minutes < 0 else "+"
    return f"{digits}{sign}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"

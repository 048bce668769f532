"""The SubmitObjectsRequest of one submission (ITI-41 with the imaging metadata of RAD-68).

Theory of operation. Pure functions of the submission and the configuration: no clock, no random number.
A submission set holds two documents, the manifest (`DocumentKOS`) and its signature (`Signature01`),
tied by HasMember and `signs`; a replacement adds RPLC from the new manifest to the registry's entryUUID
of the old one. Identity and request identifiers come from the report alone (DB.SO.105); the PACS adds
its modalities. All instants are those of the submission and of the manifest, written in one zone, else a
set would look older than its document (interfaces.md 4.3).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from datetime import UTC, timezone

import attrs

from drimbox.errors import ReportNotInterpretable
from drimbox.model import DCM_OID, SNOMED_OID, Code, Person, Report
from drimbox.ports import Removal, Submission
from drimbox.xds import codes, ebrim, hl7types
from drimbox.xds.manifest import ManifestFacts, read_facts
from drimbox.xds.sender import Sender
from drimbox.xml import Element, serialize

SET_ID = "SubmissionSet01"
KOS_ID = "DocumentKOS"
SIGNATURE_ID = "Signature01"


@attrs.frozen
class _Times:
    """Instants of one submission, already written."""

    submission: str
    creation: str
    start: str
    stop: str


def submission_metadata(
    sender: Sender, submission: Submission, signature: bytes, replaces: str | None = None
) -> bytes:
    """Return the SubmitObjectsRequest, UTF-8 without declaration; the same arguments, the same bytes.

    `signature` is the signature document as sent; `replaces` the entryUUID of the manifest this one takes
    the place of. Raises `ReportNotInterpretable` (E005) when the report lacks what XDS cannot do without,
    `ebrim.ValueTooLong` for a value the registry cannot hold, and `ValueError` when the submission
    contradicts itself (manifest of another identifier, study that the report does not cite).
    """
    numbering = ebrim.Numbering()
    times = _times(sender, submission)
    objects = [
        _submission_set(
            sender,
            submission.report,
            numbering,
            unique_id=submission.submission_uid,
            time=times.submission,
            patient_class=submission.patient_class,
        ),
        _kos_entry(sender, submission, numbering, times),
        _signature_entry(sender, submission, numbering, times, signature),
        *_associations(submission.submission_uid, replaces),
    ]
    return serialize(ebrim.submit_objects_request(objects))


def removal_metadata(sender: Sender, removal: Removal, entry_uuid: str) -> bytes:
    """Return the SubmitObjectsRequest that withdraws a manifest: TD3.3c (interfaces.md 4.8).

    `entry_uuid` is the registry's identifier of the entry. Raises `ReportNotInterpretable` (E005) and
    `ebrim.ValueTooLong` as `submission_metadata` does.
    """
    local = sender.settings.times == "local"
    zone = hl7types.zone_of(removal.report.effective_time) if local else None
    package = _submission_set(
        sender,
        removal.report,
        ebrim.Numbering(),
        unique_id=removal.submission_uid,
        time=hl7types.digits(removal.submission_time, zone),
        patient_class=removal.patient_class,
    )
    change = ebrim.association(
        _association_id(removal.submission_uid, "removal"),
        codes.UPDATE_STATUS,
        SET_ID,
        registry_uuid(entry_uuid),
        {"OriginalStatus": codes.APPROVED, "NewStatus": codes.DELETED},
    )
    return serialize(ebrim.submit_objects_request([package, change]))


def registry_uuid(value: str) -> str:
    """Return an entryUUID in the form an association's target wants: `urn:uuid:…`."""
    return value if value.startswith("urn:uuid:") else "urn:uuid:" + value


def facility_type(report: Report) -> Code:
    """Return the report's facility type; raises `ReportNotInterpretable` (E005) when it has none.

    XDS (healthcareFacilityTypeCode) and VIHF (Secteur_Activite) both need it, and a made-up one would be
    a false statement about the structure.
    """
    if report.facility_type is None or not report.facility_type.value:
        raise ReportNotInterpretable("le compte rendu ne donne pas le secteur d'activité de la structure")
    return report.facility_type


# --- instants -------------------------------------------------------------------------------------


def _times(sender: Sender, submission: Submission) -> _Times:
    report_zone = hl7types.zone_of(submission.report.effective_time)
    facts = _checked_facts(submission, report_zone)
    zone = facts.zone or report_zone or UTC
    local = sender.settings.times == "local"
    written: timezone | None = zone if local else None
    start, stop = _act_times(submission)
    # An act without zone is in the report's own (interfaces.md 4.3); the PACS knows none either.
    assumed = report_zone or zone
    begun, ended = (hl7types.service_time(each, assumed, local) for each in (start, stop))
    return _Times(
        submission=hl7types.digits(submission.submission_time, written),
        creation=hl7types.digits(facts.created or submission.submission_time, written),
        start=begun,
        # An act that ends before it begins is a slip of the report: its end is not told (XDS may lack it).
        stop="" if _earlier(ended, begun) else ended,
    )


def _earlier(one: str, other: str) -> bool:
    """Say whether a DTM is before another, as far as both go."""
    return one[: len(other)] < other[: len(one)]


def _checked_facts(submission: Submission, report_zone: timezone | None) -> ManifestFacts:
    facts = read_facts(submission.kos, report_zone)
    if facts.sop_instance_uid != submission.sop_instance_uid:
        raise ValueError("the manifest does not carry the identifier of its submission")
    return facts


def _act_times(submission: Submission) -> tuple[str, str]:
    """Return start and stop of the study's act; the study's own instant when the report gives no start.

    Without a start nobody who searches by date of exam would find the study.
    """
    acts = [act for act in submission.report.acts if act.study_uid == submission.study.study_uid]
    start = next((act.start for act in acts if act.start), "")
    stop = next((act.stop for act in acts if act.stop), "")
    if not start:
        start = submission.study.date + submission.study.time.split(".")[0]
    return start, stop


# --- codes ----------------------------------------------------------------------------------------


def event_codes(submission: Submission) -> tuple[Code, ...]:
    """Return eventCodeList: distinct modalities of report and PACS, then distinct regions of the report.

    The schemes are those of the newest samples, DCM and SNOMED CT, whatever the report's. Raises
    `ValueError` when the report does not cite the study.
    """
    acts = [act for act in submission.report.acts if act.study_uid == submission.study.study_uid]
    if not acts:
        raise ValueError("the report does not cite the study of the submission")
    modalities = {code.value: code.display for act in acts for code in act.modalities}
    for series in submission.study.series:
        if series.modality and codes.is_acquisition(series.modality):
            modalities.setdefault(series.modality, "")
    regions = {code.value: code.display for act in acts for code in act.regions}
    return (
        *(Code(value, DCM_OID, text or codes.modality_text(value)) for value, text in modalities.items()),
        *(Code(value, SNOMED_OID, text) for value, text in regions.items()),
    )


def reference_ids(sender: Sender, submission: Submission) -> tuple[str, ...]:
    """Return referenceIdList: accession and order of every pair of the report, and the study, once each."""
    study = hl7types.cx(submission.study.study_uid, sender.settings.study_uid_authority, codes.STUDY_TYPE)
    values: list[str] = []
    for request in submission.report.requests:
        accession, order = request.accession, request.order
        values.append(hl7types.cx(accession.value, accession.authority, codes.ACCESSION_TYPE))
        values.append(study)
        values.append(hl7types.cx(order.value, order.authority, codes.ORDER_TYPE))
    return tuple(dict.fromkeys([*values, study]))


# --- objects --------------------------------------------------------------------------------------


def _submission_set(
    sender: Sender,
    report: Report,
    numbering: ebrim.Numbering,
    *,
    unique_id: str,
    time: str,
    patient_class: str,
) -> Element:
    package = ebrim.ObjectBuilder("RegistryPackage", SET_ID, numbering)
    package.slot("submissionTime", time)
    package.name("Références d'objets d'un examen d'imagerie")
    package.author(codes.SET_AUTHOR, _author(sender, report), hl7types.xon(sender.institution))
    _code(package, codes.SET_CONTENT_TYPE, codes.content_type(patient_class))
    package.node(codes.SUBMISSION_SET_NODE)
    patient = hl7types.patient_id(report.patient)
    package.identifier(codes.SET_PATIENT_ID, "XDSSubmissionSet.patientId", patient)
    package.identifier(codes.SET_SOURCE_ID, "XDSSubmissionSet.sourceId", sender.appliance.oid)
    package.identifier(codes.SET_UNIQUE_ID, "XDSSubmissionSet.uniqueId", unique_id)
    return package.build()


def _kos_entry(
    sender: Sender, submission: Submission, numbering: ebrim.Numbering, times: _Times
) -> Element:
    report, settings = submission.report, sender.settings
    entry = ebrim.ObjectBuilder(
        "ExtrinsicObject", KOS_ID, numbering, mimeType="application/dicom", objectType=codes.STABLE_DOCUMENT
    )
    entry.slot("creationTime", times.creation)
    entry.slot("submissionTime", times.submission)
    entry.slot("languageCode", report.language or "fr-FR")
    entry.slot("legalAuthenticator", hl7types.xcn_professional(report.legal_authenticator))
    entry.slot("serviceStartTime", times.start)
    entry.slot("serviceStopTime", times.stop)
    source_id = hl7types.source_patient_id(report.patient, report.ipp, settings.source_patient_id)
    entry.slot("sourcePatientId", source_id)
    _content(entry, submission.kos)
    entry.slot("sourcePatientInfo", *hl7types.source_patient_info(report.patient))
    entry.slot(codes.REFERENCE_ID_LIST, *reference_ids(sender, submission))
    entry.name("Reference d'Objets d'un Examen d'Imagerie")
    entry.description("KOS")
    entry.author(codes.AUTHOR, _author(sender, report), hl7types.xon(sender.institution))
    _code(entry, codes.CLASS_CODE, codes.IMAGING)
    _code(entry, codes.TYPE_CODE, codes.IMG_KOS)
    _codes(entry, codes.CONFIDENTIALITY, codes.confidentiality(submission.visibility))
    _code(entry, codes.FORMAT_CODE, codes.KOS_FORMAT)
    _place(entry, submission)
    _codes(entry, codes.EVENT_CODE, event_codes(submission))
    _identifiers(entry, report, submission.sop_instance_uid)
    return entry.build()


def _signature_entry(
    sender: Sender, submission: Submission, numbering: ebrim.Numbering, times: _Times, signature: bytes
) -> Element:
    report = submission.report
    entry = ebrim.ObjectBuilder(
        "ExtrinsicObject", SIGNATURE_ID, numbering, mimeType="text/xml", objectType=codes.STABLE_DOCUMENT
    )
    for name in ("creationTime", "submissionTime", "serviceStartTime", "serviceStopTime"):
        entry.slot(name, times.submission)
    entry.slot("languageCode", "art")
    entry.slot("legalAuthenticator", hl7types.xcn_professional(report.legal_authenticator))
    entry.slot("sourcePatientId", hl7types.patient_id(report.patient))
    _content(entry, signature)
    entry.slot(codes.REFERENCE_ID_LIST, *reference_ids(sender, submission))
    entry.name("Source")
    entry.description("")
    physician = hl7types.xcn_professional(_physician(report))
    entry.author(codes.AUTHOR, physician, hl7types.xon(sender.institution))
    _code(entry, codes.CLASS_CODE, codes.SIGNATURE_CLASS)
    _code(entry, codes.TYPE_CODE, codes.SIGNATURE_TYPE)
    _codes(entry, codes.CONFIDENTIALITY, codes.SIGNATURE_CONFIDENTIALITY)
    _code(entry, codes.FORMAT_CODE, codes.SIGNATURE_FORMAT)
    _place(entry, submission)
    _code(entry, codes.EVENT_CODE, codes.SIGNATURE_PURPOSE)
    _identifiers(entry, report, submission.signature_uid)
    return entry.build()


def _associations(submission_uid: str, replaces: str | None) -> list[Element]:
    links = [
        ("kos", codes.HAS_MEMBER, SET_ID, KOS_ID),
        ("signature", codes.HAS_MEMBER, SET_ID, SIGNATURE_ID),
        ("signs", codes.SIGNS, SIGNATURE_ID, SET_ID),
    ]
    if replaces is not None:
        links.append(("replaces", codes.REPLACES, KOS_ID, registry_uuid(replaces)))
    return [
        ebrim.association(
            _association_id(submission_uid, name), kind, source, target, {"SubmissionSetStatus": "Original"}
        )
        for name, kind, source, target in links
    ]


def _association_id(submission_uid: str, name: str) -> str:
    """Return a bare UUID (a symbolic id to the registry) that is always the same for this link."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{submission_uid}/{name}"))


def _author(sender: Sender, report: Report) -> str:
    if sender.settings.author == "professional":
        return hl7types.xcn_professional(_physician(report))
    appliance = sender.appliance
    return hl7types.xcn_device(appliance.oid, appliance.name, appliance.manufacturer)


def _physician(report: Report) -> Person:
    return report.author if report.author.id else report.legal_authenticator


def _content(entry: ebrim.ObjectBuilder, data: bytes) -> None:
    # XDS fixes SHA-1 for this attribute: it tells documents apart, it protects nothing.
    entry.slot("hash", hashlib.sha1(data, usedforsecurity=False).hexdigest())
    entry.slot("size", str(len(data)))


def _place(entry: ebrim.ObjectBuilder, submission: Submission) -> None:
    facility = facility_type(submission.report)
    scheme = facility.scheme or codes.FACILITY_SCHEME
    _code(entry, codes.FACILITY_TYPE, Code(facility.value, scheme, facility.display))
    acts = submission.report.acts
    own = [act for act in acts if act.study_uid == submission.study.study_uid]
    settings = (act.practice_setting for act in own)
    practice = next((code for code in settings if code is not None), codes.DEFAULT_PRACTICE_SETTING)
    _code(entry, codes.PRACTICE_SETTING, practice)


def _identifiers(entry: ebrim.ObjectBuilder, report: Report, unique_id: str) -> None:
    patient = hl7types.patient_id(report.patient)
    entry.identifier(codes.ENTRY_PATIENT_ID, "XDSDocumentEntry.patientId", patient)
    entry.identifier(codes.ENTRY_UNIQUE_ID, "XDSDocumentEntry.uniqueId", unique_id)


def _codes(entry: ebrim.ObjectBuilder, scheme: str, values: Iterable[Code]) -> None:
    for value in values:
        _code(entry, scheme, value)


def _code(entry: ebrim.ObjectBuilder, scheme: str, code: Code) -> None:
    entry.code(scheme, code.value, code.scheme, code.display)

"""The audit messages of the Source, field by field as requirements.md 3.8 prints them.

Pure functions: facts in, `AuditEvent` out. When and where an event is kept is `store.audit`'s affair,
how it is written for an ATNA repository is `audit.atna`'s. A mandatory field whose value nobody knows
(a report that cannot be read, a token that cannot be checked) carries `UNKNOWN`, so that the record is
complete in form and says what it does not know.
"""

from __future__ import annotations

import enum
import ipaddress
from datetime import UTC, datetime
from urllib.parse import urlsplit

import attrs

from drimbox.errors import DrimboxError, ImageError, TooManyRequests
from drimbox.model import MessageAction, Patient, Report, ReportMessage
from drimbox.ports import (
    ArchivedKos,
    AuditEvent,
    AuditObject,
    AuditParticipant,
    Introspection,
    ParkedRow,
    Removal,
    Submission,
)

#: Placeholder of decisions.md for what introspection (or reading) did not give.
UNKNOWN = "INCONNU"
#: Source UserID when the patient himself looks at his images (requirements.md 3.8.3).
PATIENT_VIEWING = "Visualisation Patient"

SOURCE, DESTINATION, APPLICATION = "110153", "110152", "110150"
DNS, ADDRESS = "1", "2"
#: EventOutcomeIndicator of PS3.15 A.5.
SUCCESS, MINOR, SERIOUS, MAJOR = 0, 4, 8, 12

#: ParticipantObjectIDTypeCode of a submission set (IHE ITI-41).
SUBMISSION_SET = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"
#: ParticipantObjectIDTypeCode of a question, whose ParticipantObjectID is that of the query (IHE ITI-18).
STORED_QUERY = "ITI-18"
PATIENT_NUMBER, REPORT_NUMBER, STUDY, URI = "2", "9", "110180", "12"

_IHE = "IHE Transactions"
_RAD_128 = ("RAD-128", _IHE, "Send Imaging Result")
_CARD_7 = ("CARD-7", _IHE, "Encapsulated Report Submission")
_ITI_41 = ("ITI-41", _IHE, "Provide and Register Document Set-b")
_ITI_57 = ("ITI-57", _IHE, "Update Document Set")
_RAD_106 = ("RAD-106", _IHE, "IHE Invoke Image Display")
_RAD_107 = ("RAD-107", _IHE, "WADO-RS Retrieve")


class DmpExchange(enum.Enum):
    """Exchanges with the DMP that are not submissions: EventID, action, EventTypeCode."""

    #: No IHE transaction: the DMP's own name for it.
    EXISTENCE = ("110112", "E", ("TD0.2", "DMP", "Test d'existence du DMP"))
    SEARCH = ("110112", "E", ("ITI-18", _IHE, "Registry Stored Query"))
    RETRIEVE = ("110107", "C", ("ITI-43", _IHE, "Retrieve Document Set"))


class Interrupted(ImageError):
    """The process died during a delivery: nobody knows what has left."""

    title = "Livraison interrompue par un arrêt brutal, étendue inconnue"


class Alert(enum.Enum):
    """What a security alert is about: EventTypeCode of PS3.15 A.5.3.11."""

    NODE_AUTHENTICATION = ("110126", "DCM", "Node Authentication")
    NETWORK_CONFIGURATION = ("110128", "DCM", "Network Configuration")
    SECURITY_CONFIGURATION = ("110129", "DCM", "Security Configuration")
    SOFTWARE_CONFIGURATION = ("110131", "DCM", "Software Configuration")
    RESTRICTED_FUNCTION = ("110132", "DCM", "Use of Restricted Function")
    AUDIT_STOPPED = ("110133", "DCM", "Audit Recording Stopped")
    AUDIT_STARTED = ("110134", "DCM", "Audit Recording Started")


def outcome(error: DrimboxError | None) -> tuple[int, str]:
    """Return EventOutcomeIndicator and EventOutcomeDescription (DB.SO.45, DB.SO.47).

    An error that another try may mend is minor, any other serious.
    """
    if error is None:
        return SUCCESS, ""
    return (MINOR if error.retry or isinstance(error, TooManyRequests) else SERIOUS), str(error)


# --- reports --------------------------------------------------------------------------------------


def report_received(
    *,
    message: ReportMessage | None,
    report: Report | None,
    ris_address: str,
    source_name: str,
    internal_id: str = "",
    trigger: str = "",
    error: DrimboxError | None = None,
) -> AuditEvent:
    """A report came from the RIS (requirements.md 3.8.1, DB.SO.43).

    `message` and `report` are None for what could not be read, with `error` (E005) saying why; `trigger`
    is MSH-9 of such a message.
    `source_name` is the DNS name of this gateway, `internal_id` what this gateway calls the structure
    (`[[structure]] internal_id`), by default its national identifier.
    """
    requests = report.requests if report else ()
    accessions = dict.fromkeys(f"{one.accession.value}^{one.accession.authority}" for one in requests)
    # The table gives the source no other name; without accession number at least its own.
    sender = message.sending_application if message and not accessions else ""
    structure = report.author_organization.id if report else sender_structure(message)
    # Of a report that cannot be read, what the message around it says.
    patient_ins = report.patient.ins if report else _announced_ins(message)
    document_id = report.document_id if report else (message.announced_id if message else "")
    indicator, description = outcome(error)
    studies = _studies(report)
    return AuditEvent(
        event_id="110107",
        action="C",
        event_type=_CARD_7 if (message.trigger if message else trigger).startswith("MDM") else _RAD_128,
        participants=(
            participant(SOURCE, ";".join(accessions), ris_address, alternative=sender),
            participant(
                DESTINATION,
                _system(structure, internal_id),
                source_name,
                alternative=report.legal_authenticator.id if report else UNKNOWN,
            ),
        ),
        objects=(
            _patient(patient_ins),
            AuditObject(
                id=document_id or UNKNOWN,
                type="2",
                role="20",
                id_type=REPORT_NUMBER,
                life_cycle="2",
                details=tuple(("StudyInstanceUID", study) for study in studies),
            ),
        ),
        outcome=indicator,
        outcome_description=description,
        patient_ins=patient_ins,
        study_uid=" ".join(studies),
    )


# --- the DMP --------------------------------------------------------------------------------------


def kos_published(
    *,
    submission: Submission | Removal,
    study_uid: str,
    dmp: str,
    source_name: str,
    internal_id: str = "",
    replaced: bool = False,
) -> AuditEvent:
    """The DMP holds this manifest, new or in the place of another (SC.DMP/CONF.14).

    `dmp` is the URL it was sent to.
    """
    details = (("Association", "RPLC"),) if replaced else ()
    return _submission_event(
        "R", _ITI_41, submission.report, study_uid, dmp, source_name, internal_id, submission, None, details
    )


def kos_removed(
    *,
    submission: Submission | Removal,
    study_uid: str,
    source_name: str,
    dmp: str = "",
    internal_id: str = "",
    error: DrimboxError | None = None,
) -> AuditEvent:
    """This manifest was withdrawn from the DMP, or could not be (SC.DMP/CONF.14, interfaces.md 11.2).

    `dmp` is empty when nothing was asked of it: it does not hold the manifest any more, or must wait.
    """
    return _submission_event(
        "U", _ITI_57, submission.report, study_uid, dmp, source_name, internal_id, submission, error
    )


def kos_failed(
    *,
    report: Report,
    study_uid: str,
    source_name: str,
    error: DrimboxError,
    dmp: str = "",
    internal_id: str = "",
    submission: Submission | Removal | None = None,
    removal: bool = False,
) -> AuditEvent:
    """No manifest was made, or the DMP did not take it: E001 to E008 (DB.SO.45).

    `dmp` is empty when the failure came before anything was sent, `submission` None when nothing
    had been made; `removal` says that the report was to be withdrawn.
    """
    action, kind = ("U", _ITI_57) if removal else ("R", _ITI_41)
    return _submission_event(
        action, kind, report, study_uid, dmp, source_name, internal_id, submission, error
    )


def feeding_broken(
    *, row: ParkedRow, error: DrimboxError, source_name: str, internal_id: str = ""
) -> AuditEvent:
    """The work on a study or a manifest broke again and again (E008): what is known without its content.

    The report is not asked: reading it may be what breaks. Its reception, audited before, says the rest.
    """
    return _without_report(
        error,
        source_name=source_name,
        structure=row.structure_id,
        internal_id=internal_id,
        patient_ins=row.patient_ins,
        study_uid=row.study_uid,
        sop_instance_uid=row.sop_instance_uid,
        removal=row.removal,
    )


def report_unreadable(
    *,
    message: ReportMessage | None,
    error: DrimboxError,
    source_name: str,
    internal_id: str = "",
    study_uid: str = "",
) -> AuditEvent:
    """No manifest can be made, or withdrawn, for a report that cannot be read (E005, DB.SO.45).

    What the message around it says of patient and structure is all that is known; `message` is None when
    that cannot be read either, `study_uid` empty when nobody knows what the report is about.
    """
    return _without_report(
        error,
        source_name=source_name,
        structure=sender_structure(message),
        internal_id=internal_id,
        patient_ins=_announced_ins(message),
        study_uid=study_uid,
        removal=message is not None and message.action is MessageAction.DELETE,
    )


def _without_report(
    error: DrimboxError,
    *,
    source_name: str,
    structure: str,
    internal_id: str,
    patient_ins: str,
    study_uid: str,
    sop_instance_uid: str = "",
    removal: bool = False,
) -> AuditEvent:
    indicator, description = outcome(error)
    objects = [_patient(patient_ins)]
    if sop_instance_uid:
        objects.append(AuditObject(sop_instance_uid, "2", "3", REPORT_NUMBER, "10"))
    objects.append(AuditObject(study_uid or UNKNOWN, "2", "3", STUDY, "10"))
    us = participant(SOURCE, _system(structure, internal_id), source_name, alternative=UNKNOWN)
    return AuditEvent(
        event_id="110106",
        action="U" if removal else "R",
        event_type=_ITI_57 if removal else _ITI_41,
        participants=(us,),
        objects=tuple(objects),
        outcome=indicator,
        outcome_description=description,
        patient_ins=patient_ins,
        study_uid=study_uid,
    )


def _submission_event(
    action: str,
    event_type: tuple[str, str, str],
    report: Report,
    study_uid: str,
    dmp: str,
    source_name: str,
    internal_id: str,
    submission: Submission | Removal | None,
    error: DrimboxError | None,
    details: tuple[tuple[str, str], ...] = (),
) -> AuditEvent:
    structure = submission.structure_id if submission else report.structure.id
    indicator, description = outcome(error)
    objects = [_patient(report.patient.ins)]
    if submission:
        objects.append(AuditObject(submission.submission_uid, "2", "20", SUBMISSION_SET))
        objects.append(AuditObject(submission.sop_instance_uid, "2", "3", REPORT_NUMBER, "10", details))
    objects.append(AuditObject(study_uid, "2", "3", STUDY, "10"))
    return AuditEvent(
        event_id="110106",
        action=action,
        event_type=event_type,
        participants=(
            participant(
                SOURCE,
                _system(structure, internal_id),
                source_name,
                alternative=report.legal_authenticator.id,
            ),
            *_dmp(dmp),
        ),
        objects=tuple(objects),
        outcome=indicator,
        outcome_description=description,
        patient_ins=report.patient.ins,
        study_uid=study_uid,
    )


def dmp_exchange(
    *,
    kind: DmpExchange,
    report: Report,
    structure_id: str,
    dmp: str,
    source_name: str,
    internal_id: str = "",
    document_uid: str = "",
    study_uid: str = "",
    query: tuple[str, str] | None = None,
    error: DrimboxError | None = None,
) -> AuditEvent:
    """A question to the DMP: does the record exist, what does it hold, give it (SC.DMP/CONF.14).

    `document_uid` is the uniqueId asked for, when one was; `query` identifier and text of a stored query,
    which IHE wants with its question (ITI TF-2 3.18.5.1).
    """
    event_id, action, event_type = kind.value
    indicator, description = outcome(error)
    objects = [_patient(report.patient.ins)]
    if query:
        encoding = (("QueryEncoding", "UTF-8"),)
        objects.append(AuditObject(query[0], "2", "24", STORED_QUERY, details=encoding, query=query[1]))
    if document_uid:
        objects.append(AuditObject(document_uid, "2", "3", REPORT_NUMBER))
    us = participant(
        DESTINATION if kind is DmpExchange.RETRIEVE else SOURCE,
        _system(structure_id, internal_id),
        source_name,
        alternative=report.legal_authenticator.id,
    )
    return AuditEvent(
        event_id=event_id,
        action=action,
        event_type=event_type,
        participants=(us, *_dmp(dmp, SOURCE if kind is DmpExchange.RETRIEVE else DESTINATION)),
        objects=tuple(objects),
        outcome=indicator,
        outcome_description=description,
        patient_ins=report.patient.ins,
        study_uid=study_uid,
    )


# --- images ---------------------------------------------------------------------------------------


def images_served(
    *,
    study_uid: str,
    caller_address: str,
    source_name: str,
    kos: ArchivedKos | None,
    introspection: Introspection | None = None,
    situation: str = "",
    patient: Patient | None = None,
    viewer: bool = False,
    repository_uid: str = "",
    internal_id: str = "",
    error: DrimboxError | None = None,
    cut: bool = False,
) -> AuditEvent:
    """Images were asked for and served, or not (requirements.md 3.8.3, DB.SO.46, DB.SO.47).

    `kos` is the manifest the request was judged against, None when there was none; `introspection` None
    when the token could not be checked; `situation` the request header of that name; `patient` the
    identity of a patient who looks at his own images; `viewer` tells RAD-106 from RAD-107; `cut` says
    that the answer had begun before `error` stopped it.
    """
    if patient:
        user, alternative = PATIENT_VIEWING, _traits(patient)
    else:
        user = (introspection.structure if introspection else None) or situation
        alternative = (introspection.professional if introspection else None) or UNKNOWN
    indicator, description = outcome(error)
    if error is not None and cut:
        description += " (réponse interrompue)"
    return AuditEvent(
        event_id="110106",
        action="R",
        event_type=_RAD_106 if viewer else _RAD_107,
        participants=(
            participant(SOURCE, user, caller_address, alternative=alternative),
            participant(DESTINATION, _system(kos.structure_id if kos else "", internal_id), source_name),
        ),
        objects=(
            AuditObject(
                id=study_uid or UNKNOWN,
                type="2",
                role="3",
                id_type=STUDY,
                life_cycle="10",
                details=(("Repository Unique ID", repository_uid or UNKNOWN),),
            ),
        ),
        outcome=indicator,
        outcome_description=description,
        patient_ins=kos.patient_ins if kos else "",
        study_uid=study_uid,
    )


def interrupted(event: AuditEvent, *, node: str, begun_at: datetime, found_at: datetime) -> AuditEvent:
    """Images were being served when the process died (requirements.md 3.8.3, DB.SO.46, DB.SO.47).

    `event` is what was known of the delivery before its first byte, `node` whose delivery it was. Both
    instants are told in UTC.
    """
    begun, found = (each.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for each in (begun_at, found_at))
    error = Interrupted(f"commencée {begun} par le nœud {node}, constatée {found}")
    indicator, description = outcome(error)
    return attrs.evolve(event, outcome=indicator, outcome_description=description)


# --- the gateway itself -----------------------------------------------------------------------------


def application_start(*, name: str, source_name: str) -> AuditEvent:
    """The gateway `name` has started (PS3.15 A.5.3.1)."""
    return _activity(("110120", "DCM", "Application Start"), name, source_name)


def application_stop(*, name: str, source_name: str) -> AuditEvent:
    """The gateway `name` stops (PS3.15 A.5.3.1)."""
    return _activity(("110121", "DCM", "Application Stop"), name, source_name)


def _activity(event_type: tuple[str, str, str], name: str, source_name: str) -> AuditEvent:
    us = participant(APPLICATION, name, source_name)
    return AuditEvent("110100", "E", event_type, (us,), ())


def security_alert(
    *,
    kind: Alert,
    name: str,
    source_name: str,
    subject: str,
    description: str,
    peer_address: str = "",
    severity: int = SERIOUS,
) -> AuditEvent:
    """Something touched the gateway's security (PS3.15 A.5.3.11).

    `subject` names what it is about (a certificate's subject, a configuration key), `description`
    tells it in French without patient data, `peer_address` is whoever caused it from outside.
    """
    participants = [participant(APPLICATION, name, source_name)]
    if peer_address:
        participants.append(participant("", UNKNOWN, peer_address))
    return AuditEvent(
        event_id="110113",
        action="E",
        event_type=kind.value,
        participants=tuple(participants),
        objects=(AuditObject(subject, "2", "13", "110182", details=(("Alert Description", description),)),),
        outcome=severity,
        outcome_description=description if severity else "",
    )


def administration(
    *, name: str, source_name: str, user: str, action: str, subject: str, error: DrimboxError | None = None
) -> AuditEvent:
    """An administrator made the gateway do something: `action` (French) on `subject` (a site, a list).

    Of the messages of PS3.15 A.5.3, Application Activity knows only start and stop, and the others are
    about patients' data or accounts. What remains is Security Alert (A.5.3.11) with its event type "Use of
    Restricted Function", whose outcome 0 means "informative": nothing is wrong. `user` is what the gateway
    knows of whoever asked; the listener on the loop knows no name.
    """
    indicator, description = outcome(error)
    return AuditEvent(
        event_id="110113",
        action="E",
        event_type=Alert.RESTRICTED_FUNCTION.value,
        participants=(
            participant(APPLICATION, name, source_name),
            AuditParticipant(user_id=user or UNKNOWN, role="", requestor=True),
        ),
        objects=(AuditObject(subject, "2", "13", "110182", details=(("Alert Description", action),)),),
        outcome=indicator,
        outcome_description=description,
    )


# --- parts ------------------------------------------------------------------------------------------


def participant(role: str, user: str, network: str, *, alternative: str = "") -> AuditParticipant:
    """Return an active participant; what nobody knows of it says so."""
    return AuditParticipant(
        user_id=user or UNKNOWN,
        role=role,
        network_type=_network_type(network),
        network_id=network or UNKNOWN,
        alternative_user_id=alternative,
    )


def _network_type(name: str) -> str:
    """Tell an address (IPv4, IPv6, with or without zone) from a DNS name."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return DNS
    return ADDRESS


def _system(structure: str, internal_id: str) -> str:
    """Structure identifier, a slash, and what this gateway calls that structure."""
    structure = structure or UNKNOWN
    return f"{structure}/{internal_id or structure}"


def _dmp(url: str, role: str = DESTINATION) -> tuple[AuditParticipant, ...]:
    if not url:
        return ()
    return (participant(role, url, urlsplit(url).hostname or UNKNOWN),)


def sender_structure(message: ReportMessage | None) -> str:
    """Return the structure that a message says sends it (PRT-8), empty when it does not."""
    return message.prt_structure.id if message and message.prt_structure else ""


def _announced_ins(message: ReportMessage | None) -> str:
    return message.ins.value if message and message.ins else ""


def _patient(ins: str) -> AuditObject:
    return AuditObject(ins or UNKNOWN, "1", "1", PATIENT_NUMBER, "2")


def _studies(report: Report | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(act.study_uid for act in report.acts)) if report else ()


def _traits(patient: Patient) -> str:
    """INS traits in the order of requirements.md 3.8.3."""
    given = patient.given_list or patient.given
    return ";".join((patient.family, given, patient.sex, patient.birth_date, patient.birth_place))

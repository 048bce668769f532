"""The report the gateway works with: the values of table 3.1, all of them, or E005.

`drimbox.cda.extract` takes what the CDA header holds. Here `missing_values` holds the header and the HL7
message against table 3.1 and names everything that lacks; `build_report` joins the two, or raises E005
with the whole list, because the person who mends the RIS wants to do it once. What one of the two lacks
and the other may give is decided in `ipp_of` and `structure_of`.
"""

from __future__ import annotations

from drimbox.cda.extract import Header, ins_key_valid, read_header
from drimbox.errors import PatientMismatch, ReportNotInterpretable
from drimbox.model import Identifier, MessageAction, Organization, Report, ReportMessage, is_uid
from drimbox.xml import XmlRefused

__all__ = [
    "Header",
    "build_report",
    "check_same_patient",
    "ins_key_valid",
    "ipp_of",
    "missing_values",
    "parent_of",
    "read_header",
    "structure_of",
]

#: Studies, or orders, of one report; real ones have a handful.
MAX_ITEMS = 100


def missing_values(header: Header, message: ReportMessage | None = None) -> list[str]:
    """Name in French every value of table 3.1 that is absent or malformed; an empty list when none is.

    Without a message, the header is judged alone. The names carry no value of the report.
    """
    if max(len(header.acts), len(header.requests)) > MAX_ITEMS:
        return [f"plus de {MAX_ITEMS} examens ou demandes dans un compte rendu"]
    wanted: list[tuple[bool, str]] = [
        (bool(header.acts), "StudyInstanceUID (documentationOf/serviceEvent/id)")
    ]
    for act, where in zip(header.acts, _ranks(len(header.acts), "examen"), strict=True):
        wanted += [
            (is_uid(act.study_uid), f"StudyInstanceUID mal formé{where}"),
            (bool(act.modalities), f"modalité{where}"),
            (bool(act.regions), f"région anatomique{where}"),
        ]
    if not header.requests:
        wanted += [
            (False, "numéro d'accession et son autorité (order/accessionNumber)"),
            (False, "numéro de demande et son autorité (order/id)"),
        ]
    for request, where in zip(header.requests, _ranks(len(header.requests), "demande"), strict=True):
        wanted += [
            (bool(request.accession.value), f"numéro d'accession{where}"),
            (bool(request.accession.authority), f"autorité du numéro d'accession{where}"),
            (bool(request.order.value), f"numéro de demande{where}"),
            (bool(request.order.authority), f"autorité du numéro de demande{where}"),
        ]
    ipp = ipp_of(header, message)
    wanted += [
        (bool(header.patient.ins), "INS du patient"),
        (message is None or message.ins_qualified, "INS non qualifiée (PID-32 différent de VALI)"),
        (ipp is not None, "IPP (PID-3 de type PI ou patientRole/id)"),
        (ipp is None or bool(ipp.authority), "autorité de l'IPP"),
        (
            structure_of(header, message) is not None,
            "situation d'exercice (legalAuthenticator/representedOrganization ou PRT-8.10)",
        ),
        (bool(header.document_id), "identifiant du document (id)"),
    ]
    return [name for present, name in wanted if not present]


def ipp_of(header: Header, message: ReportMessage | None = None) -> Identifier | None:
    """Return the IPP: that of PID-3, else the patient's other id in the CDA (interfaces.md 2.1 no 5).

    A PID-3 without authority takes that of the CDA id of the same value, else gives way to the CDA.
    """
    told = message.ipp if message is not None else None
    if told is not None and told.authority:
        return told
    complete = [id_ for id_ in header.local_ids if id_.authority]
    if told is not None:
        complete = [id_ for id_ in complete if id_.value == told.value] or complete
    return next(iter(complete), told or next(iter(header.local_ids), None))


def structure_of(header: Header, message: ReportMessage | None = None) -> Organization | None:
    """Return the situation d'exercice: the signatory's structure, else PRT-8 (interfaces.md 2.1 no 6)."""
    return header.structure or (message.prt_structure if message is not None else None)


def parent_of(header: Header, message: ReportMessage | None = None) -> str | None:
    """Return the id of the replaced document: the report's, else the TXA-13 of a replacement."""
    if header.replaces is None and message is not None and message.action is MessageAction.REPLACE:
        return message.announced_parent or None
    return header.replaces


def build_report(message: ReportMessage) -> Report:
    """Join the CDA header and the HL7 message into a `Report` (table 3.1, DB.SO.12).

    Raises `ReportNotInterpretable` (E005) whose detail names in French every value that lacks, and
    `PatientMismatch` (E001) when message and report are not about the same patient.
    """
    try:
        header = read_header(message.document)
    except XmlRefused:
        raise ReportNotInterpretable("le compte rendu n'est pas un document CDA lisible") from None
    missing = missing_values(header, message)
    ipp, structure = ipp_of(header, message), structure_of(header, message)
    if missing or ipp is None or structure is None:
        raise ReportNotInterpretable("valeurs absentes ou invalides : " + " ; ".join(missing))
    check_same_patient(header, message)
    return report_of(header, message, ipp, structure)


def report_of(
    header: Header, message: ReportMessage, ipp: Identifier | None, structure: Organization
) -> Report:
    """Join what header and message say into a report; nothing is judged here."""
    return Report(
        document_id=header.document_id,
        set_id=header.set_id,
        version=header.version,
        patient=header.patient,
        ipp=ipp,
        requests=header.requests,
        acts=header.acts,
        structure=structure,
        author=header.author,
        author_organization=header.author_organization,
        author_role=header.author_role,
        legal_authenticator=header.legal_authenticator,
        effective_time=header.effective_time,
        confidentiality=header.confidentiality,
        language=header.language,
        title=header.title,
        replaces=parent_of(header, message),
        facility_type=header.facility_type,
    )


def check_same_patient(header: Header, message: ReportMessage) -> None:
    """Raise `PatientMismatch` when PID-3 names another patient than the report (interfaces.md 1.3)."""
    # The 13 first characters are the identifier; the 2 of the key may be given apart.
    if message.ins is not None and message.ins.value[:13] != header.patient.ins[:13]:
        raise PatientMismatch("l'INS du message (PID-3) n'est pas celui du compte rendu")
    if message.ipp is not None and message.ipp.authority:
        same = {id_.value for id_ in header.local_ids if id_.authority == message.ipp.authority}
        if same and message.ipp.value not in same:
            raise PatientMismatch("l'IPP du message (PID-3) n'est pas celui du compte rendu")


def _ranks(count: int, noun: str) -> list[str]:
    """Return what to add to a value's name so that it is found among several of the same kind."""
    return [""] if count == 1 else [f" ({noun} n° {rank})" for rank in range(1, count + 1)]

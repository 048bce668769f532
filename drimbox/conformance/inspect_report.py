"""What a report message, or a bare CDA, means to the gateway: for integrators, before they connect a RIS.

The facts are read by the very code that feeds the DMP, so what is shown here is what will happen; nothing
is stored, sent or logged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drimbox.cda.header import (
    Header,
    check_same_patient,
    ipp_of,
    missing_values,
    parent_of,
    read_header,
    structure_of,
)
from drimbox.errors import FeedError
from drimbox.hl7.document import find_document
from drimbox.hl7.fields import Message
from drimbox.hl7.message import read_report_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.model import Code, Identifier, MessageAction, ReportMessage
from drimbox.xml import XmlRefused

_TRAITS = ("ins", "ins_oid", "family", "given", "birth_date", "sex", "birth_place")


def inspect_report(data: bytes, *, missing_destdmp: str = "error") -> dict[str, Any]:
    """Describe the report in `data`: an HL7 message (with or without MLLP framing) or a CDA document.

    `missing_destdmp` is `[hl7] missing_destdmp` of the configuration. Absent values are None or empty
    lists. `feed` says whether the gateway would make and publish a KOS; if not, `reason` (French) says
    why. Never raises for what `data` contains.
    """
    message: ReportMessage | None = None
    header: Header | None = None
    problem: str | None = None
    document = unframe(data)
    try:
        if is_message(document):
            message = read_report_message(document)
            document = message.document
        header = read_header(document)
        problem = _obstacle(header, message, missing_destdmp)
    except Hl7Refused as refusal:
        problem = f"message refusé ({refusal})"
        header = _header_of_refused(document)
    except XmlRefused:
        problem = "le compte rendu n'est pas un document CDA lisible"
    return {
        **_facts(header, message),
        "feed": problem is None,
        "reason": problem,
    }


def unframe(data: bytes) -> bytes:
    """Remove the MLLP framing of a captured message, if there is one."""
    if data.startswith(b"\x0b"):
        return data[1:].rstrip(b"\r\n").removesuffix(b"\x1c")
    return data


def _header_of_refused(data: bytes) -> Header | None:
    """Return the header of the report in a refused message, when that much can be read."""
    try:
        return read_header(find_document(Message(data))[1])
    except (Hl7Refused, XmlRefused):
        return None


def is_message(data: bytes) -> bool:
    """Say whether these bytes begin as an HL7 v2 message."""
    return data[:256].lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(b"MSH")


def _obstacle(header: Header, message: ReportMessage | None, missing_destdmp: str) -> str | None:
    """Say in French why this report makes no KOS, or None; in the order in which the gateway decides."""
    if message is not None:
        if message.to_dmp is False:
            return "DESTDMP=N : le compte rendu n'est pas destiné au DMP"
        if message.to_dmp is None and missing_destdmp != "yes":
            return "E005 : indicateur DESTDMP absent"
        if message.action is MessageAction.DELETE:
            return "suppression du compte rendu : le KOS est dépublié, aucun n'est produit"
    missing = missing_values(header, message)
    if missing:
        return "E005 : valeurs absentes ou invalides : " + " ; ".join(missing)
    if message is not None:
        try:
            check_same_patient(header, message)
        except FeedError as error:
            return str(error)
    return None


def _facts(header: Header | None, message: ReportMessage | None) -> dict[str, Any]:
    patient = header.patient if header else None
    acts = header.acts if header else ()
    requests = header.requests if header else ()
    structure = structure_of(header, message) if header else None
    ipp = None
    # A bare CDA cannot say which of the patient's ids the RIS calls the IPP.
    if message is not None:
        ipp = ipp_of(header, message) if header else message.ipp
    return {
        "document_id": (header and header.document_id) or None,
        "set_id": (header and header.set_id) or None,
        "patient": {name: (patient and getattr(patient, name)) or None for name in _TRAITS},
        "ipp": _identifier(ipp) if ipp is not None else None,
        "studies": [act.study_uid for act in acts],
        "accession_numbers": _identifiers(request.accession for request in requests),
        "orders": _identifiers(request.order for request in requests),
        "structure": structure.id if structure is not None else None,
        "author_rpps": (header and header.author.id) or None,
        "modalities": _codes(code for act in acts for code in act.modalities),
        "regions": _codes(code for act in acts for code in act.regions),
        "replaces": parent_of(header, message) if header else None,
    }


def _identifier(identifier: Identifier) -> dict[str, str | None]:
    return {"id": identifier.value or None, "authority": identifier.authority or None}


def _identifiers(identifiers: Iterable[Identifier]) -> list[dict[str, str | None]]:
    """Return each identifier once, in order; an order without this number has none to show."""
    return [_identifier(one) for one in dict.fromkeys(identifiers) if one.value or one.authority]


def _codes(codes: Iterable[Code]) -> list[str]:
    return list(dict.fromkeys(code.value for code in codes))

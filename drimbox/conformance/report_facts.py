"""What a report says of its patient, orders and studies, read for the validators alone (DB.SO.12, 105).

The cross validator judges manifests that the gateway made from what `drimbox.cda` read. A fault there
would be in both sides of the comparison, so the header is read here a second time, straight from the
XPaths of the specification's table 1 (CI-SIS IMG-CR-IMG). Only the HL7 envelope is opened with the
gateway's own reader (`hl7`), which the tests hold against an independent library: it finds the document
and PID-3, and decides nothing.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from drimbox.conformance.inspect_report import is_message, unframe
from drimbox.hl7.document import find_document
from drimbox.hl7.fields import Message
from drimbox.hl7.message import read_report_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.model import INS_OIDS, ReportMessage
from drimbox.xml import XmlRefused, safe_parse

_NS: Final = {"c": "urn:hl7-org:v3", "d": "urn:dicom-org:ps3-20"}
_PEOPLE, _STRUCTURES = "1.2.250.1.71.4.2.1", "1.2.250.1.71.4.2.2"
#: Longest value looked at, and most orders or acts of one report.
_MAX_VALUE, _MAX_ITEMS = 1024, 200

#: (extension or value, root or authority)
Id = tuple[str, str]


class ReportUnreadable(Exception):
    """There is no CDA report in this file; the text, in French, says why without patient data."""


@attrs.frozen
class Pair:
    """An order of the report: its accession number and its placer order number."""

    accession: Id
    order: Id


@attrs.frozen
class ReportAct:
    """A study of the report and what describes it."""

    study_uid: str
    modalities: tuple[str, ...]
    #: Texts by which the act may be called: its code's, its translations', its original text.
    texts: tuple[str, ...]
    regions: tuple[str, ...]
    region_texts: tuple[str, ...]
    #: HL7 TS, empty when absent.
    start: str
    #: practiceSettingCode of the performer's structure.
    practice: str = ""


@attrs.frozen
class ReportFacts:
    """The values a manifest is held against; empty when the report does not give them."""

    ins: str
    ins_oid: str
    #: The patient's other ids, that of PID-3 first.
    local_ids: tuple[Id, ...]
    family: str
    given: str
    given_list: str
    used_family: str
    used_given: str
    birth_date: str
    sex: str
    birth_place: str
    pairs: tuple[Pair, ...]
    acts: tuple[ReportAct, ...]
    structure_id: str
    effective_time: str
    #: National identifier of the legal authenticator, code of the facility type, language.
    authenticator: str
    facility: str
    language: str
    #: INS and IPP of PID-3, None without a message.
    message_ins: str | None = None
    message_ipp: Id | None = None
    #: confidentialityCodes that the flags of the message ask for beside `N`, None without a message.
    masks: frozenset[str] | None = None


def read_report(data: bytes) -> ReportFacts:
    """Read a CDA document, or the HL7 message (framed or not) that carries one.

    Raises `ReportUnreadable`.
    """
    document = unframe(data)
    message: ReportMessage | None = None
    try:
        if is_message(document):
            try:
                message = read_report_message(document)
                document = message.document
            except Hl7Refused:
                # What the gateway would refuse may still carry a report worth comparing.
                document = find_document(Message(document))[1]
        root = safe_parse(document)
    except Hl7Refused as refusal:
        raise ReportUnreadable(f"message HL7 sans compte rendu lisible ({refusal})") from None
    except XmlRefused:
        raise ReportUnreadable("document XML illisible, trop grand ou avec DOCTYPE") from None
    if root.tag != "{urn:hl7-org:v3}ClinicalDocument":
        raise ReportUnreadable("la racine n'est pas ClinicalDocument (urn:hl7-org:v3)")
    return _facts(root, message)


def _facts(root: Any, message: ReportMessage | None) -> ReportFacts:
    ids = _ids(root, "c:recordTarget/c:patientRole/c:id")
    ins = next((each for each in ids if each[1] in INS_OIDS and each[0]), ("", ""))
    local = [each for each in ids if each[1] not in INS_OIDS and each[0]]
    told = message.ipp if message is not None else None
    if told is not None:
        local.insert(0, (told.value, told.authority))
    person = "c:recordTarget/c:patientRole/c:patient/"
    plain = " ".join(_texts(root, person + "c:name/c:given[not(@qualifier)]"))
    structure = _ids(root, "c:legalAuthenticator/c:assignedEntity/c:representedOrganization/c:id")
    structure_id = next((value for value, oid in structure if oid == _STRUCTURES and value), "")
    if not structure_id and message is not None and message.prt_structure is not None:
        structure_id = message.prt_structure.id
    return ReportFacts(
        ins=ins[0],
        ins_oid=ins[1],
        local_ids=tuple(dict.fromkeys(local)),
        family=_name(root, person + "c:name/c:family", "BR")
        or _first(_texts(root, person + "c:name/c:family[not(@qualifier)]"))
        or _name(root, person + "c:name/c:family", "SP"),
        given=_name(root, person + "c:name/c:given", "BR") or plain.split(" ")[0],
        given_list=plain,
        used_family=_name(root, person + "c:name/c:family", "CL")
        or _name(root, person + "c:name/c:family", "SP"),
        used_given=_name(root, person + "c:name/c:given", "CL"),
        birth_date=_value(root, person + "c:birthTime/@value")[:8],
        sex=_value(root, person + "c:administrativeGenderCode/@code"),
        birth_place=_first(_texts(root, person + "c:birthplace/c:place/c:addr/c:county")),
        pairs=tuple(_pairs(root)),
        acts=tuple(_acts(root)),
        structure_id=structure_id,
        effective_time=_value(root, "c:effectiveTime/@value"),
        authenticator=next(
            (
                value
                for value, oid in _ids(root, "c:legalAuthenticator/c:assignedEntity/c:id")
                if oid == _PEOPLE and value
            ),
            "",
        ),
        facility=_value(
            root, "c:componentOf/c:encompassingEncounter/c:location/c:healthCareFacility/c:code/@code"
        ),
        language=_value(root, "c:languageCode/@code"),
        message_ins=message.ins.value if message is not None and message.ins is not None else None,
        message_ipp=(told.value, told.authority) if told is not None else None,
        masks=_masks(message) if message is not None else None,
    )


def _masks(message: ReportMessage) -> frozenset[str]:
    visibility = message.visibility
    flags = (
        (visibility.masked_to_professionals, "MASQUE_PS"),
        (visibility.hidden_from_patient, "INVISIBLE_PATIENT"),
        (visibility.hidden_from_representatives, "INVISIBLE_REPRESENTANTS_LEGAUX"),
    )
    return frozenset(code for wanted, code in flags if wanted)


def _pairs(root: Any) -> list[Pair]:
    found = []
    for order in root.xpath("c:inFulfillmentOf/c:order", namespaces=_NS)[:_MAX_ITEMS]:
        orders = [each for each in _ids(order, "c:id") if any(each)] or [("", "")]
        numbers = [each for each in _ids(order, "d:accessionNumber") if any(each)] or [("", "")]
        if orders == numbers == [("", "")]:
            continue
        for rank in range(max(len(orders), len(numbers))):
            found.append(Pair(numbers[min(rank, len(numbers) - 1)], orders[min(rank, len(orders) - 1)]))
    return list(dict.fromkeys(found))


def _acts(root: Any) -> list[ReportAct]:
    """Return one act for each study; acts on the same study are joined."""
    found: dict[str, ReportAct] = {}
    for event in root.xpath("c:documentationOf/c:serviceEvent", namespaces=_NS)[:_MAX_ITEMS]:
        for study in _values(event, "c:id/@root"):
            act = _act(event, study)
            known = found.get(study)
            if known is not None:
                act = ReportAct(
                    study,
                    known.modalities + act.modalities,
                    known.texts + act.texts,
                    known.regions + act.regions,
                    known.region_texts + act.region_texts,
                    min((each for each in (known.start, act.start) if each), default=""),
                    known.practice or act.practice,
                )
            found[study] = act
    return list(found.values())


def _act(event: Any, study: str) -> ReportAct:
    modality = "c:code/c:translation[c:qualifier/c:name/@code='121139']"
    region = "c:code/c:translation[c:qualifier/c:name/@code='39111-0']"
    return ReportAct(
        study_uid=study,
        # `RM` stands in one published report; the value set says `MR`.
        modalities=tuple("MR" if code == "RM" else code for code in _values(event, modality + "/@code")),
        texts=(
            *_values(event, "c:code/@displayName"),
            *_values(event, "c:code/c:translation[not(c:qualifier)]/@displayName"),
            *_texts(event, "c:code/c:originalText"),
        ),
        regions=tuple(_values(event, region + "/@code")),
        region_texts=tuple(_values(event, region + "/@displayName")),
        start=_value(event, "c:effectiveTime/c:low/@value") or _value(event, "c:effectiveTime/@value"),
        practice=_value(
            event,
            "c:performer/c:assignedEntity/c:representedOrganization/c:standardIndustryClassCode/@code",
        ),
    )


# --- small readers -----------------------------------------------------------------------------------


def _clean(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= _MAX_VALUE else ""


def _values(element: Any, path: str) -> list[str]:
    """Return the values of attributes, empty ones left out."""
    return [text for each in element.xpath(path, namespaces=_NS)[:_MAX_ITEMS] if (text := _clean(each))]


def _value(element: Any, path: str) -> str:
    return _first(_values(element, path))


def _texts(element: Any, path: str) -> list[str]:
    found = element.xpath(path, namespaces=_NS)[:_MAX_ITEMS]
    return [text for each in found if (text := _clean(each.xpath("string()")))]


def _first(values: list[str]) -> str:
    return values[0] if values else ""


def _name(element: Any, path: str, qualifier: str) -> str:
    marked = f"[contains(concat(' ', normalize-space(@qualifier), ' '), ' {qualifier} ')]"
    return _first(_texts(element, path + marked))


def _ids(element: Any, path: str) -> list[Id]:
    found = element.xpath(path, namespaces=_NS)[:_MAX_ITEMS]
    return [(_clean(each.get("extension") or ""), _clean(each.get("root") or "")) for each in found]

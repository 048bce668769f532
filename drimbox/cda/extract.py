"""Extraction of CDA header values: what is there, without judging what is not (interfaces.md 2.1, 2.2).

Only the header is looked at, so level 1 (PDF) and level 3 (structured) reports are the same here
(DB.SO.12). The tolerances are those of interfaces.md and no others: `RM` read as `MR`, older spellings of
names, two acts on one study joined. A value is cleaned of line ends and repeated blanks, and bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from drimbox.model import (
    INS_OIDS,
    RPPS_OID,
    STRUCTURE_OID,
    Code,
    Identifier,
    Organization,
    Patient,
    Person,
    RequestIds,
    StudyAct,
)
from drimbox.xml import Element, XmlRefused, safe_parse

_NS = {"c": "urn:hl7-org:v3", "d": "urn:dicom-org:ps3-20"}
_ROOT = "{urn:hl7-org:v3}ClinicalDocument"
_MODALITY, _REGION = "121139", "39111-0"
_CCAM = ("1.2.250.1.213.2.5", "1.2.250.1.215.300.1")
_REPORT_CODE = ("18748-4", "2.16.840.1.113883.6.1")

#: Characters of one value; a longer one is no value of a header and counts as absent.
MAX_VALUE = 1024

_INS = re.compile(r"[0-9]{5}(?:[0-9]{2}|2A|2B)[0-9]{6}[0-9]{2}", re.ASCII)


@attrs.frozen
class Header:
    """What a CDA header holds. Absent texts are empty, absent tuples too; nothing was judged yet."""

    document_id: str
    set_id: str
    version: str
    #: `ins` and `ins_oid` are empty when no id of the patient is an INS.
    patient: Patient
    #: The patient's other ids.
    local_ids: tuple[Identifier, ...]
    #: One per pair of an order; a value or an authority in it may be empty.
    requests: tuple[RequestIds, ...]
    #: One per study, in order of appearance; the UID may be malformed, the codes absent.
    acts: tuple[StudyAct, ...]
    #: Structure of the legal authenticator.
    structure: Organization | None
    author: Person
    author_organization: Organization
    author_role: str
    legal_authenticator: Person
    effective_time: str
    confidentiality: str
    language: str
    title: str
    replaces: str | None
    facility_type: Code | None
    #: Oddities worth a line in the log (English, no patient data), none of which stops anything.
    warnings: tuple[str, ...]


def read_header(document: bytes) -> Header:
    """Read the header of a CDA document of any level.

    Raises `XmlRefused` when the bytes are not XML we accept or are not a `ClinicalDocument`.
    """
    root = safe_parse(document)
    if root.tag != _ROOT:
        raise XmlRefused("not a ClinicalDocument of urn:hl7-org:v3")
    role = root.find("c:recordTarget/c:patientRole", _NS)
    ids = [_identifier(id_) for id_ in _all(role, "c:id")]
    ins = next((id_ for id_ in ids if id_.authority in INS_OIDS and id_.value), None)
    author = _author(root)
    signer = root.find("c:legalAuthenticator/c:assignedEntity", _NS)
    return Header(
        document_id=_document_id(root.find("c:id", _NS)),
        set_id=_document_id(root.find("c:setId", _NS)),
        version=_value(root, "c:versionNumber", "value"),
        patient=_patient(role, ins),
        local_ids=tuple(id_ for id_ in ids if id_.authority not in INS_OIDS and id_.value),
        requests=tuple(_requests(root)),
        acts=tuple(_acts(root)),
        structure=_structure(signer),
        author=_person(author),
        author_organization=_structure(author, any_root=True) or Organization(""),
        author_role=_value(author, "c:code", "code"),
        legal_authenticator=_person(signer),
        effective_time=_value(root, "c:effectiveTime", "value"),
        confidentiality=_value(root, "c:confidentialityCode", "code") or "N",
        language=_value(root, "c:languageCode", "code") or "fr-FR",
        title=_text(root.find("c:title", _NS)),
        replaces=_document_id(root.find("c:relatedDocument[@typeCode='RPLC']/c:parentDocument/c:id", _NS))
        or None,
        facility_type=_code(
            root.find("c:componentOf/c:encompassingEncounter/c:location/c:healthCareFacility/c:code", _NS)
        ),
        warnings=tuple(_warnings(root, ins)),
    )


def ins_key_valid(ins: str) -> bool:
    """Check the form and the two-digit key of an INS matricule (interfaces.md 0.1). A hint, no verdict."""
    if not _INS.fullmatch(ins):
        return False
    number = ins[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(ins[13:])


def _warnings(root: Element, ins: Identifier | None) -> Iterable[str]:
    if ins is not None and not ins_key_valid(ins.value):
        yield "INS with a wrong key"
    code = _code(root.find("c:code", _NS))
    if code is None or (code.value, code.scheme) != _REPORT_CODE:
        yield "document type is not the LOINC code of imaging reports"


# --- patient and people -------------------------------------------------------------------------


def _patient(role: Element, ins: Identifier | None) -> Patient:
    person = role.find("c:patient", _NS) if role is not None else None
    families = [(_qualifiers(name), _text(name)) for name in _all(person, "c:name/c:family")]
    givens = [(_qualifiers(name), _text(name)) for name in _all(person, "c:name/c:given")]
    plain = " ".join(text for qualifiers, text in givens if not qualifiers and text)
    return Patient(
        ins=ins.value if ins else "",
        ins_oid=ins.authority if ins else "",
        family=_qualified(families, "BR") or _qualified(families, None) or _qualified(families, "SP"),
        given=_qualified(givens, "BR") or plain.split(" ")[0],
        birth_date=_value(person, "c:birthTime", "value"),
        sex=_value(person, "c:administrativeGenderCode", "code"),
        birth_place=_text(_find(person, "c:birthplace/c:place/c:addr/c:county")),
        given_list=plain,
        used_family=_qualified(families, "CL") or _qualified(families, "SP"),
        used_given=_qualified(givens, "CL"),
    )


def _qualifiers(name: Element) -> list[str]:
    return _attribute(name, "qualifier").split()


def _qualified(names: list[tuple[list[str], str]], qualifier: str | None) -> str:
    """Return the first name with this qualifier, or without any for None; empty when there is none."""
    for qualifiers, text in names:
        if text and (qualifier in qualifiers if qualifier else not qualifiers):
            return text
    return ""


def _author(root: Element) -> Element:
    """Return the first author with a national identifier, else the first one (a device may come first)."""
    authors = root.findall("c:author/c:assignedAuthor", _NS)
    named = [author for author in authors if _person(author).id]
    return next(iter(named or authors), None)


def _person(entity: Element) -> Person:
    return Person(
        id=_extension(entity, "c:id", RPPS_OID),
        family=_first_text(entity, "c:assignedPerson/c:name/c:family"),
        given=_first_text(entity, "c:assignedPerson/c:name/c:given"),
    )


def _structure(entity: Element, *, any_root: bool = False) -> Organization | None:
    """Return the organization an entity stands for, by its national identifier, or None."""
    organization = _find(entity, "c:representedOrganization")
    number = _extension(organization, "c:id", STRUCTURE_OID)
    if not number and any_root:
        number = next((id_.value for id_ in map(_identifier, _all(organization, "c:id")) if id_.value), "")
    return Organization(number, _first_text(organization, "c:name")) if number else None


# --- orders and acts ----------------------------------------------------------------------------


def _requests(root: Element) -> Iterable[RequestIds]:
    """Pair accession and order numbers of the same order (interfaces.md 2.1); an empty order is skipped."""
    nothing = Identifier("", "")
    for order in root.findall("c:inFulfillmentOf/c:order", _NS):
        orders = [id_ for id_ in map(_identifier, _all(order, "c:id")) if id_ != nothing]
        numbers = [id_ for id_ in map(_identifier, _all(order, "d:accessionNumber")) if id_ != nothing]
        # Where one side repeats and the other does not, the single one goes with each.
        for rank in range(max(len(orders), len(numbers))):
            yield RequestIds(
                accession=numbers[min(rank, len(numbers) - 1)] if numbers else nothing,
                order=orders[min(rank, len(orders) - 1)] if orders else nothing,
            )


def _acts(root: Element) -> list[StudyAct]:
    """Read the acts that made a study; two acts on one study become one, since it gets one KOS."""
    acts: dict[str, StudyAct] = {}
    for event in root.findall("c:documentationOf/c:serviceEvent", _NS):
        for id_ in _all(event, "c:id"):
            if id_.get("root") is None:
                continue
            act = _act(event, _attribute(id_, "root"))
            known = acts.get(act.study_uid)
            acts[act.study_uid] = act if known is None else _merged(known, act)
    return list(acts.values())


def _act(event: Element, study_uid: str) -> StudyAct:
    translations = _all(event, "c:code/c:translation")
    ccam = (code for code in translations if _attribute(code, "codeSystem") in _CCAM)
    return StudyAct(
        study_uid=study_uid,
        modalities=tuple(
            # Not in the value set, but in a published report (interfaces.md 2.1 no 7).
            attrs.evolve(code, value="MR") if code.value == "RM" else code
            for code in _described(translations, _MODALITY)
        ),
        regions=tuple(_described(translations, _REGION)),
        description=_value(event, "c:code", "displayName")
        or next((text for code in ccam if (text := _attribute(code, "displayName"))), "")
        or _first_text(event, "c:code/c:originalText"),
        start=_value(event, "c:effectiveTime/c:low", "value") or _value(event, "c:effectiveTime", "value"),
        stop=_value(event, "c:effectiveTime/c:high", "value"),
        practice_setting=_code(
            _find(
                event, "c:performer/c:assignedEntity/c:representedOrganization/c:standardIndustryClassCode"
            )
        ),
    )


def _described(translations: list[Element], qualifier: str) -> Iterable[Code]:
    """Return the distinct codes whose qualifier says they are a modality or a region."""
    found: dict[str, Code] = {}
    for translation in translations:
        names = [_attribute(name, "code") for name in _all(translation, "c:qualifier/c:name")]
        code = _code(translation)
        if qualifier in names and code is not None:
            found.setdefault(code.value, code)
    return found.values()


def _merged(first: StudyAct, second: StudyAct) -> StudyAct:
    descriptions = dict.fromkeys(text for text in (first.description, second.description) if text)
    starts = [time for time in (first.start, second.start) if time]
    stops = [time for time in (first.stop, second.stop) if time]
    return attrs.evolve(
        first,
        modalities=_distinct(first.modalities + second.modalities),
        regions=_distinct(first.regions + second.regions),
        description=" + ".join(descriptions),
        start=min(starts, default=""),
        stop=max(stops, default=""),
        practice_setting=first.practice_setting or second.practice_setting,
    )


def _distinct(codes: tuple[Code, ...]) -> tuple[Code, ...]:
    return tuple({code.value: code for code in reversed(codes)}.values())[::-1]


# --- small readers; an absent element (None) has no values ----------------------------------------


def _find(element: Element, path: str) -> Element:
    return None if element is None else element.find(path, _NS)


def _all(element: Element, path: str) -> list[Element]:
    return [] if element is None else list(element.findall(path, _NS))


def _clean(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= MAX_VALUE else ""


def _attribute(element: Element, name: str) -> str:
    return "" if element is None else _clean(element.get(name) or "")


def _value(element: Element, path: str, name: str) -> str:
    return _attribute(_find(element, path), name)


def _text(element: Element) -> str:
    return "" if element is None else _clean(element.xpath("string()"))


def _first_text(element: Element, path: str) -> str:
    return next((text for found in _all(element, path) if (text := _text(found))), "")


def _identifier(element: Element) -> Identifier:
    return Identifier(_attribute(element, "extension"), _attribute(element, "root"))


def _extension(element: Element, path: str, root: str) -> str:
    ids = map(_identifier, _all(element, path))
    return next((id_.value for id_ in ids if id_.authority == root and id_.value), "")


def _code(element: Element) -> Code | None:
    value = _attribute(element, "code")
    if not value:
        return None
    return Code(value, _attribute(element, "codeSystem"), _attribute(element, "displayName"))


def _document_id(element: Element) -> str:
    root, extension = _attribute(element, "root"), _attribute(element, "extension")
    return f"{root}^{extension}" if root and extension else root

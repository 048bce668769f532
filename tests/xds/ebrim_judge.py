"""Judges our XDS messages by rules written down here, whatever our own code and simulators think.

Where each rule comes from: the child order, cardinalities and lengths of the ebRIM 3.0 and ebRS schemas;
the metadata attributes of ITI TF-3 4.2.3 (DTM, CX, XCN, XON, CXi); the tables of the national profile
(interfaces.md 4.2 to 4.8). Each function returns what is wrong, nothing when nothing is. Nothing of
`drimbox.xds` is imported, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from lxml import etree

from tests.xds.ebrim_tables import (
    AUTHOR,
    CONFIDENTIALITY,
    DEVICE,
    DTM,
    ENTRY_CODES,
    ENTRY_IDENTIFIERS,
    ENTRY_UUID,
    EVENTS,
    HAS_MEMBER,
    INSTANT,
    KOS_CODES,
    KOS_SLOTS,
    PROFESSIONAL,
    REPLACES,
    SET_AUTHOR,
    SET_CODES,
    SET_IDENTIFIERS,
    SET_NODE,
    SET_SLOTS,
    SIGNATURE_CODES,
    SIGNATURE_SLOTS,
    SIGNS,
    STATUS,
    XON,
)

RIM = "{urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0}"
LCM = "{urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0}"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
IDENTIFIED = ("RegistryPackage", "ExtrinsicObject", "Classification", "ExternalIdentifier", "Association")
ORDER = ("Slot", "Name", "Description", "VersionInfo", "Classification", "ExternalIdentifier")


def judge_publication(data: bytes, documents: Mapping[str, bytes]) -> list[str]:
    """Judge the SubmitObjectsRequest of TD2.1; `documents` is by symbolic id."""
    found: list[str] = []
    holder = _holder(data, found)
    if holder is None:
        return found
    (package, *more), entries = holder.findall(RIM + "RegistryPackage"), _entries(holder)
    links = holder.findall(RIM + "Association")
    if more or len(entries) != 2:
        found.append("one RegistryPackage and two ExtrinsicObject are due")
        return found
    found += _package(package)
    kos, signature = entries
    for entry, slots, codes, facts in (
        (
            kos,
            KOS_SLOTS,
            KOS_CODES,
            ("application/dicom", "Reference d'Objets d'un Examen d'Imagerie", "KOS"),
        ),
        (signature, SIGNATURE_SLOTS, SIGNATURE_CODES, ("text/xml", "Source", "")),
    ):
        found += _object(entry, slots, codes, ENTRY_IDENTIFIERS)
        found += _entry(entry, facts, documents)
    found += _together(package, kos, signature)
    found += _links(package, kos, signature, links)
    return found


def judge_removal(data: bytes) -> list[str]:
    """Judge the SubmitObjectsRequest of TD3.3c."""
    found: list[str] = []
    holder = _holder(data, found)
    if holder is None:
        return found
    if [_local(child) for child in holder] != ["RegistryPackage", "Association"]:
        found.append("one RegistryPackage and one Association are due")
        return found
    package, link = holder
    found += _package(package)
    facts = (link.get("associationType"), link.get("sourceObject"))
    if facts != (STATUS, package.get("id")):
        found.append(f"association: {facts}")
    _must(found, "association target", ENTRY_UUID, link.get("targetObject"))
    approved = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"
    expected = {"OriginalStatus": [approved], "NewStatus": ["urn:asip:ci-sis:2010:StatusType:Deleted"]}
    if _slots(link) != expected:
        found.append(f"association slots: {_slots(link)}")
    return found


# -- the whole -----------------------------------------------------------------------------------------


def _holder(data: bytes, found: list[str]) -> Any:
    root = etree.fromstring(data)
    holder = root.find(RIM + "RegistryObjectList")
    if root.tag != LCM + "SubmitObjectsRequest" or holder is None or len(root) != 1:
        found.append("no SubmitObjectsRequest with one RegistryObjectList")
        return None
    counted = Counter(element.get("id") for element in holder.iter() if element.get("id") is not None)
    found += [f"id {name} given {count} times" for name, count in counted.items() if count > 1]
    for element in holder.iter(*(RIM + each for each in IDENTIFIED)):
        _must(found, f"id of {_local(element)}", r"[^\s]+", element.get("id"))
        found += _ordered(element)
    found += [f for element in holder.iter(RIM + "LocalizedString") for f in _text(element)]
    return holder


def _ordered(element: Any) -> Iterator[str]:
    names = [_local(child) for child in element]
    if any(name not in ORDER for name in names):
        yield f"{element.get('id')}: children {names}"
    elif [ORDER.index(name) for name in names] != sorted(ORDER.index(name) for name in names):
        yield f"{element.get('id')}: children in another order than the schema's"
    for single in ("Name", "Description", "VersionInfo"):
        if names.count(single) > 1:
            yield f"{element.get('id')}: several {single}"
    slots = Counter(slot.get("name") for slot in element.findall(RIM + "Slot"))
    yield from (f"{element.get('id')}: Slot {name} given twice" for name, n in slots.items() if n > 1)
    for slot in element.findall(RIM + "Slot"):
        if [_local(child) for child in slot] != ["ValueList"]:
            yield f"Slot {slot.get('name')}: no ValueList"
        values = [value.text or "" for value in slot.iter(RIM + "Value")]
        if not values or any(not 0 < len(value) <= 256 or value != value.strip() for value in values):
            yield f"Slot {slot.get('name')}: empty, over-long or padded value"
        if any(re.search(r"[\x00-\x1f\x7f-\x9f]", value) for value in values):
            yield f"Slot {slot.get('name')}: control character"


def _text(element: Any) -> Iterator[str]:
    value = element.get("value")
    if value is None or len(value) > 1024 or re.search(r"[\x00-\x1f\x7f-\x9f]", value):
        yield "LocalizedString: no value, over-long, or with a control character"
    if element.get("charset") not in ("UTF8", "UTF-8") or not element.get(LANG):
        yield "LocalizedString: charset or language"


def _package(package: Any) -> list[str]:
    found = _object(package, SET_SLOTS, SET_CODES, SET_IDENTIFIERS)
    nodes = [each.get("classificationNode") for each in package.findall(RIM + "Classification")]
    if [node for node in nodes if node] != [SET_NODE]:
        found.append("the submission set is not classified as one, once")
    return found


def _entry(entry: Any, facts: tuple[str, str, str], documents: Mapping[str, bytes]) -> Iterator[str]:
    name = entry.get("id")
    told = (entry.get("mimeType"), _localized(entry, "Name"), _localized(entry, "Description"))
    if told != facts:
        yield f"{name}: {told}"
    if entry.get("objectType") != "urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1":
        yield f"{name}: objectType"
    slots = _slots(entry)
    document = documents.get(name)
    if document is None:
        yield f"{name}: no document"
    elif (slots.get("hash"), slots.get("size")) != (
        [hashlib.sha1(document).hexdigest()],
        [str(len(document))],
    ):
        yield f"{name}: hash or size is not the document's"
    codes = Counter(_codes(entry, CONFIDENTIALITY))
    if "N@2.16.840.1.113883.5.25" not in codes:
        yield f"{name}: confidentialityCode N is due"
    for scheme in (CONFIDENTIALITY, EVENTS):
        if any(count > 1 for count in Counter(_codes(entry, scheme)).values()):
            yield f"{name}: a code twice"
    fields = Counter(value.partition("|")[0] for value in slots.get("sourcePatientInfo", ()))
    if any(count > 1 for count in fields.values()) or (fields and not {"PID-5", "PID-7"} <= set(fields)):
        yield f"{name}: sourcePatientInfo {sorted(fields)}"
    kinds = Counter(
        value.rpartition(":")[2] for value in slots.get("urn:ihe:iti:xds:2013:referenceIdList", ())
    )
    if set(kinds) != {"accession", "order", "studyInstanceUID"} or kinds["studyInstanceUID"] != 1:
        yield f"{name}: referenceIdList {dict(kinds)}"
    start, stop = (slots.get(key, [""])[0] for key in ("serviceStartTime", "serviceStopTime"))
    if stop[: len(start)] < start[: len(stop)]:
        yield f"{name}: it stops before it starts"


def _together(package: Any, kos: Any, signature: Any) -> Iterator[str]:
    """Say what does not agree between the three objects."""
    objects = (package, kos, signature)
    times = {_slots(each)["submissionTime"][0] for each in objects if "submissionTime" in _slots(each)}
    if len(times) != 1:
        yield "submissionTime differs"
    if any(created > submitted for created in _slots(kos).get("creationTime", ()) for submitted in times):
        yield "the set is older than its document"
    patients = {
        value for each in objects for name, value in _identifiers(each) if name.endswith("patientId")
    }
    if len(patients) != 1:
        yield "patientId differs"
    unique = [value for each in objects for name, value in _identifiers(each) if name.endswith("uniqueId")]
    if len(set(unique)) != len(unique):
        yield "a uniqueId twice"
    for name in ("legalAuthenticator", "urn:ihe:iti:xds:2013:referenceIdList"):
        if _slots(kos).get(name) != _slots(signature).get(name):
            yield f"{name} differs between manifest and signature"
    for scheme in ENTRY_CODES:
        if _codes(kos, scheme) != _codes(signature, scheme):
            yield f"{scheme} differs between manifest and signature"
    if not re.fullmatch(PROFESSIONAL, _author(signature, AUTHOR)[0]):
        yield "the author of the signature is no professional"
    if _author(package, SET_AUTHOR) != _author(kos, AUTHOR):
        yield "submission set and manifest have other authors"


def _links(package: Any, kos: Any, signature: Any, links: list[Any]) -> Iterator[str]:
    ours = {each.get("id") for each in (package, kos, signature)}
    told = []
    for link in links:
        kind, source, target = (
            link.get(key) for key in ("associationType", "sourceObject", "targetObject")
        )
        told.append((kind, source, target if target in ours else "elsewhere"))
        if source not in ours:
            yield f"{kind}: source {source} is not in the request"
        if target not in ours and not re.fullmatch(ENTRY_UUID, target or ""):
            yield f"{kind}: target {target} is nowhere"
        if _slots(link) != {"SubmissionSetStatus": ["Original"]}:
            yield f"{kind}: slots {_slots(link)}"
    due = [
        (HAS_MEMBER, package.get("id"), kos.get("id")),
        (HAS_MEMBER, package.get("id"), signature.get("id")),
        (SIGNS, signature.get("id"), package.get("id")),
    ]
    rest = Counter(told)
    rest.subtract(due)
    left = {link: count for link, count in rest.items() if count}
    if left not in ({}, {(REPLACES, kos.get("id"), "elsewhere"): 1}):
        yield f"associations: {left}"


# -- one object ----------------------------------------------------------------------------------------


def _object(
    element: Any,
    slots: Mapping[str, tuple[str, int, int]],
    codes: Mapping[str, tuple[str, int, int]],
    identifiers: Mapping[str, tuple[str, str]],
) -> list[str]:
    found: list[str] = []
    name, held = element.get("id"), _slots(element)
    found += [f"{name}: Slot {each} is not due" for each in held if each not in slots]
    for slot, (pattern, least, most) in slots.items():
        values = held.get(slot, [])
        if not least <= len(values) <= most or len(set(values)) != len(values):
            found.append(f"{name}: Slot {slot} has {len(values)} values")
        for value in values:
            _must(found, f"{name}: Slot {slot}", pattern, value)
            if pattern in (DTM, INSTANT):
                found += _instant(name, slot, value)
    found += _classified(element, codes)
    found += _identified(element, identifiers)
    return found


def _instant(name: str, slot: str, value: str) -> Iterator[str]:
    formats = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
    try:
        datetime.strptime(value, formats[len(value)]).replace(tzinfo=UTC)
    except (ValueError, KeyError):
        yield f"{name}: Slot {slot} is no instant: {value}"


def _classified(element: Any, codes: Mapping[str, tuple[str, int, int]]) -> list[str]:
    found: list[str] = []
    name = element.get("id")
    authors = {SET_AUTHOR, AUTHOR}
    for each in element.findall(RIM + "Classification"):
        if each.get("classifiedObject") != name:
            found.append(f"{name}: Classification of another object")
        node, scheme, code = (
            each.get(key) for key in ("classificationNode", "classificationScheme", "nodeRepresentation")
        )
        if (node is None) == (scheme is None) or (node is None) != (code is not None):
            found.append(f"{name}: Classification is neither by node nor by scheme and one code")
        if scheme in authors:
            if set(_slots(each)) != {"authorPerson", "authorInstitution"} or code != "":
                found.append(f"{name}: author {sorted(_slots(each))}")
            person, institution = _author(element, scheme)
            _must(found, f"{name}: authorPerson", f"{PROFESSIONAL}|{DEVICE}", person)
            _must(found, f"{name}: authorInstitution", XON, institution)
        elif scheme is not None:
            if set(_slots(each)) != {"codingScheme"} or len(_slots(each)["codingScheme"]) != 1:
                found.append(f"{name}: {scheme} without one codingScheme")
            if not _localized(each, "Name"):
                found.append(f"{name}: {scheme} without text")
            if scheme not in codes:
                found.append(f"{name}: {scheme} is not due")
    for scheme, (pattern, least, most) in codes.items():
        values = _codes(element, scheme)
        if not least <= len(values) <= most:
            found.append(f"{name}: {scheme} has {len(values)} codes")
        for value in values:
            _must(found, f"{name}: {scheme}", pattern, value)
    expected = SET_AUTHOR if _local(element) == "RegistryPackage" else AUTHOR
    if sum(each.get("classificationScheme") == expected for each in element) != 1:
        found.append(f"{name}: one author is due")
    return found


def _identified(element: Any, identifiers: Mapping[str, tuple[str, str]]) -> list[str]:
    found: list[str] = []
    name = element.get("id")
    each_one = element.findall(RIM + "ExternalIdentifier")
    if Counter(each.get("identificationScheme") for each in each_one) != Counter(identifiers.keys()):
        found.append(f"{name}: identifiers")
        return found
    for each in each_one:
        expected, pattern = identifiers[each.get("identificationScheme")]
        if each.get("registryObject") != name or _localized(each, "Name") != expected:
            found.append(f"{name}: {expected} of another object or name")
        _must(found, f"{name}: {expected}", pattern, each.get("value"))
    return found


def _must(found: list[str], what: str, pattern: str, value: str | None) -> None:
    if re.fullmatch(pattern, value or "") is None:
        found.append(f"{what}: {value!r}")


def _entries(holder: Any) -> list[Any]:
    return list(holder.findall(RIM + "ExtrinsicObject"))


def _local(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _slots(element: Any) -> dict[str, list[str]]:
    return {
        slot.get("name"): [value.text or "" for value in slot.iter(RIM + "Value")]
        for slot in element.findall(RIM + "Slot")
    }


def _codes(element: Any, scheme: str) -> list[str]:
    return [
        f"{each.get('nodeRepresentation')}@{'|'.join(_slots(each).get('codingScheme', []))}"
        for each in element.findall(RIM + "Classification")
        if each.get("classificationScheme") == scheme
    ]


def _author(element: Any, scheme: str) -> tuple[str, str]:
    for each in element.findall(RIM + "Classification"):
        if each.get("classificationScheme") == scheme:
            slots = _slots(each)
            return slots.get("authorPerson", [""])[0], slots.get("authorInstitution", [""])[0]
    return "", ""


def _identifiers(element: Any) -> list[tuple[str, str]]:
    return [
        (_localized(each, "Name"), each.get("value", ""))
        for each in element.findall(RIM + "ExternalIdentifier")
    ]


def _localized(element: Any, tag: str) -> str:
    found = element.find(f"{RIM}{tag}/{RIM}LocalizedString")
    return "" if found is None else str(found.get("value", ""))

"""Stored queries of ITI-18 over the simulated registry: FindDocuments, by reference id, GetDocuments.

Slot grammar (interfaces.md 4.11): quoted strings with doubled quotes, lists in parentheses, several Value
elements in a slot are OR, repeated eventCodeList slots are AND.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from drimbox.sim.dmp_registry import APPROVED, Entry, Registry
from drimbox.sim.dmp_rim import rim
from drimbox.sim.dmp_rules import (
    CLASS_CODE,
    CONFIDENTIALITY,
    EVENTS,
    FACILITY,
    FORMAT_CODE,
    PRACTICE,
    REFERENCES,
    TYPE_CODE,
)
from drimbox.sim.dmp_soap import RegistryError, SoapFault, attribute, query_response
from drimbox.sim.dmp_trust import Findings
from drimbox.sim.dmp_vihf import Vihf
from drimbox.sim.xmltools import text_of
from drimbox.xml import Element

QUERY = "urn:oasis:names:tc:ebxml-regrep:xsd:query:3.0"
FIND = "urn:uuid:14d4debf-8f97-4251-9a74-a90016b0af0d"
FIND_BY_REFERENCE = "urn:uuid:12941a89-e02e-4be5-967c-ce4bfc8fe492"
GET = "urn:uuid:5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"
MAX_RESULTS = 1000

_PREFIX = "$XDSDocumentEntry"
_CODES = {
    "ClassCode": CLASS_CODE,
    "TypeCode": TYPE_CODE,
    "FormatCode": FORMAT_CODE,
    "PracticeSettingCode": PRACTICE,
    "HealthcareFacilityTypeCode": FACILITY,
    "ConfidentialityCode": CONFIDENTIALITY,
    "EventCodeList": EVENTS,
}
_TIMES = {
    "CreationTime": "creationTime",
    "ServiceStartTime": "serviceStartTime",
    "ServiceStopTime": "serviceStopTime",
}
_STRING = r"'((?:[^']|'')*)'"


class QueryRefused(Exception):
    """The query is wrong: one RegistryError."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.error = RegistryError(code, text)


def read_values(text: str) -> list[str]:
    """Return the strings of one Value: `'a'`, `('a','b')` or a bare number; raises `QueryRefused`."""
    text = text.strip()
    inner = text
    if text.startswith("("):
        if not text.endswith(")"):
            raise QueryRefused("XDSRegistryError", "list without closing parenthesis")
        inner = text[1:-1].strip()
        if re.fullmatch(rf"(?:{_STRING}|\d+)(?:\s*,\s*(?:{_STRING}|\d+))*", inner) is None:
            raise QueryRefused("XDSRegistryError", "malformed list of values")
        found = re.finditer(rf"{_STRING}|(\d+)", inner)
        return [m[2] if m[2] is not None else m[1].replace("''", "'") for m in found]
    single = re.fullmatch(_STRING, inner)
    if single is not None:
        return [single[1].replace("''", "'")]
    if re.fullmatch(r"\d+", inner):
        return [inner]
    raise QueryRefused("XDSRegistryError", "value that is neither quoted nor a number")


def answer_query(request: Element, vihf: Vihf, registry: Registry, findings: Findings) -> str:
    """Return the AdhocQueryResponse body; raises `SoapFault` when the body is no query."""
    query = request.find(rim("AdhocQuery"))
    option = request.find(f"{{{QUERY}}}ResponseOption")
    if request.tag != f"{{{QUERY}}}AdhocQueryRequest" or query is None or option is None:
        raise SoapFault("soap:Sender", "AdhocQueryRequest with ResponseOption and AdhocQuery is due")
    kind = option.get("returnType", "")
    if kind not in ("LeafClass", "ObjectRef"):
        raise SoapFault("soap:Sender", f"returnType {kind!r} not supported")
    try:
        slots = _read_slots(query)
        identifier = query.get("id", "")
        if identifier == GET:
            found = _get(slots, registry)
        elif identifier in (FIND, FIND_BY_REFERENCE):
            found = _find(slots, registry, vihf, identifier == FIND_BY_REFERENCE)
        else:
            raise QueryRefused("XDSUnknownStoredQuery", f"{identifier} is not served")
        visible = [entry for entry in found if entry.patient == vihf.patient]
        if len(visible) != len(found):
            findings.warn("query names documents of another patient than the VIHF: not returned")
        if kind == "LeafClass" and len(visible) > MAX_RESULTS:
            raise QueryRefused("XDSTooManyResults", f"{len(visible)} results")
    except QueryRefused as refusal:
        findings.errors.append(refusal.error)
        return query_response("", findings.errors)
    if kind == "ObjectRef":
        return query_response(
            "".join(f'<rim:ObjectRef id="{attribute(entry.entry_uuid)}"/>' for entry in visible)
        )
    return query_response("".join(entry.to_xml() for entry in visible))


def _read_slots(query: Element) -> list[tuple[str, list[str]]]:
    slots = []
    for slot in query.findall(rim("Slot")):
        name = slot.get("name", "")
        values: list[str] = []
        for value in slot.iterfind(f"{rim('ValueList')}/{rim('Value')}"):
            values += read_values(text_of(value))
        if not values:
            raise QueryRefused("XDSStoredQueryParamNumber", f"{name} without value")
        slots.append((name, values))
    names = [name for name, _ in slots if name != f"{_PREFIX}EventCodeList"]
    if len(names) != len(set(names)):
        raise QueryRefused("XDSStoredQueryParamNumber", "a slot given twice")
    return slots


def _get(slots: list[tuple[str, list[str]]], registry: Registry) -> list[Entry]:
    by_uuid, by_uid = f"{_PREFIX}EntryUUID", f"{_PREFIX}UniqueId"
    given = [(name, values) for name, values in slots if name in (by_uuid, by_uid)]
    if not given:
        raise QueryRefused("XDSStoredQueryMissingParam", f"{by_uid} or {by_uuid} is due")
    if len(given) > 1:
        raise QueryRefused("XDSStoredQueryParamNumber", f"{by_uid} and {by_uuid} exclude each other")
    name, values = given[0]
    look = registry.entries.get if name == by_uuid else registry.by_unique_id
    found = (look(value) for value in dict.fromkeys(values))
    return [entry for entry in found if entry is not None]


def _find(
    slots: list[tuple[str, list[str]]], registry: Registry, vihf: Vihf, by_reference: bool
) -> list[Entry]:
    given = {name.removeprefix(_PREFIX): values for name, values in slots}
    required = ["PatientId", "Status", *(["ReferenceIdList"] if by_reference else [])]
    for name in required:
        if name not in given:
            raise QueryRefused("XDSStoredQueryMissingParam", f"{_PREFIX}{name} is due")
    if len(given["PatientId"]) != 1:
        raise QueryRefused("XDSStoredQueryParamNumber", "one patient is due")
    if given["PatientId"][0] != vihf.patient:
        raise QueryRefused("XDSPatientIdDoesNotMatch", "the query names another patient than the VIHF")
    tests: list[Callable[[Entry], bool]] = []
    for name, values in slots:
        tests.append(_test(name.removeprefix(_PREFIX), values))
    return [entry for entry in registry.entries.values() if all(test(entry) for test in tests)]


def _test(name: str, values: list[str]) -> Callable[[Entry], bool]:
    if name == "PatientId":
        return lambda entry: entry.patient in values
    if name == "Status":
        return lambda entry: entry.status in values
    if name == "ReferenceIdList":
        return lambda entry: not set(values).isdisjoint(entry.metadata.slots.get(REFERENCES, ()))
    if name == "Type":
        return lambda entry: entry.metadata.get("objectType") in values
    if name in _CODES:
        scheme = _CODES[name]
        return lambda entry: not set(values).isdisjoint(_coded(entry, scheme))
    for key, slot in _TIMES.items():
        if name in (f"{key}From", f"{key}To"):
            return _time_test(slot, values[0], upper=name.endswith("To"))
    raise QueryRefused("XDSRegistryError", f"{_PREFIX}{name} is not served")


def _coded(entry: Entry, scheme: str) -> Iterable[str]:
    return (f"{c.code}^^{c.coding_scheme}" for c in entry.metadata.classified(scheme))


def _time_test(slot: str, limit: str, *, upper: bool) -> Callable[[Entry], bool]:
    """ITI-18: From is inclusive, To exclusive; shorter times are filled with zeros."""
    bound = limit.ljust(14, "0")

    def test(entry: Entry) -> bool:
        value = re.split(r"[+-]", entry.metadata.slot(slot))[0].ljust(14, "0")
        return value < bound if upper else value >= bound

    return test


def approved(registry: Registry) -> list[Entry]:
    """Return what an ordinary search would find: the entries that are Approved."""
    return [entry for entry in registry.entries.values() if entry.status == APPROVED]

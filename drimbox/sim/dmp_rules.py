"""The rules of interfaces.md 4.2 to 4.4 as data: which attribute, how often, with which values.

`check_package` and `check_entry` run one object against its table. A value pattern matches the whole
value. Cardinality is (least, most); None is without limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from drimbox.sim.dmp_rim import RegistryObject
from drimbox.sim.dmp_trust import Findings

STABLE = "urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1"
SET_NODE = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"
SET_AUTHOR = "urn:uuid:a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d"
SET_CONTENT_TYPE = "urn:uuid:aa543740-bdda-424e-8c96-df4873be8500"
SET_PATIENT = "urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446"
SET_SOURCE = "urn:uuid:554ac39e-e3fe-47fe-b233-965d2a147832"
SET_UNIQUE = "urn:uuid:96fdda7c-d067-4183-912e-bf5ee74998a8"

AUTHOR = "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d"
CLASS_CODE = "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a"
TYPE_CODE = "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983"
CONFIDENTIALITY = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
FORMAT_CODE = "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d"
FACILITY = "urn:uuid:f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1"
PRACTICE = "urn:uuid:cccf5598-8b07-4b77-a05e-ae952c785ead"
EVENTS = "urn:uuid:2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4"
PATIENT = "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427"
UNIQUE = "urn:uuid:2e82c1f6-a085-4c72-9da3-8640a32e42ab"
REFERENCES = "urn:ihe:iti:xds:2013:referenceIdList"

KOS_CLASS = "1.2.840.10008.5.1.4.1.1.88.59"

_OID = r"[0-2](\.(0|[1-9]\d*))+"
_TIME = r"\d{14}"
_ZONED = r"\d{8}(\d{2}(\d{2}(\d{2})?)?)?([+-]\d{4})?"
_INS = r"[0-9A-Z]{15,22}\^\^\^&1\.2\.250\.1\.213\.1\.4\.(8|9|10|11)&ISO\^NH"
_PERSON = r"[^^]+\^[^^]+(\^[^^]*){6}\^&1\.2\.250\.1\.71\.4\.2\.1&ISO\^[DU]\^\^\^(IDNPS|EI)"
_INSTITUTION = r"[^^]+(\^){5}&1\.2\.250\.1\.71\.4\.2\.2&ISO\^IDNST\^\^\^[^^]+"
_REFERENCE = (
    rf"[^^]+\^\^\^&({_OID})?(&ISO)?\^urn:ihe:iti:xds:(2013:accession|2016:studyInstanceUID|2013:order)"
)


@attrs.frozen
class SlotRule:
    """One slot: pattern of each value and whether it must be there."""

    pattern: str
    required: bool = True
    many: bool = False


@attrs.frozen
class CodeRule:
    """One coded attribute: (coding scheme, code) patterns allowed, and cardinality."""

    allowed: tuple[tuple[str, str], ...]
    least: int = 1
    most: int | None = 1


_NORMAL = (r"2\.16\.840\.1\.113883\.5\.25", r"N")
_MASKS = (r"1\.2\.250\.1\.213\.1\.1\.4\.13", r"MASQUE_PS|INVISIBLE_PATIENT|INVISIBLE_REPRESENTANTS_LEGAUX")
_EVENT_SCHEMES = (
    r"1\.2\.840\.10008\.2\.16\.4|2\.16\.840\.1\.113883\.6\.96|1\.2\.250\.1\.213\.1\.1\.5\.(618|695)"
    r"|1\.2\.250\.1\.213\.2\.5|1\.2\.250\.1\.215\.300\.1"
)

_SET_SLOTS = {"submissionTime": SlotRule(_TIME)}
_COMMON_SLOTS = {
    "creationTime": SlotRule(_TIME),
    "submissionTime": SlotRule(_TIME),
    "legalAuthenticator": SlotRule(_PERSON),
    "serviceStartTime": SlotRule(_ZONED),
    "serviceStopTime": SlotRule(_ZONED, required=False),
    "hash": SlotRule(r"[0-9a-fA-F]{40}"),
    "size": SlotRule(r"[1-9]\d*"),
    REFERENCES: SlotRule(_REFERENCE, many=True),
}
_KOS_SLOTS = {
    **_COMMON_SLOTS,
    "languageCode": SlotRule(r"fr-FR"),
    "sourcePatientId": SlotRule(rf"[^^]+\^\^\^&{_OID}&ISO\^(PI|NH)"),
    "sourcePatientInfo": SlotRule(r"PID-(5|7|8|11)\|\S.*", many=True),
}
_SIGNATURE_SLOTS = {
    **_COMMON_SLOTS,
    "languageCode": SlotRule(r"art"),
    "sourcePatientId": SlotRule(rf"[^^]+\^\^\^&{_OID}&ISO\^NH"),
}
_COMMON_CODES = {
    FACILITY: CodeRule(((r"1\.2\.250\.1\.71\.4\.2\.4", r"SA\d\d"),)),
    PRACTICE: CodeRule(((r"1\.2\.250\.1\.213\.1\.1\.4\.9", r"\S+"),)),
}
_KOS_CODES = {
    **_COMMON_CODES,
    CLASS_CODE: CodeRule(((r"1\.2\.250\.1\.213\.1\.1\.4\.1", r"31"),)),
    TYPE_CODE: CodeRule(((r"1\.2\.250\.1\.213\.1\.1\.4\.12", r"IMG-KOS"),)),
    FORMAT_CODE: CodeRule(((r"1\.2\.840\.10008\.2\.6\.1", re.escape(KOS_CLASS)),)),
    CONFIDENTIALITY: CodeRule((_NORMAL, _MASKS), most=4),
    EVENTS: CodeRule(((_EVENT_SCHEMES, r"\S+"),), most=None),
}
_SIGNATURE_CODES = {
    **_COMMON_CODES,
    CLASS_CODE: CodeRule(((r"URN", r"urn:oid:1\.3\.6\.1\.4\.1\.19376\.1\.2\.1\.1\.1"),)),
    TYPE_CODE: CodeRule(((r"ASTM", r"E1762"),)),
    FORMAT_CODE: CodeRule(((r"URN", r"http://www\.w3\.org/2000/09/xmldsig#"),)),
    CONFIDENTIALITY: CodeRule((_NORMAL, _MASKS), least=3, most=3),
    EVENTS: CodeRule(((r"1\.2\.840\.10065\.1\.12", r"1\.2\.840\.10065\.1\.12\.1\.14"),)),
}
#: SubmissionSet contentTypeCode values seen or mapped from PV1-2 (interfaces.md 4.2).
_SET_CODES = {SET_CONTENT_TYPE: CodeRule(((r"1\.2\.250\.1\.213\.2\.2", r"\d\d"),))}


def check_package(package: RegistryObject, findings: Findings) -> None:
    """Check a SubmissionSet against interfaces.md 4.2."""
    _check_slots(package, _SET_SLOTS, findings)
    _check_codes(package, _SET_CODES, findings)
    _check_author(package, SET_AUTHOR, findings)
    if [c.node for c in package.classifications if c.node] != [SET_NODE]:
        findings.metadata("SubmissionSet classification node is due once", package.id)
    wanted = {SET_PATIENT: _INS, SET_SOURCE: _OID, SET_UNIQUE: _OID}
    _check_external(package, wanted, findings)


def is_signature(entry: RegistryObject) -> bool:
    """Say whether a DocumentEntry announces itself as the signature document."""
    return any(c.coding_scheme == "URN" for c in entry.classified(CLASS_CODE))


def check_entry(entry: RegistryObject, findings: Findings) -> None:
    """Check a DocumentEntry against interfaces.md 4.3, or 4.4 for the signature."""
    if entry.get("objectType") != STABLE:
        findings.metadata("objectType is not that of a stable document", entry.id)
    for forbidden in ("repositoryUniqueId",):
        if forbidden in entry.slots:
            findings.warn(f"{entry.id}: {forbidden} is the registry's to write")
    mime, name, description = entry.get("mimeType"), entry.name, entry.description
    if is_signature(entry):
        slots, codes, expected = _SIGNATURE_SLOTS, _SIGNATURE_CODES, ("text/xml", "Source", "")
    else:
        slots, codes = _KOS_SLOTS, _KOS_CODES
        expected = ("application/dicom", "Reference d'Objets d'un Examen d'Imagerie", "KOS")
    if mime != expected[0]:
        findings.metadata(f"mimeType {mime}, {expected[0]} is due", entry.id)
    if not name:
        findings.metadata("title missing", entry.id)
    elif (name, description) != expected[1:]:
        findings.warn(f"{entry.id}: title or description is not the one of the samples")
    _check_slots(entry, slots, findings)
    _check_codes(entry, codes, findings)
    _check_author(entry, AUTHOR, findings)
    _check_external(entry, {PATIENT: _INS, UNIQUE: _OID}, findings)
    confidentiality = [c.code for c in entry.classified(CONFIDENTIALITY)]
    if "N" not in confidentiality or len(set(confidentiality)) != len(confidentiality):
        findings.metadata("confidentialityCode N is due, each code once", entry.id)
    events = [(c.code, c.coding_scheme) for c in entry.classified(EVENTS)]
    if len(set(events)) != len(events):
        findings.metadata("eventCodeList holds a code twice", entry.id)
    if is_signature(entry) and "sourcePatientInfo" in entry.slots:
        findings.metadata("sourcePatientInfo is not for the signature", entry.id)
    _check_patient_info(entry, findings)


def _check_patient_info(entry: RegistryObject, findings: Findings) -> None:
    fields = [value.partition("|")[0] for value in entry.slots.get("sourcePatientInfo", ())]
    if is_signature(entry):
        return
    missing = {"PID-5", "PID-7", "PID-8"} - set(fields)
    if missing or len(set(fields)) != len(fields):
        findings.metadata("sourcePatientInfo needs PID-5, PID-7 and PID-8, once each", entry.id)


def _check_slots(item: RegistryObject, rules: Mapping[str, SlotRule], findings: Findings) -> None:
    for name, rule in rules.items():
        values = item.slots.get(name, ())
        if not values:
            if rule.required:
                findings.metadata(f"Slot {name} missing", item.id)
            continue
        if len(values) > 1 and not rule.many:
            findings.metadata(f"Slot {name} has {len(values)} values", item.id)
        if any(re.fullmatch(rule.pattern, value, re.ASCII | re.DOTALL) is None for value in values):
            findings.metadata(f"Slot {name} has a value of another form", item.id)
    for name in item.slots:
        if name not in rules and name not in ("repositoryUniqueId", "URI", "version"):
            findings.warn(f"{item.id}: Slot {name} is not in the tables")


def _check_codes(item: RegistryObject, rules: Mapping[str, CodeRule], findings: Findings) -> None:
    for scheme, rule in rules.items():
        found = item.classified(scheme)
        if len(found) < rule.least or (rule.most is not None and len(found) > rule.most):
            findings.metadata(f"Classification {scheme} found {len(found)} times", item.id)
        for code in found:
            fits = any(
                re.fullmatch(system, code.coding_scheme, re.ASCII)
                and re.fullmatch(value, code.code, re.ASCII)
                for system, value in rule.allowed
            )
            if not fits:
                findings.metadata(
                    f"Classification {scheme}: {code.code!r} of {code.coding_scheme!r} not allowed", item.id
                )
            if not code.display:
                findings.metadata(f"Classification {scheme} without Name", item.id)
    for classification in item.classifications:
        known = classification.scheme in (*rules, AUTHOR, SET_AUTHOR) or classification.node
        if not known:
            findings.metadata(f"Classification {classification.scheme!r} unknown", item.id)


def _check_author(item: RegistryObject, scheme: str, findings: Findings) -> None:
    authors = item.classified(scheme)
    if not authors:
        findings.metadata("author missing", item.id)
    for author in authors:
        if author.code:
            findings.metadata("author with a nodeRepresentation", item.id)
        for name, pattern in (("authorPerson", _PERSON), ("authorInstitution", _INSTITUTION)):
            values = author.slots.get(name, ())
            if not values or any(re.fullmatch(pattern, value) is None for value in values):
                findings.metadata(f"{name} missing or of another form", item.id)


def _check_external(item: RegistryObject, wanted: Mapping[str, str], findings: Findings) -> None:
    for scheme, pattern in wanted.items():
        if re.fullmatch(pattern, item.external.get(scheme, ""), re.ASCII) is None:
            findings.metadata(f"ExternalIdentifier {scheme} missing or of another form", item.id)
    for scheme in item.external:
        if scheme not in wanted:
            findings.metadata(f"ExternalIdentifier {scheme} unknown", item.id)

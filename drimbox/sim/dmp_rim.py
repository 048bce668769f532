"""ebRIM registry objects as plain values, and what their XML must look like whatever they mean.

Reading tolerates any child order, as published samples need; an order the ebRIM schema does not allow
becomes a warning of the exchange.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from drimbox.sim.dmp_trust import Findings
from drimbox.xml import Element

RIM = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"
LCM = "urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"

_ORDER = ("Slot", "Name", "Description", "VersionInfo", "Classification", "ExternalIdentifier")


def rim(name: str) -> str:
    """Return the lxml name of a rim element."""
    return f"{{{RIM}}}{name}"


@attrs.frozen
class Classification:
    """A code (or an author): scheme of the attribute, code, coding scheme, text, slots."""

    scheme: str
    node: str
    code: str
    coding_scheme: str
    display: str
    slots: Mapping[str, tuple[str, ...]]


@attrs.frozen
class RegistryObject:
    """A RegistryPackage, ExtrinsicObject or Association."""

    kind: str
    id: str
    element: Element = attrs.field(repr=False, eq=False)
    slots: Mapping[str, tuple[str, ...]]
    classifications: tuple[Classification, ...]
    #: External identifiers by identificationScheme.
    external: Mapping[str, str]
    name: str
    description: str

    def slot(self, name: str) -> str:
        """Return the only value of a slot, empty when absent."""
        return (self.slots.get(name) or ("",))[0]

    def classified(self, scheme: str) -> list[Classification]:
        """Return the classifications of one scheme."""
        return [c for c in self.classifications if c.scheme == scheme]

    def get(self, attribute: str) -> str:
        """Return an XML attribute, empty when absent."""
        return str(self.element.get(attribute, ""))


@attrs.frozen
class Submitted:
    """The objects of one SubmitObjectsRequest."""

    package: RegistryObject
    entries: tuple[RegistryObject, ...]
    associations: tuple[RegistryObject, ...]


def read_submission(request: Element, findings: Findings) -> Submitted | None:
    """Read a `lcm:SubmitObjectsRequest`; None when it has no single RegistryPackage."""
    lists = request.findall(rim("RegistryObjectList"))
    if request.tag != f"{{{LCM}}}SubmitObjectsRequest" or len(lists) != 1:
        findings.metadata("lcm:SubmitObjectsRequest with one RegistryObjectList is due")
        return None
    objects: dict[str, list[RegistryObject]] = {
        "RegistryPackage": [],
        "ExtrinsicObject": [],
        "Association": [],
    }
    seen: set[str] = set()
    for element in lists[0]:
        if not isinstance(element.tag, str):
            continue
        kind = element.tag.removeprefix(f"{{{RIM}}}")
        if kind not in objects:
            findings.metadata(f"{kind} is not allowed in a RegistryObjectList")
            continue
        item = _read_object(kind, element, findings)
        objects[kind].append(item)
        for identified in element.iter("*"):
            identifier = identified.get("id")
            if identifier is None:
                continue
            if identifier in seen:
                findings.metadata(f"id {identifier} given twice")
            seen.add(identifier)
    if len(objects["RegistryPackage"]) != 1:
        findings.metadata("one RegistryPackage is due")
        return None
    return Submitted(
        objects["RegistryPackage"][0], tuple(objects["ExtrinsicObject"]), tuple(objects["Association"])
    )


def _read_object(kind: str, element: Element, findings: Findings) -> RegistryObject:
    identifier = element.get("id", "")
    if not identifier:
        findings.metadata(f"{kind} without id")
    names = [child.tag.removeprefix(f"{{{RIM}}}") for child in element if isinstance(child.tag, str)]
    positions = [_ORDER.index(name) for name in names if name in _ORDER]
    if positions != sorted(positions):
        findings.warn(f"{identifier}: child order is not that of the ebRIM schema")
    for name in names:
        if name not in _ORDER:
            findings.metadata(f"{name} not allowed here", identifier)
    classifications = tuple(
        _read_classification(child, identifier, findings)
        for child in element.findall(rim("Classification"))
    )
    external: dict[str, str] = {}
    for child in element.findall(rim("ExternalIdentifier")):
        scheme = child.get("identificationScheme", "")
        if scheme in external:
            findings.metadata(f"ExternalIdentifier {scheme} given twice", identifier)
        if child.get("registryObject") != identifier or not child.get("id"):
            findings.metadata("ExternalIdentifier without id or of another object", identifier)
        external[scheme] = child.get("value", "")
        if not _localized(child, "Name"):
            findings.metadata(f"ExternalIdentifier {scheme} without Name", identifier)
    return RegistryObject(
        kind=kind,
        id=identifier,
        element=element,
        slots=_read_slots(element, identifier, findings),
        classifications=classifications,
        external=external,
        name=_localized(element, "Name"),
        description=_localized(element, "Description"),
    )


def _read_classification(element: Element, owner: str, findings: Findings) -> Classification:
    if element.get("classifiedObject") != owner or not element.get("id"):
        findings.metadata("Classification without id or of another object", owner)
    slots = _read_slots(element, owner, findings)
    return Classification(
        scheme=element.get("classificationScheme", ""),
        node=element.get("classificationNode", ""),
        code=element.get("nodeRepresentation", ""),
        coding_scheme=(slots.get("codingScheme") or ("",))[0],
        display=_localized(element, "Name"),
        slots=slots,
    )


def _read_slots(element: Element, owner: str, findings: Findings) -> dict[str, tuple[str, ...]]:
    slots: dict[str, tuple[str, ...]] = {}
    for slot in element.findall(rim("Slot")):
        name = slot.get("name", "")
        if not name or name in slots:
            findings.metadata(f"Slot {name!r} unnamed or given twice", owner)
        values = tuple(
            (value.text or "").strip() for value in slot.iterfind(f"{rim('ValueList')}/{rim('Value')}")
        )
        if not values or any(len(value) > 256 for value in values):
            findings.metadata(f"Slot {name} without value or with one over 256 characters", owner)
        slots[name] = values
    return slots


def _localized(element: Element, name: str) -> str:
    text = element.find(f"{rim(name)}/{rim('LocalizedString')}")
    return "" if text is None else str(text.get("value", ""))

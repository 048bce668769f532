"""ebRIM 3.0 building blocks: Slot, Classification, ExternalIdentifier, Association (interfaces.md 4.1).

Theory of operation. A registry object is written once all its parts are known, because the schema wants
them in a fixed order (Slot*, Name, Description, VersionInfo, Classification*, ExternalIdentifier*) and
the published samples do not respect it. `ObjectBuilder` collects the parts in any order and writes them
in the schema's. Symbolic ids (`cla1`, `ei1`) come from one `Numbering` per submission: counted, never
random, so that the same submission is always the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lxml import etree

from drimbox.errors import PublicationError
from drimbox.xml import Element

RIM = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"
RS = "urn:oasis:names:tc:ebxml-regrep:xsd:rs:3.0"
LCM = "urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0"
QUERY = "urn:oasis:names:tc:ebxml-regrep:xsd:query:3.0"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"

#: rim.xsd: `LongName` (Value, nodeRepresentation, ExternalIdentifier) and `FreeFormText` (LocalizedString).
MAX_VALUE = 256
MAX_TEXT = 1024
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class ValueTooLong(PublicationError):
    """A value that rim.xsd cannot hold (E007): cutting an identifier would falsify it."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(f"{name} : valeur de {length} caractères, {MAX_VALUE} au plus")


def rim(tag: str) -> str:
    """Return the qualified name of a rim element."""
    return f"{{{RIM}}}{tag}"


def slot(name: str, values: Iterable[str]) -> Element:
    """Make a Slot; raises `ValueTooLong` for a value over 256 characters (rim.xsd LongName)."""
    element = etree.Element(rim("Slot"), {"name": name}, nsmap={None: RIM})
    value_list = etree.SubElement(element, rim("ValueList"))
    for value in values:
        etree.SubElement(value_list, rim("Value")).text = _bounded(name, value)
    return element


def localized(tag: str, text: str) -> Element:
    """Make a Name or Description; a text too long is cut, since it identifies nothing."""
    element = etree.Element(rim(tag), nsmap={None: RIM})
    attributes = {"charset": "UTF8", "value": printable(text)[:MAX_TEXT], XML_LANG: "FR"}
    etree.SubElement(element, rim("LocalizedString"), attributes)
    return element


def printable(text: str) -> str:
    """Replace what XML 1.0 cannot carry, and every control character, by a blank."""
    return _NOT_PRINTABLE.sub(" ", text)


def _bounded(name: str, value: str) -> str:
    if len(value) > MAX_VALUE:
        raise ValueTooLong(name, len(value))
    return printable(value)


class Numbering:
    """Counts the symbolic ids of one submission: `cla1`, `cla2`, `ei1` ..."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def next(self, prefix: str) -> str:
        """Return the next id with this prefix."""
        self._last[prefix] = self._last.get(prefix, 0) + 1
        return f"{prefix}{self._last[prefix]}"


class ObjectBuilder:
    """Collects the parts of one RegistryPackage or ExtrinsicObject and writes them in schema order."""

    def __init__(self, tag: str, object_id: str, numbering: Numbering, **attributes: str) -> None:
        self.id = object_id
        self._tag = tag
        self._attributes = {"id": object_id, **attributes}
        self._numbering = numbering
        self._slots: list[Element] = []
        self._name: Element | None = None
        self._description: Element | None = None
        self._classifications: list[Element] = []
        self._identifiers: list[Element] = []

    def slot(self, name: str, *values: str) -> None:
        """Add a Slot with the values that are not empty; none left adds nothing."""
        kept = [value for value in values if value]
        if kept:
            self._slots.append(slot(name, kept))

    def name(self, text: str) -> None:
        """Set the title."""
        self._name = localized("Name", text)

    def description(self, text: str) -> None:
        """Set the comments."""
        self._description = localized("Description", text)

    def code(self, scheme: str, code: str, coding_scheme: str, display: str) -> None:
        """Add a coded attribute: `scheme` says which one, `coding_scheme` is the code system."""
        element = self._classification(
            classificationScheme=scheme, nodeRepresentation=_bounded("nodeRepresentation", code)
        )
        element.append(slot("codingScheme", [coding_scheme]))
        element.append(localized("Name", display or code))

    def author(self, scheme: str, person: str, institution: str) -> None:
        """Add the author: an XCN and an XON (interfaces.md 4.2)."""
        element = self._classification(classificationScheme=scheme, nodeRepresentation="")
        if person:
            element.append(slot("authorPerson", [person]))
        if institution:
            element.append(slot("authorInstitution", [institution]))

    def node(self, node: str) -> None:
        """Classify the object itself under a node (the SubmissionSet's)."""
        self._classification(classificationNode=node)

    def identifier(self, scheme: str, name: str, value: str) -> None:
        """Add an ExternalIdentifier, `name` as IHE gives it (`XDSDocumentEntry.uniqueId`)."""
        attributes = {
            "id": self._numbering.next("ei"),
            "identificationScheme": scheme,
            "registryObject": self.id,
            "value": _bounded(name, value),
        }
        element = etree.Element(rim("ExternalIdentifier"), attributes, nsmap={None: RIM})
        element.append(localized("Name", name))
        self._identifiers.append(element)

    def build(self) -> Element:
        """Return the element, its children in the order of rim.xsd."""
        root = etree.Element(rim(self._tag), self._attributes, nsmap={None: RIM})
        parts = [*self._slots, self._name, self._description, *self._classifications, *self._identifiers]
        for part in parts:
            if part is not None:
                root.append(part)
        return root

    def _classification(self, **attributes: str) -> Element:
        every = {"id": self._numbering.next("cla"), **attributes, "classifiedObject": self.id}
        element = etree.Element(rim("Classification"), every, nsmap={None: RIM})
        self._classifications.append(element)
        return element


def association(object_id: str, kind: str, source: str, target: str, slots: dict[str, str]) -> Element:
    """Make an Association of type `kind` (a URN) from `source` to `target`."""
    attributes = {"associationType": kind, "id": object_id, "sourceObject": source, "targetObject": target}
    element = etree.Element(rim("Association"), attributes, nsmap={None: RIM})
    for name, value in slots.items():
        element.append(slot(name, [value]))
    return element


def submit_objects_request(objects: Iterable[Element]) -> Element:
    """Wrap registry objects in a SubmitObjectsRequest (lcm.xsd)."""
    root = etree.Element(f"{{{LCM}}}SubmitObjectsRequest", nsmap={"lcm": LCM, None: RIM})
    holder = etree.SubElement(root, rim("RegistryObjectList"))
    for item in objects:
        holder.append(item)
    return root

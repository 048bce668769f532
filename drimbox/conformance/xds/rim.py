"""ebRIM 3.0 read and its structure judged: children, identifiers, references (OASIS rim.xsd, ITI TF-3 4.2).

`read_objects` turns the RegistryObjectList into plain objects for the other modules and says what the
schema would refuse. The order of children is a warning: the agency's own samples break it.
"""

from __future__ import annotations

from typing import Final

import attrs

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.xml import Element

RIM: Final = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"
LCM: Final = "urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0"
_NS: Final = {"r": RIM}
_SCHEMA: Final = "ebRIM 3.0 rim.xsd"
#: Objects of one submission; a real one has five or six.
_MAX_OBJECTS: Final = 500
_MAX_VALUE: Final = 256

RULES = RuleBook("rim")
_LISTS = RULES.error(
    "list", "SubmitObjectsRequest : un seul RegistryObjectList attendu", "ebRS 3.0 lcm.xsd"
)
_MANY = RULES.error("objects", f"plus de {_MAX_OBJECTS} objets", _SCHEMA)
_UNKNOWN = RULES.error("object", "élément {tag} inattendu dans RegistryObjectList", "ITI TF-3 4.2.1")
_CHILD = RULES.error("child", "élément {tag} inattendu", _SCHEMA)
_ORDER = RULES.warning("order", "ordre des éléments : {tag} trop tard", _SCHEMA)
_NO_ID = RULES.error("id", "{tag} sans id", _SCHEMA)
_TWICE = RULES.error("id_twice", "id {id} donné deux fois", "ebRIM 3.0")
_OWNER = RULES.error(
    "owner", "{tag} : {attribute} ne désigne pas l'objet qui le contient", "ITI TF-3 4.2.3.1"
)
_ATTRIBUTE = RULES.error("attribute", "{tag} : attribut {attribute} absent", _SCHEMA)
_SLOT_NAME = RULES.error("slot", "Slot sans nom", _SCHEMA)
_SLOT_TWICE = RULES.error("slot_twice", "Slot {name} donné deux fois", "ebRIM 3.0 2.3")
_SLOT_SHAPE = RULES.error("slot_shape", "Slot {name} : un seul ValueList est attendu", _SCHEMA)
_LONG = RULES.error("value_length", f"Slot {{name}} : valeur de plus de {_MAX_VALUE} caractères", _SCHEMA)
_STRING = RULES.error("string", "{tag} : LocalizedString sans valeur", _SCHEMA)

_COMMON: Final = ("Slot", "Name", "Description", "VersionInfo", "Classification", "ExternalIdentifier")
_CHILDREN: Final = {
    "RegistryPackage": (*_COMMON, "RegistryObjectList"),
    "ExtrinsicObject": (*_COMMON, "ContentVersionInfo"),
    "Association": _COMMON,
    "Classification": _COMMON,
    "ExternalIdentifier": _COMMON,
}
_ONCE: Final = ("Name", "Description", "VersionInfo")
_ATTRIBUTES: Final = {
    "ExtrinsicObject": ("mimeType", "objectType"),
    "Association": ("associationType", "sourceObject", "targetObject"),
    "Classification": ("classifiedObject",),
    "ExternalIdentifier": ("identificationScheme", "registryObject", "value"),
}


@attrs.frozen
class Code:
    """One Classification."""

    scheme: str
    node: str
    #: None when the attribute is absent.
    value: str | None
    slots: dict[str, tuple[str, ...]]
    display: str

    @property
    def coding_scheme(self) -> str:
        """Its codingScheme, empty when absent."""
        return (self.slots.get("codingScheme") or ("",))[0]


@attrs.frozen
class External:
    """One ExternalIdentifier."""

    scheme: str
    value: str
    name: str


@attrs.frozen
class RimObject:
    """One registry object."""

    kind: str
    id: str
    attributes: dict[str, str]
    slots: dict[str, tuple[str, ...]]
    name: str | None
    description: str | None
    version: str
    codes: tuple[Code, ...]
    identifiers: tuple[External, ...]

    def slot(self, name: str) -> str:
        """Return the first value of a slot, empty without one."""
        return (self.slots.get(name) or ("",))[0]

    def coded(self, scheme: str) -> list[Code]:
        """Return the classifications of one scheme."""
        return [code for code in self.codes if code.scheme == scheme]

    def external(self, scheme: str) -> str:
        """Return the first external identifier of a scheme, empty without one."""
        return next((each.value for each in self.identifiers if each.scheme == scheme), "")


def find_list(root: Element) -> Element | None:
    """Return the RegistryObjectList of a SubmitObjectsRequest, wherever it stands."""
    found = root.iterfind(f".//{{{LCM}}}SubmitObjectsRequest/{{{RIM}}}RegistryObjectList")
    if root.tag == f"{{{LCM}}}SubmitObjectsRequest":
        found = root.iterfind(f"{{{RIM}}}RegistryObjectList")
    return next(iter(found), None)


def read_objects(holder: Element, out: Report) -> list[RimObject]:
    """Read the objects of a RegistryObjectList and judge their structure."""
    found: list[RimObject] = []
    if len(holder.getparent().findall(f"{{{RIM}}}RegistryObjectList")) > 1:
        _LISTS.broken(out)
    for child in holder.iterchildren("*"):
        if len(found) >= _MAX_OBJECTS:
            _MANY.broken(out)
            break
        kind = _local(child)
        if kind not in ("RegistryPackage", "ExtrinsicObject", "Association"):
            # The set may be classified beside it, and objects may be referred to.
            if kind not in ("Classification", "ObjectRef"):
                _UNKNOWN.broken(out, tag=shown(kind, 40))
            if kind == "Classification":
                _check(child, kind, "", out, "")
            continue
        where = f"{kind} {shown(child.get('id') or '', 40)}"
        _check(child, kind, child.get("id") or "", out, where)
        found.append(_object(child, kind, out, where))
    _check_every(holder, out)
    return found


def _object(element: Element, kind: str, out: Report, where: str) -> RimObject:
    version = element.find("r:VersionInfo", _NS)
    return RimObject(
        kind=kind,
        id=element.get("id") or "",
        attributes=dict(element.attrib),
        slots=_slots(element, out, where),
        name=_string(element, "Name"),
        description=_string(element, "Description"),
        version="" if version is None else version.get("versionName") or "",
        codes=tuple(
            Code(
                each.get("classificationScheme") or "",
                each.get("classificationNode") or "",
                each.get("nodeRepresentation"),
                _slots(each, out, where),
                _string(each, "Name") or "",
            )
            for each in element.iterfind("r:Classification", _NS)
        ),
        identifiers=tuple(
            External(
                each.get("identificationScheme") or "", each.get("value") or "", _string(each, "Name") or ""
            )
            for each in element.iterfind("r:ExternalIdentifier", _NS)
        ),
    )


def _check(element: Element, kind: str, owner: str, out: Report, where: str) -> None:
    """Judge one element against rim.xsd; `owner` is the id of the object that holds it."""
    if not element.get("id"):
        _NO_ID.broken(out, where, tag=kind)
    for attribute in _ATTRIBUTES.get(kind, ()):
        if element.get(attribute) is None:
            _ATTRIBUTE.broken(out, where, tag=kind, attribute=attribute)
    allowed = _CHILDREN[kind]
    reached, seen = 0, set()
    for child in element.iterchildren("*"):
        tag = _local(child)
        if tag not in allowed or (tag in _ONCE and tag in seen):
            _CHILD.broken(out, where, tag=shown(tag, 40))
            continue
        seen.add(tag)
        rank = allowed.index(tag)
        if rank < reached:
            _ORDER.broken(out, where, tag=tag)
        reached = max(reached, rank)
        if tag in ("Classification", "ExternalIdentifier"):
            attribute = "classifiedObject" if tag == "Classification" else "registryObject"
            if owner and child.get(attribute) not in (None, owner):
                _OWNER.broken(out, where, tag=tag, attribute=attribute)
            if kind != tag:
                _check(child, tag, "", out, where)
        elif tag in ("Name", "Description"):
            for text in child.iterchildren("*"):
                if _local(text) != "LocalizedString" or text.get("value") is None:
                    _STRING.broken(out, where, tag=tag)


def _check_every(holder: Element, out: Report) -> None:
    """Judge what concerns every element: ids given once, leaves without children."""
    seen: set[str] = set()
    for element in holder.iter(f"{{{RIM}}}*"):
        for child in element.iterchildren("*") if _local(element) in ("Value", "LocalizedString") else ():
            _CHILD.broken(out, tag=shown(_local(child), 40))
        identifier = element.get("id")
        if identifier and identifier in seen and _local(element) != "ObjectRef":
            _TWICE.broken(out, id=shown(identifier, 64))
        seen.add(identifier)


def _slots(element: Element, out: Report, where: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for slot in element.iterfind("r:Slot", _NS):
        name = slot.get("name")
        if not name:
            _SLOT_NAME.broken(out, where)
            continue
        lists = [each for each in slot.iterchildren("*") if _local(each) == "ValueList"]
        if len(lists) != 1 or len(slot.findall("*")) != 1 or any(_strangers(each) for each in lists):
            _SLOT_SHAPE.broken(out, where, name=shown(name))
        values = tuple(
            (each.text or "").strip() for holder in lists for each in holder.iterfind("r:Value", _NS)
        )
        if any(len(value) > _MAX_VALUE for value in values):
            _LONG.broken(out, where, name=shown(name))
        if name in found:
            _SLOT_TWICE.broken(out, where, name=shown(name))
        found.setdefault(name, values)
    return found


def _strangers(values: Element) -> bool:
    return any(_local(each) != "Value" for each in values.iterchildren("*"))


def _string(element: Element, tag: str) -> str | None:
    holder = element.find(f"r:{tag}", _NS)
    if holder is None:
        return None
    text = holder.find("r:LocalizedString", _NS)
    return "" if text is None else text.get("value") or ""


def _local(element: Element) -> str:
    """Return the name of an ebRIM element; one of another namespace keeps it, and so is never expected."""
    tag = str(element.tag)
    return tag.removeprefix(f"{{{RIM}}}")

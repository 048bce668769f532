"""The METADATA.XML of an archive: the metadata of the submission, of one manifest, and where its file is.

The manifest's entry gets `URI`, an entryUUID of its own, and `hash` and `size` when it has none; what is
there already is left as it is (requirements.md 3.11). The own entryUUID is always the same for the same
manifest, so that an archive written twice, or written, loaded and written again, is the same bytes.
"""

from __future__ import annotations

import hashlib
import uuid

from lxml import etree

from drimbox.xdm import entries
from drimbox.xds import codes, ebrim
from drimbox.xds.ebrim import rim
from drimbox.xml import Element, serialize

_DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'


def of_one(objects: Element, unique_id: str) -> bytes:
    """Return the SubmitObjectsRequest of the manifest `unique_id` alone, without its SOAP message.

    Entries of other manifests leave, with their associations; the signature's stays. Raises
    `MetadataRefused` unless exactly one entry has that identifier.
    """
    kept = [each for each in objects if isinstance(each.tag, str) and not _is_other(each, unique_id)]
    _entry(kept, unique_id)
    names = {each.get("id") for each in kept if each.tag != rim("Association")}
    kept = [each for each in kept if each.tag != rim("Association") or _among(each, names)]
    request = ebrim.submit_objects_request(kept)
    etree.cleanup_namespaces(request)
    return serialize(request)


def exported(metadata: bytes, unique_id: str, uri: str, kos: bytes) -> bytes:
    """Return the METADATA.XML of an archived manifest whose file is at `uri`.

    Raises `MetadataRefused` when the archived metadata are not those of this manifest.
    """
    objects = entries.parse(metadata)
    entry = _entry(list(objects), unique_id)
    if not entry.get("id", "").startswith("urn:uuid:"):
        _rename(objects, entry, own_uuid(unique_id))
    held = {slot.get("name") for slot in entry.findall(rim("Slot"))}
    if "hash" not in held:
        # XDS fixes SHA-1: it tells documents apart, it protects nothing.
        _put(entry, "hash", hashlib.sha1(kos, usedforsecurity=False).hexdigest())
    if "size" not in held:
        _put(entry, "size", str(len(kos)))
    _put(entry, "URI", uri)
    return _DECLARATION + of_one(objects, unique_id) + b"\n"


def own_uuid(unique_id: str) -> str:
    """Return the entryUUID that archives of ours give a manifest; it is not the registry's."""
    return uuid.uuid5(uuid.NAMESPACE_OID, unique_id).urn


def _unique_id(entry: Element) -> str:
    for each in entry.findall(rim("ExternalIdentifier")):
        if each.get("identificationScheme") == codes.ENTRY_UNIQUE_ID:
            return str(each.get("value", ""))
    return ""


def _is_other(each: Element, unique_id: str) -> bool:
    if each.tag != rim("ExtrinsicObject") or _unique_id(each) == unique_id:
        return False
    return str(each.get("mimeType", "")).lower() == entries.KOS_MIME


def _entry(objects: list[Element], unique_id: str) -> Element:
    found = [
        each for each in objects if each.tag == rim("ExtrinsicObject") and _unique_id(each) == unique_id
    ]
    if len(found) != 1:
        raise entries.MetadataRefused("METADATA.XML ne décrit pas ce KOS, ou plusieurs fois")
    return found[0]


def _among(association: Element, names: set[str | None]) -> bool:
    # What a replacement takes the place of is in the registry, not in this message.
    replaces = association.get("associationType") == codes.REPLACES
    return association.get("sourceObject") in names and (
        replaces or association.get("targetObject") in names
    )


def _rename(objects: Element, entry: Element, name: str) -> None:
    before = entry.get("id")
    entry.set("id", name)
    for each in objects.iter():
        for key in ("classifiedObject", "registryObject", "sourceObject", "targetObject"):
            if before is not None and each.get(key) == before:
                each.set(key, name)


def _put(entry: Element, name: str, value: str) -> None:
    """Set a slot; a new one goes after the others, where the schema wants it."""
    slots = entry.findall(rim("Slot"))
    for slot in slots:
        if slot.get("name") == name:
            entry.replace(slot, ebrim.slot(name, [value]))
            return
    entry.insert(max((entry.index(slot) for slot in slots), default=-1) + 1, ebrim.slot(name, [value]))

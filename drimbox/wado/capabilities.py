"""The answer to OPTIONS, the "WADO ping": what can be retrieved here, as a WADL (DB.SO.103, PS3.18 8.9).

The document has the shape of the specification's example (interfaces.md 6.5), with our real path in
place of the example's. It depends on configuration only, so that a Consumer learns from it that the
gateway is up without the PACS being asked.
"""

from __future__ import annotations

from typing import Final

from lxml import etree

from drimbox.config import WadoSettings
from drimbox.xml import Element

CONTENT_TYPE: Final = b"application/vnd.sun.wadl+xml"
#: Value of the `Allow` header that goes with it.
ALLOW: Final = b"GET, OPTIONS"

NAMESPACE: Final = "http://wadl.dev.java.net/2009/02"
_SCHEMA = "http://www.w3.org/2001/XMLSchema"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_MEDIA_TYPE = "multipart/related; type=application/dicom"
#: Header and its default, in the order of the example.
_HEADERS = (
    ("Accept", _MEDIA_TYPE),
    ("Authorization", ""),
    ("KOS-SOPInstanceUID", ""),
    ("Situation", ""),
)


def wadl(settings: WadoSettings) -> bytes:
    """Return the WADL of this gateway, UTF-8.

    The path is the first configured prefix, the one written in RetrieveURL. The
    instance level is in it with the key-image option (DB.SO.195).
    """
    root = etree.Element(_tag("application"), nsmap={None: NAMESPACE})
    etree.SubElement(root, _tag("doc"), {_LANG: "en", "title": "DRIMbox"})
    resources = etree.SubElement(root, _tag("resources"), {"base": ""})
    prefix = settings.prefixes[0].strip("/")
    lead = prefix + "/" if prefix else ""
    series = lead + "studies/{studyUID}/series/{seriesUID}"
    _resource(resources, "series", "GET", series, ("studyUID", "seriesUID"))
    if settings.instance_level:
        path = series + "/instances/{sopInstanceUID}"
        _resource(resources, "instance", "GET-instance", path, ("studyUID", "seriesUID", "sopInstanceUID"))
    document: bytes = etree.tostring(root, encoding="utf-8", xml_declaration=True, pretty_print=True)
    return document


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _resource(parent: Element, name: str, method_id: str, path: str, parameters: tuple[str, ...]) -> None:
    resource = etree.SubElement(parent, _tag("resource"), {"path": path, "id": name})
    for parameter in parameters:
        attributes = {"name": parameter, "type": "xs:string", "required": "true", "style": "template"}
        # The prefix of the type's value has to be declared, although nothing is named with it.
        etree.SubElement(resource, _tag("param"), attributes, nsmap={"xs": _SCHEMA})
    method = etree.SubElement(resource, _tag("method"), {"name": "GET", "id": method_id})
    request = etree.SubElement(method, _tag("request"))
    for header, default in _HEADERS:
        attributes = {"name": header, "style": "header", "required": "true", "default": default}
        etree.SubElement(request, _tag("param"), attributes)
    response = etree.SubElement(method, _tag("response"), {"status": "200"})
    etree.SubElement(response, _tag("representation"), {"mediaType": _MEDIA_TYPE})

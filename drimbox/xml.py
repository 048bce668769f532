"""The one XML parser of the gateway: no DTD, no entity, no network, bounded size and depth.

Every byte of XML that comes from outside goes through `safe_parse`; lint forbids other parsers.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import Any

from lxml import etree

#: lxml ships no type information; an alias keeps signatures readable.
Element = Any

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 200
_BLANKS = b" \t\r\n"


class XmlRefused(ValueError):
    """The bytes are not XML we accept: malformed, too large, too deep, or carrying a DOCTYPE."""


class _DepthGuard:
    """Parser target that counts depth and refuses a DOCTYPE before any tree is built."""

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._depth = 0

    def start(self, tag: str, attrib: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > self._max_depth:
            raise XmlRefused(f"XML nested deeper than {self._max_depth} elements")

    def end(self, tag: str) -> None:
        self._depth -= 1

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise XmlRefused("XML with a DOCTYPE")

    def close(self) -> None:
        """Nothing to return: the guard only watches."""


def _parser(*, huge: bool, target: object | None = None) -> Any:
    return etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        # libxml2 refuses text nodes over 10 MB without it; `safe_parse` bounds the whole document
        # itself, so a report with a large PDF passes and an entity bomb, having no DTD, does not exist.
        huge_tree=huge,
        remove_comments=False,
        remove_pis=False,
        target=target,
    )


def safe_parse(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Element:
    """Parse `data` and return its root element.

    Raises `XmlRefused` when it is larger than `max_bytes`, nested deeper than `max_depth`, carries a
    DOCTYPE, or is not well formed. Leading blanks and a byte order mark are tolerated, in either order, as
    real senders write them.
    """
    if len(data) > max_bytes:
        raise XmlRefused(f"XML of {len(data)} bytes, {max_bytes} allowed")
    data = data.lstrip(_BLANKS)
    if data.startswith(BOM_UTF8):
        # The mark stays: it decides against a declaration of another encoding.
        data = BOM_UTF8 + data[len(BOM_UTF8) :].lstrip(_BLANKS)
    try:
        etree.fromstring(data, _parser(huge=True, target=_DepthGuard(max_depth)))
        root = etree.fromstring(data, _parser(huge=True))
    except etree.XMLSyntaxError as error:
        raise XmlRefused(f"XML not well formed: {error.msg}") from error
    except ValueError as error:
        raise XmlRefused(str(error)) from error
    if root.getroottree().docinfo.doctype:
        raise XmlRefused("XML with a DOCTYPE")
    return root


def serialize(root: Element) -> bytes:
    """Serialise an element as UTF-8 without an XML declaration."""
    data: bytes = etree.tostring(root, encoding="utf-8", xml_declaration=False)
    return data

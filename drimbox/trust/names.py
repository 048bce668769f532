"""Distinguished names: reading them as text, and comparing CN and OU the way X.509 does.

The whitelist writes names like `CN=db1.349.example,OU=300000000000001,O=L'ÉTÉ,ST=Paris (75),C=FR`, in
the syntax of RFC 4514 and its ancestor RFC 2253. A peer proves a name by its certificate. The two are
compared after parsing, never as text (interfaces.md 8.1): order of the parts, escapes, quotes, blanks
and the case of letters mean nothing, and a value that contains `,OU=...` is only a value.

What counts is one CN and one OU. A name with two of either is ambiguous, and an ambiguous name is
nobody's: `identity_of` returns None and the peer is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import attrs
from cryptography import x509
from cryptography.x509.oid import NameOID

#: Longest name we read; a real one has about 100 characters.
MAX_LENGTH = 4096

_OIDS = {
    "2.5.4.3": "CN",
    "2.5.4.11": "OU",
    "2.5.4.10": "O",
    "2.5.4.8": "ST",
    "2.5.4.7": "L",
    "2.5.4.6": "C",
}
_TYPE = re.compile(
    r"\s*((?:OID\.)?[0-9]+(?:\.[0-9]+)*|[A-Za-z][A-Za-z0-9-]*)\s*=\s*", re.ASCII | re.IGNORECASE
)
_HEX = re.compile(r"[0-9A-Fa-f]{2}", re.ASCII)
_BLANKS = re.compile(r"\s+")
#: Characters that end a value unless escaped or quoted; `;` is RFC 2253's other comma.
_SEPARATORS = ",;+"
#: Characters RFC 4514 2.4 lets a backslash stand before.
_ESCAPABLE = ' "#+,;<=>\\'


class NameUnreadable(ValueError):
    """The text is not a distinguished name."""


#: A whole name, for comparison: equal means the same name, whatever order and case it is written in.
NameKey = tuple[tuple[str, str], ...]


@attrs.frozen
class Identity:
    """The CN and OU of one name, folded for comparison: equal means the same party."""

    cn: str
    ou: str


def identity(cn: str, ou: str) -> Identity:
    """Return the identity that these two values make."""
    return Identity(_fold(cn), _fold(ou))


def parse_name(text: str) -> list[tuple[str, str]]:
    """Read a distinguished name into (type, value) pairs in the order written.

    Types are upper case (`CN`, `OU`, or digits and dots when they have no short name here). The parts
    of a multi-valued RDN come one after the other. Escapes (`\\,`, `\\C3\\A9`) and quoted values are
    undone. Raises `NameUnreadable`.
    """
    if len(text) > MAX_LENGTH:
        raise NameUnreadable(f"name of {len(text)} characters")
    pairs: list[tuple[str, str]] = []
    position = 0
    while True:
        kind = _TYPE.match(text, position)
        if kind is None:
            raise NameUnreadable(f"no attribute type at offset {position}")
        name = kind[1].upper().removeprefix("OID.")
        value, position = _value(text, kind.end())
        pairs.append((_OIDS.get(name, name), value))
        if position == len(text):
            return pairs
        position += 1


def identity_of_text(text: str) -> Identity | None:
    """Return the identity of a written name, or None when it has not exactly one CN and one OU.

    Raises `NameUnreadable`.
    """
    return _identity(parse_name(text))


def identity_of(certificate: x509.Certificate) -> Identity | None:
    """Return the identity of a certificate's subject, or None unless it has one CN and one OU."""
    wanted = {NameOID.COMMON_NAME: "CN", NameOID.ORGANIZATIONAL_UNIT_NAME: "OU"}
    try:
        subject = certificate.subject
    except ValueError:
        return None
    return _identity(
        (wanted[attribute.oid], attribute.value)
        for attribute in subject
        if attribute.oid in wanted and isinstance(attribute.value, str)
    )


def names_borne(certificate: x509.Certificate) -> frozenset[str]:
    """Return every CN of the subject and every DNS subjectAltName of a certificate, case folded."""
    try:
        found = [
            attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found += extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass
    except ValueError:
        return frozenset()
    return frozenset(name.casefold() for name in found if isinstance(name, str) and name)


def key_of_text(text: str) -> NameKey:
    """Return a written name for comparison. Raises `NameUnreadable`."""
    return _key(parse_name(text))


def key_of(name: x509.Name) -> NameKey:
    """Return a name of a certificate for comparison."""
    pairs = []
    for attribute in name:
        dotted = attribute.oid.dotted_string
        value = attribute.value
        pairs.append((_OIDS.get(dotted, dotted), value if isinstance(value, str) else value.hex()))
    return _key(pairs)


def _key(pairs: Iterable[tuple[str, str]]) -> NameKey:
    return tuple(sorted((kind, _fold(value)) for kind, value in pairs))


def _identity(pairs: Iterable[tuple[str, str]]) -> Identity | None:
    found: dict[str, list[str]] = {"CN": [], "OU": []}
    for kind, value in pairs:
        if kind in found:
            found[kind].append(_fold(value))
    if len(found["CN"]) != 1 or len(found["OU"]) != 1 or not found["CN"][0] or not found["OU"][0]:
        return None
    return Identity(found["CN"][0], found["OU"][0])


def _fold(value: str) -> str:
    """Prepare a value for comparison: NFKC, case folded, runs of blanks as one (RFC 4518)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    return _BLANKS.sub(" ", folded).strip()


def _value(text: str, position: int) -> tuple[str, int]:
    """Read a value; return it and the position of the separator behind it, or the end."""
    if text[position : position + 1] == "#":
        raise NameUnreadable("value in BER")
    if text[position : position + 1] == '"':
        octets, position = _octets(text, position + 1, '"')
        if position == len(text):
            raise NameUnreadable("quote not closed")
        position += 1
        while text[position : position + 1].isspace():
            position += 1
        if position < len(text) and text[position] not in _SEPARATORS:
            raise NameUnreadable(f"text behind a quoted value at offset {position}")
        kept = len(octets)
    else:
        start = position
        octets, position = _octets(text, position, _SEPARATORS)
        kept = len(octets) - _trailing_blanks(text[start:position])
    try:
        return bytes(octets[:kept]).decode("utf-8"), position
    except UnicodeDecodeError:
        raise NameUnreadable("escaped bytes that are not UTF-8") from None


def _octets(text: str, position: int, ends: str) -> tuple[bytearray, int]:
    """Undo escapes up to one of the characters `ends` or the end of the text."""
    out = bytearray()
    while position < len(text) and text[position] not in ends:
        character = text[position]
        if character != "\\":
            out += character.encode("utf-8", "surrogatepass")
            position += 1
            continue
        if (pair := _HEX.match(text, position + 1)) is not None:
            out.append(int(pair[0], 16))
            position += 3
        elif position + 1 < len(text) and text[position + 1] in _ESCAPABLE:
            out += text[position + 1].encode("ascii")
            position += 2
        else:
            raise NameUnreadable(f"bad escape at offset {position}")
    return out, position


def _trailing_blanks(raw: str) -> int:
    """Count the blanks at the end of an unquoted value that are not escaped."""
    blanks = len(raw) - len(raw.rstrip(" "))
    slashes = len(raw[: len(raw) - blanks]) - len(raw[: len(raw) - blanks].rstrip("\\"))
    # An odd run of backslashes escapes the first of the blanks.
    return blanks - 1 if blanks and slashes % 2 else blanks

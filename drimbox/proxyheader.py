"""The header of the PROXY protocol, versions 1 and 2: bytes in, the client's address out.

A front end that passes connections on (HAProxy and others, `proxy-protocol.txt`) writes it before the first
byte of its client. Twisted has a reader too; it wants the header in one piece, believes any text to be an
address, and is driven by a protocol that trusts everybody. Here a header is judged from its first byte on,
nothing of it is kept that could be longer than `MAX_V1` or `MAX_V2`, and what is doubtful is refused.
"""

from __future__ import annotations

import ipaddress
import struct

import attrs

#: Bytes of a header of version 1 with its end of line (2.1); of what follows the fixed part of version 2.
MAX_V1 = 107
MAX_V2 = 4096
_TEXT = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16
#: Family and transport of version 2, and its commands (2.2).
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_LOCAL, _PROXY = 0, 1


class HeaderRefused(Exception):
    """What a front end sent first is no header of the PROXY protocol."""


@attrs.frozen
class Header:
    """A whole header."""

    #: Address and port of the client; None when the front end speaks for itself (its own health checks).
    client: tuple[str, int] | None
    #: What came after the header.
    rest: bytes


class HeaderReader:
    """Reads one header."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Header | None:
        """Take the next bytes; return the header once it is whole. Raises `HeaderRefused`."""
        self._buffer += data
        for beginning, read in ((_SIGNATURE, self._binary), (_TEXT, self._text)):
            here = self._buffer[: len(beginning)]
            if here == beginning:
                return read()
            if beginning.startswith(here):
                return None
        raise HeaderRefused("no PROXY header")

    def _text(self) -> Header | None:
        end = self._buffer.find(b"\r\n", 0, MAX_V1)
        if end < 0:
            if len(self._buffer) >= MAX_V1:
                raise HeaderRefused("line too long")
            return None
        rest = self._buffer[end + 2 :]
        family, *fields = self._buffer[len(_TEXT) : end].split(b" ")
        if family == b"UNKNOWN":
            return Header(None, rest)
        if family not in (b"TCP4", b"TCP6") or len(fields) != 4:
            raise HeaderRefused("malformed line")
        version = 4 if family == b"TCP4" else 6
        _address(fields[1], version)
        _port(fields[3])
        return Header((_address(fields[0], version), _port(fields[2])), rest)

    def _binary(self) -> Header | None:
        if len(self._buffer) < _FIXED:
            return None
        kind, family, length = struct.unpack_from(">BBH", self._buffer, len(_SIGNATURE))
        if kind >> 4 != 2 or kind & 15 not in (_LOCAL, _PROXY) or length > MAX_V2:
            raise HeaderRefused("malformed header")
        if len(self._buffer) < _FIXED + length:
            return None
        body, rest = self._buffer[_FIXED : _FIXED + length], self._buffer[_FIXED + length :]
        if kind & 15 == _LOCAL or family == _UNSPECIFIED:
            return Header(None, rest)
        size = {_TCP4: 4, _TCP6: 16}.get(family)
        if size is None or length < 2 * size + 4:
            raise HeaderRefused("no TCP address")
        (port,) = struct.unpack_from(">H", body, 2 * size)
        return Header((_plain(ipaddress.ip_address(body[:size])), port), rest)


def _address(text: bytes, version: int) -> str:
    try:
        value = ipaddress.ip_address(text.decode("ascii"))
    except ValueError as error:
        raise HeaderRefused("no address") from error
    if value.version != version or b"%" in text:
        raise HeaderRefused("address of another family")
    return _plain(value)


def _plain(value: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Write an address as everybody else here does: IPv4 as such, though it was mapped into IPv6."""
    return str(getattr(value, "ipv4_mapped", None) or value)


def _port(text: bytes) -> int:
    number = int(text) if text.isdigit() and len(text) <= 5 else -1
    # No leading zero: one way only to write a port.
    if not 0 <= number <= 65535 or str(number).encode() != text:
        raise HeaderRefused("no port")
    return number

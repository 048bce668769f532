"""PROXY headers byte by byte; what is taken agrees with Twisted's own reader."""

from __future__ import annotations

import ipaddress
import struct
from contextlib import suppress

import pytest
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser

from drimbox.proxyheader import MAX_V1, MAX_V2, Header, HeaderReader, HeaderRefused
from tests.dicom.fuzzing import damages

pytestmark = pytest.mark.threat("slowloris, stalled reader", "log and audit injection, flooding")

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(source: str = "192.0.2.7", port: int = 5000, *, more: bytes = b"", command: int = 0x21) -> bytes:
    address = ipaddress.ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    there = ipaddress.ip_address("10.0.0.1" if address.version == 4 else "fd00::1")
    body = address.packed + there.packed + struct.pack(">HH", port, 443) + more
    return SIGNATURE + struct.pack(">BBH", command, family, len(body)) + body


GOOD: dict[bytes, tuple[str, int] | None] = {
    b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 443\r\n": ("192.0.2.7", 5000),
    b"PROXY TCP6 2001:db8::7 fd00::1 65535 0\r\n": ("2001:db8::7", 65535),
    b"PROXY TCP6 ::ffff:192.0.2.7 fd00::1 1 2\r\n": ("192.0.2.7", 1),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": None,
    v2(): ("192.0.2.7", 5000),
    v2("2001:db8::7", 65535): ("2001:db8::7", 65535),
    v2("::ffff:192.0.2.7"): ("192.0.2.7", 5000),
    # Whatever a front end adds about its client, within reason.
    v2(more=b"\x04\x00\x10" + b"x" * 16): ("192.0.2.7", 5000),
    v2(more=b"x" * (MAX_V2 - 12)): ("192.0.2.7", 5000),
    # It speaks for itself: a health check.
    SIGNATURE + b"\x20\x00\x00\x00": None,
    v2(command=0x20): None,
    SIGNATURE + b"\x21\x00\x00\x00": None,
}
BAD = [
    b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/1.1\r\n",
    b"\x0bMSH|^~\\&|",
    b"proxy TCP4 192.0.2.7 10.0.0.1 5000 443\r\n",
    b"PROXY  TCP4 192.0.2.7 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 192.0.2.7  10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 443 \r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 5000\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 443 9\r\n",
    b"PROXY UDP4 192.0.2.7 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 2001:db8::7 fd00::1 5000 443\r\n",
    b"PROXY TCP6 192.0.2.7 10.0.0.1 5000 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 fd00::1 5000 443\r\n",
    b"PROXY TCP4 192.0.2.007 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 host.example 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 \x1b[2J 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 192.0.2.\xe9 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 05 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 \xb2 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 443\n\r\n",
    b"PROXY TCP4 " + b"1" * MAX_V1,
    SIGNATURE + b"\x11\x11\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x2f\x11\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x21\x12\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x21\x31\x00\xd8" + b"\0" * 216,
    SIGNATURE + b"\x21\x11\x00\x0b" + b"\0" * 11,
    SIGNATURE + b"\x21\x21\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x21\x11" + struct.pack(">H", MAX_V2 + 1),
]


@pytest.mark.parametrize("data", GOOD)
def test_a_header_is_read_however_it_is_cut(data: bytes) -> None:
    rest = b"\x16\x03\x01 and so on"
    for cut in range(len(data) + 1):
        reader = HeaderReader()
        first = reader.feed(data[:cut])
        header = first if first is not None else reader.feed(data[cut:] + rest)
        assert header == Header(GOOD[data], rest if first is None else b"")
    reader = HeaderReader()
    found = [reader.feed(bytes([byte])) for byte in data]
    assert found[-1] == Header(GOOD[data], b"")
    assert not any(found[:-1])


@pytest.mark.threat("a client that hides behind a front end, or pretends to")
@pytest.mark.parametrize("data", BAD)
def test_what_is_no_header_is_refused_and_not_waited_for(data: bytes) -> None:
    with pytest.raises(HeaderRefused):
        HeaderReader().feed(data)


def test_every_byte_counts_from_the_first_one_on() -> None:
    for good in (b"PROXY TCP4 ", SIGNATURE):
        for place in range(len(good)):
            reader = HeaderReader()
            assert reader.feed(good[:place]) is None
            with pytest.raises(HeaderRefused):
                reader.feed(bytes([good[place] ^ 0x20]) + b" " * 200 + b"\r\n")


def test_damage_is_refused_or_read_as_twisted_reads_it() -> None:
    agreed = 0
    for name, data in damages(list(GOOD), 4000, 81):
        with suppress(HeaderRefused):
            header = HeaderReader().feed(data)
            if header is None or header.client is None:
                continue
            parser = V2Parser() if data.startswith(SIGNATURE) else V1Parser()
            info, rest = parser.feed(data)
            assert info is not None, name
            theirs = ipaddress.ip_address(info.source.host)
            ours = ipaddress.ip_address(header.client[0])
            assert ours in (theirs, getattr(theirs, "ipv4_mapped", None)), name
            assert (header.client[1], header.rest) == (info.source.port, rest), name
            agreed += 1
    assert agreed > 100

"""ClientHello messages of TLS 1.3 written by hand, for what no library sends (RFC 8446)."""

from __future__ import annotations

import os
import socket
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

#: Record types, and the random that makes a ServerHello a HelloRetryRequest (4.1.3).
ALERT, HANDSHAKE = 21, 22
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_X25519 = b"\x00\x1d"


def _vector(size: int, body: bytes) -> bytes:
    return len(body).to_bytes(size, "big") + body


def hello(name: str, random: bytes, session: bytes, *, share: bool) -> bytes:
    """Return the record of a ClientHello for a server's name; without a key share it asks for a retry."""
    key = X25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    shares = _X25519 + _vector(2, key) if share else b""
    extensions = {
        0: _vector(2, b"\0" + _vector(2, name.encode())),
        10: _vector(2, _X25519),
        13: _vector(2, bytes.fromhex("0403080408050401")),
        43: _vector(1, b"\x03\x04"),
        51: _vector(2, shares),
    }
    packed = b"".join(struct.pack(">H", kind) + _vector(2, body) for kind, body in extensions.items())
    body = b"\x03\x03" + random + _vector(1, session) + _vector(2, b"\x13\x02\x13\x01") + b"\x01\0"
    body += _vector(2, packed)
    message = b"\x01" + _vector(3, body)
    return bytes([HANDSHAKE]) + b"\x03\x01" + _vector(2, message)


def records(connection: socket.socket) -> list[tuple[int, bytes]]:
    """Return the records that come before the first encrypted one, or the end."""
    found: list[tuple[int, bytes]] = []
    stream = connection.makefile("rb")
    while len(head := stream.read(5)) == 5:
        body = stream.read(int.from_bytes(head[3:], "big"))
        if head[0] == 23:
            break
        found.append((head[0], body))
        if head[0] == ALERT or (head[0] == HANDSHAKE and RETRY in body):
            break
    return found


def twice(port: int, first: str, second: str) -> tuple[bool, int]:
    """Name one server, and after its HelloRetryRequest another.

    Returns whether it asked for that, and what came then: `HANDSHAKE` when it goes on with a ServerHello,
    `ALERT` when it refuses.
    """
    random, session = os.urandom(32), os.urandom(32)
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(hello(first, random, session, share=False))
        retried = any(RETRY in body for kind, body in records(connection))
        connection.sendall(hello(second, random, session, share=True))
        kinds = [kind for kind, _ in records(connection) if kind in (ALERT, HANDSHAKE)]
        return retried, kinds[0]

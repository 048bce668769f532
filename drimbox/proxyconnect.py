"""CONNECT through the hospital's proxy (RFC 9110 9.3.6): what is asked, and what the answer means.

No socket here: bytes in, bytes out. The head of the answer is bounded; what the proxy says in words is not
repeated, its status is.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable

#: Bytes of the longest head of an answer.
MAX_HEAD = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")


class ProxyFailed(Exception):
    """The proxy gave no way to the server, and nothing was sent to it; the text (French) says why."""


def basic(user: str, password: str) -> bytes:
    """Return the value of Proxy-Authorization (RFC 7617)."""
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def connect_request(host: str, port: int, authorization: bytes | None) -> bytes:
    """Return the request for a tunnel to a server."""
    name = f"[{host}]" if ":" in host else host
    target = f"{name}:{port}".encode("ascii")
    lines = [b"CONNECT %s HTTP/1.1" % target, b"Host: %s" % target]
    if authorization is not None:
        lines.append(b"Proxy-Authorization: " + authorization)
    return b"\r\n".join([*lines, b"", b""])


class ConnectAnswer:
    """Reads the answer; `receive` says when the tunnel is there."""

    def __init__(self) -> None:
        self._head = bytearray()

    def receive(self, data: bytes) -> bool:
        """Take bytes of the proxy; return True once the tunnel is open. Raises `ProxyFailed`.

        The server behind speaks TLS, which the client begins: what follows the head is not the server's.
        """
        self._head += data
        end = re.search(rb"\r?\n\r?\n", self._head)
        if end is None:
            if len(self._head) > MAX_HEAD or not b"HTTP/1.".startswith(bytes(self._head[:7])):
                raise ProxyFailed("réponse illisible du proxy")
            return False
        found = _STATUS.match(self._head)
        if found is None or end.start() > MAX_HEAD:
            raise ProxyFailed("réponse illisible du proxy")
        refuse(int(found[1]))
        if len(self._head) > end.end():
            raise ProxyFailed("le proxy parle à la place du serveur")
        return True


def refuse(status: int) -> None:
    """Raise `ProxyFailed` for a status that opens no tunnel."""
    if 200 <= status < 300:
        return
    if status == 407:
        raise ProxyFailed(
            "le proxy demande une authentification (407) : vérifier [proxy] user et password_file"
        )
    if status in (502, 503, 504):
        raise ProxyFailed(f"le proxy n'atteint pas le serveur ({status})")
    raise ProxyFailed(f"le proxy refuse cette destination ({status})")


def bypasses(host: str, entries: Iterable[str]) -> bool:
    """Say whether a server is reached without the proxy: its name, its domain, its address or network."""
    name = host.lower().strip("[]").rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return any(
            name == entry or name.endswith("." + entry)
            for entry in (each.lower().lstrip(".") for each in entries)
        )
    return any(_within(address, entry) for entry in entries)


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, entry: str) -> bool:
    try:
        return address in ipaddress.ip_network(entry)
    except ValueError:
        return False

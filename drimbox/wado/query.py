"""What a WADO-RS client asks, and how it reads a refusal: no sockets here (interfaces.md 6.2, 6.4).

`Query.encode` makes the bytes of the request. The host, the path and the KOS identifier come from a
manifest, that is from another organisation: nothing is written that could end a line, and nothing is
asked outside https. The two preference tables are those of the CI-SIS client messages; lossless is the
default (DB.CO.84). A refusal carries a JSON problem whose words are the peer's: bounded and cleaned here,
because they end up on a screen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import attrs

from drimbox.dicom import syntaxes
from drimbox.model import is_uid
from drimbox.redaction import escape_control

Ranges = tuple[tuple[str, str], ...]

_VIDEO = tuple(
    (uid, "0.5")
    for uid in (syntaxes.MPEG2_MAIN, syntaxes.MPEG2_HIGH, syntaxes.MPEG4_41, syntaxes.MPEG4_41_BD)
)
#: (transfer syntax, q) when no bit may be lost; the default (DB.CO.84).
LOSSLESS: Final[Ranges] = (
    (syntaxes.JPEG_LOSSLESS_SV1, "0.9"),
    (syntaxes.JPEG_LS_LOSSLESS, "0.8"),
    (syntaxes.JPEG2000, "0.6"),
    (syntaxes.JPEG_BASELINE, "0.5"),
    (syntaxes.JPEG_EXTENDED, "0.5"),
    *_VIDEO,
    (syntaxes.EXPLICIT_LE, "0.4"),
)
#: (transfer syntax, q) when speed counts more.
LOSSY: Final[Ranges] = (
    (syntaxes.JPEG_BASELINE, "0.9"),
    (syntaxes.JPEG_EXTENDED, "0.9"),
    (syntaxes.JPEG_LOSSLESS_SV1, "0.6"),
    (syntaxes.JPEG_LS_LOSSLESS, "0.5"),
    (syntaxes.JPEG2000, "0.5"),
    *_VIDEO,
    (syntaxes.EXPLICIT_LE, "0.4"),
)

#: Body of a refusal, or of the capabilities, that is kept, bytes.
MAX_SMALL_BODY: Final = 64 * 1024
#: Characters of a problem's words that are kept.
_MAX_WORDS = 500
_HOST = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z._-]{0,251}[0-9A-Za-z])?|\[[0-9A-Fa-f:.]{2,45}\]")
_TARGET = re.compile(r"/[!-~]{0,1023}|\*")
_TOKEN = re.compile(r"[0-9A-Za-z._~+/-]{1,8192}=*")
_VISIBLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


class QueryRefused(ValueError):
    """The request cannot be written: an address or a header is not what it must be. French text."""


@attrs.frozen
class Address:
    """Where an https URL points: the name the server must prove, its port, the path."""

    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        return self.host if self.port == 443 else f"{self.host}:{self.port}"


def read_url(url: str) -> Address:
    """Read a RetrieveURL. Raises `QueryRefused` unless it is https, with a host and a path only."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or 443
    except ValueError:
        raise QueryRefused("adresse illisible") from None
    if parts.scheme != "https":
        raise QueryRefused("adresse qui n'est pas en https")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise QueryRefused("adresse avec un compte, des paramètres ou un fragment")
    host = parts.hostname or ""
    return Address(f"[{host}]" if ":" in host else host, port, parts.path or "/")


@attrs.frozen
class Query:
    """One request for images, or for the capabilities."""

    address: Address
    #: Access token of the professional; None sends no Authorization (capabilities).
    token: str | None = attrs.field(default=None, repr=False)
    #: SOPInstanceUID of the manifest that the user opened.
    kos_uid: str | None = None
    #: (transfer syntax, q), one Accept line each.
    accept: Ranges = LOSSLESS
    #: Structure of the professional's activity.
    situation: str | None = None
    method: str = "GET"
    agent: str = "DRIMbox"

    def encode(self) -> bytes:
        """Return the request as it goes on the wire. Raises `QueryRefused`."""
        address = self.address
        _check(_HOST.fullmatch(address.host) is not None, "hôte illisible")
        _check(0 < address.port < 65536, "port illisible")
        _check(_TARGET.fullmatch(address.target) is not None, "chemin illisible")
        fields = [("Host", address.authority)]
        if self.method == "GET":
            fields += [("Accept", value) for value in accept_values(self.accept)]
        if self.token is not None:
            _check(_TOKEN.fullmatch(self.token) is not None, "jeton mal formé")
            fields.append(("Authorization", f"Bearer {self.token}"))
        if self.kos_uid is not None:
            _check(is_uid(self.kos_uid), "identifiant du KOS illisible")
            fields.append(("KOS-SOPInstanceUID", self.kos_uid))
        if self.situation is not None:
            _check(_VISIBLE.fullmatch(self.situation) is not None, "structure illisible")
            fields.append(("Situation", self.situation))
        _check(_VISIBLE.fullmatch(self.agent) is not None, "nom de logiciel illisible")
        fields += [("User-Agent", self.agent), ("Connection", "close")]
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"{self.method} {address.target} HTTP/1.1\r\n{lines}\r\n".encode("ascii")


def _check(good: bool, what: str) -> None:
    # No value in the text: one of them is the token.
    if not good:
        raise QueryRefused(what)


def accept_values(ranges: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return one Accept value a range (interfaces.md 6.2). Raises `QueryRefused`."""
    for uid, q in ranges:
        _check(uid == "*" or is_uid(uid), "syntaxe de transfert illisible")
        _check(re.fullmatch(r"[01](?:\.[0-9]{1,3})?", q, re.ASCII) is not None, "q illisible")
    return tuple(
        f'multipart/related; type="application/dicom"; transfer-syntax={uid}; q={q}' for uid, q in ranges
    )


def ranked(uids: Sequence[str]) -> Ranges:
    """Return ranges for syntaxes given best first."""
    return tuple((uid, f"{max(1 - index / 100, 0.01):.2f}") for index, uid in enumerate(uids))


@attrs.frozen
class Problem:
    """What a refusal says; the peer's words, cut and without controls."""

    code: str = ""
    title: str = ""
    detail: str = ""


def read_problem(body: bytes) -> Problem | None:
    """Read the JSON of a refusal (RFC 9457, or `code` and `message`); None when it is none."""
    if len(body) > MAX_SMALL_BODY:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None

    def word(*names: str) -> str:
        found = next((document[name] for name in names if isinstance(document.get(name), str)), "")
        return escape_control(found[:_MAX_WORDS])

    return Problem(word("code"), word("title", "message"), word("detail"))

"""multipart/related, writing and tolerant reading (RFC 2387, RFC 2046, MTOM/XOP).

Theory of operation. Writing: the boundary is a digest of what it separates, so it cannot occur inside
(contents cannot hold their own digest) and needs no random number. Reading: real servers differ in line
ends, part order, quoting, transfer encoding and the form of Content-ID; all of that is tolerated. A
missing closing delimiter is not: it means that the end never came. Every count and size is bounded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from urllib.parse import unquote

import attrs

MAX_PARTS = 64
MAX_HEADER_BYTES = 16 * 1024
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))')
_BLANK_LINE = re.compile(rb"\r?\n[ \t]*\r?\n")


class MimeRefused(ValueError):
    """The bytes are not a multipart/related message that we accept, or it stops before its end."""


@attrs.frozen
class Part:
    """One part: header fields by lower-case name, and the content, transfer decoded."""

    headers: Mapping[str, str]
    content: bytes

    @property
    def content_id(self) -> str:
        """Content-ID without its angle brackets, empty when absent."""
        return _bare(self.headers.get("content-id", ""))


@attrs.frozen
class Related:
    """A multipart/related message: the root part and all parts, in their order."""

    root: Part
    parts: tuple[Part, ...]

    def part(self, href: str) -> Part | None:
        """Return the part an `xop:Include/@href` names (`cid:…`, maybe percent-encoded), or None."""
        if not href.startswith("cid:"):
            return None
        wanted = href[4:]
        for part in self.parts:
            if part.content_id and part.content_id in (wanted, unquote(wanted)):
                return part
        return None


@attrs.frozen
class Outgoing:
    """A part to write: its Content-ID without brackets, its type, its bytes (sent as `binary`)."""

    content_id: str
    content_type: str
    content: bytes


def write_related(parts: list[Outgoing], parameters: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the Content-Type value and the body; the first part is the root.

    `parameters` are added to the Content-Type after type, boundary and start.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.content).digest())
    boundary = "DRIMbox_" + digest.hexdigest()[:40]
    chunks: list[bytes] = []
    for part in parts:
        head = (
            f"--{boundary}\r\nContent-Type: {part.content_type}\r\n"
            f"Content-Transfer-Encoding: binary\r\nContent-ID: <{part.content_id}>\r\n\r\n"
        )
        chunks += [head.encode("ascii"), part.content, b"\r\n"]
    chunks.append(f"--{boundary}--\r\n".encode("ascii"))
    fields = {
        "boundary": boundary,
        "type": "application/xop+xml",
        "start": f"<{parts[0].content_id}>",
        **parameters,
    }
    content_type = "multipart/related" + "".join(f'; {name}="{value}"' for name, value in fields.items())
    return content_type, b"".join(chunks)


def parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """Return the media type and the parameters, names in lower case, quotes and escapes removed."""
    media_type, _, _ = value.partition(";")
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(value, len(media_type)):
        quoted, bare = match[2], match[3]
        text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare.strip()
        parameters.setdefault(match[1].lower(), text)
    return media_type.strip().lower(), parameters


def read_related(content_type: str, body: bytes) -> Related:
    """Read a multipart/related body; raises `MimeRefused`.

    The root is the part named by `start`, else the first `application/xop+xml` one, else the first. A
    Content-Type without boundary is mended from the first delimiter of the body.
    """
    _, parameters = parse_content_type(content_type)
    boundary = parameters.get("boundary", "").encode("latin-1", "replace") or _first_boundary(body)
    parts = tuple(_part(piece) for piece in _pieces(body, b"--" + boundary))
    if not parts:
        raise MimeRefused("no part")
    start = _bare(parameters.get("start", ""))
    for part in parts:
        if start and part.content_id in (start, unquote(start)):
            return Related(part, parts)
    for part in parts:
        if parse_content_type(part.headers.get("content-type", ""))[0] == "application/xop+xml":
            return Related(part, parts)
    return Related(parts[0], parts)


def _first_boundary(body: bytes) -> bytes:
    line = body.lstrip(b"\r\n \t")[:200].split(b"\n", 1)[0].rstrip()
    if not line.startswith(b"--") or len(line) < 3:
        raise MimeRefused("no boundary")
    return line[2:]


def _pieces(body: bytes, delimiter: bytes) -> list[bytes]:
    """Cut the body at its delimiter lines; each piece is headers, blank line, content."""
    pieces: list[bytes] = []
    begin: int | None = None
    position = 0
    while (found := body.find(delimiter, position)) >= 0:
        position = found + len(delimiter)
        if found and body[found - 1 : found] != b"\n":
            continue
        line_end = body.find(b"\n", position)
        rest = body[position : line_end if line_end >= 0 else len(body)].strip()
        if rest not in (b"", b"--"):
            continue  # a longer boundary that starts with ours
        if begin is not None:
            pieces.append(_without_line_end(body[begin:found]))
        if rest == b"--":
            return pieces
        if line_end < 0:
            break
        begin = position = line_end + 1
        if len(pieces) >= MAX_PARTS:
            raise MimeRefused(f"more than {MAX_PARTS} parts")
    raise MimeRefused("no closing delimiter: the message stops before its end")


def _without_line_end(piece: bytes) -> bytes:
    return piece[:-2] if piece.endswith(b"\r\n") else piece[:-1]


def _part(piece: bytes) -> Part:
    if piece.startswith((b"\r\n", b"\n")):
        return Part({}, piece.split(b"\n", 1)[1])
    blank = _BLANK_LINE.search(piece, 0, MAX_HEADER_BYTES)
    if blank is None:
        raise MimeRefused("part without end of headers")
    headers: dict[str, str] = {}
    unfolded = re.sub(rb"\r?\n[ \t]+", b" ", piece[: blank.start()])
    for line in unfolded.decode("latin-1").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    return Part(headers, _decoded(piece[blank.end() :], headers.get("content-transfer-encoding", "")))


def _decoded(content: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in ("", "binary", "8bit", "7bit"):
        return content
    if encoding != "base64":
        raise MimeRefused("transfer encoding that is not binary, 8bit, 7bit or base64")
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise MimeRefused("part that is not base64") from error


def _bare(content_id: str) -> str:
    content_id = content_id.strip()
    return content_id[1:-1] if content_id.startswith("<") and content_id.endswith(">") else content_id

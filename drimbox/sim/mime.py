"""multipart/related as MTOM uses it: strict reading of whole bodies, and writing.

Theory: RFC 2046 5.1 and RFC 2387. A delimiter is CRLF `--boundary` optional blanks CRLF; the first may
open the body. Parts are found by Content-ID, never by place. With `lenient`, bare LF line ends are taken
as published samples have them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from urllib.parse import unquote

import attrs

MAX_PARTS = 64
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"\s*({_TOKEN}/{_TOKEN})\s*", re.ASCII)
_PARAMETER = re.compile(rf";\s*({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\s\"]+))\s*", re.ASCII)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)


class MimeError(ValueError):
    """The body or a header of it is not what RFC 2046, 2387 or MTOM allow."""


@attrs.frozen
class MediaType:
    """A Content-Type: lower-case type, lower-case parameter names, values as written."""

    type: str
    parameters: dict[str, str]


def read_media_type(text: str) -> MediaType:
    """Parse a Content-Type value; raises `MimeError` for bad syntax or a repeated parameter."""
    head = _TYPE.match(text)
    if head is None:
        raise MimeError("Content-Type missing or malformed")
    parameters: dict[str, str] = {}
    position = head.end()
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None:
            if text[position:].strip(" \t;") == "":
                break
            raise MimeError(f"malformed Content-Type parameter near {text[position : position + 20]!r}")
        name = found[1].lower()
        if name in parameters:
            raise MimeError(f"Content-Type parameter {name} given twice")
        parameters[name] = re.sub(r"\\(.)", r"\1", found[2]) if found[2] is not None else found[3]
        position = found.end()
    return MediaType(head[1].lower(), parameters)


@attrs.frozen
class Part:
    """One body part, its transfer encoding undone."""

    headers: dict[str, str]
    content: bytes

    @property
    def media_type(self) -> MediaType:
        """Its Content-Type; raises `MimeError` when it has none."""
        return read_media_type(self.headers.get("content-type", ""))

    @property
    def content_id(self) -> str:
        """Its Content-ID without angle brackets."""
        value = self.headers.get("content-id", "")
        if not (value.startswith("<") and value.endswith(">") and len(value) > 2):
            raise MimeError("body part without <Content-ID>")
        return value[1:-1]


def split_related(body: bytes, boundary: str, *, lenient: bool = False) -> list[Part]:
    """Cut a whole multipart body into parts; raises `MimeError`, also for a missing last delimiter."""
    if _BOUNDARY.fullmatch(boundary) is None:
        raise MimeError("boundary with characters RFC 2046 forbids")
    end = rb"\r?\n" if lenient else rb"\r\n"
    mark = re.compile(
        rb"(?:\A|"
        + end
        + rb")--"
        + re.escape(boundary.encode("ascii"))
        + rb"(--)?[ \t]*(?:"
        + end
        + rb"|\Z)"
    )
    parts: list[Part] = []
    previous: re.Match[bytes] | None = None
    position = 0
    while True:
        found = mark.search(body, position)
        if found is None:
            raise MimeError("closing boundary missing" if previous else "boundary never met")
        if previous is not None:
            parts.append(_read_part(body[previous.end() : found.start()], end))
            if len(parts) > MAX_PARTS:
                raise MimeError(f"more than {MAX_PARTS} parts")
        if found[1]:
            return parts
        previous = found
        # The CRLF that ends this delimiter may also begin the next one.
        position = found.end() - (2 if body[found.end() - 2 : found.end()] == b"\r\n" else 1)


def _read_part(raw: bytes, end: bytes) -> Part:
    blank = re.compile(rb"(?:\A|" + end + rb")" + end)
    cut = blank.search(raw)
    if cut is None:
        raise MimeError("body part without the blank line after its headers")
    headers: dict[str, str] = {}
    for line in re.split(end, raw[: cut.start()]) if cut.start() else []:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or re.fullmatch(_TOKEN, name) is None:
            raise MimeError(f"malformed part header {line[:40]!r}")
        if name.lower() in headers:
            raise MimeError(f"part header {name} given twice")
        headers[name.lower()] = value.strip()
    content = raw[cut.end() :]
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding == "base64":
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error as error:
            raise MimeError("part announced as base64 is not") from error
    elif encoding not in ("binary", "8bit", "7bit"):
        raise MimeError(f"Content-Transfer-Encoding {encoding} not supported")
    return Part(headers, content)


def content_id_of(href: str) -> str:
    """Return the Content-ID a `cid:` URI means, percent-decoding it (RFC 2392)."""
    if not href.startswith("cid:"):
        raise MimeError(f"xop:Include href is no cid: URI: {href[:40]!r}")
    return unquote(href[4:])


def write_related(
    root: bytes, attachments: Sequence[tuple[str, bytes]], boundary: str
) -> tuple[str, bytes]:
    """Return Content-Type and body of an MTOM message: `root` XML plus (Content-ID, bytes) attachments."""
    start = "root.message@cxf.apache.org"
    mark = b"--" + boundary.encode("ascii")
    pieces = [
        mark,
        b'\r\nContent-Type: application/xop+xml; charset=UTF-8; type="application/soap+xml"\r\n',
        b"Content-Transfer-Encoding: binary\r\nContent-ID: <" + start.encode() + b">\r\n\r\n",
        root,
    ]
    for identifier, content in attachments:
        pieces += [
            b"\r\n" + mark,
            b"\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n",
            b"Content-ID: <" + identifier.encode("ascii") + b">\r\n\r\n",
            content,
        ]
    pieces.append(b"\r\n" + mark + b"--\r\n")
    content_type = (
        f'multipart/related; type="application/xop+xml"; boundary="{boundary}"; '
        f'start="<{start}>"; start-info="application/soap+xml"'
    )
    return content_type, b"".join(pieces)

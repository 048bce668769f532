"""Opening a capture: HTTP head, MTOM packaging, XML (RFC 9112, RFC 2046, RFC 2387, W3C MTOM and XOP).

A capture is a whole HTTP request, its body with or without the Content-Type header before it, or bare
XML. Reading goes on after a fault wherever the rest still makes sense: published samples have bare LF
line ends, indented delimiters and base64 parts. Counts and sizes are bounded.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote

import attrs

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.xml import Element, XmlRefused, safe_parse

#: Largest capture, and most parts.
MAX_BYTES: Final = 64 * 1024 * 1024
_MAX_PARTS: Final = 64
_MAX_HEAD: Final = 64 * 1024

RULES = RuleBook("packaging")
_SIZE = RULES.error("size", f"capture de plus de {MAX_BYTES // 2**20} Mio", "DB.CS.159")
_XML = RULES.error("xml", "XML illisible ({why})", "W3C XML 1.0")
_RESPONSE = RULES.error("http.response", "une réponse HTTP : la requête est attendue", "RFC 9112 2.1")
_METHOD = RULES.error("http.method", "méthode {method} : POST attendue", "SOAP 1.2 partie 2, 7")
_HEAD_END = RULES.error("http.head", "en-tête HTTP sans ligne vide à la fin", "RFC 9112 2.1")
_NO_TYPE = RULES.error("http.content_type", "Content-Type absent", "ITI TF-2 V.3")
_SOAP_TYPE = RULES.error("http.soap_type", "application/soap+xml attendu, {kind} reçu", "RFC 3902")
_LENGTH = RULES.error("http.length", "Content-Length {told}, corps de {held} octets", "RFC 9112 6.2")
_CHUNKS = RULES.error("http.chunks", "corps en morceaux mal formé ou inachevé", "RFC 9112 7.1")
_NOT_RELATED = RULES.error("mime.type", "multipart/related attendu, {kind} reçu", "RFC 2387")
_PARAMETER = RULES.error("mime.parameter", "Content-Type : {name}={due} attendu", "W3C XOP 5 ; RFC 2387 3")
_NO_BOUNDARY = RULES.error("mime.boundary", "paramètre boundary absent ou non conforme", "RFC 2046 5.1.1")
_LINE_ENDS = RULES.warning(
    "mime.line_ends", "fins de ligne LF au lieu de CRLF autour des parties", "RFC 2046 5.1.1"
)
_INDENTED = RULES.error("mime.indented", "délimiteur de partie précédé de blancs", "RFC 2046 5.1.1")
_UNCLOSED = RULES.error("mime.unclosed", "délimiteur de fin absent", "RFC 2046 5.1.1")
_NO_PART = RULES.error("mime.empty", "aucune partie", "RFC 2046 5.1.1")
_MANY = RULES.error("mime.many", f"plus de {_MAX_PARTS} parties", "RFC 2387")
_PART_HEAD = RULES.error(
    "mime.part_head", "partie n° {rank} sans ligne vide après ses en-têtes", "RFC 2046 5.1"
)
_NO_ID = RULES.error(
    "mime.content_id", "partie n° {rank} sans Content-ID entre chevrons", "W3C XOP 3.1 ; RFC 2392"
)
_TWO_IDS = RULES.error("mime.content_id_twice", "Content-ID {cid} donné deux fois", "RFC 2045 7")
_START = RULES.error("mime.start", "start : aucune partie {cid}", "RFC 2387 3.2")
_ROOT_TYPE = RULES.error(
    "mime.root_type",
    'partie racine : application/xop+xml; type="application/soap+xml" attendu',
    "W3C XOP 3.1",
)
_ENCODING = RULES.error("mime.encoding", "partie n° {rank} : encodage {encoding} inconnu", "RFC 2045 6")
_BASE64 = RULES.warning(
    "mime.base64", "partie n° {rank} en base64 : binary attendu", "W3C MTOM 2.3 ; RFC 2045 6"
)
_BAD_BASE64 = RULES.error(
    "mime.bad_base64", "partie n° {rank} annoncée en base64, illisible", "RFC 2045 6.8"
)

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]*\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*)")
_PARAMETERS = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)
_DUE: Final = {"type": "application/xop+xml", "start-info": "application/soap+xml"}


@attrs.frozen
class Capture:
    """What a capture holds."""

    root: Element
    #: Contents of the attachments by Content-ID, None when the capture is bare XML.
    parts: dict[str, bytes] | None
    #: `action` of the outer Content-Type, None without one.
    action: str | None
    #: True when the capture has an HTTP head.
    framed: bool = False

    def part(self, href: str) -> tuple[str, bytes] | None:
        """Return the attachment a `cid:` address names: its Content-ID and its bytes."""
        for name in (href[4:], unquote(href[4:])) if href.startswith("cid:") and self.parts else ():
            if self.parts is not None and name in self.parts:
                return name, self.parts[name]
        return None


def open_capture(data: bytes, out: Report) -> Capture | None:
    """Read a capture as far as it can be read; None, with an error told, when it holds no XML."""
    if len(data) > MAX_BYTES:
        _SIZE.broken(out)
        return None
    kind, body, framed = _http(data.lstrip(b"\r\n"), out)
    media, parameters = _media_type(kind or "")
    if not body.lstrip().startswith(b"--"):
        if media == "multipart/related":
            _NO_PART.broken(out)
        elif kind is not None and media != "application/soap+xml":
            _SOAP_TYPE.broken(out, kind=shown(media, 40))
        root = _parse(body, out)
        return None if root is None else Capture(root, None, parameters.get("action"), framed)
    if kind is not None:
        _check_media_type(media, parameters, out)
    parts = _parts(body, parameters.get("boundary", ""), out)
    if not parts:
        _NO_PART.broken(out)
        return None
    return _related(parts, parameters, kind is not None, out)


def _related(parts: list[_Part], parameters: dict[str, str], typed: bool, out: Report) -> Capture | None:
    start = parameters.get("start", "").strip().removeprefix("<").removesuffix(">")
    named = [part for part in parts if start and part.content_id in (start, unquote(start))]
    if start and not named:
        _START.broken(out, cid=shown(start))
    root_part = named[0] if named else parts[0]
    media, root_parameters = _media_type(root_part.headers.get("content-type", ""))
    if media != "application/xop+xml" or root_parameters.get("type") != "application/soap+xml":
        _ROOT_TYPE.broken(out)
    held: dict[str, bytes] = {}
    for rank, part in enumerate(parts, 1):
        name = part.headers.get("content-id", "")
        if not (name.startswith("<") and name.endswith(">") and len(name) > 2):
            _NO_ID.broken(out, rank=rank)
        elif part.content_id in held:
            _TWO_IDS.broken(out, cid=shown(part.content_id))
        held.setdefault(part.content_id, part.content)
    held.pop(root_part.content_id, None)
    root = _parse(root_part.content, out)
    return None if root is None else Capture(root, held, parameters.get("action") if typed else None)


def _parse(data: bytes, out: Report) -> Element | None:
    try:
        return safe_parse(data)
    except XmlRefused as why:
        # Never the parser's own words: they may quote the document.
        text = str(why)
        reason = text if text.startswith(("XML of", "XML nested", "XML with")) else "mal formé"
        _XML.broken(out, why=reason)
        return None


# --- HTTP --------------------------------------------------------------------------------------------


def _http(data: bytes, out: Report) -> tuple[str | None, bytes, bool]:
    """Return Content-Type (None when the capture gives none), body, and whether there was a head."""
    first = data[:1000].split(b"\n", 1)[0].rstrip(b"\r")
    if first.startswith(b"HTTP/"):
        _RESPONSE.broken(out)
    request = re.fullmatch(rb"([A-Z]+) \S+ HTTP/[0-9.]+", first)
    # A delimiter may look like a header: CXF's boundaries begin with `uuid:`.
    headed = _HEADER.fullmatch(first) is not None and not first.startswith(b"--")
    if not (request or first.startswith(b"HTTP/") or headed):
        return None, data, False
    end = re.search(rb"\r?\n\r?\n", data[:_MAX_HEAD])
    if end is None:
        _HEAD_END.broken(out)
        return None, data, False
    headers = _headers(data[: end.start()])
    body = data[end.end() :]
    if request is not None and request[1] != b"POST":
        _METHOD.broken(out, method=shown(request[1], 16))
    if "content-type" not in headers:
        _NO_TYPE.broken(out)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _dechunked(body, out)
    elif (told := headers.get("content-length", "")).isdigit() and int(told[:15]) != len(body):
        _LENGTH.broken(out, told=told[:15], held=len(body))
    return headers.get("content-type"), body, True


def _headers(head: bytes) -> dict[str, str]:
    """Return header fields by lower-case name, the first of each; folded lines are joined."""
    found: dict[str, str] = {}
    for line in re.sub(rb"\r?\n[ \t]+", b" ", head).split(b"\n"):
        match = _HEADER.match(line.strip(b"\r"))
        if match is not None:
            found.setdefault(match[1].decode("ascii").lower(), match[2].decode("latin-1").strip())
    return found


def _dechunked(body: bytes, out: Report) -> bytes:
    pieces: list[bytes] = []
    position = 0
    while True:
        head = _CHUNK.match(body, position)
        if head is None:
            _CHUNKS.broken(out)
            # A capture of already joined chunks still has the header.
            return b"".join(pieces) or body
        size = int(head[1], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[head.end() : head.end() + size])
        position = head.end() + size + 2


def _media_type(text: str) -> tuple[str, dict[str, str]]:
    """Return the type in lower case and the parameters by lower-case name."""
    kind, _, _ = text.partition(";")
    found: dict[str, str] = {}
    for match in _PARAMETERS.finditer(text[:4096], len(kind)):
        value = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        found.setdefault(match[1].lower(), value)
    return kind.strip().lower(), found


def _check_media_type(media: str, parameters: dict[str, str], out: Report) -> None:
    if media != "multipart/related":
        _NOT_RELATED.broken(out, kind=shown(media, 40))
    for name, due in _DUE.items():
        if parameters.get(name) != due:
            _PARAMETER.broken(out, name=name, due=due)
    if _BOUNDARY.fullmatch(parameters.get("boundary", "")) is None:
        _NO_BOUNDARY.broken(out)


# --- multipart ---------------------------------------------------------------------------------------


@attrs.frozen
class _Part:
    headers: dict[str, str]
    content: bytes

    @property
    def content_id(self) -> str:
        return self.headers.get("content-id", "").removeprefix("<").removesuffix(">")


def _parts(body: bytes, boundary: str, out: Report) -> list[_Part]:
    """Cut a body at its delimiter lines, indented ones included, and read each part."""
    if not boundary:
        first = body.lstrip()[:200].split(b"\n", 1)[0].strip()
        boundary = first[2:].decode("latin-1")
    mark = re.compile(
        rb"(?:\A|\r?\n)([ \t]*)--"
        + re.escape(boundary.encode("latin-1", "replace"))
        + rb"(--)?[ \t]*(\r?\n|\Z)"
    )
    found: list[_Part] = []
    begin: int | None = None
    indented = bare = closed = False
    position = 0
    while (match := mark.search(body, position)) is not None:
        indented = indented or bool(match[1])
        bare = bare or (match[3] == b"\n") or (match.start() > 0 and body[match.start()] == 10)
        if begin is not None:
            if len(found) >= _MAX_PARTS:
                _MANY.broken(out)
                break
            found.append(_part(body[begin : match.start()], len(found) + 1, out))
        if match[2]:
            closed = True
            break
        begin = match.end()
        # The line end of this delimiter may also begin the next one.
        position = match.end() - len(match[3]) if match[3] else len(body)
        position = max(position, match.start() + 1)
    if not closed:
        _UNCLOSED.broken(out)
    if indented:
        _INDENTED.broken(out)
    if bare:
        _LINE_ENDS.broken(out)
    return found


def _part(raw: bytes, rank: int, out: Report) -> _Part:
    end = re.search(rb"(?:\A|\r?\n)[ \t]*\r?\n", raw[:_MAX_HEAD])
    if end is None:
        _PART_HEAD.broken(out, rank=rank)
        return _Part({}, raw)
    lines = [line.strip() for line in raw[: end.start()].split(b"\n")]
    headers = _headers(b"\n".join(lines))
    content = raw[end.end() :]
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding == "base64":
        _BASE64.broken(out, rank=rank)
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error:
            _BAD_BASE64.broken(out, rank=rank)
    elif encoding not in ("binary", "8bit", "7bit"):
        _ENCODING.broken(out, rank=rank, encoding=shown(encoding, 20))
    return _Part(headers, content)

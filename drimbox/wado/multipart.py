"""multipart/related of Part 10 files, written and read as the bytes flow (RFC 2046 5.1, interfaces.md 6.3).

`MultipartWriter` makes the few bytes around the parts; the parts themselves never pass through it. The
boundary is ours, random and new for every answer: one chosen by the client, or a constant, lets whoever
can put bytes in an image end a part and start another (threats.md, multipart injection). The closing
delimiter is a separate call, made only when the answer is complete: without it a client knows that it
was cut.

`MultipartParser` is its mirror for clients. A delimiter is `CRLF -- boundary`, then `--`, or blanks and
CRLF; the CRLF in front belongs to it. To find it at any cut of the bytes with bounded memory the parser
holds back only what could still become a delimiter:

    PREAMBLE --delimiter--> HEADERS --empty line--> BODY --delimiter--> HEADERS ...
                                                     |--closing delimiter--> EPILOGUE

A boundary that is not followed as it must be is data, not a delimiter. The parser starts as if a CRLF
had come before the first byte, so that a delimiter at the very start needs no case of its own.
"""

from __future__ import annotations

import enum
import re
import secrets
from collections.abc import Iterator

import attrs

from drimbox.model import is_uid
from drimbox.wado.fields import FieldError, parse_media_type

_CRLF = b"\r\n"
#: RFC 2046 bchars; a boundary does not end with a blank.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]", re.ASCII)
_HOST = re.compile(r"[0-9A-Za-z._:\[\]-]{1,255}", re.ASCII)
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: Blanks a peer may put between a delimiter and its line end (RFC 2046 transport padding).
_MAX_PADDING = 256
_MAX_PREAMBLE = 64 * 1024


class MultipartWriter:
    """Makes the bytes between the parts of one answer. One writer, one answer."""

    def __init__(self) -> None:
        # 192 bits: nobody guesses it, and no image holds it by chance.
        self._boundary = secrets.token_hex(24)
        self._started = False
        self._closed = False

    @property
    def boundary(self) -> str:
        """The boundary, 48 hexadecimal digits."""
        return self._boundary

    @property
    def content_type(self) -> str:
        """Value of the answer's `Content-Type`.

        It names no transfer syntax: parts may differ and each says its own (DB.SO.85).
        """
        return f'multipart/related; type="application/dicom"; boundary={self._boundary}'

    def part_header(self, transfer_syntax: str, index: int, host: str) -> bytes:
        """Return the delimiter and headers that come before the Part 10 bytes of one instance.

        `index` (from 1) and `host` make the Content-ID. Raises `ValueError` for anything that could
        break a header, `RuntimeError` once closed.
        """
        if self._closed:
            raise RuntimeError("a part after the closing delimiter")
        if not is_uid(transfer_syntax):
            raise ValueError("transfer syntax is not a UID")
        if _HOST.fullmatch(host) is None:
            raise ValueError("host is not a host name")
        return self._delimiter() + (
            f"\r\nContent-Type: application/dicom;transfer-syntax={transfer_syntax}"
            f"\r\nContent-ID: <{int(index)}@{host}>\r\n\r\n"
        ).encode("ascii")

    def closing(self) -> bytes:
        """Return the closing delimiter: the promise that the answer is complete. Once."""
        if self._closed:
            raise RuntimeError("closed twice")
        self._closed = True
        return self._delimiter() + b"--\r\n"

    def _delimiter(self) -> bytes:
        line_end = _CRLF if self._started else b""
        self._started = True
        return line_end + b"--" + self._boundary.encode("ascii")


class MultipartError(Exception):
    """The bytes are not the multipart they claim to be."""


class MultipartTruncated(MultipartError):
    """The bytes ended before the closing delimiter: the answer is incomplete, whatever it holds."""


@attrs.frozen
class PartBegin:
    """A part starts; its headers, names in lower case, in their order."""

    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return the first header called `name` (lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def transfer_syntax(self) -> str | None:
        """The transfer syntax its Content-Type names, None when it names none that is a UID."""
        try:
            uid = parse_media_type((self.get("content-type") or "").encode("utf-8")).get("transfer-syntax")
        except FieldError:
            return None
        return uid if uid and is_uid(uid) else None


@attrs.frozen
class PartData:
    """Some bytes of the part that has begun; never empty. How they are cut means nothing."""

    data: bytes


@attrs.frozen
class PartEnd:
    """The part that had begun is whole."""


@attrs.frozen
class End:
    """The closing delimiter: the answer is complete. What follows is ignored."""


Event = PartBegin | PartData | PartEnd | End


class _State(enum.Enum):
    PREAMBLE = "preamble"
    HEADERS = "headers"
    BODY = "body"
    EPILOGUE = "epilogue"


class MultipartParser:
    """Incremental reader of a multipart body.

    `feed` bytes as they come, then `finish`. Time is linear; memory is one `feed` plus `max_header`.
    """

    def __init__(self, boundary: str, *, max_header: int = 16 * 1024, max_headers: int = 64) -> None:
        if _BOUNDARY.fullmatch(boundary) is None:
            raise MultipartError("boundary not allowed by RFC 2046")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._max_header = max_header
        self._max_headers = max_headers
        self._state = _State.PREAMBLE
        self._buffer = bytearray(_CRLF)
        self._skipped = 0
        #: Offset up to which the end of the headers has been looked for.
        self._searched = 0

    @property
    def complete(self) -> bool:
        """True once the closing delimiter has been read."""
        return self._state is _State.EPILOGUE

    def feed(self, data: bytes) -> list[Event]:
        """Take some bytes, return what they complete. Raises `MultipartError`; then stop using it."""
        if self.complete:
            return []
        self._buffer += data
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> None:
        """Say that no byte will come. Raises `MultipartTruncated` unless the closing delimiter came."""
        if not self.complete:
            raise MultipartTruncated(f"body ends in its {self._state.value}, without closing delimiter")

    def _step(self, events: list[Event]) -> bool:
        """Read on from the present state; return True when there may be more to read at once."""
        if self._state is _State.EPILOGUE:
            return False
        return self._read_headers(events) if self._state is _State.HEADERS else self._read_body(events)

    def _read_body(self, events: list[Event]) -> bool:
        """Pass data on up to the next delimiter; return True when something may follow at once."""
        buffer, delimiter = self._buffer, self._delimiter
        found = buffer.find(delimiter)
        if found < 0:
            # Any suffix shorter than the delimiter may be its beginning; only a CR can start one.
            tail = buffer.find(b"\r", max(0, len(buffer) - len(delimiter) + 1))
            self._emit(len(buffer) if tail < 0 else tail, events)
            return False
        self._emit(found, events)
        end = self._delimiter_end()
        if end is None:
            return False
        if end == 0:
            # Not followed as a delimiter is: data. A delimiter cannot start inside another one.
            self._emit(len(delimiter), events)
            return True
        closing = buffer[len(delimiter) : len(delimiter) + 2] == b"--"
        del buffer[:end]
        if self._state is _State.BODY:
            events.append(PartEnd())
        if closing:
            events.append(End())
            buffer.clear()
        self._state = _State.EPILOGUE if closing else _State.HEADERS
        self._searched = 0
        return True

    def _delimiter_end(self) -> int | None:
        """Where the delimiter at the head of the buffer ends; 0 if it is none, None if not known yet."""
        buffer, start = self._buffer, len(self._delimiter)
        if buffer.startswith(b"--", start):
            return start + 2
        position = start
        limit = min(len(buffer), start + _MAX_PADDING)
        while position < limit and buffer[position] in b" \t":
            position += 1
        rest = bytes(buffer[position : position + 2])
        if rest == _CRLF:
            return position + 2
        undecided = rest in (b"", b"\r") or (position == start and rest == b"-")
        return None if undecided else 0

    def _emit(self, size: int, events: list[Event]) -> None:
        if size == 0:
            return
        if self._state is _State.BODY:
            events.append(PartData(bytes(self._buffer[:size])))
        else:
            self._skipped += size
            if self._skipped > _MAX_PREAMBLE:
                raise MultipartError(f"no delimiter in the first {_MAX_PREAMBLE} bytes")
        del self._buffer[:size]

    def _read_headers(self, events: list[Event]) -> bool:
        buffer = self._buffer
        if buffer.startswith(_CRLF):
            block, size = b"", 2
        else:
            found = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
            if found < 0:
                self._searched = len(buffer)
                if len(buffer) > self._max_header + 3:
                    raise MultipartError(f"part headers over {self._max_header} bytes")
                return False
            block, size = bytes(buffer[:found]), found + 4
        if len(block) > self._max_header:
            raise MultipartError(f"part headers over {self._max_header} bytes")
        del buffer[:size]
        events.append(PartBegin(tuple(self._headers(block))))
        self._state = _State.BODY
        return True

    def _headers(self, block: bytes) -> Iterator[tuple[str, str]]:
        lines = block.split(_CRLF) if block else []
        if len(lines) > self._max_headers:
            raise MultipartError(f"more than {self._max_headers} part headers")
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or _HEADER_NAME.fullmatch(name) is None:
                raise MultipartError("part header without a name")
            if any(byte < 0x20 and byte != 0x09 for byte in value):
                raise MultipartError("control character in a part header")
            yield name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")


def boundary_of(content_type: bytes) -> str:
    """Return the boundary that an answer's `Content-Type` names, whatever its other parameters.

    Raises `MultipartError` unless it is `multipart/related` with a boundary RFC 2046 allows.
    """
    try:
        element = parse_media_type(content_type)
        boundary = element.get("boundary")
    except FieldError as error:
        raise MultipartError(f"Content-Type not understood: {error}") from error
    if element.head != "multipart/related" or not boundary:
        raise MultipartError("not a multipart/related with a boundary")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise MultipartError("boundary not allowed by RFC 2046")
    return boundary

"""The response side of the Consumer client, without sockets: HTTP/1.1 framing, then multipart parts.

Both readers are incremental and never look at a byte twice: `ResponseReader` passes on slices of what
arrived, `PartReader` searches the boundary with `bytes.find` only in what is new. They are strict, so that
truncation is always seen: `complete` needs the last chunk (or every announced byte), and the closing
boundary.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

import attrs

MAX_HEAD = 64 * 1024
MAX_PART_HEAD = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d)(?: [^\r\n]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;[^\r\n]*)?")


class ResponseError(ValueError):
    """The server's bytes are not a well-formed answer."""


class _State(enum.Enum):
    HEAD = "head"
    LENGTH = "length"
    CHUNK_SIZE = "chunk size"
    CHUNK_DATA = "chunk data"
    CHUNK_END = "chunk end"
    TRAILER = "trailer"
    UNTIL_CLOSE = "until close"
    DONE = "done"


class ResponseReader:
    """Reads one HTTP/1.1 response; hands the body on as it comes.

    `on_head(status, headers)` is called once, then `on_body(view)` for every piece (a memoryview valid
    only during the call).
    """

    def __init__(
        self,
        on_head: Callable[[int, list[tuple[str, str]]], None],
        on_body: Callable[[memoryview], None],
    ) -> None:
        self._on_head, self._on_body = on_head, on_body
        self._state = _State.HEAD
        self._held = b""
        self._left = 0

    @property
    def done(self) -> bool:
        """Say whether the whole response came, by its own framing."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> None:
        """Take bytes; raises `ResponseError`."""
        if self._held:
            data, self._held = self._held + data, b""
        view, position, size = memoryview(data), 0, len(data)
        while position < size or self._state is _State.DONE:
            if self._state is _State.DONE:
                if position < size:
                    raise ResponseError("bytes after the end of the response")
                return
            if self._state in (_State.LENGTH, _State.CHUNK_DATA, _State.UNTIL_CLOSE):
                take = size - position
                if self._state is not _State.UNTIL_CLOSE:
                    take = min(take, self._left)
                    self._left -= take
                self._on_body(view[position : position + take])
                position += take
                if self._left == 0 and self._state is _State.LENGTH:
                    self._state = _State.DONE
                elif self._left == 0 and self._state is _State.CHUNK_DATA:
                    self._state = _State.CHUNK_END
                continue
            mark = b"\r\n\r\n" if self._state is _State.HEAD else b"\r\n"
            end = data.find(mark, position)
            if end < 0:
                self._held = data[position:]
                if len(self._held) > MAX_HEAD:
                    raise ResponseError("response head or chunk line too long")
                return
            self._line(data[position:end])
            position = end + len(mark)

    def closed(self) -> None:
        """The connection ended; a body without length ends with it."""
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.DONE

    def _line(self, line: bytes) -> None:
        if self._state is _State.HEAD:
            self._head(line)
        elif self._state is _State.CHUNK_SIZE:
            found = _CHUNK.fullmatch(line)
            if found is None:
                raise ResponseError("malformed chunk size")
            self._left = int(found[1], 16)
            self._state = _State.CHUNK_DATA if self._left else _State.TRAILER
        elif self._state is _State.CHUNK_END:
            if line:
                raise ResponseError("chunk longer than announced")
            self._state = _State.CHUNK_SIZE
        elif not line:
            self._state = _State.DONE
        elif _FIELD.fullmatch(line) is None:
            raise ResponseError("malformed trailer")

    def _head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        if status is None:
            raise ResponseError("malformed status line")
        headers: list[tuple[str, str]] = []
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise ResponseError("malformed header line")
            headers.append((field[1].decode("ascii").lower(), field[2].decode("latin-1")))
        code = int(status[1])
        if code == 100:
            return
        lengths = {value for name, value in headers if name == "content-length"}
        codings = [value.lower() for name, value in headers if name == "transfer-encoding"]
        if codings and (lengths or codings != ["chunked"]):
            raise ResponseError("Transfer-Encoding with Content-Length, or other than chunked")
        if len(lengths) > 1 or any(re.fullmatch(r"\d{1,15}", value) is None for value in lengths):
            raise ResponseError("malformed Content-Length")
        if codings:
            self._state = _State.CHUNK_SIZE
        elif lengths:
            self._left = int(lengths.pop())
            self._state = _State.LENGTH if self._left else _State.DONE
        else:
            self._state = _State.DONE if code in (204, 304) else _State.UNTIL_CLOSE
        self._on_head(code, headers)


@attrs.frozen
class PartHead:
    """Headers of a body part, names in lower case."""

    headers: dict[str, str]


class PartReader:
    """Cuts a multipart body into parts as it comes.

    `on_head(PartHead)` opens a part, `on_data(view)` brings its bytes (valid during the call only),
    `on_end()` closes it. `complete` once the closing boundary came.
    """

    def __init__(
        self,
        boundary: str,
        on_head: Callable[[PartHead], None],
        on_data: Callable[[memoryview], None],
        on_end: Callable[[], None],
    ) -> None:
        self._mark = b"\r\n--" + boundary.encode("latin-1")
        self._on_head, self._on_data, self._on_end = on_head, on_data, on_end
        #: Bytes kept because a boundary or a part head may be cut in two; starts as if after a CRLF,
        #: since the first boundary may open the body.
        self._held = b"\r\n"
        self._inside = False
        #: True between a boundary line and the blank line that ends the part's head.
        self._heading = False
        self.complete = False

    def feed(self, view: memoryview) -> None:
        """Take bytes of the body; raises `ResponseError`. What follows the closing boundary is ignored."""
        # What is held is shorter than a boundary line or a part head: one copy a call, never quadratic.
        data = self._held + bytes(view)
        position = 0
        while not self.complete:
            step = self._read_head(data, position) if self._heading else self._read_body(data, position)
            if step < 0:
                return
            position = step
        self._held = b""

    def _read_head(self, data: bytes, position: int) -> int:
        """Read a part's head; `position` is at the CRLF that ends the boundary line."""
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            if len(data) - position > MAX_PART_HEAD:
                raise ResponseError("part head too long")
            self._held = data[position:]
            return -1
        headers: dict[str, str] = {}
        for line in data[position + 2 : end].split(b"\r\n") if end > position else []:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise ResponseError("malformed part header")
            headers[field[1].decode("ascii").lower()] = field[2].decode("latin-1")
        self._heading, self._inside = False, True
        self._on_head(PartHead(headers))
        return end + 4

    def _read_body(self, data: bytes, position: int) -> int:
        """Pass on part data up to the next boundary; -1 when more bytes are due."""
        search = position
        while True:
            found = data.find(self._mark, search)
            if found < 0:
                keep = max(position, len(data) - len(self._mark) + 1)
                self._pass_on(data, position, keep)
                self._held = data[keep:]
                return -1
            after = found + len(self._mark)
            tail = data[after : after + _LINE_END]
            line = _BOUNDARY_LINE.match(tail)
            if line is not None:
                self._pass_on(data, position, found)
                if self._inside:
                    self._inside = False
                    self._on_end()
                if line[1]:
                    self.complete = True
                    return after + 2
                self._heading = True
                return after + line.end() - 2
            if len(tail) < _LINE_END and _BOUNDARY_START.fullmatch(tail):
                self._pass_on(data, position, found)
                self._held = data[found:]
                return -1
            # Only the beginning of another word: data.
            search = found + 1

    def _pass_on(self, data: bytes, start: int, end: int) -> None:
        if self._inside and end > start:
            self._on_data(memoryview(data)[start:end])


#: Longest blank run after a boundary that is still taken for a boundary line (RFC 2046 5.1.1).
_LINE_END = 66
_BOUNDARY_LINE = re.compile(rb"(--)|[ \t]*\r\n")
_BOUNDARY_START = re.compile(rb"-?|[ \t]*\r?")

"""The frames that gateway and codec worker exchange: a small JSON header and raw bytes.

    4 bytes  length of the header      little endian
    8 bytes  length of the payload
    header   JSON, a few short fields
    payload  a data set, or nothing

No pickle: a worker that a hostile image has taken over must not be able to make the gateway run anything
(threats.md). For the same reason the gateway reads what a worker says with bounds, and believes nothing
else of it than "these are the bytes".
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from drimbox.dicom.elements import Buffer

_HEAD: Final = struct.Struct("<IQ")
HEAD_SIZE: Final = _HEAD.size
#: Longest header, bytes.
MAX_HEADER: Final = 4096


class WireRefused(Exception):
    """The other side does not speak this protocol."""


def frame_head(header: dict[str, Any], payload: int) -> bytes:
    """Write what precedes a payload of that many bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return _HEAD.pack(len(text), payload) + text


def read_lengths(head: Buffer, max_payload: int) -> tuple[int, int]:
    """Read the first `HEAD_SIZE` bytes of a frame: lengths of header and payload. Raises `WireRefused`."""
    header, payload = _HEAD.unpack_from(head)
    if header > MAX_HEADER or payload > max_payload:
        raise WireRefused(f"a frame of {header} and {payload} bytes")
    return header, payload


def read_header(text: Buffer) -> dict[str, Any]:
    """Read a header. Raises `WireRefused`."""
    try:
        header = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise WireRefused("a header that is not JSON") from error
    if not isinstance(header, dict):
        raise WireRefused("a header that is not an object")
    return header


class FrameReader:
    """Put frames together from bytes as they come; the payload is copied once."""

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._start = b""
        self._header: dict[str, Any] | None = None
        self._payload = bytearray()
        self._filled = 0

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytearray]]:
        """Take the next bytes; return the frames they complete. Raises `WireRefused`."""
        frames: list[tuple[dict[str, Any], bytearray]] = []
        view = memoryview(data)
        while True:
            if self._header is None:
                rest = self._open(view)
                if rest is None:
                    return frames
                view = rest
            taken = min(len(view), len(self._payload) - self._filled)
            self._payload[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
            if self._header is None or self._filled < len(self._payload):
                return frames
            frames.append((self._header, self._payload))
            self._header, self._payload, self._filled = None, bytearray(), 0

    def _open(self, view: memoryview) -> memoryview | None:
        """Read the head of a frame; return what follows it, None while it is not whole."""
        start = self._start + bytes(view[: HEAD_SIZE + MAX_HEADER])
        before = len(self._start)
        if len(start) < HEAD_SIZE:
            self._start = start
            return None
        header, payload = read_lengths(start, self._max_payload)
        if len(start) < HEAD_SIZE + header:
            self._start = start
            return None
        self._header = read_header(start[HEAD_SIZE : HEAD_SIZE + header])
        self._start = b""
        self._payload = bytearray(payload)
        return view[HEAD_SIZE + header - before :]

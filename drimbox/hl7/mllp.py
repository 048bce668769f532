"""MLLP framing, sans-IO (HL7 Minimal Lower Layer Protocol, release 1; interfaces.md 1.1).

Theory of operation. A frame is `0x0B message 0x1C 0x0D`. Bytes go in by `feed`, in any cut; events come
out. Every byte is looked at once: a chunk is searched for FS (and its part before FS for VT) with the C
search of `bytes`, what precedes is appended to one growing buffer, and the only memory between two
chunks is "the last byte was FS". So a message of 20 MB costs the same in one piece or in 20 million.

The reader is strict where leniency would let two readers see different messages: no VT and no FS may
stand inside a message (HL7 forbids control characters there), because a peer that could hide a second
frame in a first one would have it acknowledged by somebody who never read it. Bytes between frames are
tolerated in small number (senders that write a blank line), then refused. A refusal is final: once the
framing is lost nothing that follows can be trusted, so the reader ignores all further input and the
adapter hangs up.
"""

from __future__ import annotations

import enum

import attrs

VT = b"\x0b"
FS = b"\x1c"
CR = b"\x0d"

#: Bytes tolerated between two frames.
MAX_GAP = 1024


class FrameFault(enum.Enum):
    """What is wrong with a frame, in French for the peer's operators."""

    VT_INSIDE = "début de trame (VT) à l'intérieur d'une trame"
    FS_INSIDE = "caractère FS qui n'est pas suivi de CR"
    TOO_LARGE = "message plus grand que la limite"
    GARBAGE = "octets hors trame MLLP"


@attrs.frozen
class Event:
    """Something the peer did."""


@attrs.frozen
class MessageReceived(Event):
    """A whole message, without its framing."""

    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class FrameRefused(Event):
    """The framing is broken; the reader has stopped."""

    reason: FrameFault


class MllpReader:
    """Turn received bytes into messages, in linear time whatever the cut.

    `max_message_bytes` bounds what is held: a longer frame is refused before the byte too many is
    stored.
    """

    def __init__(self, max_message_bytes: int, *, max_gap: int = MAX_GAP) -> None:
        self._max = max_message_bytes
        self._max_gap = max_gap
        self._buffer = bytearray()
        self._inside = False
        self._after_fs = False
        self._gap = 0
        self._stopped = False

    @property
    def in_message(self) -> bool:
        """True from the VT of a frame to its final CR."""
        return self._inside

    @property
    def held(self) -> int:
        """Bytes of the frame that is not whole yet."""
        return len(self._buffer)

    @property
    def stopped(self) -> bool:
        """True once a frame was refused: nothing more will be read."""
        return self._stopped

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes of the stream and return what they complete, in order."""
        events: list[Event] = []
        position = 0
        while position < len(data) and not self._stopped:
            if self._after_fs:
                position = self._finish(data, position, events)
            elif self._inside:
                position = self._collect(data, position, events)
            else:
                position = self._seek(data, position, events)
        return events

    def _seek(self, data: bytes, position: int, events: list[Event]) -> int:
        start = data.find(VT, position)
        end = len(data) if start < 0 else start
        self._gap += end - position
        if self._gap > self._max_gap:
            return self._refuse(FrameFault.GARBAGE, data, events)
        if start < 0:
            return end
        self._gap = 0
        self._inside = True
        return start + 1

    def _collect(self, data: bytes, position: int, events: list[Event]) -> int:
        fs = data.find(FS, position)
        end = len(data) if fs < 0 else fs
        if data.find(VT, position, end) >= 0:
            return self._refuse(FrameFault.VT_INSIDE, data, events)
        if len(self._buffer) + end - position > self._max:
            return self._refuse(FrameFault.TOO_LARGE, data, events)
        self._buffer += memoryview(data)[position:end]
        if fs < 0:
            return end
        self._after_fs = True
        return fs + 1

    def _finish(self, data: bytes, position: int, events: list[Event]) -> int:
        if data[position : position + 1] != CR:
            return self._refuse(FrameFault.FS_INSIDE, data, events)
        events.append(MessageReceived(bytes(self._buffer)))
        self._reset()
        return position + 1

    def _refuse(self, fault: FrameFault, data: bytes, events: list[Event]) -> int:
        events.append(FrameRefused(fault))
        self._reset()
        self._stopped = True
        return len(data)

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._inside = False
        self._after_fs = False


def frame(message: bytes) -> bytes:
    """Wrap `message` for the wire. Raises `ValueError` when it holds a VT or an FS."""
    if VT in message or FS in message:
        raise ValueError("an MLLP message cannot hold VT or FS")
    return VT + message + FS + CR

"""Protocol data units of the DICOM upper layer: framing, limits, and the P-DATA fast path (PS3.8 9.3).

`PduReader` turns a TCP byte stream into events. Every length is judged at the six-byte header, before
anything is kept. Association PDUs are small and rare: they are collected whole and handed on as bytes
for pynetdicom's classes to read. P-DATA-TF is the other way round: a fragment is handed on as soon as a
piece of it arrives, as a view of the received bytes, so that no instance is ever assembled here.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import attrs

Buffer = bytes | memoryview

#: Largest A-ASSOCIATE PDU accepted, bytes; real ones with 128 contexts stay under 40 KB.
MAX_ASSOCIATE = 256 * 1024
_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")


class PduType(enum.IntEnum):
    """First byte of a PDU (PS3.8 9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(enum.IntEnum):
    """Reasons of a provider's A-ABORT (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class PduRefused(Exception):
    """The peer's bytes are not a PDU we accept; `reason` goes into the A-ABORT."""

    def __init__(self, problem: str, reason: AbortReason = AbortReason.INVALID_PARAMETER) -> None:
        super().__init__(problem)
        self.reason = reason


@attrs.frozen
class ControlPdu:
    """A whole PDU other than P-DATA-TF: its type and all its bytes, header included."""

    type: PduType
    data: bytes


@attrs.define
class Fragment:
    """A piece of a presentation data value as it arrived.

    `last` is True on the piece that ends the last fragment of a command or data set (PS3.8 E.2).
    """

    context_id: int
    command: bool
    last: bool
    data: Buffer


Event = ControlPdu | Fragment

_FIXED: Final = {PduType.ASSOCIATE_RJ, PduType.RELEASE_RQ, PduType.RELEASE_RP, PduType.ABORT}


class PduReader:
    """Splits a byte stream into control PDUs and pieces of presentation data values.

    `max_pdu` is the maximum length we announced (PS3.8 D.1): a longer P-DATA-TF is refused, as is an
    A-ASSOCIATE longer than `max_associate`. Any cut of the stream gives the same data in the same
    order; only the size of the pieces depends on the cuts.
    """

    def __init__(self, max_pdu: int, max_associate: int = MAX_ASSOCIATE) -> None:
        self._max_pdu = max_pdu
        self._max_associate = max_associate
        #: Incomplete header, or incomplete control PDU, and how many bytes make it worth another look.
        self._held = bytearray()
        self._wanted = 0
        self._type: PduType | None = None
        #: Bytes of the current P-DATA-TF PDU, and of its current fragment, not yet seen.
        self._pdu_left = 0
        self._pdv_left = 0
        self._context_id = 0
        self._control = 0
        #: Length of the control PDU being collected, header included.
        self._control_length = 0

    def feed(self, data: bytes) -> list[Event]:
        """Take received bytes, return what they complete. Raises `PduRefused`; then use no more."""
        events: list[Event] = []
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return events
            data = bytes(self._held)
            self._held.clear()
        view = memoryview(data)
        position = 0
        end = len(data)
        while position < end:
            if self._pdv_left:
                take = min(self._pdv_left, end - position)
                self._pdv_left -= take
                self._pdu_left -= take
                last = self._pdv_left == 0 and self._control & 2 != 0
                events.append(
                    Fragment(
                        self._context_id, self._control & 1 != 0, last, view[position : position + take]
                    )
                )
                position += take
            elif self._pdu_left:
                if end - position < 6:
                    break
                position = self._begin_fragment(view, position, events)
            elif self._type is None:
                if end - position < 6:
                    break
                position = self._begin_pdu(view, position)
            else:
                if end - position < self._control_length:
                    break
                events.append(
                    ControlPdu(self._type, bytes(view[position : position + self._control_length]))
                )
                position += self._control_length
                self._type = None
        if position < end:
            self._held += view[position:]
            self._wanted = 6 if self._type is None else self._control_length
        return events

    def _begin_pdu(self, view: memoryview, position: int) -> int:
        code, length = _HEADER.unpack_from(view, position)
        if code == PduType.DATA:
            if not 6 <= length <= self._max_pdu:
                raise PduRefused(f"P-DATA-TF of {length} bytes, {self._max_pdu} announced")
            self._pdu_left = length
            return position + 6
        try:
            pdu_type = PduType(code)
        except ValueError:
            raise PduRefused(f"PDU type {code}", AbortReason.UNRECOGNIZED_PDU) from None
        if pdu_type in _FIXED:
            if length != 4:
                raise PduRefused(f"{pdu_type.name} of {length} bytes, 4 expected")
        elif not 68 <= length <= self._max_associate:
            raise PduRefused(f"{pdu_type.name} of {length} bytes, {self._max_associate} allowed")
        self._type = pdu_type
        self._control_length = length + 6
        return position

    def _begin_fragment(self, view: memoryview, position: int, events: list[Event]) -> int:
        length, self._context_id, self._control = _PDV_HEADER.unpack_from(view, position)
        if not 2 <= length <= self._pdu_left - 4:
            raise PduRefused(f"presentation data value of {length} bytes in {self._pdu_left}")
        if 0 < self._pdu_left - 4 - length < 6:
            raise PduRefused("stray bytes after the last presentation data value")
        self._pdu_left -= 6
        self._pdv_left = length - 2
        if self._pdv_left == 0:
            # An empty fragment still ends a message when it says so.
            events.append(Fragment(self._context_id, self._control & 1 != 0, self._control & 2 != 0, b""))
        return position + 6


RELEASE_RQ = struct.pack(">BxI4x", PduType.RELEASE_RQ, 4)
RELEASE_RP = struct.pack(">BxI4x", PduType.RELEASE_RP, 4)


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """Make an A-ASSOCIATE-RJ (PS3.8 9.3.4): result 1 permanent, 2 transient."""
    return struct.pack(">BxIxBBB", PduType.ASSOCIATE_RJ, 4, result, source, reason)


def encode_abort(source: int, reason: int) -> bytes:
    """Make an A-ABORT (PS3.8 9.3.8): source 0 the user, 2 the provider."""
    return struct.pack(">BxIxxBB", PduType.ABORT, 4, source, reason)


def decode_reject(data: bytes) -> tuple[int, int, int]:
    """Return result, source and reason of an A-ASSOCIATE-RJ."""
    return data[7], data[8], data[9]


def decode_abort(data: bytes) -> tuple[int, int]:
    """Return source and reason of an A-ABORT."""
    return data[8], data[9]


def encode_message(context_id: int, data: bytes, *, command: bool, max_length: int) -> list[bytes]:
    """Cut a command or data set into P-DATA-TF PDUs of at most `max_length` bytes (0 is no limit)."""
    step = (max_length - 6) if max_length else max(len(data), 1)
    if step <= 0:
        raise ValueError(f"maximum PDU length {max_length} leaves no room for data")
    pdus = []
    for start in range(0, max(len(data), 1), step):
        piece = data[start : start + step]
        control = (1 if command else 0) | (2 if start + step >= len(data) else 0)
        header = struct.pack(">BxIIBB", PduType.DATA, len(piece) + 6, len(piece) + 2, context_id, control)
        pdus.append(header + piece)
    return pdus

"""DIMSE messages: command sets as small objects, and messages out of fragments (PS3.7 6.3, E).

Commands are always Implicit VR Little Endian and only group 0000, so they are read and written here
without a data set library: this runs once per image. Data sets are not touched: their pieces pass
through as they arrive.
"""

from __future__ import annotations

import enum
import operator
import struct

import attrs

from drimbox.dicom.pdu import Buffer, Fragment

#: Largest command set accepted, bytes. The longest real one, a C-MOVE response, stays under 1 KB.
MAX_COMMAND = 64 * 1024
#: (0000,0800) when no data set follows.
_NO_DATASET = 0x0101
_NO_DATASET_BYTES = b"\x01\x01"
_ELEMENT = struct.Struct("<HHI")
#: An element of 16 bits, and the group length.
_SHORT = struct.Struct("<HHIH")
_LENGTH = struct.Struct("<HHII")


class CommandField(enum.IntEnum):
    """(0000,0100) of the services we speak (PS3.7 E.1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    C_CANCEL_RQ = 0x0FFF


class Status(enum.IntEnum):
    """Statuses we send or single out (PS3.7 C, PS3.4 B.2.3, C.4)."""

    SUCCESS = 0x0000
    WARNING = 0xB000
    PENDING = 0xFF00
    PENDING_WARNING = 0xFF01
    CANCEL = 0xFE00
    NOT_AUTHORISED = 0x0124
    UNRECOGNIZED_OPERATION = 0x0211
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    CANNOT_UNDERSTAND = 0xC000
    MOVE_DESTINATION_UNKNOWN = 0xA801


class MessageRefused(Exception):
    """The peer's fragments do not make a DIMSE message; the association is aborted."""


@attrs.define
class Command:
    """A command set. Only the elements of the services we speak; None when absent."""

    field: int
    message_id: int | None = None
    responded_id: int | None = None
    affected_class: str | None = None
    affected_instance: str | None = None
    priority: int | None = None
    has_dataset: bool = False
    status: int | None = None
    move_destination: str | None = None
    originator_ae_title: str | None = None
    originator_message_id: int | None = None
    remaining: int | None = None
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    error_comment: str | None = None


#: element of group 0000 -> (attribute, kind)
_ELEMENTS = {
    0x0002: ("affected_class", "UI"),
    0x0100: ("field", "US"),
    0x0110: ("message_id", "US"),
    0x0120: ("responded_id", "US"),
    0x0600: ("move_destination", "AE"),
    0x0700: ("priority", "US"),
    0x0900: ("status", "US"),
    0x0902: ("error_comment", "LO"),
    0x1000: ("affected_instance", "UI"),
    0x1020: ("remaining", "US"),
    0x1021: ("completed", "US"),
    0x1022: ("failed", "US"),
    0x1023: ("warning", "US"),
    0x1030: ("originator_ae_title", "AE"),
    0x1031: ("originator_message_id", "US"),
}
_ORDER = sorted([*_ELEMENTS.items(), (0x0800, ("has_dataset", "US"))])
_WRITTEN = tuple((element, kind) for element, (_, kind) in _ORDER)
_VALUES = operator.attrgetter(*(name for _, (name, _) in _ORDER))


def decode_command(data: bytes) -> Command:
    """Read a command set. Raises `MessageRefused` when it is not one."""
    values: dict[str, object] = {}
    position = 0
    end = len(data)
    head, elements = _ELEMENT.unpack_from, _ELEMENTS
    while position < end:
        if end - position < 8:
            raise MessageRefused("command set cut short")
        group, element, length = head(data, position)
        position += 8
        if group != 0 or length > end - position:
            raise MessageRefused(f"command set with ({group:04x},{element:04x}) of {length} bytes")
        value = data[position : position + length]
        position += length
        if element == 0x0800:
            values["has_dataset"] = length == 2 and value != _NO_DATASET_BYTES
            continue
        known = elements.get(element)
        if known is None or not length:
            continue
        name, kind = known
        if kind == "US":
            if length != 2:
                raise MessageRefused(f"(0000,{element:04x}) of {length} bytes, 2 expected")
            values[name] = int.from_bytes(value, "little")
        else:
            values[name] = value.rstrip(b"\0 ").lstrip(b" ").decode("ascii", "replace")
    if "field" not in values:
        raise MessageRefused("command set without a command field")
    return Command(**values)  # type: ignore[arg-type]


def encode_command(command: Command) -> bytes:
    """Write a command set with its group length (PS3.7 6.3.1)."""
    parts = []
    for (element, kind), value in zip(_WRITTEN, _VALUES(command), strict=True):
        if value is None:
            continue
        if element == 0x0800:
            value = 0x0000 if value else _NO_DATASET
        if kind == "US":
            parts.append(_SHORT.pack(0, element, 2, value))
            continue
        # What we echo came from the peer, and may not be the ASCII it must be.
        raw = value.encode("ascii", "replace")
        if len(raw) % 2:
            raw += b"\0" if kind == "UI" else b" "
        parts += _ELEMENT.pack(0, element, len(raw)), raw
    body = b"".join(parts)
    return _LENGTH.pack(0, 0, 4, len(body)) + body


@attrs.define
class CommandReceived:
    """A whole command set; when `command.has_dataset`, pieces of a data set follow."""

    context_id: int
    command: Command


@attrs.define
class DataReceived:
    """A piece of the data set that belongs to the last command; `last` on the final one."""

    data: Buffer
    last: bool


class MessageReader:
    """Makes DIMSE messages out of fragments: one command, then its data set, never mixed (PS3.7 F)."""

    def __init__(self) -> None:
        self._command = bytearray()
        #: Context of the data set we are inside of, or None.
        self._dataset_context: int | None = None

    @property
    def in_dataset(self) -> bool:
        """True between a command that announces a data set and that data set's end."""
        return self._dataset_context is not None

    def feed(self, fragment: Fragment) -> CommandReceived | DataReceived | None:
        """Take a fragment, return what it makes. Raises `MessageRefused`."""
        if fragment.command:
            return self._feed_command(fragment)
        if self._dataset_context is None:
            raise MessageRefused("data set without a command")
        if fragment.context_id != self._dataset_context:
            raise MessageRefused("data set on another presentation context than its command")
        if fragment.last:
            self._dataset_context = None
        return DataReceived(fragment.data, fragment.last)

    def _feed_command(self, fragment: Fragment) -> CommandReceived | None:
        if self._dataset_context is not None:
            raise MessageRefused("command inside a data set")
        if len(self._command) + len(fragment.data) > MAX_COMMAND:
            raise MessageRefused(f"command set over {MAX_COMMAND} bytes")
        self._command += fragment.data
        if not fragment.last:
            return None
        command = decode_command(bytes(self._command))
        self._command.clear()
        if command.has_dataset:
            self._dataset_context = fragment.context_id
        return CommandReceived(fragment.context_id, command)

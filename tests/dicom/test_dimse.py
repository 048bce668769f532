"""Command sets and messages, with pynetdicom as the oracle."""

from __future__ import annotations

import contextlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom.dsutils import encode

from drimbox.dicom.dimse import (
    MAX_COMMAND,
    Command,
    CommandField,
    CommandReceived,
    DataReceived,
    MessageReader,
    MessageRefused,
    decode_command,
    encode_command,
)
from drimbox.dicom.pdu import Fragment

uids = st.from_regex(r"[1-9](\.[0-9]{1,5}){1,8}", fullmatch=True)
titles = st.from_regex(r"[A-Z0-9_]{1,16}", fullmatch=True)
shorts = st.none() | st.integers(0, 65535)
commands = st.builds(
    Command,
    field=st.sampled_from([int(field) for field in CommandField]),
    message_id=shorts,
    responded_id=shorts,
    affected_class=st.none() | uids,
    affected_instance=st.none() | uids,
    priority=shorts,
    has_dataset=st.booleans(),
    status=shorts,
    move_destination=st.none() | titles,
    originator_ae_title=st.none() | titles,
    originator_message_id=shorts,
    remaining=shorts,
    completed=shorts,
    failed=shorts,
    warning=shorts,
)


@given(commands)
def test_what_is_written_is_read_back_and_pydicom_agrees(command: Command) -> None:
    data = encode_command(command)
    assert decode_command(data) == command
    theirs = read_dataset(BytesIO(data), True, True)
    assert theirs.CommandGroupLength == len(data) - 12
    assert theirs.CommandField == command.field
    assert theirs.get("MessageID") == command.message_id
    assert theirs.get("AffectedSOPInstanceUID") == command.affected_instance
    assert theirs.get("MoveDestination") == command.move_destination
    assert (theirs.CommandDataSetType == 0x0101) is not command.has_dataset
    assert [e.tag for e in theirs] == sorted(e.tag for e in theirs)


def test_a_command_of_another_implementation_is_read() -> None:
    theirs = Dataset()
    theirs.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    theirs.CommandField = 1
    theirs.MessageID = 7
    theirs.Priority = 2
    theirs.CommandDataSetType = 1
    theirs.AffectedSOPInstanceUID = "1.2.3"
    theirs.MoveOriginatorApplicationEntityTitle = "DRIMBOX"
    theirs.MoveOriginatorMessageID = 12
    command = decode_command(encode(theirs, True, True) or b"")
    assert command == Command(
        CommandField.C_STORE_RQ,
        message_id=7,
        priority=2,
        has_dataset=True,
        affected_class="1.2.840.10008.5.1.4.1.1.2",
        affected_instance="1.2.3",
        originator_ae_title="DRIMBOX",
        originator_message_id=12,
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\1\2\0\0",
        b"\0\0\0\1\4\0\0\0\1\0\0\0",
        b"\0\0\0\1\xff\xff\xff\xff\1\0",
        b"\x08\0\x18\0\2\0\0\0\x31\0",
    ],
    ids=["empty", "cut", "long field", "length bomb", "another group"],
)
@pytest.mark.threat("PDU length bomb")
def test_a_broken_command_set_is_refused(data: bytes) -> None:
    with pytest.raises(MessageRefused):
        decode_command(data)


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused_never_worse(data: bytes) -> None:
    with contextlib.suppress(MessageRefused):
        decode_command(data)


def store(context_id: int = 1) -> Fragment:
    command = Command(CommandField.C_STORE_RQ, message_id=1, has_dataset=True)
    return Fragment(context_id, True, True, encode_command(command))


def test_a_command_then_its_data_set() -> None:
    reader = MessageReader()
    received = reader.feed(store())
    assert isinstance(received, CommandReceived)
    assert reader.in_dataset
    assert reader.feed(Fragment(1, False, False, b"ab")) == DataReceived(b"ab", False)
    assert reader.feed(Fragment(1, False, True, b"")) == DataReceived(b"", True)
    assert not reader.in_dataset
    assert reader.feed(store()) is not None


def test_a_command_in_pieces() -> None:
    data = bytes(store().data)
    reader = MessageReader()
    assert reader.feed(Fragment(1, True, False, data[:20])) is None
    assert reader.feed(Fragment(1, True, True, data[20:])) is not None


@pytest.mark.parametrize(
    "fragments",
    [
        [Fragment(1, False, True, b"x")],
        [store(), store()],
        [store(1), Fragment(3, False, True, b"x")],
        [Fragment(1, True, False, b"x" * MAX_COMMAND), Fragment(1, True, False, b"x")],
    ],
    ids=["data without command", "command inside data", "another context", "endless command"],
)
def test_mixed_messages_are_refused(fragments: list[Fragment]) -> None:
    reader = MessageReader()
    *before, wrong = fragments
    for fragment in before:
        reader.feed(fragment)
    with pytest.raises(MessageRefused):
        reader.feed(wrong)

"""The receivers of the bench count right, whatever comes, and the null receiver asks for its own moves."""

from __future__ import annotations

import socket
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE, build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from twisted.internet.testing import StringTransport

from bench.move import MoveFailed
from bench.null_receiver import MAXIMUM_PDU, NullReceiver, accept, command_fields, command_pdu
from bench.receivers import Kind, Receiver
from bench.reception import Reception
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import PeerMissing, free_port
from drimbox.sim.studies import GeneratedStudy, make_study

CT = "1.2.840.10008.5.1.4.1.1.2"


class LoopbackTransport(StringTransport):
    """A transport with the socket options the receiver takes."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[tuple[int, int, int]] = []
        self.bufferSize = 65536

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options.append((socket.IPPROTO_TCP, socket.TCP_NODELAY, int(enabled)))

    def getHandle(self) -> LoopbackTransport:
        return self

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)  # type: ignore[arg-type]


def store_bytes(uid: str, data: bytes, *, message_id: int = 1, context: int = 1, pdu: int = 200) -> bytes:
    """Encode a C-STORE request as pynetdicom would send it."""
    request = C_STORE()
    request.MessageID = message_id
    request.Priority = 2
    request.AffectedSOPClassUID = CT
    request.AffectedSOPInstanceUID = uid
    request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    stream = bytearray()
    for fragment in message.encode_msg(context, pdu):
        encoded = P_DATA_TF()
        encoded.from_primitive(fragment)
        stream += encoded.encode()
    return bytes(stream)


def merged(stream: bytes) -> bytes:
    """Put all PDVs of a stream of P-DATA PDUs into one PDU."""
    body, offset = b"", 0
    while offset < len(stream):
        (length,) = struct.unpack_from(">I", stream, offset + 2)
        body += stream[offset + 6 : offset + 6 + length]
        offset += 6 + length
    return struct.pack(">BxI", 4, len(body)) + body


def replies(written: bytes) -> list[dict[int, bytes]]:
    """Cut what the receiver wrote into command sets."""
    found, offset = [], 0
    while offset < len(written):
        (length,) = struct.unpack_from(">I", written, offset + 2)
        found.append(command_fields(written[offset + 12 : offset + 6 + length]))
        offset += 6 + length
    return found


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 300), max_size=40),
    one_pdu=st.booleans(),
)
def test_null_receiver_answers_each_data_set_however_it_is_cut(
    sizes: list[int], cuts: list[int], one_pdu: bool
) -> None:
    stream = b""
    for number, size in enumerate(sizes):
        one = store_bytes(f"1.2.{number}", b"\x04" * (2 * size), message_id=number + 1)
        stream += merged(one) if one_pdu else one
    reception, transport = Reception(), LoopbackTransport()
    receiver = NullReceiver(reception)
    receiver.makeConnection(transport)
    offset = 0
    for cut in [*cuts, len(stream)]:
        if offset < len(stream):
            receiver.dataReceived(stream[offset : offset + cut])
        offset += cut
    answers = replies(transport.value())
    assert [answer[0x1000].rstrip(b"\0").decode() for answer in answers] == [
        f"1.2.{n}" for n in range(len(sizes))
    ]
    assert [struct.unpack("<H", answer[0x0120])[0] for answer in answers] == [
        n + 1 for n in range(len(sizes))
    ]
    assert {(answer[0x0100], answer[0x0900]) for answer in answers} == {(b"\x01\x80", b"\0\0")}
    assert (reception.instances, reception.bytes, reception.associations) == (len(sizes), len(stream), 1)
    assert 0 < reception.first_at <= reception.last_at


def test_null_receiver_does_not_answer_before_the_last_byte() -> None:
    stream = store_bytes("1.2.3", b"\x01\x02" * 300)
    transport = LoopbackTransport()
    receiver = NullReceiver(Reception())
    receiver.makeConnection(transport)
    receiver.dataReceived(stream[:-1])
    assert transport.value() == b""
    receiver.dataReceived(stream[-1:])
    assert len(replies(transport.value())) == 1


def test_null_receiver_takes_the_socket_options_of_the_pipeline() -> None:
    transport = LoopbackTransport()
    receiver = NullReceiver(Reception())
    receiver.makeConnection(transport)
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in transport.options
    assert transport.bufferSize > MAXIMUM_PDU
    for _ in range(2):
        receiver.dataReceived(b"\x04")
    assert transport.options.count((socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)) == 2


def test_null_receiver_releases_and_hangs_up_on_anything_else() -> None:
    for pdu, answer in ((b"\x05", b"\x06\0\0\0\0\x04\0\0\0\0"), (b"\x07", b""), (b"\x99", b"")):
        transport = LoopbackTransport()
        receiver = NullReceiver(Reception())
        receiver.makeConnection(transport)
        receiver.dataReceived(pdu + b"\0\0\0\0\x04\0\0\0\0")
        assert transport.value() == answer
        assert transport.disconnecting


def test_command_sets_survive_the_round_trip() -> None:
    fields = {0x0100: b"\x01\x80", 0x0120: b"\x07\0", 0x1000: b"1.2.3\0"}
    (back,) = replies(command_pdu(5, fields))
    assert struct.unpack("<I", back.pop(0x0000))[0] == sum(8 + len(value) for value in fields.values())
    assert back == fields


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder, instances=4, series=2, transfer_syntax=JPEGLSLossless)


@pytest.mark.parametrize("kind", ["null", "pynetdicom", "storescp"])
def test_receivers_take_jpeg_ls_from_pynetdicom(kind: Kind, study: GeneratedStudy, tmp_path: Path) -> None:
    try:
        receiver = Receiver(kind, free_port(), ae_title="BENCH", log=tmp_path / "log")
        with receiver:
            entity = AE(ae_title="SENDER")
            association: Any = entity.associate(
                "127.0.0.1",
                receiver.port,
                [build_context(CT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless])],
                ae_title="BENCH",
            )
            assert association.is_established
            (context,) = association.accepted_contexts
            assert context.transfer_syntax == [JPEGLSLossless]
            statuses = [association.send_c_store(path).Status for path in study.files]
            association.release()
            assert statuses == [0x0000] * 4
            reception = receiver.report()
            if kind == "storescp":
                assert reception is None
                return
            assert reception is not None
            assert (reception.instances, reception.associations) == (4, 1)
            assert reception.bytes >= study.size - 4 * 1000
            assert 0 < reception.first_at < reception.last_at
            assert receiver.report() == Reception()
    except PeerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(
    ("preferred", "taken"),
    [(JPEGLSLossless, ImplicitVRLittleEndian), (ExplicitVRLittleEndian, ExplicitVRLittleEndian)],
)
def test_accepts_contexts_as_pynetdicom_reads_them(tmp_path: Path, preferred: str, taken: str) -> None:
    proposed = build_context(CT, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    with Receiver("null", free_port(), log=tmp_path / "log", preferred=preferred) as receiver:
        association: Any = AE().associate("127.0.0.1", receiver.port, [proposed])
        assert association.is_established
        assert association.accepted_contexts[0].transfer_syntax == [taken]
        assert association.acceptor.maximum_length == MAXIMUM_PDU
        association.release()
        assert association.is_released
    assert accept(b"\0" * 68)[:1] == b"\x02"


def test_null_receiver_asks_for_its_own_moves(tmp_path: Path) -> None:
    one_series = make_study(tmp_path / "study", instances=5, transfer_syntax=JPEGLSLossless)
    port = free_port()
    with (
        SimulatedPacs("PACS", destinations={"NULL": ("127.0.0.1", port)}) as pacs,
        Receiver("null", port, ae_title="NULL", log=tmp_path / "log") as receiver,
    ):
        pacs.load(one_series)
        taken, reception = receiver.move(pacs, one_series, 2)
        assert (reception.instances, reception.associations) == (10, 2)
        assert 0 < taken.started_at < reception.first_at < reception.last_at <= taken.ended_at
        # A move that fails is an error, and the next one is not burdened by it.
        pacs.behaviour = Behaviour(final_status=0xA702)
        with pytest.raises(MoveFailed, match="status 0xA702"):
            receiver.move(pacs, one_series, 1)
        pacs.behaviour = Behaviour()
        _, reception = receiver.move(pacs, one_series, 1)
        assert reception.instances == 5
    with (
        Receiver("null", port, ae_title="NULL", log=tmp_path / "log") as receiver,
        pytest.raises(MoveFailed, match="refused"),
    ):
        receiver.move(pacs, one_series, 1)

"""The simulated RIS, judged by others: the `hl7` library, lxml, a hand-written peer."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hl7
import pytest
import pytest_twisted
from lxml import etree
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import Factory, Protocol

from drimbox.model import MessageAction
from drimbox.sim.ris import (
    Misbehaviour,
    NoAck,
    SimAct,
    SimError,
    SimMessage,
    SimReport,
    build_cda,
    build_message,
    build_pdf,
    parse_ack,
    send,
    send_all,
)

CDA = {"c": "urn:hl7-org:v3"}
ACK = (
    b"MSH|^~\\&|D|S|R|S|2026||ACK^R01^ACK|1|P|2.5\rMSA|AE|015\r"
    b"ERR||OBX^1^5|101^x^y|E|906^Autre||\\T\\|absent\r"
)


def test_a_default_message_is_that_of_the_specification() -> None:
    message = hl7.parse(build_message().decode())
    assert [str(segment[0]) for segment in message] == ["MSH", "PID", "PV1", "ORC", "OBR", "OBX", "PRT"] + [
        "OBX"
    ] * 8
    assert str(message.segment("MSH")[9]) == "ORU^R01^ORU_R01"
    assert message.extract_field("PID", 1, 3, 1, 1) == "284070100499094"
    assert message.extract_field("PID", 1, 3, 2, 5) == "PI"
    assert str(message.segment("PID")[32]) == "VALI"
    assert message.extract_field("PRT", 1, 8, 1, 10) == "1999999999"
    assert message.extract_field("OBX", 7, 3, 1, 1) == "DESTDMP"
    assert message.extract_field("OBX", 7, 5, 1, 1) == "Y"
    assert base64.b64decode(message.extract_field("OBX", 1, 5, 1, 5)) == build_cda()


@pytest.mark.parametrize(
    ("action", "event", "order", "status"),
    [
        (MessageAction.NEW, "MDM^T02^MDM_T02", "NW", "F"),
        (MessageAction.REPLACE, "MDM^T10^MDM_T02", "RO", "C"),
        (MessageAction.DELETE, "MDM^T04^MDM_T02", "CA", "D"),
    ],
)
def test_actions_agree_in_their_three_places(
    action: MessageAction, event: str, order: str, status: str
) -> None:
    report = SimReport(replaces="2.999.7.0")
    message = hl7.parse(build_message(report, SimMessage(kind="MDM", action=action)).decode())
    assert str(message.segment("MSH")[9]) == event
    assert str(message.segment("ORC")[1]) == order
    assert str(message.segments("OBX")[0][11]) == status
    assert str(message.segment("TXA")[13]) == "2.999.7.0"


@pytest.mark.parametrize("level", [1, 3])
def test_the_report_is_well_formed_and_holds_its_pdf(level: int) -> None:
    report = SimReport(level=level, pdf_size=5_000, title="Tête & cou <IRM>")
    root = etree.fromstring(build_cda(report))
    path = "//c:nonXMLBody/c:text" if level == 1 else "//c:observationMedia/c:value"
    (body,) = root.xpath(path, namespaces=CDA)
    assert base64.b64decode(body.text) == build_pdf(5_000)
    assert root.xpath("string(c:title)", namespaces=CDA) == "Tête & cou <IRM>"
    assert len(root.xpath("//c:section/c:code[@code='121181']", namespaces=CDA)) == (level == 3)


def test_each_study_is_an_act() -> None:
    root = etree.fromstring(build_cda(SimReport(acts=(SimAct("2.999.1"), SimAct("2.999.2")))))
    found = root.xpath("c:documentationOf/c:serviceEvent/c:id/@root", namespaces=CDA)
    assert found == ["2.999.1", "2.999.2"]


@pytest.mark.parametrize("size", [1_000, 1_234, 1_000_000])
def test_a_pdf_has_the_size_asked_for(size: int) -> None:
    assert len(build_pdf(size)) == size


@pytest.mark.peer("pdfinfo")
def test_the_pdf_is_one_for_poppler(tmp_path: Path) -> None:
    if shutil.which("pdfinfo") is None:
        pytest.skip("pdfinfo (poppler-utils) not installed")
    (tmp_path / "a.pdf").write_bytes(build_pdf())
    done = subprocess.run(["pdfinfo", tmp_path / "a.pdf"], capture_output=True, text=True, timeout=30)
    assert "Pages:" in done.stdout
    assert done.stderr == ""


def test_variants_of_writing() -> None:
    assert build_message(message=SimMessage(terminator="\n")).count(b"\r") == 0
    wrapped = build_message(message=SimMessage(wrap=76))
    assert max(len(line) for line in wrapped.split(b"\r\n")[1:-1]) <= 76
    latin = build_message(message=SimMessage(charset="UNICODE UTF-8", encoding="iso8859-15"))
    with pytest.raises(UnicodeDecodeError):
        latin.decode("utf-8")
    assert b"DESTDMP" not in build_message(message=SimMessage(flags={"DESTDMP": None}))
    assert b"PRT|" not in build_message(message=SimMessage(prt_structure=""))


def test_an_acknowledgement_is_taken_apart() -> None:
    ack = parse_ack(ACK)
    assert (ack.code, ack.control_id) == ("AE", "015")
    assert ack.errors == (SimError("OBX^1^5", "101", "906", "absent"),)
    for bad in (b"", b"MSH|^~\\&|D|S|R|S|2026||ORU^R01|1\r", ACK.split(b"\r")[0]):
        with pytest.raises(ValueError, match="acknowledgement"):
            parse_ack(bad)


# --- the client against a peer that records --------------------------------------------------------


class Peer(Factory):
    """Keeps what it gets; answers `answer` once `expected` frame ends have come."""

    def __init__(self, answer: bytes, expected: int = 1) -> None:
        self.answer = answer
        self.expected = expected
        self.data = b""
        self.chunks = 0
        self.ended: Deferred[None] = Deferred()

    def buildProtocol(self, addr: Any) -> Protocol:
        peer = self

        class Connection(Protocol):
            def dataReceived(self, data: bytes) -> None:
                peer.data += data
                peer.chunks += 1
                if peer.data.count(b"\x1c\r") >= peer.expected and peer.answer:
                    self.transport.write(peer.answer)  # type: ignore[union-attr]
                    peer.expected = 1 << 30

            def connectionLost(self, reason: Any = None) -> None:
                if not peer.ended.called:
                    peer.ended.callback(None)

        return Connection()


async def talk(peer: Peer, talk_to: Any) -> Any:
    port = reactor.listenTCP(0, peer, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        return await talk_to(port.getHost().port)
    finally:
        await port.stopListening()
        await peer.ended


@pytest.mark.parametrize(
    ("misbehaviour", "sent"),
    [
        (None, b"\x0bMSH|hello\x1c\r"),
        (Misbehaviour.ODD_CHUNKS, b"\x0bMSH|hello\x1c\r"),
        (Misbehaviour.GARBAGE_BEFORE, b"\r\n\r\n\x0bMSH|hello\x1c\r"),
        (Misbehaviour.VT_INSIDE, b"\x0bMSH|h\x0bMSH|hello\x1c\r"),
    ],
)
@pytest_twisted.inlineCallbacks
def test_what_is_sent_and_answered(misbehaviour: Misbehaviour | None, sent: bytes) -> Any:
    peer = Peer(b"\x0b" + ACK + b"\x1c\r")
    ack = yield ensureDeferred(
        talk(peer, lambda port: send("127.0.0.1", port, b"MSH|hello", 5, misbehaviour=misbehaviour))
    )
    assert ack.code == "AE"
    assert peer.data == sent


@pytest.mark.parametrize(
    ("misbehaviour", "sent"),
    [
        (Misbehaviour.STOP_HALFWAY, b"\x0bMSH|h"),
        (Misbehaviour.HANG_UP_HALFWAY, b"\x0bMSH|h"),
        (Misbehaviour.NO_END, b"\x0bMSH|hello"),
        (Misbehaviour.NO_FRAME, b"MSH|hello"),
    ],
)
@pytest_twisted.inlineCallbacks
def test_what_gets_no_answer(misbehaviour: Misbehaviour, sent: bytes) -> Any:
    peer = Peer(b"")

    async def attempt(port: int) -> None:
        with pytest.raises(NoAck):
            await send("127.0.0.1", port, b"MSH|hello", 0.2, misbehaviour=misbehaviour)

    yield ensureDeferred(talk(peer, attempt))
    assert peer.data == sent


@pytest_twisted.inlineCallbacks
def test_several_messages_leave_in_one_write() -> Any:
    frame = b"\x0b" + ACK + b"\x1c\r"
    peer = Peer(frame * 3, expected=3)
    acks = yield ensureDeferred(talk(peer, lambda port: send_all("127.0.0.1", port, [b"A", b"B", b"C"], 5)))
    assert len(acks) == 3
    assert peer.data == b"\x0bA\x1c\r\x0bB\x1c\r\x0bC\x1c\r"


@pytest_twisted.inlineCallbacks
def test_an_unframed_answer_is_none() -> Any:
    async def attempt(port: int) -> None:
        with pytest.raises(NoAck, match="not framed"):
            await send("127.0.0.1", port, b"MSH", 5)

    yield ensureDeferred(talk(Peer(ACK + b"\x1c\r"), attempt))

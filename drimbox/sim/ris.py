"""A simulated RIS: ORU and MDM messages, and an MLLP client that can misbehave.

The messages follow interfaces.md 1.7 and are written by hand, without the production reader and framer, so
that an error of ours does not meet its own mirror. Defaults give a message that feeds; every refusal of
interfaces.md 1.5 can be provoked by one argument.
"""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
from twisted.internet import reactor as default_reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from drimbox.model import MessageAction
from drimbox.sim.authority import Pair
from drimbox.sim.ris_report import SimAct, SimOrder, SimReport, build_cda, build_pdf

__all__ = [
    "Misbehaviour",
    "NoAck",
    "RisTls",
    "SimAck",
    "SimAct",
    "SimError",
    "SimMessage",
    "SimOrder",
    "SimReport",
    "build_cda",
    "build_message",
    "build_pdf",
    "send",
    "send_all",
]

_CODES = {
    MessageAction.NEW: ("T02", "NW", "F"),
    MessageAction.REPLACE: ("T10", "RO", "C"),
    MessageAction.DELETE: ("T04", "CA", "D"),
}

#: Flags of interfaces.md 1.4 in their order, with their default.
FLAGS = {
    "MASQUE_PS": "N",
    "INVISIBLE_PATIENT": "N",
    "INVISIBLE_REP_LEGAUX": "N",
    "CONNEXION_SECRETE": "N",
    "MODIF_CONF_CODE": "N",
    "DESTDMP": "Y",
    "DESTMSSANTEPS": "N",
    "DESTMSSANTEPAT": "N",
}


@attrs.frozen
class SimMessage:
    """The HL7 side of a report message."""

    #: "ORU" or "MDM".
    kind: str = "ORU"
    action: MessageAction = MessageAction.NEW
    control_id: str = "015"
    #: MSH-7.
    sent_at: str = "20260112093000"
    application: str = "RIS-Y"
    facility: str = "SITE-X"
    #: Flags that differ from `FLAGS`; None leaves that OBX out.
    flags: dict[str, str | None] = attrs.field(factory=dict)
    #: PID-32; empty leaves it out.
    reliability: str = "VALI"
    #: Writes the `PI` repetition of PID-3.
    with_ipp: bool = True
    #: PRT-8.10; None copies the report's structure, empty leaves the PRT out.
    prt_structure: str | None = None
    patient_class: str = "O"
    #: MSH-18, and the codec really used.
    charset: str = "UNICODE UTF-8"
    encoding: str = "utf-8"
    #: MSH-15 and MSH-16.
    accept_ack: str = ""
    application_ack: str = ""
    version: str | None = None
    #: Overrides of what the action implies, for contradictory messages.
    message_type: str | None = None
    order_control: str | None = None
    status: str | None = None
    #: Segment terminator.
    terminator: str = "\r"
    #: Line length of the base64; 0 does not wrap it.
    wrap: int = 0
    #: OBX-5 as it is, instead of the report.
    document_field: str | None = None
    #: False leaves the document OBX out.
    with_document: bool = True


def build_change(
    studies: Iterable[str],
    *,
    control_id: str = "00042",
    application: str = "PACS-Z",
    facility: str = "SITE-X",
    order: str = "CA",
) -> bytes:
    """Build the OMI^O23 of a PACS in which these studies changed (interfaces.md 1.6)."""
    groups = [
        f"ORC|{order}|5501^RIS|9901^RIS\r"
        "OBR|1|5501^RIS|9901^RIS|24531-6^IRM^LN\r"
        "OBX|1|ST|5501^Modification Examen Imagerie||||||||O\r"
        f"IPC|ACC-7788|RP1|{study}|SPS1|MR||||PACSZ\r"
        for study in studies
    ]
    head = (
        f"MSH|^~\\&|{application}|{facility}|DRIMBOX|SITE-X|AAAAMMJJ||OMI^O23^OMI_O23|{control_id}|P|2.5.1\r"
        "PID|||284070100499094^^^ASIP-SANTE-INS-NIR||EXEMPLE^CLAIRE||19840701|F\r"
    )
    return (head + "".join(groups)).encode()


def build_message(
    report: SimReport | None = None, message: SimMessage | None = None, *, document: bytes | None = None
) -> bytes:
    """Return an HL7 message that carries `report` (or `document`, any bytes), without MLLP framing."""
    report, message = report or SimReport(), message or SimMessage()
    event, order, status = _CODES[message.action]
    mdm = message.kind == "MDM"
    version = message.version if message.version is not None else ("2.6" if mdm else "2.5")
    kind = message.message_type or (f"MDM^{event}^MDM_T02" if mdm else "ORU^R01^ORU_R01")
    segments = [
        f"MSH|^~\\&|{message.application}|{message.facility}|DRIMBOX|SITE-X|{message.sent_at}||{kind}|"
        f"{message.control_id}|P|{version}|||{message.accept_ack}|{message.application_ack}|FRA|"
        f"{message.charset}|||2.1^CISIS_CDA_HL7_V2",
        "EVN||20260112093000" if mdm else "",
        _pid(report, message),
        f"PV1|1|{message.patient_class}",
        f"ORC|{order if message.order_control is None else message.order_control}|5501^RIS|9901^RIS",
        "OBR|1|5501^RIS|9901^RIS|18748-4^CR d'imagerie médicale^LN",
        f"TXA|1|18748-4|TEXT|202601120930||||||||{report.document_id}|{report.replaces}||||AU"
        if mdm
        else "",
    ]
    if message.with_document:
        field = message.document_field
        if field is None:
            field = "^TEXT^XML^Base64^" + _base64(
                build_cda(report) if document is None else document, message
            )
        shown = status if message.status is None else message.status
        segments.append(f"OBX|1|ED|18748-4^CR d'imagerie médicale^LN||{field}||||||{shown}|")
    structure = report.structure_id if message.prt_structure is None else message.prt_structure
    if structure:
        segments.append(
            f"PRT||UC||SB^^participation|{report.author_rpps}^{report.author_family}^{report.author_given}"
            f"^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS|||{report.structure_name}"
            f"^^^^^ASIP-SANTE-ST&1.2.250.1.71.4.2.2&ISO^FINEG^^^{structure}"
        )
    values: dict[str, str | None] = {**FLAGS, **message.flags}
    value_type = "CWE" if mdm else "CE"
    for rank, (name, value) in enumerate(values.items(), 2):
        if value is not None:
            segments.append(
                f"OBX|{rank}|{value_type}|{name}^Indicateur^MetaDMPMSS||{value}^^expandedYes-NoIndicator||||||F|"
            )
    text = "".join(segment + message.terminator for segment in segments if segment)
    return text.encode(message.encoding, "replace")


def _txa(report: SimReport) -> str:
    return f"TXA|1|18748-4|TEXT|202601120930||||||||{report.document_id}|{report.replaces}||||AU"


def _pid(report: SimReport, message: SimMessage) -> str:
    ids = []
    if report.ins:
        ids.append(f"{report.ins}^^^ASIP-SANTE-INS-NIR&{report.ins_oid}&ISO^INS^^20101207")
    if message.with_ipp and report.ipp:
        ids.append(f"{report.ipp}^^^AUT-AFFECTATION&{report.ipp_authority}&ISO^PI")
    fields = [""] * 33
    fields[0] = "PID"
    fields[3] = "~".join(ids)
    fields[5] = f"{report.family}^{report.given}^{report.given_list}^^^^L"
    fields[7], fields[8] = report.birth_date, report.sex
    fields[11] = f"^^^^^^BDL^^{report.birth_place}"
    fields[32] = message.reliability
    return "|".join(fields).rstrip("|")


def _base64(document: bytes, message: SimMessage) -> str:
    text = base64.b64encode(document).decode("ascii")
    if not message.wrap:
        return text
    lines = (text[i : i + message.wrap] for i in range(0, len(text), message.wrap))
    return "\r\n".join(lines)


# --- client -----------------------------------------------------------------------------------------


class Misbehaviour(enum.Enum):
    """Ways to send a message that a good client never takes."""

    #: Many small TCP segments of odd sizes.
    ODD_CHUNKS = "odd chunks"
    #: Half of the frame, then silence.
    STOP_HALFWAY = "stop half-way"
    #: Half of the frame, then the connection is closed.
    HANG_UP_HALFWAY = "hang up half-way"
    #: The frame never ends.
    NO_END = "no end"
    #: No framing at all.
    NO_FRAME = "no frame"
    #: A second frame hidden in the first.
    VT_INSIDE = "VT inside"
    #: Bytes between frames.
    GARBAGE_BEFORE = "garbage before"
    #: The sending side is closed before the answer has come.
    HALF_CLOSE = "half close"


@attrs.frozen
class RisTls:
    """How the RIS speaks TLS: whom it trusts, under which name, and what it shows itself."""

    roots: Path
    name: str = "localhost"
    pair: Pair | None = None

    def options(self) -> Any:
        """Return what an endpoint makes its connections with."""
        trusted = [ssl.Certificate.loadPEM(each) for each in _certificates(self.roots)]
        own = None
        if self.pair is not None:
            own = ssl.PrivateCertificate.loadPEM(
                self.pair.certificate.read_bytes() + self.pair.key.read_bytes()
            )
        return ssl.optionsForClientTLS(self.name, ssl.trustRootFromCertificates(trusted), own)


def _certificates(path: Path) -> list[bytes]:
    return re.findall(
        rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", path.read_bytes(), re.S
    )


class NoAck(Exception):
    """The peer closed, or kept silent, before it had answered every message."""


@attrs.frozen
class SimError:
    """One ERR segment."""

    location: str
    code: str
    application_code: str
    text: str


@attrs.frozen
class SimAck:
    """An acknowledgement, taken apart."""

    #: MSA-1: AA, AE, AR, CA, CE or CR.
    code: str
    #: MSA-2.
    control_id: str
    errors: tuple[SimError, ...]
    raw: bytes


def parse_ack(raw: bytes) -> SimAck:
    """Take an unframed ACK apart. Raises `ValueError` when it is none."""
    rows = [line.split("|") for line in raw.decode("utf-8", "replace").split("\r") if line]
    if not rows or rows[0][0] != "MSH" or not rows[0][8].startswith("ACK"):
        raise ValueError("not an HL7 acknowledgement")
    msa = next((row for row in rows if row[0] == "MSA"), None)
    if msa is None:
        raise ValueError("an acknowledgement without MSA")
    errors = []
    for row in rows:
        if row[0] == "ERR":
            row = row + [""] * (9 - len(row))
            errors.append(SimError(row[2], row[3].split("^")[0], row[5].split("^")[0], row[8]))
    return SimAck(msa[1], msa[2], tuple(errors), raw)


async def send(
    host: str,
    port: int,
    message: bytes,
    timeout: float,
    *,
    misbehaviour: Misbehaviour | None = None,
    reactor: Any = None,
    tls: RisTls | None = None,
) -> SimAck:
    """Send one message over a connection of its own and return its acknowledgement.

    Raises `NoAck` when none comes within `timeout` seconds, `ConnectionRefusedError` and the like when
    there is nobody.
    """
    acks = await _exchange(
        host, port, list(_pieces(message, misbehaviour)), 1, timeout, misbehaviour, reactor, tls
    )
    return acks[0]


async def send_all(
    host: str,
    port: int,
    messages: Sequence[bytes],
    timeout: float,
    *,
    reactor: Any = None,
    tls: RisTls | None = None,
) -> list[SimAck]:
    """Send all messages at once, in one write, and return their acknowledgements in the order received."""
    data = b"".join(_frame(message) for message in messages)
    return await _exchange(host, port, [data], len(messages), timeout, None, reactor, tls)


def _frame(message: bytes) -> bytes:
    return b"\x0b" + message + b"\x1c\r"


def _pieces(message: bytes, misbehaviour: Misbehaviour | None) -> Iterator[bytes]:
    whole = _frame(message)
    middle = len(whole) // 2
    if misbehaviour is Misbehaviour.ODD_CHUNKS:
        start, size = 0, 1
        while start < len(whole):
            yield whole[start : start + size]
            start, size = start + size, size % 1021 * 2 + 1
    elif misbehaviour in (Misbehaviour.STOP_HALFWAY, Misbehaviour.HANG_UP_HALFWAY):
        yield whole[:middle]
    elif misbehaviour is Misbehaviour.NO_END:
        yield whole[:-2]
    elif misbehaviour is Misbehaviour.NO_FRAME:
        yield message
    elif misbehaviour is Misbehaviour.VT_INSIDE:
        yield whole[:middle] + whole
    elif misbehaviour is Misbehaviour.GARBAGE_BEFORE:
        yield b"\r\n\r\n" + whole
    else:
        yield whole


async def _exchange(
    host: str,
    port: int,
    pieces: Iterable[bytes],
    count: int,
    timeout: float,
    misbehaviour: Misbehaviour | None,
    reactor: Any,
    tls: RisTls | None,
) -> list[SimAck]:
    reactor = reactor or default_reactor
    client = _Client(count)
    seconds = cast(int, timeout)
    endpoint: Any = TCP4ClientEndpoint(reactor, host, port, timeout=seconds)
    if tls is not None:
        endpoint = SSL4ClientEndpoint(reactor, host, port, tls.options(), timeout=seconds)
    await connectProtocol(endpoint, client)
    transport: Any = client.transport
    transport.setTcpNoDelay(True)
    timer = reactor.callLater(timeout, transport.abortConnection)
    try:
        for piece in pieces:
            transport.write(piece)
            # A turn of the reactor, so that each piece leaves in a segment of its own.
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn
        if misbehaviour is Misbehaviour.HANG_UP_HALFWAY:
            transport.loseConnection()
        elif misbehaviour is Misbehaviour.HALF_CLOSE:
            transport.loseWriteConnection()
        acks = await client.done
        transport.loseConnection()
        return acks
    except BaseException:
        transport.abortConnection()
        raise
    finally:
        if timer.active():
            timer.cancel()


class _Client(Protocol):
    def __init__(self, count: int) -> None:
        self.done: Deferred[list[SimAck]] = Deferred()
        self._count = count
        self._buffer = b""
        self._acks: list[SimAck] = []

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while b"\x1c\r" in self._buffer:
            raw, self._buffer = self._buffer.split(b"\x1c\r", 1)
            if not raw.startswith(b"\x0b"):
                self._finish(NoAck("the answer is not framed"))
                return
            self._acks.append(parse_ack(raw[1:]))
        if len(self._acks) >= self._count:
            self._finish(None)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._finish(NoAck(f"{len(self._acks)} of {self._count} messages were answered"))

    def _finish(self, error: Exception | None) -> None:
        if self.done.called:
            return
        if error is None:
            self.done.callback(self._acks)
        else:
            self.done.errback(error)

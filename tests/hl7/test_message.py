"""Report messages: what is read from them and what is refused (interfaces.md 1.2 to 1.5)."""

from __future__ import annotations

import base64
import os
import time
import tracemalloc
from datetime import UTC, datetime

import attrs
import pytest

from drimbox.hl7.message import read_report_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.model import Identifier, MessageAction, Organization, ReportMessage, Visibility
from drimbox.sim.ris import SimMessage, SimReport, build_cda, build_message
from tests.cda.samples import published

NEW, REPLACE, DELETE = MessageAction.NEW, MessageAction.REPLACE, MessageAction.DELETE


def read(report: SimReport | None = None, **message: object) -> ReportMessage:
    return read_report_message(build_message(report, SimMessage(**message)))  # type: ignore[arg-type]


def refusal(raw: bytes) -> tuple[str, str, str, str]:
    with pytest.raises(Hl7Refused) as caught:
        read_report_message(raw)
    found = caught.value
    return found.ack_code, found.err_code, found.location, found.application_code


def refused(report: SimReport | None = None, **message: object) -> tuple[str, str, str, str]:
    return refusal(build_message(report, SimMessage(**message)))  # type: ignore[arg-type]


@pytest.mark.requirement("DB.SO.03", "DB.SO.11")
@pytest.mark.parametrize(("kind", "trigger"), [("ORU", "ORU^R01"), ("MDM", "MDM^T02")])
def test_everything_is_read_from_a_report_message(kind: str, trigger: str) -> None:
    report = SimReport()
    assert read(report, kind=kind) == ReportMessage(
        control_id="015",
        trigger=trigger,
        sending_application="RIS-Y",
        sending_facility="SITE-X",
        action=NEW,
        ipp=Identifier("P000123", "2.999.5.1"),
        ins_qualified=True,
        visibility=Visibility(),
        to_dmp=True,
        secret_connection=False,
        visibility_change_only=False,
        patient_class="O",
        prt_structure=Organization("1999999999", "CABINET Y"),
        document=build_cda(report),
        ins=Identifier("284070100499094", "1.2.250.1.213.1.4.10"),
        announced_id="2.999.7.1" if kind == "MDM" else "",
        announced_parent="",
        sent_at=datetime(2026, 1, 12, 9, 30).astimezone(),
    )


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("20260112093000+0100", datetime(2026, 1, 12, 8, 30, tzinfo=UTC)),
        ("202601120930-0330", datetime(2026, 1, 12, 13, 0, tzinfo=UTC)),
        ("20260112093015.25+0000", datetime(2026, 1, 12, 9, 30, 15, 250000, tzinfo=UTC)),
        ("20260112", datetime(2026, 1, 12).astimezone()),
        ("", None),
        ("2026", None),
        ("20261312093000", None),
        ("20260112093000+9999", None),
        ("AAAAMMJJHHMMSS", None),
        ("00010101000000+1400", None),
    ],
)
def test_an_instant_is_read_or_left_out(written: str, instant: datetime | None) -> None:
    assert read(sent_at=written).sent_at == instant


# --- what is wanted ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("action", [NEW, REPLACE, DELETE])
def test_the_action_is_read(kind: str, action: MessageAction) -> None:
    assert read(kind=kind, action=action).action is action


@pytest.mark.parametrize(
    ("message", "action"),
    [
        # Real homologation messages: ORC-1 = SC beside a valid OBX-11.
        ({"order_control": "SC", "status": "C"}, REPLACE),
        ({"order_control": "", "status": "D"}, DELETE),
        ({"order_control": "CA", "status": ""}, DELETE),
        ({"order_control": "RO", "status": "P"}, REPLACE),
        ({"order_control": "", "status": ""}, NEW),
        ({"kind": "MDM", "action": REPLACE, "order_control": "", "status": ""}, REPLACE),
        ({"kind": "MDM", "message_type": "MDM^T11", "order_control": "", "status": ""}, DELETE),
    ],
)
def test_the_action_is_decided_by_event_then_status_then_order(
    message: dict[str, object], action: MessageAction
) -> None:
    assert read(**message).action is action


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize(
    "message",
    [
        {"order_control": "NW", "status": "C"},
        {"order_control": "CA", "status": "F"},
        {"kind": "MDM", "action": NEW, "order_control": "", "status": "C"},
        {"kind": "MDM", "action": DELETE, "order_control": "RO", "status": ""},
    ],
)
def test_contradictory_actions_are_refused(message: dict[str, object]) -> None:
    assert refused(**message) == ("AE", "207", "OBX^1^11", "906")


def test_a_report_that_is_not_final_is_refused() -> None:
    assert refused(order_control="SC", status="P")[:3] == ("AE", "103", "OBX^1^11")


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize(
    ("value", "to_dmp"), [("Y", True), ("N", False), (None, None), ("", None), ("y", True)]
)
def test_the_dmp_flag_is_read(value: str | None, to_dmp: bool | None) -> None:
    assert read(flags={"DESTDMP": value}).to_dmp is to_dmp


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize(
    ("flag", "changed"),
    [
        ("MASQUE_PS", {"visibility": Visibility(masked_to_professionals=True)}),
        ("INVISIBLE_PATIENT", {"visibility": Visibility(hidden_from_patient=True)}),
        ("INVISIBLE_REP_LEGAUX", {"visibility": Visibility(hidden_from_representatives=True)}),
        ("INVISIBLE_REPRESENTANTS_LEGAUX", {"visibility": Visibility(hidden_from_representatives=True)}),
        ("INVISIBLE_REPRENSANTS_LEGAUX", {"visibility": Visibility(hidden_from_representatives=True)}),
        ("CONNEXION_SECRETE", {"secret_connection": True}),
        ("MODIF_CONF_CODE", {"visibility_change_only": True}),
        ("MODIF_CONFIDENTIALITYCODE", {"visibility_change_only": True}),
        ("DESTMSSANTEPS", {}),
        ("ACK_RECEPTION", {}),
    ],
)
def test_each_flag_has_its_effect_and_no_other(flag: str, changed: dict[str, object]) -> None:
    canonical = {"INVISIBLE_REPRESENTANTS_LEGAUX", "INVISIBLE_REPRENSANTS_LEGAUX"}
    without = {"INVISIBLE_REP_LEGAUX": None} if flag in canonical else {}
    without |= {"MODIF_CONF_CODE": None} if flag == "MODIF_CONFIDENTIALITYCODE" else {}
    assert read(flags={**without, flag: "Y"}) == attrs.evolve(read(), **changed)


def test_a_flag_that_is_neither_yes_nor_no_is_refused() -> None:
    assert refused(flags={"MASQUE_PS": "OUI"})[:3] == ("AE", "103", "OBX^2^5")


def test_a_flag_that_says_both_is_refused() -> None:
    raw = build_message() + b"OBX|20|CE|DESTDMP^x||N||||||F\r"
    assert refusal(raw) == ("AE", "207", "OBX^10^5", "906")


# --- patient and structure ------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize(
    ("reliability", "qualified"),
    [("VALI", True), ("", True), ("PROV", False), ("QUAL~VALI", True), ("VIDE", False)],
)
def test_qualification_is_that_of_pid_32(reliability: str, qualified: bool) -> None:
    assert read(reliability=reliability).ins_qualified is qualified


def with_pid3(value: str) -> ReportMessage:
    raw = build_message().decode()
    start = raw.index("PID|||") + 6
    return read_report_message((raw[:start] + value + raw[raw.index("|", start) :]).encode())


@pytest.mark.parametrize(
    ("pid3", "ipp", "ins"),
    [
        ("P1^^^X&2.999.1&ISO^PI~284^^^N&1.2.250.1.213.1.4.8&ISO^INS", ("P1", "2.999.1"), "284"),
        ("284^^^N&1.2.250.1.213.1.4.8&ISO^INS~P1^^^AUT-AFFECTATION^PI", ("P1", ""), "284"),
        ("P1^^^X^PI~P2^^^Y&2.999.2&ISO^PI", ("P2", "2.999.2"), None),
        ("284^^^N&1.2.250.1.213.1.4.10&ISO", None, "284"),
        ("^^^X&2.999.1&ISO^PI", None, None),
        ("D1^^^X&2.999.1&ISO^PN", None, None),
        ("", None, None),
    ],
)
def test_identifiers_of_the_patient(pid3: str, ipp: tuple[str, str] | None, ins: str | None) -> None:
    message = with_pid3(pid3)
    assert message.ipp == (Identifier(*ipp) if ipp else None)
    assert (message.ins.value if message.ins else None) == ins


def test_structure_is_that_of_the_sender_not_of_a_recipient() -> None:
    raw = build_message(message=SimMessage(prt_structure="")) + (
        b"PRT||UC||RCT^^participation|1^A^B|||HOPITAL^^^^^ASIP-SANTE-ST^FINEG^^^1111111111\r"
        b"PRT||UC||SB^^participation|1^A^B|||CENTRE^^^^^ASIP-SANTE-ST^FINEG^^^1222222222\r"
    )
    assert read_report_message(raw).prt_structure == Organization("1222222222", "CENTRE")


def test_a_message_without_prt_has_no_structure() -> None:
    assert read(prt_structure="").prt_structure is None


def test_ids_of_txa_are_written_like_those_of_the_report() -> None:
    message = read(SimReport(document_id="2.999.7.2", replaces="2.999.7.1"), kind="MDM", action=REPLACE)
    assert (message.announced_id, message.announced_parent) == ("2.999.7.2", "2.999.7.1")
    raw = build_message(SimReport(document_id="EXT^^2.999.7^ISO"), SimMessage(kind="MDM"))
    assert read_report_message(raw).announced_id == "2.999.7^EXT"
    raw = build_message(SimReport(document_id="2.999.7^Organisation"), SimMessage(kind="MDM"))
    assert read_report_message(raw).announced_id == "2.999.7"


# --- the document ---------------------------------------------------------------------------------

CDA = "\ufeff<ClinicalDocument>mÃ©dicale</ClinicalDocument>".encode()
B64 = base64.b64encode(CDA).decode()


@pytest.mark.parametrize(
    "field",
    [
        f"^TEXT^XML^Base64^{B64}",
        f"^text^xml^BASE64^{B64}",
        f"RIS^Text^Xml^base64^{B64}",
        f"^^^^{B64}",
        f"^TEXT^XML^Base64^{B64.rstrip('=')}",
        f"^TEXT^XML^Base64^{B64}====",
        f"^TEXT^XML^Base64^ {B64[:7]} {B64[7:]} ",
        f"^TEXT^XML^Base64^{B64[:8]}\r\n{B64[8:16]}\n{B64[16:]}\r",
        f"^TEXT^XML^Base64^{B64[:8]}\\X0D\\\\X0A\\{B64[8:16]}\\X0D0A\\{B64[16:]}\\.br\\",
        f"^TEXT^XML^Base64^{B64}^more",
        B64,
        B64.rstrip("="),
    ],
)
def test_every_way_of_writing_the_base64_is_read(field: str) -> None:
    assert read(document_field=field).document == CDA


@pytest.mark.requirement("DB.SO.141")
@pytest.mark.parametrize(
    "field",
    [
        f"^TEXT^XML^Base64^{B64[:-1]}*",
        f"^TEXT^XML^Base64^{B64.rstrip('=')[:-1] if len(B64.rstrip('=')) % 4 == 2 else B64[:5]}",
        "^TEXT^XML^Base64^<ClinicalDocument/>",
        f"^TEXT^XML^Hex^{B64}",
        f"TEXT^XML^{B64}",
        "^TEXT^XML^Base64^QUJD=QUJD",
    ],
)
def test_unreadable_base64_is_refused(field: str) -> None:
    assert refused(document_field=field)[:2] == ("AE", "102")


@pytest.mark.requirement("DB.SO.141")
def test_a_message_without_document_is_refused() -> None:
    assert refused(with_document=False)[:3] == ("AE", "101", "OBX^1^5")
    assert refused(document_field="")[:3] == ("AE", "101", "OBX^1^5")
    assert refused(document_field="^TEXT^XML^Base64^")[:3] == ("AE", "101", "OBX^1^5")


def second_document(cda: bytes) -> bytes:
    return b"OBX|2|ED|18748-4^CR^LN||^TEXT^XML^Base64^" + base64.b64encode(cda) + b"||||||F|\r"


@pytest.mark.requirement("DB.SO.12")
def test_of_two_documents_the_structured_one_is_taken() -> None:
    one, three = build_cda(SimReport()), build_cda(SimReport(level=3, document_id="2.999.7.3"))
    assert read_report_message(build_message(document=one) + second_document(three)).document == three
    assert read_report_message(build_message(document=three) + second_document(one)).document == three
    other = build_cda(SimReport(document_id="2.999.7.9"))
    assert read_report_message(build_message(document=one) + second_document(other)).document == one


def test_a_text_result_with_the_same_code_is_not_the_document() -> None:
    raw = build_message().replace(b"OBX|1|ED", b"OBX|0|TX|18748-4^CR^LN||Conclusion||||||F|\rOBX|1|ED")
    assert read_report_message(raw).document == build_cda()


# --- the header -----------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.141")
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"message_type": "ADT^A01"}, ("200", "MSH^1^9^1^1")),
        ({"message_type": "ORU^R02"}, ("201", "MSH^1^9^1^2")),
        ({"message_type": "MDM^T03"}, ("201", "MSH^1^9^1^2")),
        ({"message_type": "ORU"}, ("201", "MSH^1^9^1^2")),
        ({"control_id": ""}, ("101", "MSH^1^10")),
        ({"control_id": "9" * 200}, ("102", "MSH^1^10")),
        ({"version": "2.2"}, ("203", "MSH^1^12")),
        ({"version": "2.7"}, ("203", "MSH^1^12")),
        ({"version": "3"}, ("203", "MSH^1^12")),
    ],
)
def test_headers_that_are_refused(message: dict[str, object], expected: tuple[str, str]) -> None:
    assert refused(**message)[1:3] == expected


@pytest.mark.parametrize("version", ["2.3.1", "2.4", "2.5", "2.5.1", "2.6", ""])
def test_versions_that_are_taken(version: str) -> None:
    assert read(version=version).control_id == "015"


@pytest.mark.parametrize("kind", ["ORU^R01", "MDM^T02"])
def test_two_components_of_message_type_are_enough(kind: str) -> None:
    assert read(kind=kind[:3], message_type=kind).trigger == kind


def test_a_long_control_id_is_taken_as_it_is() -> None:
    assert read(control_id="A" * 199).control_id == "A" * 199


@pytest.mark.parametrize("terminator", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("wrap", [0, 76])
def test_terminators_and_wrapping_change_nothing(terminator: str, wrap: int) -> None:
    assert read(terminator=terminator, wrap=wrap) == read()


# --- size and samples -----------------------------------------------------------------------------


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.parametrize("wrap", [0, 76])
def test_a_message_of_twenty_megabytes_is_read_quickly_and_in_bounded_memory(wrap: int) -> None:
    document = os.urandom(15_000_000)
    raw = build_message(message=SimMessage(wrap=wrap), document=document)
    assert len(raw) > 20_000_000
    started = time.thread_time()
    assert read_report_message(raw).document == document
    assert time.thread_time() - started < 3  # about 0.1 s whole, 0.3 s wrapped
    tracemalloc.start()
    try:
        read_report_message(raw)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(raw)
    finally:
        tracemalloc.stop()


def test_the_published_message_is_read() -> None:
    # No PID, LF line ends, a line broken inside an OBX, bare base64, 8859/1 announced over UTF-8.
    message = read_report_message(published("HL7/patient1.hl7"))
    assert (message.control_id, message.trigger, message.sending_application) == (
        "104",
        "ORU^R01",
        "FILLER",
    )
    assert message.action is NEW
    assert message.to_dmp is True
    assert message.visibility == Visibility()
    assert message.ipp is None
    assert message.document.startswith(b"<ClinicalDocument")
    assert message.document.endswith(b"</ClinicalDocument>")

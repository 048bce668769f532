"""What a message wants: the wish of the RIS first, then table 3.1 (DB.SO.11, DB.SO.12)."""

from __future__ import annotations

from typing import Any

import pytest

from drimbox.config import Hl7Settings
from drimbox.model import MessageAction
from drimbox.sim.ris import SimAct, SimReport
from drimbox.source.interpretation import NOT_FOR_DMP, NOT_QUALIFIED, interpret
from tests.source.fakes import hl7


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("action", [MessageAction.NEW, MessageAction.REPLACE])
def test_a_whole_report_feeds(kind: str, level: int, action: MessageAction) -> None:
    replaces = "2.999.7.0" if action is MessageAction.REPLACE else ""
    read = interpret(hl7(SimReport(level=level, replaces=replaces), kind=kind, action=action))
    assert (read.reason, read.error) == ("", None)
    assert read.report is not None
    assert [act.study_uid for act in read.report.acts] == ["2.999.10.20.30"]


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"flags": {"DESTDMP": "N"}}, NOT_FOR_DMP),
        ({"reliability": "PROV"}, NOT_QUALIFIED),
        ({"flags": {"DESTDMP": "N"}, "reliability": "VIDE"}, NOT_FOR_DMP),
    ],
)
@pytest.mark.parametrize("report", [SimReport(), SimReport(orders=(), acts=(), structure_id="")])
def test_what_is_not_for_the_dmp_is_not_judged(
    message: dict[str, Any], reason: str, report: SimReport
) -> None:
    read = interpret(hl7(report, **message))
    assert (read.reason, read.error) == (reason, None)
    # What is known of it is kept for the audit.
    assert read.report is not None
    assert read.report.patient.ins == "284070100499094"


@pytest.mark.requirement("DB.SO.11")
def test_the_destdmp_flag_is_required_unless_configured() -> None:
    raw = hl7(flags={"DESTDMP": None})
    error = interpret(raw).error
    assert error is not None
    assert (error.code, "DESTDMP" in error.detail) == ("E005", True)
    assert interpret(raw, Hl7Settings(missing_destdmp="yes")).error is None


@pytest.mark.requirement("DB.SO.12")
def test_every_missing_value_is_named_at_once() -> None:
    act = SimAct(study_uid="", modalities=(), regions=())
    report = SimReport(acts=(act,), orders=(), ins="", ipp="", structure_id="", document_id="")
    read = interpret(hl7(report, with_ipp=False, prt_structure=""))
    assert read.error is not None
    assert read.error.code == "E005"
    for value in (
        "StudyInstanceUID",
        "numéro d'accession",
        "numéro de demande",
        "INS du patient",
        "IPP",
        "situation d'exercice",
        "identifiant du document",
    ):
        assert value in read.error.detail, value


@pytest.mark.requirement("DB.SO.97")
def test_a_withdrawal_needs_no_more_than_the_report_s_identifier() -> None:
    poor = SimReport(orders=(), structure_id="", document_id="2.999.7.5")
    read = interpret(hl7(poor, action=MessageAction.DELETE, prt_structure=""))
    assert (read.error, read.reason) == (None, "")
    assert read.report is not None
    assert read.report.document_id == "2.999.7.5"
    assert read.message is not None
    assert read.message.action is MessageAction.DELETE


@pytest.mark.requirement("DB.SO.97")
@pytest.mark.parametrize("document", ["^TEXT^XML^Base64^PGE+", None])
def test_a_withdrawal_of_nobody_knows_what_is_e005(document: str | None) -> None:
    report = SimReport(document_id="") if document is None else None
    error = interpret(hl7(report, action=MessageAction.DELETE, document_field=document)).error
    assert error is not None
    assert error.code == "E005"


@pytest.mark.threat("a KOS in the record of another patient")
def test_a_report_about_another_patient_than_its_message_is_e001() -> None:
    raw = hl7().replace(b"|284070100499094^^^", b"|184070100499094^^^")
    error = interpret(raw).error
    assert error is not None
    assert error.code == "E001"


@pytest.mark.parametrize("raw", [b"", b"\x00\xff", b"MSH|^~\\&|", hl7(message_type="ADT^A01")])
def test_what_is_no_report_message_is_e005_and_never_raises(raw: bytes) -> None:
    read = interpret(raw)
    assert (read.message, read.report) == (None, None)
    assert read.error is not None
    assert read.error.code == "E005"


def test_a_message_whose_document_is_no_cda_still_tells_its_sender() -> None:
    read = interpret(hl7(document_field="^TEXT^XML^Base64^PGE+"))
    assert read.message is not None
    assert read.message.sending_application == "RIS-Y"
    assert read.report is None
    assert read.error is not None


# -- PRT-8 against the report (option) ----------------------------------------------------------------

CHECKED = Hl7Settings(check_prt_structure=True)


@pytest.mark.requirement("DB.SO.21", "DB.SO.12")
@pytest.mark.parametrize(
    ("signatory", "sender"),
    [
        ("1999999999", "1888888888"),
        ("1999999999", "888888888"),
        ("399999999900001", "99999999900001"),
        ("2999999999", "999999999"),
        ("1999999999", "2999999999"),
        ("1999999999", "<b>x</b>" * 10),
    ],
)
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
def test_a_sender_of_another_structure_stops_the_kos_when_asked(
    signatory: str, sender: str, kind: str
) -> None:
    raw = hl7(SimReport(structure_id=signatory), prt_structure=sender, kind=kind)
    assert interpret(raw).error is None
    error = interpret(raw, CHECKED).error
    assert error is not None
    assert error.code == "E005"
    assert signatory in error.detail
    assert (sender if sender.isalnum() else "mal formée") in error.detail
    assert "<b>" not in error.detail


@pytest.mark.requirement("DB.SO.21", "DB.SO.12")
@pytest.mark.parametrize(
    ("signatory", "sender"),
    [
        ("1999999999", "1999999999"),
        ("1999999999", "999999999"),
        ("999999999", "1999999999"),
        # Only one of the two names a structure.
        ("1999999999", ""),
        ("", "1888888888"),
    ],
)
def test_the_same_structure_in_either_form_feeds(signatory: str, sender: str) -> None:
    read = interpret(hl7(SimReport(structure_id=signatory), prt_structure=sender), CHECKED)
    assert (read.reason, read.error) == ("", None)
    assert read.report is not None
    # The report's own, as it is written there; PRT-8 only where it names none.
    assert read.report.structure.id == (signatory or sender)


@pytest.mark.requirement("DB.SO.97")
def test_a_withdrawal_is_not_stopped_by_its_sender() -> None:
    """What should not be seen any more must not stay because of an incoherence."""
    raw = hl7(SimReport(), action=MessageAction.DELETE, prt_structure="1888888888")
    assert interpret(raw, CHECKED).error is None

"""The inspection of a report: exactly these keys, whatever the file lacks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.conformance.inspect_report import inspect_report
from drimbox.model import MessageAction
from drimbox.sim.ris import SimAct, SimMessage, SimOrder, SimReport, build_cda, build_message
from tests.cda.samples import published

WHOLE = {
    "document_id": "2.999.7.1",
    "set_id": "2.999.7.1",
    "patient": {
        "ins": "284070100499094",
        "ins_oid": "1.2.250.1.213.1.4.10",
        "family": "EXEMPLE",
        "given": "CLAIRE",
        "birth_date": "19840701",
        "sex": "F",
        "birth_place": "01004",
    },
    "ipp": {"id": "P000123", "authority": "2.999.5.1"},
    "studies": ["2.999.10.20.30"],
    "accession_numbers": [{"id": "ACC-7788", "authority": "2.999.5.3"}],
    "orders": [{"id": "5501", "authority": "2.999.5.4"}],
    "structure": "1999999999",
    "author_rpps": "899700000001",
    "modalities": ["MR"],
    "regions": ["774007"],
    "replaces": None,
    "feed": True,
    "reason": None,
}
NOTHING = {
    "document_id": None,
    "set_id": None,
    "patient": dict.fromkeys(WHOLE["patient"]),  # type: ignore[call-overload]
    "ipp": None,
    "studies": [],
    "accession_numbers": [],
    "orders": [],
    "structure": None,
    "author_rpps": None,
    "modalities": [],
    "regions": [],
    "replaces": None,
    "feed": False,
}


@pytest.mark.requirement("DB.SO.12")
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("framed", [False, True])
def test_a_whole_message_is_shown_and_feeds(level: int, kind: str, framed: bool) -> None:
    data = build_message(SimReport(level=level), SimMessage(kind=kind))
    assert inspect_report(b"\x0b" + data + b"\x1c\r" if framed else data) == WHOLE


def test_a_bare_cda_says_no_ipp() -> None:
    assert inspect_report(build_cda()) == {**WHOLE, "ipp": None}


def test_several_of_everything_each_once() -> None:
    report = SimReport(
        acts=(SimAct("2.999.1", ("CT", "MR")), SimAct("2.999.2", ("MR",), ("67734004",))),
        orders=(SimOrder(), SimOrder(accession="ACC-2")),
        replaces="2.999.7.0",
    )
    found = inspect_report(build_message(report, SimMessage(action=MessageAction.REPLACE)))
    assert found == {
        **WHOLE,
        "studies": ["2.999.1", "2.999.2"],
        "accession_numbers": [
            {"id": "ACC-7788", "authority": "2.999.5.3"},
            {"id": "ACC-2", "authority": "2.999.5.3"},
        ],
        "modalities": ["CT", "MR"],
        "regions": ["774007", "67734004"],
        "replaces": "2.999.7.0",
    }


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (SimMessage(flags={"DESTDMP": "N"}), "DESTDMP=N"),
        (SimMessage(flags={"DESTDMP": None}), "DESTDMP absent"),
        (SimMessage(reliability="PROV"), "INS non qualifiée"),
        (SimMessage(action=MessageAction.DELETE), "suppression"),
    ],
)
def test_why_a_message_does_not_feed(message: SimMessage, reason: str) -> None:
    found = inspect_report(build_message(message=message))
    assert reason in found["reason"]
    assert {**found, "feed": True, "reason": None} == WHOLE


def test_a_missing_flag_may_be_configured_to_mean_yes() -> None:
    data = build_message(message=SimMessage(flags={"DESTDMP": None}))
    assert inspect_report(data, missing_destdmp="yes") == WHOLE


@pytest.mark.requirement("DB.SO.12")
def test_missing_values_are_null_or_empty_and_all_named() -> None:
    report = SimReport(
        acts=(SimAct(modalities=(), regions=()),), orders=(), structure_id="", ins="", ipp=""
    )
    found = inspect_report(build_message(report))
    assert (found["modalities"], found["regions"], found["orders"], found["structure"]) == (
        [],
        [],
        [],
        None,
    )
    assert (found["patient"]["ins"], found["patient"]["family"], found["ipp"]) == (None, "EXEMPLE", None)
    assert found["feed"] is False
    for name in (
        "modalité",
        "région anatomique",
        "numéro d'accession",
        "INS",
        "IPP",
        "situation d'exercice",
    ):
        assert name in found["reason"]


def test_a_number_without_authority_is_shown_as_it_is() -> None:
    found = inspect_report(build_cda(SimReport(orders=(SimOrder(accession_authority=""),))))
    assert found["accession_numbers"] == [{"id": "ACC-7788", "authority": None}]
    assert found["feed"] is False


def test_another_patient_in_the_message_does_not_feed() -> None:
    found = inspect_report(build_message().replace(b"284070100499094^", b"184070100499005^"))
    assert found["reason"].startswith("E001")


def test_a_refused_message_still_shows_its_report() -> None:
    found = inspect_report(build_message(message=SimMessage(status="D")))
    assert "AE 207" in found["reason"]
    assert (found["feed"], found["studies"], found["document_id"]) == (
        False,
        ["2.999.10.20.30"],
        "2.999.7.1",
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"bonjour", b"MSH|^~\\&|", b"<ClinicalDocument>", b"%PDF", build_message(document=b"<a/>")[:400]],
)
def test_what_cannot_be_read_shows_nothing_and_says_so(data: bytes) -> None:
    found = inspect_report(data)
    assert found.pop("reason")
    assert found == NOTHING


@given(st.binary(max_size=300))
def test_no_bytes_break_the_inspection(data: bytes) -> None:
    for raw in (data, b"\x0bMSH|^~\\&|" + data, b"<ClinicalDocument xmlns='urn:hl7-org:v3'>" + data):
        found = inspect_report(raw)
        assert set(found) == set(WHOLE)
        json.dumps(found)


def test_the_published_message() -> None:
    found = inspect_report(published("HL7/patient1.hl7"))
    assert found["feed"] is False
    assert "modalité ; région anatomique ; situation d'exercice" in found["reason"]
    # No PID: the other id of the CDA is the IPP.
    assert found["ipp"]["id"] == "2963001"
    assert found["studies"] == ["2.16.840.1.113669.632.20.1211.10000231621"]


def test_the_published_report() -> None:
    found = inspect_report(published("CDA/IMG_CR_IMG_2023.11_CDA-R2-Niveau-1.xml"))
    assert (found["feed"], found["ipp"], len(found["studies"])) == (True, None, 3)

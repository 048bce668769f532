"""OMI^O23: which studies changed, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from drimbox.hl7.ack import acknowledge
from drimbox.hl7.change import MAX_STUDIES
from drimbox.hl7.message import read_message, read_report_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.model import StudyChange
from drimbox.sim.ris import build_change, build_message

pytestmark = pytest.mark.requirement("DB.SO.133")


def test_every_study_is_named_once() -> None:
    raw = build_change(["2.25.1", "2.25.2", "2.25.1"])
    assert read_message(raw) == StudyChange("00042", ("2.25.1", "2.25.2"))


def test_orders_and_instants_are_hints_only() -> None:
    raw = build_change(["2.25.1"], order="NW").replace(b"AAAAMMJJ", b"")
    assert read_message(raw) == StudyChange("00042", ("2.25.1",))


@pytest.mark.parametrize(
    ("old", "new", "code", "where"),
    [
        (b"|2.25.1|", b"||", "101", "IPC^1^3"),
        (b"|2.25.1|", b"|../../etc|", "102", "IPC^1^3"),
        (b"|2.25.1|", b"|2.25.01.|", "102", "IPC^1^3"),
        (b"OMI^O23", b"OMI^O21", "201", "MSH^1^9^1^2"),
        (b"|00042|", b"||", "101", "MSH^1^10"),
        (b"|2.5.1\r", b"|3.0\r", "203", "MSH^1^12"),
    ],
)
def test_what_names_no_study_is_refused(old: bytes, new: bytes, code: str, where: str) -> None:
    raw = build_change(["2.25.1"])
    assert old in raw
    with pytest.raises(Hl7Refused) as caught:
        read_message(raw.replace(old, new))
    assert (caught.value.ack_code, caught.value.err_code, caught.value.location) == ("AE", code, where)


def test_studies_are_counted() -> None:
    assert read_message(build_change([f"2.25.{number}" for number in range(MAX_STUDIES)]))
    with pytest.raises(Hl7Refused) as caught:
        read_message(build_change([f"2.25.{number}" for number in range(MAX_STUDIES + 1)]))
    assert caught.value.err_code == "198"


def test_it_is_no_report_and_a_report_is_no_change() -> None:
    with pytest.raises(Hl7Refused) as caught:
        read_report_message(build_change(["2.25.1"]))
    assert caught.value.err_code == "200"
    assert not isinstance(read_message(build_message()), StudyChange)


def test_it_is_acknowledged_in_its_own_version() -> None:
    ack = acknowledge(
        build_change(["2.25.1"]),
        "AA",
        now=datetime(2026, 1, 12, tzinfo=UTC),
        control_id="1",
        application="DRIMBOX",
    )
    msh, msa, _ = ack.decode().split("\r")
    fields = msh.split("|")
    assert (fields[2], fields[4], fields[8], fields[11]) == ("DRIMBOX", "PACS-Z", "ACK^O23^ACK", "2.5.1")
    assert msa == "MSA|AA|00042"

"""CR.TXT in both dialects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.model import INS_OIDS, Identifier
from drimbox.xdm.reports import ReportLine, ReportsRefused, read_reports, write_reports

pytestmark = pytest.mark.requirement("DB.SO.29", "DB.SO.30")
OID = "1.2.250.1.213.1.4.10"
INS = "284070100499094"
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)
_DOCUMENT = st.one_of(_TEXT, st.builds(lambda a, b: f"{a}^{b}", _TEXT, _TEXT)).filter(
    lambda text: text.strip("^") and text == text.strip() and "\ufeff" not in text
)
_LINE = st.builds(
    ReportLine,
    document_id=_DOCUMENT,
    ins=st.from_regex(r"[0-9]{15}", fullmatch=True),
    ins_oid=st.sampled_from(INS_OIDS),
)


@given(st.lists(_LINE, max_size=5, unique=True))
def test_what_is_written_is_read_back(lines: list[ReportLine]) -> None:
    assert list(read_reports(write_reports(lines))) == lines


def test_the_dialect_of_the_specification_is_written() -> None:
    written = write_reports([ReportLine("2.25.7^A", INS, OID), ReportLine("2.25.8", INS, OID)])
    assert written == f"2.25.7^A;{OID};{INS}\r\n2.25.8;{OID};{INS}\r\n".encode()


def test_the_dialect_of_the_proof_of_concept_is_read() -> None:
    text = f"1.2.250.1.213.1.1.6;A7102400008_6;162018885045327;{OID};627028977073869316;2.25.3085.3.2.1"
    (line,) = read_reports(text.encode())
    assert line == ReportLine(
        "1.2.250.1.213.1.1.6^A7102400008_6",
        "162018885045327",
        OID,
        Identifier("627028977073869316", "2.25.3085.3.2.1"),
    )
    # Kept for ourselves, the IPP is not lost.
    assert read_reports(write_reports([line])) == (line,)


def test_an_identifier_with_semicolons_is_not_taken_for_the_other_dialect() -> None:
    line = ReportLine("a;b;c;d", INS, OID)
    assert read_reports(write_reports([line])) == (line,)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b""])
def test_any_line_end_does(end: bytes) -> None:
    line = f"2.25.7;{OID};{INS}".encode()
    assert (
        len(read_reports(line + end + line.replace(b"2.25.7", b"2.25.8") + end + end)) == (2 if end else 0)
        or not end
    )


@pytest.mark.parametrize(
    "text",
    [
        "2.25.7;1.2.3;284070100499094",
        "2.25.7",
        f";{OID};{INS}",
        f"2.25.7;{OID};",
        f"{'1' * 1025};{OID};{INS}",
        f"a\0b;{OID};{INS}",
    ],
)
def test_a_line_of_no_dialect_is_refused(text: str) -> None:
    with pytest.raises(ReportsRefused):
        read_reports(text.encode())


def test_too_much_is_refused() -> None:
    with pytest.raises(ReportsRefused, match="Kio"):
        read_reports(b"x" * 70000)
    with pytest.raises(ReportsRefused, match="lignes"):
        read_reports(write_reports(ReportLine(f"2.25.{n}", INS, OID) for n in range(101)))

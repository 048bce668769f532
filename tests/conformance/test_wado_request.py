"""The validator of WADO-RS requests: golden captures pass, bad ones are told with line and clause."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drimbox.config import WadoSettings
from drimbox.conformance.report import MAX_FINDINGS, MAX_PLACES, Finding, Report, Severity, shown
from drimbox.conformance.request_text import read_request_text
from drimbox.conformance.wado_request import validate_request
from drimbox.errors import DrimboxError
from drimbox.wado.request import read_request

FOLDER = Path(__file__).parent / "requests"
GOOD = sorted((FOLDER / "good").glob("*.http"))
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"

#: By name of the bad capture: (clause, line or None, words of the text).
EXPECTED: dict[str, tuple[str, int | None, str]] = {
    "accept-all-refused": ("DB.CO.123", 3, "réponse 406"),
    "accept-big-endian": ("PS3.18 8.7.3", 3, "Big Endian"),
    "accept-implicit-vr": ("PS3.18 8.7.3", 3, "Implicit"),
    "accept-missing": ("DB.CO.123", None, "Accept absent"),
    "accept-of-another-type": ("DB.CO.123", 3, "réponse 400"),
    "accept-only-unshared-syntaxes": ("DB.CO.123", 3, "réponse 406"),
    "accept-q-not-a-number": ("RFC 9110 12.4.2", 3, "haute"),
    "accept-q-over-one": ("RFC 9110 12.4.2", 4, "1.5"),
    "accept-quote-not-closed": ("RFC 9110 12.5.1", 3, "illisible"),
    "accept-syntax-not-a-uid": ("PS3.5 9.1", 3, "JPEG-LS"),
    "accept-without-type": ("PS3.18 8.7.1", 3, "absent"),
    "authorization-basic": ("DB.CO.123 ; RFC 6750 2.1", 6, "réponse 401"),
    "authorization-empty-token": ("DB.CO.123 ; RFC 6750 2.1", 6, "réponse 401"),
    "authorization-missing": ("DB.CO.123 ; RFC 6750 2.1", None, "réponse 401"),
    "authorization-token-too-long": ("DB.CO.123 ; RFC 6750 2.1", 6, "trop long"),
    "authorization-token-with-blank": ("DB.CO.123 ; RFC 6750 2.1", 6, "mal formé"),
    "authorization-twice": ("RFC 9110 5.3", 10, "Authorization en double"),
    "blank-before-colon": ("RFC 9112 5.1", 10, "deux-points"),
    "byte-order-mark": ("RFC 9112 3", 1, "BOM"),
    "control-character": ("RFC 9110 5.5", 10, "User-Agent"),
    "empty": ("RFC 9112 3", None, "aucune ligne"),
    "folded-header": ("RFC 9112 5.2", 11, "repliée"),
    "header-name-illegal": ("RFC 9110 5.1", 10, "User(Agent)"),
    "header-without-colon": ("RFC 9112 5", 10, "sans deux-points"),
    "host-illegal": ("RFC 9112 3.2", 2, "Host illisible"),
    "host-missing": ("RFC 9112 3.2", 1, "Host absent"),
    "host-twice": ("RFC 9110 5.3", 10, "Host en double"),
    "http-1.0": ("RFC 9112 2.3", 1, "HTTP/1.1 attendu"),
    "kos-missing": ("DB.CO.123", None, "KOS-SOPInstanceUID absent"),
    "kos-not-a-uid": ("DB.CO.123", 7, "KOS-SOPInstanceUID illisible"),
    "kos-twice": ("RFC 9110 5.3", 10, "KOS-SOPInstanceUID en double"),
    "method-post": ("PS3.18 10.4", 1, "GET attendu"),
    "path-dot-dot": ("PS3.5 9.1", 1, "pas un UID"),
    "path-double-slash": ("DB.SO.173", 1, "deux barres"),
    "path-rendered": ("DB.SO.173 ; DB.CO.122", 1, "réponse 404"),
    "path-series-percent-encoded": ("PS3.5 9.1", 1, "2.999%2E1"),
    "path-study-not-a-uid": ("PS3.5 9.1", 1, "2.999.a"),
    "path-uid-too-long": ("PS3.5 9.1", 1, "pas un UID"),
    "path-unknown": ("DB.SO.173 ; PS3.18 10.4", 1, "studies/"),
    "plain-http": ("DB.SO.90 ; DB.CO.98", 1, "https://"),
    "situation-illegal": ("DB.SO.103", 8, "Situation illisible"),
    "target-with-fragment": ("RFC 9112 3.2", 1, "fragment"),
    "target-without-slash": ("RFC 9112 3.2", 1, "cible"),
    "two-blanks-in-request-line": ("RFC 9112 3", 1, "trois mots"),
    "version-missing": ("RFC 9112 3", 1, "trois mots"),
}


def errors(report: Report) -> list[Finding]:
    return [each for each in report.findings if each.severity is Severity.ERROR]


def capture(name: str) -> bytes:
    return (FOLDER / f"{name}.http").read_bytes()


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_requests_as_the_specification_and_clients_write_them_pass(path: Path) -> None:
    report = validate_request(path.read_bytes())
    assert report.ok, report.lines()


def test_every_bad_capture_is_in_the_table() -> None:
    found = {path.stem for path in (FOLDER / "bad").glob("*.http")}
    assert found == set(EXPECTED) | {"many-faults"}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_bad_request_is_told_at_its_line_with_its_clause(name: str) -> None:
    clause, line, words = EXPECTED[name]
    found = [
        each
        for each in errors(validate_request(capture(f"bad/{name}")))
        if each.clause == clause and words in each.text
    ]
    assert len(found) == 1
    assert found[0].places == ([] if line is None else [line])


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_but_the_fault_is_an_error(name: str) -> None:
    # A version that is missing is also a request line of two words.
    assert len(errors(validate_request(capture(f"bad/{name}")))) == (2 if name == "version-missing" else 1)


def test_one_run_tells_every_fault() -> None:
    found = {each.clause for each in errors(validate_request(capture("bad/many-faults")))}
    assert found == {
        "RFC 9112 2.3",
        "RFC 9112 3.2",
        "PS3.5 9.1",
        "PS3.18 8.7.3",
        "RFC 9110 12.4.2",
        "DB.CO.123",
        "DB.CO.123 ; RFC 6750 2.1",
        "DB.SO.103",
        "RFC 9112 5",
    }


def test_facts_are_what_the_gateway_would_read() -> None:
    facts = validate_request(capture("good/specification-ten-syntaxes")).facts
    assert facts["study_uid"] == "1.2.840.113745.1010001008000.38425.5599.7073835"
    assert facts["series_uid"] == "1.3.12.2.1107.5.1.4.54023.3000000504115305593700013463"
    assert facts["kos_uid"] == "1.123.123456.789"
    assert facts["location"] == "db1.12345.mesimagesmedicales.fr"
    assert [each["q"] for each in facts["accept"]] == sorted(
        (each["q"] for each in facts["accept"]), reverse=True
    )
    assert len(facts["accept"]) == 10


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.http")), ids=lambda path: path.stem)
def test_the_token_is_never_repeated(path: Path) -> None:
    report = validate_request(path.read_bytes())
    text = json.dumps(report.as_json()) + "\n".join(report.lines())
    assert TOKEN not in text
    assert "dXNlcjpwYXNz" not in text


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_line_ends_of_a_capture_change_nothing_but_a_remark(path: Path) -> None:
    data = path.read_bytes()
    crlf = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    lf = data.replace(b"\r\n", b"\n")
    known = {(each.text, tuple(each.places)) for each in validate_request(crlf).findings}
    bare = {(each.text, tuple(each.places)) for each in validate_request(lf).findings}
    assert {text for text, _ in bare ^ known} == {
        "fins de ligne LF seules dans la capture ; CRLF sur le réseau"
    }


def test_an_instance_request_is_good_but_optional() -> None:
    report = validate_request(capture("good/instance-of-a-key-image"))
    assert any("E1105" in each.text for each in report.findings)
    assert report.facts["instance_uid"] == "2.999.10.20.30.1.7"


@pytest.mark.requirement("DB.SO.103")
def test_a_ping_needs_no_token_and_one_is_a_warning() -> None:
    plain = capture("good/capabilities")
    assert validate_request(plain).counts[Severity.WARNING] == 0
    with_token = plain.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer abc\r\n\r\n")
    report = validate_request(with_token)
    assert report.ok
    assert [each.places for each in report.findings if each.severity is Severity.WARNING] == [[3]]


@pytest.mark.parametrize("level", ["", "/series/2.999.1.1/instances/2.999.1.1.1/frames/1"])
def test_other_levels_of_ps3_18_are_a_warning(level: str) -> None:
    data = capture("good/specification").replace(
        b"/studies/2.999.10.20.30/series/2.999.10.20.30.1", b"/studies/2.999.1" + level.encode()
    )
    report = validate_request(data)
    assert report.ok
    assert any(each.clause == "DB.CO.122" for each in report.findings)


def test_uid_components_with_leading_zeros_are_a_warning() -> None:
    data = capture("good/specification").replace(b"2.999.20.1", b"2.999.020.1")
    report = validate_request(data)
    assert report.ok
    assert [each.places for each in report.findings if each.clause == "PS3.5 9.1"] == [[7]]


@pytest.mark.parametrize(
    ("old", "new", "severity", "clause", "words"),
    [
        (b"GET /", b"GET https://db2.349.a/", Severity.WARNING, "RFC 9112 3.2.2", "un autre hôte"),
        (b"4.80; q=0.8", b"4.70; q=0.1", Severity.WARNING, "DB.CO.84", "q différents"),
        (b"2.1; q=0.4", b"2.4.91; q=0.4", Severity.WARNING, "PS3.18 8.7.3", "non acceptée"),
        (b"q=0.9;", b"q=0.9; q=0.9;", Severity.ERROR, "RFC 9110 5.6.6", "deux fois"),
        (b"q=0.9;", b"q=0.9000;", Severity.WARNING, "RFC 9110 12.4.2", "trois décimales"),
        (b"q=0.9;", b"v=3;", Severity.WARNING, "DB.CO.84", "q absent"),
        (b"q=0.9;", b"v=3;", Severity.INFORMATION, "PS3.18 8.7.1", "sans effet"),
        (b"dicom-web-rs", b"rs", Severity.WARNING, "DB.SO.173", "RetrieveURL"),
        (b".1 HTTP", b".1/ HTTP", Severity.WARNING, "DB.SO.173", "à la fin"),
        (b".1 HTTP", b".1?x=y HTTP", Severity.WARNING, "PS3.18 10.4", "sans effet"),
        (b"Connection:", b"Range: bytes=0-\r\nConnection:", Severity.WARNING, "RFC 9110 14.2", "Range"),
        (b"Connection:", b"Content-Length: 3\r\nX:", Severity.WARNING, "RFC 9110 9.3.1", "corps"),
        (b"Connection:", b"Cookie: a=b\r\nX:", Severity.WARNING, "DB.CO.123", "Cookie"),
    ],
)
def test_what_survives_is_told(old: bytes, new: bytes, severity: Severity, clause: str, words: str) -> None:
    data = capture("good/specification")
    assert old in data
    report = validate_request(data.replace(old, new, 1))
    found = [each for each in report.findings if each.clause == clause and words in each.text]
    assert [each.severity for each in found] == [severity]
    assert report.ok == (severity is not Severity.ERROR)


# --- it never disagrees with the gateway ------------------------------------------------------------

_LINES = capture("good/situation-and-all-syntaxes").split(b"\r\n")[1:-2]
_ODD = st.sampled_from(
    [
        b"Accept: multipart/related; q=0.5",
        b"Accept: */*;q=2",
        b"Accept:",
        b"Accept: application/dicom",
        b"Authorization: Bearer",
        b"Authorization:Bearer  x.y.z",
        b"Authorization: Basic abc",
        b"KOS-SOPInstanceUID: 1.2.",
        b"KOS-SOPInstanceUID: 1.2",
        b"kos-sopinstanceuid:",
        b"Situation: 1 2",
        b"Situation:",
        b"Host: [::1]:8443",
        b"X: \xff",
    ]
)


@given(st.lists(st.one_of(st.sampled_from(_LINES), _ODD), max_size=16))
@settings(max_examples=150, deadline=None)
def test_what_the_gateway_refuses_is_an_error(lines: list[bytes]) -> None:
    target = b"/dicom-web-rs/studies/2.999.1/series/2.999.1.1"
    report = validate_request(
        b"\r\n".join([b"GET %s HTTP/1.1" % target, b"Host: db1.349.a", *lines, b"", b""])
    )
    pairs = [
        (b"Host", b"db1.349.a"),
        *((name, value) for name, _, value in (line.partition(b":") for line in lines)),
    ]
    try:
        read_request(target, pairs, WadoSettings())
    except DrimboxError:
        assert not report.ok


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_what_passes_is_what_the_gateway_takes(path: Path) -> None:
    text = read_request_text(path.read_bytes(), Report(""))
    assert text is not None
    if text.method != b"GET" or path.stem.startswith("instance"):
        return
    read_request(text.target, [(line.name, line.value) for line in text.headers], WadoSettings())


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_report(data: bytes) -> None:
    report = validate_request(data)
    json.dumps(report.as_json())
    assert all("\n" not in line for line in report.lines())


def test_a_huge_head_is_refused_at_once() -> None:
    started = time.thread_time()
    report = validate_request(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1_000_000)
    assert not report.ok
    assert time.thread_time() - started < 2.0


# --- the report itself ------------------------------------------------------------------------------


def test_the_same_finding_at_many_places_is_one_with_a_count() -> None:
    report = Report("essai")
    for number in range(1, 31):
        report.error("même faute", "clause", part=number)
        report.error("même faute", "clause", part=number)
    (finding,) = report.findings
    assert finding.count == 60
    assert finding.places == list(range(1, MAX_PLACES + 1))
    assert finding.where.startswith("parties 1, 2, 3")
    assert finding.where.endswith("et 20 autres")
    assert report.counts[Severity.ERROR] == 60


def test_a_report_stays_small_and_its_verdict_exact() -> None:
    report = Report("essai")
    for number in range(MAX_FINDINGS):
        report.inform(f"remarque {number}", "clause")
    report.error("faute", "clause")
    assert len(report.findings) == MAX_FINDINGS
    assert report.omitted == 1
    assert not report.ok
    assert "autre constat" in report.lines()[-1]


def test_the_worst_comes_first() -> None:
    report = Report("essai")
    report.inform("c", "x")
    report.warning("b", "x", line=3)
    report.error("a", "x", line=9)
    assert [each.text for each in report.findings] == ["a", "b", "c"]


@pytest.mark.threat("log and audit injection, flooding")
def test_shown_values_stay_on_one_line_and_short() -> None:
    text = shown("a\r\nb\x1b[31m" + "c" * 500)
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 130

"""The validator of WADO-RS answers: good ones pass at any cut, each wrong thing is told by its clause."""

from __future__ import annotations

import io
import itertools
import json
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drimbox.conformance.codestream import Codec, codec_of, contradicts
from drimbox.conformance.dataset_walk import DatasetWalk
from drimbox.conformance.problem_rules import CODES
from drimbox.conformance.report import Finding, Report, Severity
from drimbox.conformance.wado_response import Expected, ResponseCheck, expected_of, validate_response
from drimbox.dicom.elements import DatasetRefused
from drimbox.errors import ImageError
from drimbox.kos.reading import read_manifest
from drimbox.wado.multipart import MultipartWriter
from drimbox.wado.problem import problem
from tests.conformance.answers import (
    BOUNDARY,
    CT,
    EXPLICIT,
    IMPLICIT,
    JLS_START,
    JPEG_LS,
    JPEG_SV1,
    KIND,
    SERIES,
    SV1_START,
    SV6_START,
    answer,
    chunked,
    dataset,
    element,
    fragments,
    head,
    image,
    multipart,
    native,
    part,
    part10,
    ui,
)
from tests.kos import samples

GOOD = answer(part(image(1)), part(image(2)), part(image(3)))


def judge(data: bytes, **options: object) -> Report:
    check = ResponseCheck(**options)  # type: ignore[arg-type]
    check.feed(data)
    return check.finish()


def errors(report: Report) -> list[Finding]:
    return [each for each in report.findings if each.severity is Severity.ERROR]


def clauses(data: bytes, **options: object) -> list[str]:
    """Clauses of the errors; there must be one at least."""
    report = judge(data, **options)
    json.dumps(report.as_json())
    return [each.clause for each in errors(report)]


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return (data[a:b] for a, b in itertools.pairwise(edges) if a < b)


# --- good answers -----------------------------------------------------------------------------------


def test_a_good_answer_passes_and_its_facts_are_told() -> None:
    report = judge(GOOD)
    assert report.findings == []
    assert report.facts["instances"] == report.facts["parts"] == 3
    assert report.facts["series_uid"] == SERIES
    assert report.facts["transfer_syntaxes"] == {EXPLICIT: 3}
    assert report.facts["complete"] is True


@pytest.mark.requirement("DB.SO.85")
def test_what_the_gateway_writes_passes() -> None:
    writer = MultipartWriter()
    body = b"".join(
        writer.part_header(syntax, number, "db1.349.example") + content
        for number, (syntax, content) in enumerate(
            [
                (EXPLICIT, image(1)),
                (JPEG_LS, image(2, JPEG_LS, pixels=fragments(JLS_START))),
                (JPEG_SV1, image(3, JPEG_SV1, pixels=fragments(SV1_START))),
            ],
            1,
        )
    )
    body += writer.closing()
    data = head("200 OK", writer.content_type, "Transfer-Encoding: chunked") + chunked(body)
    report = judge(data)
    assert report.findings == []
    assert report.facts["transfer_syntaxes"] == {EXPLICIT: 1, JPEG_LS: 1, JPEG_SV1: 1}


def test_the_ans_answer_header_passes() -> None:
    kind = (
        'multipart/related;start="<1@resteasy-multipart>";transfer-syntax=1.2.840.10008.1.2.1;'
        f'type="application/dicom"; boundary={BOUNDARY}'
    )
    report = judge(answer(part(image()), kind=kind))
    assert report.ok
    assert [each.clause for each in report.findings] == ["DB.SO.85"]


@given(st.lists(st.integers(0, len(GOOD)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_report_is_the_same_at_any_cut(cuts: list[int]) -> None:
    data = answer(
        part(image(1)), part(image(1)), part(image(2, rows=3)), part(b"x" * 200, None), closing=False
    )
    check = ResponseCheck()
    for piece in cut(data, cuts):
        check.feed(piece)
    whole = judge(data)
    assert not whole.ok
    assert check.finish().as_json() == whole.as_json()


def test_byte_by_byte_is_the_same_too() -> None:
    check = ResponseCheck()
    for index in range(len(GOOD)):
        check.feed(GOOD[index : index + 1])
    assert check.finish().as_json() == judge(GOOD).as_json()


@pytest.mark.parametrize("framing", ["Content-Length", "close", "captured"])
def test_other_framings_are_read(framing: str) -> None:
    body = multipart([part(image())])
    more = {
        "Content-Length": (f"Content-Length: {len(body)}",),
        "close": (),
        "captured": ("Transfer-Encoding: chunked",),
    }[framing]
    report = judge(head("200 OK", KIND, *more) + body)
    assert report.ok
    assert report.facts["complete"] is True
    # A body that only the connection's end ends is worth a remark.
    assert bool(report.findings) == (framing != "Content-Length")


def test_interim_answers_and_bare_line_ends() -> None:
    assert judge(b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD).findings == []
    bare = head("200 OK", KIND).replace(b"\r\n", b"\n") + multipart([part(image())])
    assert [each.clause for each in errors(judge(bare))] == ["RFC 9112 2.2"]


# --- truncation -------------------------------------------------------------------------------------


def test_no_prefix_of_an_answer_passes() -> None:
    """Whatever the byte the answer stops at, it is never called good."""
    for length in range(len(GOOD)):
        assert not judge(GOOD[:length]).ok, length


def test_a_missing_closing_boundary_and_a_missing_last_chunk_are_told_apart() -> None:
    assert clauses(answer(part(image()), closing=False)) == ["RFC 2046 5.1.1"]
    assert clauses(answer(part(image()), last=False)) == ["RFC 9112 8"]
    report = judge(answer(part(image()), closing=False))
    assert report.facts["complete"] is False
    assert "partie 1" in errors(report)[0].text


# --- the head ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "clause"),
    [
        (None, "DB.SO.32 ; PS3.18 8.7.1"),
        ("application/dicom", "PS3.18 8.7.1"),
        (f"multipart/related; boundary={BOUNDARY}", "RFC 2387 3.1 ; PS3.18 8.7.1"),
        (f'multipart/related; type="image/jpeg"; boundary={BOUNDARY}', "PS3.18 8.7.1"),
        ('multipart/related; type="application/dicom"', "RFC 2046 5.1.1"),
        ('multipart/related; type="application/dicom"; boundary="**"', "RFC 2046 5.1.1"),
        (f'multipart/related; type="application/dicom; boundary={BOUNDARY}', "RFC 9110 8.3"),
    ],
)
def test_a_wrong_content_type(kind: str | None, clause: str) -> None:
    assert clause in clauses(answer(part(image()), kind=kind))


def test_a_bare_type_and_a_short_boundary_are_warnings() -> None:
    kind = "multipart/related; type=application/dicom; boundary=b0"
    body = multipart([part(image())]).replace(BOUNDARY.encode(), b"b0")
    report = judge(head("200 OK", kind, f"Content-Length: {len(body)}") + body)
    assert report.ok
    assert {each.clause for each in report.findings} == {"RFC 2045 5.1", "RFC 2046 5.1.1"}


@pytest.mark.threat("request smuggling, pipelining")
@pytest.mark.parametrize(
    ("more", "clause"),
    [
        (("Transfer-Encoding: chunked", "Content-Length: 5"), "RFC 9112 6.2"),
        (("Content-Length: 5", "Content-Length: 6"), "RFC 9112 6.3"),
        (("Content-Length: -5",), "RFC 9112 6.3"),
        (("Transfer-Encoding: gzip, chunked",), "RFC 9112 6.1"),
        (("Transfer-Encoding: chunked", "Content-Encoding: gzip"), "RFC 9110 8.4"),
        (("Transfer-Encoding : chunked",), "RFC 9112 5"),
        (("Transfer-Encoding: chunked", " folded"), "RFC 9112 5.2"),
    ],
)
def test_framing_that_two_readers_read_differently(more: tuple[str, ...], clause: str) -> None:
    assert clause in clauses(head("200 OK", KIND, *more) + chunked(multipart([part(image())])))


@pytest.mark.parametrize(
    ("data", "clause"),
    [
        (b"", "RFC 9112 8"),
        (b"garbage\r\n\r\n", "RFC 9112 4"),
        (head(version="HTTP/1.0"), "RFC 9112 2.3"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "RFC 9112 5"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000, "RFC 9112 5"),
        (GOOD + b"HTTP/1.1 200 OK\r\n", "RFC 9112 6.3"),
        (head("200 OK", KIND, "Transfer-Encoding: chunked") + b"5\r\nhellox\r\n", "RFC 9112 7.1"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "RFC 9110 15.2"),
    ],
)
def test_http_that_is_none(data: bytes, clause: str) -> None:
    assert clause in clauses(data)


# --- parts ------------------------------------------------------------------------------------------

UID = f"{SERIES}.1"
IMPLICIT_ELEMENT = struct.pack("<HHI", 0x0008, 0x0016, 26) + CT.encode() + b"\0"


@pytest.mark.parametrize(
    ("content", "clause"),
    [
        (part(image(), None), "DB.SO.85"),
        (part(image(), header=b"Content-ID: <1@x>\r\n"), "DB.SO.85"),
        (part(image(), header=b"Content-Type: application/dicom;transfer-syntax=JPEG\r\n"), "DB.SO.85"),
        (
            part(image(), header=b"Content-Type: image/jpeg;transfer-syntax=1.2.840.10008.1.2.1\r\n"),
            "PS3.18 8.7.1",
        ),
        (part(image(), header=part(b"")[:-2] + b"Content-Encoding: gzip\r\n"), "RFC 9110 8.4"),
        (part(image(), header=part(b"")[:-2] + b"Content-Length: 12\r\n"), "RFC 9110 8.6"),
        (part(part10(IMPLICIT_ELEMENT, UID, IMPLICIT), IMPLICIT), "DB.SO.41 ; PS3.18 8.7.3"),
        (part(image(1, "1.2.840.10008.1.2.2"), "1.2.840.10008.1.2.2"), "PS3.18 8.7.3"),
        (part(image(1, "1.2.840.10008.1.2.5"), "1.2.840.10008.1.2.5"), "DB.CS.83"),
        (part(image(1, "1.2.840.10008.1.2.1.99"), "1.2.840.10008.1.2.1.99"), "DB.CS.83"),
        (part(image(), JPEG_LS), "DB.SO.85 ; PS3.10 7.1"),
        (part(image()[132:]), "PS3.10 7.1"),
        (part(b""), "PS3.10 7.1"),
        (part(image()[:200]), "PS3.10 7.1"),
        (part(part10(dataset(UID), UID + ".9")), "PS3.10 7.1"),
        (part(part10(dataset(UID, sop_class=CT + ".9"), UID)), "PS3.10 7.1"),
        (part(image()[:-3]), "PS3.5 7"),
        (part(part10(dataset(UID)[:60], UID)), "PS3.5 7"),
        (part(part10(b"\0" * 64, UID)), "PS3.5 7"),
        (part(part10(native() + dataset(UID), UID)), "PS3.5 7.1"),
        (part(image(extra=element(0x00290010, b"LO", b"abc", pad=False))), "PS3.5 7.1"),
        (part(part10(ui(0x00080016, CT) + ui(0x00080018, UID), UID)), "PS3.3 C.12.1"),
        (part(part10(dataset("1.2.x"), UID)), "PS3.5 9.1"),
        (part(image(pixels=fragments(JLS_START))), "PS3.5 A.4"),
        (part(image(1, JPEG_LS), JPEG_LS), "PS3.5 A.4"),
        (part(image(1, JPEG_LS, pixels=fragments()), JPEG_LS), "PS3.5 A.4"),
        (part(image(1, JPEG_SV1, pixels=fragments(JLS_START)), JPEG_SV1), "PS3.5 A.4"),
        (part(image(1, JPEG_SV1, pixels=fragments(SV6_START)), JPEG_SV1), "PS3.5 A.4"),
        (part(image(rows=3)), "PS3.5 8.1.1"),
    ],
)
def test_one_wrong_part(content: bytes, clause: str) -> None:
    report = judge(answer(content))
    found = errors(report)
    assert clause in [each.clause for each in found], report.lines()
    assert all(each.places == [1] for each in found)


@pytest.mark.requirement("DB.SO.85")
def test_the_wrong_part_is_named_among_good_ones() -> None:
    report = judge(answer(part(image(1)), part(image(2), None), part(image(3))))
    assert [(each.clause, each.places) for each in errors(report)] == [("DB.SO.85", [2])]


@pytest.mark.threat("DICOM preamble polyglot")
def test_a_preamble_that_is_a_program_is_a_warning() -> None:
    report = judge(answer(part(b"MZ" + image()[2:])))
    assert report.ok
    assert [each.clause for each in report.findings] == ["PS3.10 7.1"]


def meta(number: int, vr: bytes, value: bytes) -> bytes:
    return element(0x00020000 | number, vr, value)


META = {
    0x0001: meta(0x0001, b"OB", b"\0\1"),
    0x0002: meta(0x0002, b"UI", CT.encode()),
    0x0003: meta(0x0003, b"UI", UID.encode()),
    0x0010: meta(0x0010, b"UI", EXPLICIT.encode()),
    0x0012: meta(0x0012, b"UI", b"2.25.1"),
}


def file_of(elements: dict[int, bytes], lie: int = 0) -> bytes:
    body = b"".join(elements[number] for number in sorted(elements))
    length = element(0x00020000, b"UL", struct.pack("<I", len(body) + lie))
    return b"\0" * 128 + b"DICM" + length + body + dataset(UID)


@pytest.mark.parametrize("missing", META)
def test_each_element_of_the_file_meta_is_wanted(missing: int) -> None:
    assert judge(answer(part(file_of(META)))).findings == []
    content = file_of({number: data for number, data in META.items() if number != missing})
    found = errors(judge(answer(part(content))))
    assert [each.clause for each in found] == ["PS3.10 7.1"]
    assert f"(0002,{missing:04X})" in found[0].text


def test_the_length_of_the_file_meta_is_checked() -> None:
    found = errors(judge(answer(part(file_of(META, lie=2)))))
    assert ["GroupLength faux" in each.text for each in found] == [True]
    without = file_of(META)
    without = without[:132] + without[144:]
    found = errors(judge(answer(part(without))))
    assert ["GroupLength absent" in each.text for each in found] == [True]


def test_a_data_set_that_ends_inside_a_sequence() -> None:
    found = errors(judge(answer(part(image()[:-20] + nested(1)))))
    assert "PS3.5 7" in [each.clause for each in found]
    walk = DatasetWalk(implicit=False)
    walk.feed(nested(1))
    with pytest.raises(DatasetRefused, match="sequence"):
        walk.finish()


def test_bytes_after_the_closing_boundary_are_a_warning() -> None:
    body = multipart([part(image())])
    data = head("200 OK", KIND, "Transfer-Encoding: chunked") + chunked(body, len(body), last=False)
    report = judge(data + b"5\r\nhello\r\n0\r\n\r\n")
    assert report.ok
    assert [each.clause for each in report.findings] == ["RFC 2046 5.1.1"]


def test_instances_of_two_series_or_studies_and_duplicates() -> None:
    other = part10(dataset("2.25.9", series="2.25.1001.2"), "2.25.9")
    assert clauses(answer(part(image(1)), part(other))) == ["DB.SO.32"]
    other = part10(dataset("2.25.9", study="2.25.1002"), "2.25.9")
    assert clauses(answer(part(image(1)), part(other))) == ["DB.SO.32"]
    assert clauses(answer(part(image(1)), part(image(1)))) == ["PS3.18 10.4"]
    asked = Expected("2.25.1001", "2.25.1001.7")
    assert clauses(answer(part(image(1))), expected=asked) == ["DB.SO.32"]


def test_another_patient_is_a_warning_without_his_identifier() -> None:
    report = judge(answer(part(image(1)), part(image(2, patient="SECRET9"))))
    assert report.ok
    assert [each.clause for each in report.findings] == ["DB.SO.134"]
    assert "SECRET9" not in json.dumps(report.as_json())


def test_an_answer_without_parts() -> None:
    assert clauses(answer()) == ["PS3.18 10.4.3"]


def test_garbage_instead_of_a_multipart() -> None:
    found = clauses(head("200 OK", KIND, "Transfer-Encoding: chunked") + chunked(b"x" * 200_000))
    assert "RFC 2046 5.1" in found


# --- against a manifest -----------------------------------------------------------------------------


def manifest_of(count: int) -> bytes:
    return samples.build(study=samples.study(samples.series(1, count)))


def test_every_instance_of_the_manifest_must_come() -> None:
    good = read_manifest(manifest_of(3))
    assert judge(GOOD, manifest=good).findings == []
    report = judge(GOOD, manifest=read_manifest(manifest_of(5)))
    assert [each.clause for each in errors(report)] == ["DB.SO.32"]
    assert f"{SERIES}.4" in errors(report)[0].text
    assert report.facts["missing"] == 2
    # What the PACS holds beyond the manifest is delivered (decisions.md).
    report = judge(GOOD, manifest=read_manifest(manifest_of(1)))
    assert report.ok
    assert report.facts["extra"] == 2


def test_another_manifest_is_told() -> None:
    other = read_manifest(samples.build(study=samples.study(samples.series(2))))
    assert clauses(GOOD, manifest=other) == ["DB.CO.122"]
    moved = attrs.evolve(other, study_uid="2.25.7")
    assert clauses(GOOD, manifest=moved) == ["DB.SO.38"]
    wrong_class = expected_of(read_manifest(manifest_of(3)), SERIES)
    assert wrong_class.instances is not None
    changed = attrs.evolve(wrong_class, instances=dict.fromkeys(wrong_class.instances, CT + ".9"))
    assert clauses(GOOD, expected=changed) == ["DB.SO.18"]


# --- refusals ---------------------------------------------------------------------------------------


def refusal(error: ImageError) -> bytes:
    status, headers, body = problem(error)
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return b"HTTP/1.1 %d Refus\r\n" % status + lines + b"\r\n" + body


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize("kind", [ImageError, *ImageError.__subclasses__()])
def test_every_refusal_of_the_gateway_passes(kind: type[ImageError]) -> None:
    report = judge(refusal(kind("précision")))
    assert report.findings == []
    assert report.facts["problem"]["code"] == kind.code


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize(
    ("status", "body", "clause"),
    [
        (500, b'{"code": "E1001"}', "DB.SO.47"),
        (404, b'{"code": "E9999"}', "DB.SO.47"),
        (403, b'{"code": "E1202"}', "DB.SO.47"),
        (302, b"", "DB.SO.173"),
        (206, b"", "PS3.18 10.4.3"),
    ],
)
def test_a_wrong_refusal(status: int, body: bytes, clause: str) -> None:
    data = head(f"{status} X", "application/problem+json", f"Content-Length: {len(body)}") + body
    assert clause in clauses(data)


@pytest.mark.parametrize(("status", "clause"), [(503, "RFC 9110 15.6.4"), (401, "RFC 9110 15.5.2")])
def test_a_refusal_without_its_header_is_a_warning(status: int, clause: str) -> None:
    body = b'{"code": "E1104"}'
    data = head(f"{status} X", "application/problem+json", f"Content-Length: {len(body)}") + body
    report = judge(data)
    assert report.ok
    assert [each.clause for each in report.findings] == [clause]


def test_a_refusal_without_json_is_only_a_warning() -> None:
    report = judge(head("404 Not Found", "text/html", "Content-Length: 5") + b"<br/>")
    assert report.ok
    assert report.counts[Severity.WARNING] == 1
    assert set(CODES) == {"E1001", "E1002", "E1003", "E1004", "E1005", "E1006"} | {
        f"E110{n}" for n in range(1, 6)
    }


# --- size -------------------------------------------------------------------------------------------


class Flood(io.RawIOBase):
    """An answer of one instance whose pixels never seem to end, made while it is read."""

    def __init__(self, size: int) -> None:
        huge = element(0x7FE00010, b"OW", b"")[:-4] + struct.pack("<I", size)
        before = multipart([part(image(pixels=huge, rows=2))], closing=False)[:-2]
        after = b"\r\n--" + BOUNDARY.encode() + b"--\r\n"
        self._left = [head("200 OK", KIND) + before, size, after]

    def read(self, wanted: int = -1) -> bytes:
        if not self._left:
            return b""
        first = self._left[0]
        if isinstance(first, bytes):
            self._left.pop(0)
            return first
        take = min(first, wanted)
        self._left[0] = first - take
        if self._left[0] == 0:
            self._left.pop(0)
        return b"\0" * take


def test_memory_does_not_grow_with_the_answer() -> None:
    validate_response(Flood(1024))  # type: ignore[arg-type]  # warm up
    tracemalloc.start()
    report = validate_response(Flood(64 * 1024 * 1024))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.facts["parts"] == 1
    assert [each.clause for each in errors(report)] == ["PS3.5 8.1.1"]
    assert peak < 8 * 1024 * 1024


def test_a_file_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "answer.http"
    path.write_bytes(GOOD)
    assert validate_response(path).ok
    with pytest.raises(FileNotFoundError):
        validate_response(tmp_path / "absent")


# --- the walk and the codecs ------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    sequence = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    return (sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth


@pytest.mark.threat("nested sequences, recursion")
def test_deep_nesting_is_refused() -> None:
    walk = DatasetWalk(implicit=False)
    with pytest.raises(DatasetRefused):
        walk.feed(nested(5000))


def test_sequences_of_undefined_length_are_walked() -> None:
    end_item, end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    inner = nested(1) + ui(0x00080018, "1.2.3") + end_item + end
    sequence = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    data = ui(0x00080018, "1.2") + sequence + struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner + end
    walk = DatasetWalk(implicit=False)
    walk.feed(data + nested(1) + ui(0x00080018, "1.9") + end_item + end)
    walk.finish()
    assert walk.text(0x00080018) == "1.2"
    # The same sequence stands twice at the root.
    assert walk.disorder == (0x0040A730, 0x0040A730)


def test_codecs_are_recognised_by_their_first_bytes() -> None:
    assert codec_of(JLS_START) is Codec.JPEG_LS
    assert codec_of(SV1_START) is Codec.JPEG_LOSSLESS_SV1
    assert codec_of(SV6_START) is Codec.JPEG_LOSSLESS
    # Too short to tell the predictor: no judgement.
    assert codec_of(SV6_START[:20]) is None
    assert codec_of(b"\xff\x4f\xff\x51\0") is Codec.JPEG2000
    assert codec_of(b"\x00\x00\x01\xb3") is Codec.MPEG2
    assert codec_of(b"") is None
    assert contradicts(Codec.JPEG_LOSSLESS, JPEG_SV1)
    assert not contradicts(Codec.JPEG_BASELINE, "1.2.840.10008.1.2.4.51")


@pytest.mark.parametrize(
    ("encode", "codec"),
    [
        (lambda codecs, pixels: codecs.jpegls_encode(pixels), Codec.JPEG_LS),
        (
            lambda codecs, pixels: codecs.jpeg8_encode(pixels, lossless=True, predictor=1),
            Codec.JPEG_LOSSLESS_SV1,
        ),
        (lambda codecs, pixels: codecs.ljpeg_encode(pixels), Codec.JPEG_LOSSLESS),
        (lambda codecs, pixels: codecs.jpeg8_encode(pixels), Codec.JPEG_BASELINE),
        (lambda codecs, pixels: codecs.jpeg2k_encode(pixels, codecformat="j2k"), Codec.JPEG2000),
    ],
)
def test_what_real_encoders_write_is_recognised(encode: object, codec: Codec) -> None:
    codecs = pytest.importorskip("imagecodecs")
    numpy = pytest.importorskip("numpy")
    pixels = (numpy.arange(64 * 64, dtype="uint8") * 7).reshape(64, 64)
    assert codec_of(bytes(encode(codecs, pixels))) is codec  # type: ignore[operator]


@given(st.binary(max_size=600), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_report(data: bytes, inside: bool) -> None:
    report = judge(answer(part(image()[:280] + data)) if inside else data)
    json.dumps(report.as_json())

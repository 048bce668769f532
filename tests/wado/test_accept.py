"""Accept in all the forms of interfaces.md 6.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.dicom import syntaxes as s
from drimbox.errors import BadRequest, DrimboxError, NotAcceptable
from drimbox.wado.accept import Acceptable, parse
from drimbox.wado.fields import FieldError, parse_elements, parse_media_type

R = 'multipart/related; type="application/dicom"; transfer-syntax='
SV1, JLS, LE = s.JPEG_LOSSLESS_SV1, s.JPEG_LS_LOSSLESS, s.EXPLICIT_LE

SPECIFICATION = [
    f"{R}{SV1}; q=0.9; boundary=**".encode(),
    f"{R}{JLS}; q=0.8; boundary=**".encode(),
    f"{R}{LE}; q=0.4; boundary=**".encode(),
]
QUOTED = b",".join(SPECIFICATION).replace(b"syntax=1.2", b'syntax="1.2').replace(b"; q", b'"; q')
RANKED = ((SV1, 0.9), (JLS, 0.8), (LE, 0.4))


@pytest.mark.requirement("DB.SO.85")
@pytest.mark.parametrize(
    "lines",
    [
        SPECIFICATION,
        list(reversed(SPECIFICATION)),
        [b",".join(SPECIFICATION)],
        [b", ".join(SPECIFICATION) + b","],
        [b",, ," + b" ,, ".join(SPECIFICATION) + b" , "],
        [b",".join(SPECIFICATION).replace(b"; ", b";")],
        [b",".join(SPECIFICATION).replace(b"; ", b" ; ").replace(b"=", b" = ")],
        [b",".join(SPECIFICATION).replace(b'"', b"")],
        [b",".join(SPECIFICATION).replace(b"; ", b";\t").upper()],
        [QUOTED],
        [line.replace(b"boundary=**", b'boundary="a,b;c=\\"d"') for line in SPECIFICATION],
        [line.replace(b"boundary=**", b"boundary=") for line in SPECIFICATION],
        [line.replace(b"boundary=**", b"boundary=----=_Part_0_1.2") for line in SPECIFICATION],
        [line.partition(b"; ")[2] for line in SPECIFICATION],
        [line.replace(b'multipart/related; type="application/dicom"; ', b"") for line in SPECIFICATION],
        [line.replace(b"q=0.", b"Q=.") for line in SPECIFICATION],
        [*SPECIFICATION, b"text/html;q=0.1, application/json", b"multipart/related; type=\"image/jpeg\""],
    ],
)  # fmt: skip
def test_every_real_form_means_the_same(lines):
    assert parse(lines) == Acceptable(RANKED)


def test_the_client_message_of_the_agency():
    line = (
        b'multipart/related; type="application/dicom";transfer-syntax=1.2.840.10008.1.2.4.70;q=0.9;'
        b'boundary=**,multipart/related; type="application/dicom";transfer-syntax=1.2.840.10008.1.2.1;'
        b"q=0.4;boundary=**,"
    )
    assert parse([line]).ranked == ((SV1, 0.9), (LE, 0.4))


def test_the_ten_lines_of_the_specification_rank_lossless_first_at_equal_q():
    order = (
        (".50", 0.9),
        (".51", 0.8),
        (".91", 0.8),
        (".70", 0.7),
        (".80", 0.6),
        (".100", 0.3),
        (".101", 0.3),
    )
    lines = [f"{R}1.2.840.10008.1.2.4{end};q={q};boundary=x".encode() for end, q in order]
    lines.insert(5, f"{R}{LE};q=0.3".encode())
    ranked = parse(lines).ranked
    assert [uid.removeprefix("1.2.840.10008.1.2") for uid, _ in ranked] == [
        ".4.50", ".4.51", ".4.91", ".4.70", ".4.80", ".1", ".4.100", ".4.101",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "q"), [("1", 1), ("1.0", 1), ("1.000", 1), ("0.4", 0.4), ("0.3333", 0.3333), (".5", 0.5)]
)
def test_q_is_read(text, q):
    assert parse([f"{R}{JLS};q={text}".encode()]).q(JLS) == q


def test_a_missing_q_is_one():
    assert parse([f"{R}{JLS}".encode()]).ranked == ((JLS, 1.0),)


@pytest.mark.parametrize(
    "text", ["2", "1.5", "-1", "-0.5", "a", "", '""', "1e-1", "nan", "inf", "0x1", "٠.٥", "1.0000000000001"]
)
def test_a_q_that_is_no_number_from_0_to_1_is_a_mistake(text):
    with pytest.raises(BadRequest):
        parse([f"{R}{JLS};q={text}".encode()])


@pytest.mark.parametrize("zero", ["0", "0.0", "0.000"])
def test_q_zero_excludes(zero):
    acceptable = parse([f"{R}{SV1};q={zero},{R}{JLS};q=0.1".encode()])
    assert acceptable.ranked == ((JLS, 0.1),)
    assert acceptable.rank(SV1) is None
    assert acceptable.rank(JLS) is not None


def test_no_transfer_syntax_is_explicit_little_endian():
    assert parse([b'multipart/related; type="application/dicom"']).ranked == ((LE, 1.0),)
    assert parse([b"*/*;q=0.3"]).ranked == ((LE, 0.3),)
    assert parse([b"type=application/dicom"]).ranked == ((LE, 1.0),)


def test_the_wildcard_accepts_every_shared_syntax():
    acceptable = parse([f"{R}*;q=0.5,{R}{JLS};q=0.9,{R}{SV1};q=0".encode()])
    assert acceptable.any == 0.5
    assert acceptable.q(JLS) == 0.9
    assert acceptable.q(s.JPEG_BASELINE) == 0.5
    assert acceptable.q(SV1) == 0
    assert acceptable.q(s.EXPLICIT_BE) == 0
    assert acceptable.q(s.JPEG2000_LOSSLESS) == 0


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b""],
        [b" , ,"],
        [b"application/dicom"],
        [b"multipart/related"],
        [b'multipart/related; type="image/jp2"'],
        [b"text/html, application/json"],
        [b"q=0.4"],
        [b"type=image/jpeg;transfer-syntax=*"],
        [b'multipart/related; type="application/dicom'],
        [b'multipart/related; type="application/dicom" x'],
        [b"multipart/related type=application/dicom"],
        [b"=1.2"],
        [b'multipart/related; type="application/dicom"; q=0.1; q=0.2'],
        [R.encode() + b"\x00"],
        [R.encode() + b"1.2\r\nX: y"],
        [R.encode() + "é".encode()],
    ],
)  # fmt: skip
def test_what_is_not_for_us_or_not_well_formed_is_400(lines):
    with pytest.raises(BadRequest) as caught:
        parse(lines)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "value",
    [
        f"{R}{JLS};q=0",
        f"{R}*;q=0",
        f"{R}{s.IMPLICIT_LE}",
        f"{R}{s.EXPLICIT_BE}",
        f"{R}1.2.3",
        f"{R}nonsense",
    ],
)
def test_nothing_acceptable_is_406_and_says_what_could_be(value):
    with pytest.raises(NotAcceptable) as caught:
        parse([value.encode()])
    assert caught.value.status == 406
    assert caught.value.code == "E1104"
    assert JLS in caught.value.detail
    assert "nonsense" not in caught.value.detail


@pytest.mark.threat("tokens: oversize, odd, logged, of others")
@pytest.mark.parametrize(
    "lines",
    [[f"{R}{JLS}".encode()] * 65, [b"a" * 20000], [b"x,"] * 9000, [b"multipart/related" + b";a=b" * 40]],
)
def test_sizes_and_counts_are_bounded(lines):
    with pytest.raises(BadRequest):
        parse(lines)


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_give_an_answer_or_a_coded_error(lines):
    acceptable, status = None, 0
    try:
        acceptable = parse(lines)
    except DrimboxError as error:
        status = error.status
    assert status in (400, 406) or any(acceptable.q(uid) for uid in s.SHARED)


WORDS = st.text(st.sampled_from('ab/.*-_+1 ,;="\\\t'), max_size=12)


@given(st.lists(st.tuples(st.sampled_from(["q", "x", "boundary"]), WORDS), max_size=5))
def test_a_quoted_value_comes_out_as_it_was(parameters):
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = "a/b" + "".join(f"; {name}={quoted(value)}" for name, value in parameters)
    (element,) = parse_elements(text.encode())
    assert element.head == "a/b"
    assert element.parameters == tuple(parameters)


def test_a_content_type_is_one_media_type():
    element = parse_media_type(b'multipart/related;start="<1@x>";TYPE="application/dicom"; boundary=abc')
    assert (element.head, element.get("type"), element.get("boundary")) == (
        "multipart/related", "application/dicom", "abc",
    )  # fmt: skip
    for bad in (b"", b"a/b, c/d", b";boundary=x"):
        with pytest.raises(FieldError):
            parse_media_type(bad)

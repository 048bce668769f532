"""multipart/related: what we write is read back by another parser, what others write is read by us."""

from __future__ import annotations

import base64
import email
import email.policy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.xds.mime import (
    MAX_HEADER_BYTES,
    MAX_PARTS,
    MimeRefused,
    Outgoing,
    parse_content_type,
    read_related,
    write_related,
)
from tests.xds.builders import samples

TYPE = 'multipart/related; type="application/xop+xml"; boundary="B"; start="<root>"'


def body(*parts: str, end: str = "\r\n") -> bytes:
    text = "".join(f"--B\n{part}\n" for part in parts) + "--B--\n"
    return text.replace("\n", end).encode()


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_what_is_written_is_read_back(contents: list[bytes]) -> None:
    parts = [Outgoing(f"0.{i}", "application/octet-stream", c) for i, c in enumerate(contents)]
    content_type, data = write_related(parts, {"action": "a"})
    related = read_related(content_type, data)
    assert [part.content for part in related.parts] == contents
    assert related.root is related.parts[0]
    assert write_related(parts, {"action": "a"}) == (content_type, data)


def test_the_standard_library_reads_what_is_written() -> None:
    nasty = b"\r\n--DRIMbox_\r\n\x00\xff--"
    root = Outgoing("0.1", 'application/xop+xml; type="application/soap+xml"', b"<x/>")
    content_type, data = write_related([root, Outgoing("0.2", "application/octet-stream", nasty)], {})
    message = email.message_from_bytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + data, policy=email.policy.HTTP
    )
    first, second = message.iter_parts()  # type: ignore[attr-defined]
    assert first.get_content_type() == "application/xop+xml"
    assert (second["Content-ID"], second["Content-Transfer-Encoding"]) == ("<0.2>", "binary")
    assert second.get_payload(decode=True) == nasty


@pytest.mark.threat("multipart injection")
def test_the_boundary_never_occurs_in_a_part() -> None:
    parts = [Outgoing("0.1", "text/plain", b"x")]
    for _ in range(5):
        content_type, _ = write_related(parts, {})
        boundary = parse_content_type(content_type)[1]["boundary"].encode()
        assert not any(boundary in part.content for part in parts)
        parts = [Outgoing("0.1", "text/plain", parts[0].content + b"\r\n--" + boundary + b"--\r\n")]
        again, data = write_related(parts, {})
        assert read_related(again, data).root.content == parts[0].content


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("order", [0, 1])
def test_order_line_ends_and_encodings_are_tolerated(end: str, order: int) -> None:
    encoded = base64.b64encode(b"\x00KOS" * 30).decode()
    folded = "\n".join(re.findall(".{1,60}", encoded))
    parts = [
        "content-id: <root>\nCONTENT-TYPE: application/xop+xml;\n charset=UTF-8\n\n<x/>",
        "Content-Type: application/octet-stream\nContent-Transfer-Encoding: BASE64\n"
        f"Content-ID: <0.2>\n\n{folded}",
    ]
    related = read_related(TYPE, body(*(parts[::-1] if order else parts), end=end))
    assert related.root.content == b"<x/>"
    held = related.part("cid:0.2")
    assert held is not None
    assert held.content == b"\x00KOS" * 30
    assert related.part("cid:0.9") is None
    assert related.part("0.2") is None


def test_a_percent_encoded_href_finds_its_part() -> None:
    part = "Content-ID: <a%b@host>\n\nX"
    held = read_related(TYPE, body("\n<x/>", part)).part("cid:a%25b%40host")
    assert held is not None
    assert held.content == b"X"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (TYPE, "R"),
        (TYPE.replace('; start="<root>"', ""), "X"),
        (TYPE.replace("<root>", "root"), "R"),
        (TYPE.replace("<root>", "<absent>"), "X"),
        ("multipart/related; boundary=B; start=<root>", "R"),
        ('Multipart/Related;Boundary="B" ;START="<root>"', "R"),
        ("multipart/related", "X"),
        ("", "X"),
    ],
)
def test_the_root_is_found(content_type: str, expected: str) -> None:
    data = body(
        "Content-ID: <first>\n\nF",
        "Content-ID: <xop>\nContent-Type: application/xop+xml; charset=UTF-8\n\nX",
        "Content-ID: <root>\n\nR",
    )
    assert read_related(content_type, data).root.content == expected.encode()


def test_preamble_epilogue_and_lookalike_delimiters() -> None:
    data = b"hello\r\n" + body("Content-ID: <root>\n\na--B\n--Bogus\nb", "\n") + b"epilogue\r\n--B\r\n"
    related = read_related(TYPE, data)
    assert [part.content for part in related.parts] == [b"a--B\r\n--Bogus\r\nb", b""]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"--B",
        b"--B\r\n",
        b"--B--\r\n",
        b"--B\r\nContent-ID: <root>\r\n\r\n<x/>\r\n",
        b"--B\r\nContent-ID: <root>\r\n\r\n<x/>\r\n--B\r\n",
        b"--B\r\nContent-ID: <root>\r\n--B--\r\n",
        b"--B\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!\r\n--B--",
        b"--B\r\nContent-Transfer-Encoding: x-gzip\r\n\r\nx\r\n--B--",
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(MimeRefused):
        read_related(TYPE, data)
    if not data:
        with pytest.raises(MimeRefused):
            read_related("multipart/related", data)


@pytest.mark.threat("Content-Length and body bombs")
def test_counts_and_headers_are_bounded() -> None:
    with pytest.raises(MimeRefused):
        read_related(TYPE, body(*["\nx"] * (MAX_PARTS + 1)))
    with pytest.raises(MimeRefused):
        read_related(TYPE, body(f"X: {'y' * MAX_HEADER_BYTES}\n\nx"))


@given(st.binary(max_size=300), st.text(max_size=60))
def test_garbage_is_refused_or_read_never_worse(data: bytes, content_type: str) -> None:
    for candidate in (data, b"--B\r\n" + data + b"\r\n--B--"):
        try:
            read_related(content_type, candidate)
            read_related(TYPE, candidate)
        except MimeRefused:
            continue


def test_the_published_submission_is_read() -> None:
    path = samples() / "XDS/publication.xml"
    if not path.exists():
        pytest.skip("published samples not present (DRIMBOX_SAMPLES)")
    # Its authors indented the text, delimiters and part headers included: only that is undone.
    mended = re.sub(rb"(?m)^ +(--MIMEBoundary|Content-)", rb"\1", path.read_bytes())
    related = read_related("multipart/related; start=<0.1>", mended)
    assert related.root.content_id == "0.1"
    kos = related.part("cid:0.2")
    assert kos is not None
    assert kos.content == (samples() / "KOS/ko.dcm").read_bytes()
    signature = related.part("cid:0.3")
    assert signature is not None
    assert b"http://www.w3.org/2000/09/xmldsig#" in signature.content

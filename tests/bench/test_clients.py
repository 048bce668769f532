"""The client of the bench sees the end of the first part, however the answer is cut, and is not fooled."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.client import FirstPart
from bench.consumers import DeliveryFailed, fetch, fetch_together
from bench.tap import FirstData

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/related; boundary=b0undary\r\n"
PART = b"\r\nContent-Type: application/dicom\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def answer(parts: list[bytes], *, chunked: bool) -> tuple[bytes, int]:
    """Write a multipart body as a server that sends each delimiter with the part after it.

    Returns it, and how many of its bytes end with the last byte of the first part.
    """
    body, end = b"", 0
    for number, part in enumerate(parts):
        piece = (b"\r\n" if number else b"") + b"--b0undary" + PART + part
        body += chunk(piece) if chunked else piece
        end = end or len(body) - (2 if chunked else 0)
    closing = b"\r\n--b0undary--\r\n"
    return body + (chunk(closing) + chunk(b"") if chunked else closing), end


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 120), max_size=40),
    chunked=st.booleans(),
)
def test_first_part_ends_with_the_piece_that_brought_its_last_byte(
    parts: list[bytes], cuts: list[int], chunked: bool
) -> None:
    body, end = answer(parts, chunked=chunked)
    finder = FirstPart(b"--b0undary")
    offset, expected = 0, 0.0
    for now, cut in enumerate([*cuts, len(body)], 1):
        piece = body[offset : offset + cut]
        if piece and not finder.ended_at:
            finder.feed(piece, float(now))
        if offset < end <= offset + len(piece):
            expected = float(now)
        offset += cut
    assert finder.ended_at == expected


def test_first_part_is_not_the_first_delimiter_behind_a_chunk_head() -> None:
    finder = FirstPart(b"--b0undary")
    body, _ = answer([b"image" * 10, b"image"], chunked=True)
    finder.feed(body[:40], 1.0)
    assert finder.ended_at == 0.0


@contextmanager
def server(*pieces: bytes) -> Iterator[int]:
    """Answer every connection with these pieces, then close; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def order(port: int) -> dict[str, object]:
    return {"port": port, "name": "localhost", "path": "/studies/1", "headers": ["Accept: */*"]}


@pytest.mark.parametrize("chunked", [True, False])
def test_clients_ask_together_and_get_the_whole(tmp_path: Path, chunked: bool) -> None:
    body, _ = answer([b"one" * 100, b"two" * 100], chunked=chunked)
    coding = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"
    with server(HEAD + coding, body) as port:
        deliveries = fetch_together([order(port)] * 3, tmp_path, at_least=600)
    assert len(deliveries) == 3
    for one in deliveries:
        assert one.size == len(body)
        assert 0 < one.first <= one.seconds
    begun = [one.started_at for one in deliveries]
    assert max(begun) - min(begun) < 5


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ((b"HTTP/1.1 503 Busy\r\n\r\nwait",), "503"),
        ((HEAD + b"\r\n", answer([b"one"], chunked=False)[0][:-6]), "not complete"),
        (
            (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", answer([b"one"], chunked=True)[0][:-5]),
            "not complete",
        ),
        ((), "without an answer"),
        ((HEAD + b"\r\n", answer([b"one"], chunked=False)[0]), "bytes of at least"),
    ],
)
def test_an_answer_that_is_not_whole_gives_no_figure(
    tmp_path: Path, pieces: tuple[bytes, ...], problem: str
) -> None:
    with server(*pieces) as port, pytest.raises(DeliveryFailed, match=problem):
        fetch(order(port), tmp_path, at_least=1000)


@settings(max_examples=80, deadline=None)
@given(cuts=st.lists(st.integers(1, 30), max_size=30), before=st.lists(st.integers(0, 60), max_size=3))
def test_tap_finds_the_first_data_pdu(cuts: list[int], before: list[int]) -> None:
    opening = b"".join(b"\x01\0" + size.to_bytes(4, "big") + b"\x04" * size for size in before)
    stream = opening + b"\x04\0\0\0\0\x08" + b"\x04" * 8
    finder, offset, found = FirstData(), 0, []
    for cut in [*cuts, len(stream)]:
        if finder.feed(stream[offset : offset + cut]):
            found.append((offset, offset + cut))
        offset += cut
    ((begin, end),) = found
    assert begin <= len(opening) < end
    assert finder.found

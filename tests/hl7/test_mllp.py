"""MLLP framing (interfaces.md 1.1): any cut of the bytes gives the same messages, in linear time."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.hl7.mllp import (
    Event,
    FrameFault,
    FrameRefused,
    MessageReceived,
    MllpReader,
    frame,
)

CONTENT = st.binary(max_size=60).map(lambda data: data.translate(None, b"\x0b\x1c"))


def feed_all(chunks: list[bytes], limit: int = 10_000) -> list[Event]:
    reader = MllpReader(limit)
    return [event for chunk in chunks for event in reader.feed(chunk)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_a_framed_message_comes_back_whole() -> None:
    assert feed_all([b"\x0bMSH|^~\\&|A\r\x1c\r"]) == [MessageReceived(b"MSH|^~\\&|A\r")]


@given(st.lists(CONTENT, max_size=5), st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split_gives_the_same_messages(messages: list[bytes], places: list[int]) -> None:
    stream = b"\r\n".join(frame(message) for message in messages)
    expected = [MessageReceived(message) for message in messages]
    assert feed_all(cut(stream, places)) == expected
    assert feed_all([stream[i : i + 1] for i in range(len(stream))]) == expected


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_any_split_of_any_bytes_gives_the_same_events(data: bytes, places: list[int]) -> None:
    alphabet = bytes(b"\x0b\x1c\rAB"[byte % 5] for byte in data)
    for stream in (data, alphabet):
        whole = feed_all([stream], limit=40)
        assert feed_all(cut(stream, places), limit=40) == whole
        assert feed_all([stream[i : i + 1] for i in range(len(stream))], limit=40) == whole


@given(CONTENT)
def test_frame_and_reader_agree(message: bytes) -> None:
    assert feed_all([frame(message)]) == [MessageReceived(message)]


@pytest.mark.parametrize("bad", [b"a\x0bb", b"a\x1cb"])
def test_frame_refuses_framing_bytes_inside(bad: bytes) -> None:
    with pytest.raises(ValueError, match="VT or FS"):
        frame(bad)


@pytest.mark.threat("HL7 and MLLP")
def test_a_frame_hidden_in_a_frame_is_refused_and_nothing_after_it_is_read() -> None:
    hidden = b"\x0bMSH|one\x0bMSH|two\x1c\r"
    assert feed_all([hidden + frame(b"three")]) == [FrameRefused(FrameFault.VT_INSIDE)]


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.parametrize("after", [b"X", b"\n", b"\x1c", b"\x0b"])
def test_fs_without_cr_is_refused(after: bytes) -> None:
    assert feed_all([b"\x0bMSH\x1c", after]) == [FrameRefused(FrameFault.FS_INSIDE)]


@pytest.mark.threat("HL7 and MLLP")
def test_an_oversize_message_is_refused_before_the_byte_too_many_is_kept() -> None:
    reader = MllpReader(100)
    assert reader.feed(b"\x0b" + b"A" * 100) == []
    assert reader.in_message
    assert reader.feed(b"B") == [FrameRefused(FrameFault.TOO_LARGE)]
    assert reader.stopped
    assert not reader.in_message
    assert reader.feed(frame(b"MSH")) == []


def test_a_message_of_exactly_the_limit_passes() -> None:
    assert feed_all([frame(b"A" * 100)], limit=100) == [MessageReceived(b"A" * 100)]


@pytest.mark.threat("HL7 and MLLP")
def test_garbage_between_frames_is_tolerated_in_small_number_only() -> None:
    reader = MllpReader(100, max_gap=4)
    assert reader.feed(b"\r\n" + frame(b"A") + b"\r\n\r\n" + frame(b"B")) == [
        MessageReceived(b"A"),
        MessageReceived(b"B"),
    ]
    assert reader.feed(b"1234") == []
    assert reader.feed(b"5") == [FrameRefused(FrameFault.GARBAGE)]


def test_in_message_follows_the_frame() -> None:
    reader = MllpReader(100)
    seen = []
    for byte in b"\r\x0bA\x1c\r\r":
        reader.feed(bytes([byte]))
        seen.append(reader.in_message)
    assert seen == [False, True, True, True, False, False]


@pytest.mark.threat("HL7 and MLLP")
def test_twenty_megabytes_in_small_pieces_stay_linear_in_time_and_memory() -> None:
    message = b"A" * 20_000_000
    stream = frame(message)
    pieces = [stream[i : i + 1460] for i in range(0, len(stream), 1460)]
    started = time.thread_time()
    assert feed_all(pieces, limit=len(message)) == [MessageReceived(message)]
    assert time.thread_time() - started < 2  # about 0.03 s; a quadratic reader takes minutes
    tracemalloc.start()
    try:
        feed_all(pieces, limit=len(message))
        assert tracemalloc.get_traced_memory()[1] < 2.5 * len(message)
    finally:
        tracemalloc.stop()


@pytest.mark.threat("HL7 and MLLP")
def test_many_tiny_frames_in_one_piece_stay_linear() -> None:
    started = time.thread_time()
    assert len(feed_all([frame(b"") * 100_000])) == 100_000
    assert time.thread_time() - started < 3  # about 0.2 s

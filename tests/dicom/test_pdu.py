"""PDU framing: any cut gives the same, every length is judged at the header."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.dicom.pdu import (
    RELEASE_RP,
    RELEASE_RQ,
    AbortReason,
    ControlPdu,
    Fragment,
    PduReader,
    PduRefused,
    PduType,
    encode_abort,
    encode_message,
    encode_reject,
)


def flat(events: list[ControlPdu | Fragment]) -> list[object]:
    """Join the pieces of fragments, which depend on the cuts, into what does not."""
    out: list[object] = []
    for event in events:
        if isinstance(event, ControlPdu):
            out.append((event.type, event.data))
            continue
        key = (event.context_id, event.command)
        if out and isinstance(out[-1], list) and out[-1][0] == key and not out[-1][2]:
            out[-1][1] += bytes(event.data)
            out[-1][2] = event.last
        else:
            out.append([key, bytes(event.data), event.last])
    return out


messages = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 127).map(lambda n: 2 * n + 1), st.binary(max_size=400), st.booleans()).map(
            lambda m: b"".join(encode_message(m[0], m[1], command=m[2], max_length=64))
        ),
        st.sampled_from([RELEASE_RQ, RELEASE_RP, encode_abort(2, 5), encode_reject(1, 1, 7)]),
        st.binary(min_size=68, max_size=300).map(lambda body: struct.pack(">BxI", 1, len(body)) + body),
    ),
    max_size=6,
)


@given(messages, st.lists(st.integers(1, 50), max_size=60))
def test_any_cut_of_the_stream_gives_the_same(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    whole = flat(PduReader(1024).feed(stream))
    reader = PduReader(1024)
    events = []
    position = 0
    for cut in cuts:
        events += reader.feed(stream[position : position + cut])
        position += cut
    events += reader.feed(stream[position:])
    assert flat(events) == whole
    byte_by_byte = PduReader(1024)
    assert flat([e for i in range(len(stream)) for e in byte_by_byte.feed(stream[i : i + 1])]) == whole


@pytest.mark.threat("PDU length bomb")
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (struct.pack(">BxI", 4, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 1025), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 5), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 1, 256 * 1024 + 1), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 1, 10), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 5, 5), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 7, 0), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 0, 4), AbortReason.UNRECOGNIZED_PDU),
        (struct.pack(">BxI", 8, 4), AbortReason.UNRECOGNIZED_PDU),
        (b"GET / HTTP/1.1\r\n", AbortReason.UNRECOGNIZED_PDU),
    ],
)
def test_a_bad_length_is_refused_at_the_header(header: bytes, reason: AbortReason) -> None:
    with pytest.raises(PduRefused) as refusal:
        PduReader(1024).feed(header)
    assert refusal.value.reason is reason


@pytest.mark.threat("PDU length bomb")
@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">IBB", 0, 1, 2) + b"x" * 10,  # shorter than its own header
        struct.pack(">IBB", 1, 1, 2) + b"x" * 10,
        struct.pack(">IBB", 0xFFFFFFFF, 1, 2) + b"x" * 10,  # beyond the PDU
        struct.pack(">IBB", 13, 1, 2) + b"x" * 10,
        struct.pack(">IBB", 9, 1, 2) + b"x" * 10,  # three stray bytes after it
    ],
)
def test_presentation_data_value_arithmetic(body: bytes) -> None:
    with pytest.raises(PduRefused):
        PduReader(1024).feed(struct.pack(">BxI", 4, len(body)) + body)


def test_an_empty_last_fragment_still_ends_its_message() -> None:
    pdu = b"".join(encode_message(3, b"", command=False, max_length=0))
    assert PduReader(1024).feed(pdu) == [Fragment(3, False, True, b"")]


def test_messages_are_cut_to_the_length_the_peer_announced() -> None:
    pdus = encode_message(1, b"z" * 1000, command=True, max_length=100)
    assert all(len(pdu) - 6 <= 100 for pdu in pdus)
    assert [pdu[11] for pdu in pdus] == [1] * (len(pdus) - 1) + [3]
    with pytest.raises(ValueError, match="no room"):
        encode_message(1, b"z", command=True, max_length=6)


def test_fixed_pdus_are_those_of_the_standard() -> None:
    assert bytes.fromhex("05000000000400000000") == RELEASE_RQ
    assert bytes.fromhex("06000000000400000000") == RELEASE_RP
    assert encode_abort(2, 1) == bytes.fromhex("07000000000400000201")
    assert encode_reject(1, 1, 7) == bytes.fromhex("03000000000400010107")
    assert PduReader(1024).feed(RELEASE_RQ) == [ControlPdu(PduType.RELEASE_RQ, RELEASE_RQ)]

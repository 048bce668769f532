"""Which syntax an instance leaves in: by q, lossless before lossy, untouched whenever it may."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.dicom import syntaxes
from drimbox.dicom.pixels import PixelFacts
from drimbox.dicom.syntaxes import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG2000,
    JPEG2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    MPEG4_41,
    RLE_LOSSLESS,
)
from drimbox.dicom.targets import DECODABLE, PRODUCED, candidates, decodable, plan, producible
from drimbox.wado.accept import Acceptable, parse
from tests.dicom.images import Everything

CT = PixelFacts(512, 512, 1, 16, 12, 11, True, "MONOCHROME2")
XR8 = PixelFacts(512, 512, 1, 8, 8, 7, False, "MONOCHROME1")
RGB = attrs.evolve(XR8, samples=3, photometric="RGB")

#: The default wishes of a Consumer (interfaces.md 6.2): lossless, then lossy wanted.
LOSSLESS_FIRST = (
    (JPEG_LOSSLESS_SV1, 0.9), (JPEG_LS_LOSSLESS, 0.8), (JPEG2000, 0.6), (JPEG_BASELINE, 0.5),
    (JPEG_EXTENDED, 0.5), (EXPLICIT_LE, 0.4),
)  # fmt: skip
LOSSY_FIRST = (
    (JPEG_BASELINE, 0.9), (JPEG_EXTENDED, 0.9), (JPEG_LOSSLESS_SV1, 0.6), (JPEG_LS_LOSSLESS, 0.5),
    (JPEG2000, 0.5), (EXPLICIT_LE, 0.4),
)  # fmt: skip


@pytest.mark.requirement("DB.SO.85")
def test_the_highest_q_that_can_be_produced_wins() -> None:
    assert candidates(RLE_LOSSLESS, Acceptable(LOSSLESS_FIRST), CT) == (
        JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000, EXPLICIT_LE,
    )  # fmt: skip
    assert plan(RLE_LOSSLESS, Acceptable(LOSSY_FIRST), XR8) == JPEG_BASELINE
    # JPEG baseline cannot hold twelve bits, and nothing produces JPEG extended.
    assert plan(RLE_LOSSLESS, Acceptable(LOSSY_FIRST), CT) == JPEG_LOSSLESS_SV1


@pytest.mark.requirement("DB.SO.85")
def test_what_may_leave_as_it_came_does() -> None:
    """A higher q alone never makes us transcode (decisions.md)."""
    everything = Acceptable(LOSSLESS_FIRST)
    for uid in (EXPLICIT_LE, JPEG_LS_LOSSLESS, JPEG_BASELINE, JPEG_EXTENDED):
        assert candidates(uid, everything, CT) == (uid,)
    assert candidates(IMPLICIT_LE, everything, CT) == (EXPLICIT_LE,)
    only = parse([b"multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.4.80"])
    assert candidates(IMPLICIT_LE, only, CT) == (JPEG_LS_LOSSLESS,)


def test_video_passes_or_stays() -> None:
    video = attrs.evolve(RGB, photometric="YBR_PARTIAL_420", frames=500)
    assert plan(MPEG4_41, Everything(), video) == MPEG4_41
    assert candidates(MPEG4_41, Everything(refused=(MPEG4_41,)), video) == ()
    assert MPEG4_41 not in DECODABLE


@pytest.mark.requirement("DB.CS.83")
def test_objects_without_pixels_pass() -> None:
    nothing = Everything(liked=(JPEG_LS_LOSSLESS,), only=True)
    assert plan(EXPLICIT_LE, nothing, None) == EXPLICIT_LE
    assert plan(IMPLICIT_LE, nothing, None) == EXPLICIT_LE
    assert plan(EXPLICIT_BE, nothing, None) == EXPLICIT_LE


def test_pixels_that_no_codec_holds_leave_native_or_not_at_all() -> None:
    for facts in (
        attrs.evolve(XR8, bits_allocated=1, bits_stored=1, high_bit=0),
        attrs.evolve(CT, bits_allocated=32, bits_stored=32, high_bit=31),
        attrs.evolve(CT, floating=True),
    ):
        assert producible(EXPLICIT_BE, facts) == (EXPLICIT_LE,)
        assert producible(EXPLICIT_LE, facts) == ()
        wanted = Everything(liked=(JPEG_LS_LOSSLESS, JPEG2000), only=True)
        assert candidates(EXPLICIT_LE, wanted, facts) == ()
    assert producible(RLE_LOSSLESS, attrs.evolve(CT, bits_allocated=32)) == (EXPLICIT_LE,)


def test_what_jpeg_2000_and_jpeg_cannot_hold() -> None:
    assert JPEG2000 not in producible(EXPLICIT_LE, attrs.evolve(CT, rows=31))
    assert JPEG2000 not in producible(EXPLICIT_LE, attrs.evolve(CT, high_bit=15))
    assert JPEG2000 in producible(EXPLICIT_LE, CT)
    for facts in (attrs.evolve(XR8, signed=True), attrs.evolve(XR8, bits_stored=7, high_bit=6), CT):
        assert JPEG_BASELINE not in producible(EXPLICIT_LE, facts)
    palette = attrs.evolve(XR8, photometric="PALETTE COLOR")
    assert producible(RLE_LOSSLESS, palette) == (JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1, EXPLICIT_LE)


Q = st.sampled_from([0.0, 0.2, 0.5, 0.5, 0.9, 1.0])


@pytest.mark.requirement("DB.SO.85")
@given(
    wishes=st.dictionaries(st.sampled_from(syntaxes.SHARED), Q, min_size=1),
    source=st.sampled_from(DECODABLE),
    facts=st.sampled_from([CT, XR8, RGB]),
)
def test_never_lossy_when_a_lossless_one_is_liked_as_much(
    wishes: dict[str, float], source: str, facts: PixelFacts
) -> None:
    client = Acceptable(
        tuple((uid, q) for uid, q in wishes.items() if q > 0),
        refused=frozenset(uid for uid, q in wishes.items() if q == 0),
    )
    found = candidates(source, client, facts)
    assert len(set(found)) == len(found)
    assert all(client.q(uid) > 0 for uid in found)
    if found and found[0] not in (source, EXPLICIT_LE):
        possible = producible(source, facts)
        assert set(found) <= set(possible)
        best = max(client.q(uid) for uid in possible)
        assert client.q(found[0]) == best
        if not syntaxes.is_lossless(found[0]):
            assert not any(client.q(uid) == best and syntaxes.is_lossless(uid) for uid in possible)


@pytest.mark.requirement("DB.CS.83")
def test_what_is_taken_from_a_pacs_to_be_transcoded() -> None:
    """The lossless form before the lossy one; never what cannot be read."""
    assert decodable([JPEG_LS_NEAR_LOSSLESS, JPEG2000_LOSSLESS]) == JPEG2000_LOSSLESS
    assert decodable([JPEG_BASELINE, IMPLICIT_LE]) == IMPLICIT_LE
    assert decodable([MPEG4_41, "1.2.840.10008.1.2.1.99"]) is None
    assert set(PRODUCED) == {EXPLICIT_LE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000, JPEG_BASELINE}

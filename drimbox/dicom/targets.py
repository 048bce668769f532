"""In which syntax an instance leaves, once none that the client accepts could be had from the PACS.

`candidates` ranks what we can produce for the pixels at hand by the client's q (DB.SO.85, DB.CS.83):
lossless first at equal q, so that never a bit is lost that the client did not value less; then what is
encapsulated. The first is what should leave; the others are there for the day a codec fails on one of
them. An instance that may leave as it came always does: a higher q alone never makes us transcode
(decisions.md).

What has no pixels (reports, presentation states, encapsulated documents, plans, waveforms) has nothing
to encode: it leaves as Explicit VR Little Endian whatever the client ranked. So do, in the same spirit,
pixels that no codec of the list may hold (one bit, 32 bits, floats), if the client accepts that syntax.
Video passes or does not leave: it is never opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from drimbox.dicom.pixels import PixelFacts
from drimbox.dicom.syntaxes import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG2000,
    JPEG2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    LOSSLESS,
    RLE_LOSSLESS,
    Ranking,
    served_as,
)

#: What we can read pixels from, in the order in which we would rather have them from a PACS: what has
#: lost nothing, the quickest to decode for its size first, then what has; the retired one last.
DECODABLE: Final = (
    JPEG_LS_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LOSSLESS,
    RLE_LOSSLESS,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG2000_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    JPEG2000,
    JPEG_EXTENDED,
    JPEG_BASELINE,
    EXPLICIT_BE,
)
#: What we can produce, in the order of preference at equal q: compressed before native.
PRODUCED: Final = (JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1, EXPLICIT_LE, JPEG2000, JPEG_BASELINE)

_DECODABLE: Final = frozenset(DECODABLE)
_NATIVE: Final = frozenset({EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE})
#: Photometric interpretations that a codec may hold; palettes must not lose anything (PS3.5 8.2).
_LOSSY_OK: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
)
_LOSSLESS_OK: Final = _LOSSY_OK | {"PALETTE COLOR"}
#: JPEG 2000 is written with five decompositions, which smaller images do not have.
_LEAST_JPEG2000: Final = 32


def decodable(proposed: Sequence[str]) -> str | None:
    """Choose among the syntaxes a PACS proposes one that can be transcoded, None when there is none.

    For a presentation context of which the client accepts nothing as it is.
    """
    wanted = frozenset(proposed)
    return next((uid for uid in DECODABLE if uid in wanted), None)


def producible(source: str, facts: PixelFacts | None) -> tuple[str, ...]:
    """Return what `source` can be turned into, whatever anybody wants; empty when into nothing."""
    if source not in _DECODABLE:
        return ()
    if facts is None:
        return (EXPLICIT_LE,)
    return tuple(uid for uid in PRODUCED if uid != source and _can(source, uid, facts))


def _can(source: str, target: str, facts: PixelFacts) -> bool:
    if target == EXPLICIT_LE and source in _NATIVE:
        return True
    if facts.floating or facts.photometric not in (_LOSSLESS_OK if target in LOSSLESS else _LOSSY_OK):
        return False
    if facts.samples not in (1, 3):
        return False
    if source in _NATIVE and facts.photometric == "YBR_FULL_422" and facts.columns % 2:
        return False
    if target == EXPLICIT_LE:
        return facts.bits_allocated in (8, 16) or (facts.bits_allocated == 32 and source == RLE_LOSSLESS)
    if target == JPEG_BASELINE:
        return facts.bits_allocated == facts.bits_stored == 8 and not facts.signed
    if facts.bits_allocated not in (8, 16):
        return False
    if target == JPEG2000:
        usual = facts.high_bit == facts.bits_stored - 1
        return usual and min(facts.rows, facts.columns) >= _LEAST_JPEG2000
    return True


def candidates(source: str, acceptable: Ranking, facts: PixelFacts | None) -> tuple[str, ...]:
    """Return the syntaxes in which an instance that came as `source` may leave, best first.

    `facts` is None for an instance without pixels. When the first is `source`, it leaves untouched. Empty
    when nothing the client accepts can be produced.
    """
    if facts is None:
        return (source,) if source not in _NATIVE else (EXPLICIT_LE,)
    leaves_as = served_as(source)
    if leaves_as is not None and acceptable.rank(leaves_as) is not None:
        return (leaves_as,)
    ranked = []
    for place, uid in enumerate(producible(source, facts)):
        rank = acceptable.rank(uid)
        if rank is not None:
            ranked.append(((rank, place), uid))
    return tuple(uid for _, uid in sorted(ranked))


def plan(source: str, acceptable: Ranking, facts: PixelFacts | None) -> str | None:
    """Return the syntax in which an instance should leave: `source` itself to leave it untouched.

    None when nothing the client accepts can be produced from it.
    """
    return next(iter(candidates(source, acceptable, facts)), None)

"""Transfer syntaxes: what they are, which ones the network shares, and which one to take from a PACS.

Three sets matter. The *known* ones have a name and two properties. The *shared* ones are the ten of
tables 4 to 7 (requirements.md 3.9, DB.CS.83): nothing else may travel between DRIMboxes, so an image
stored in another syntax has to be transcoded first. The *convertible* one is Implicit VR Little Endian,
which the web side forbids and which we rewrite as Explicit VR Little Endian on the way (DB.SO.41).
Explicit VR Big Endian is never taken, nor is the deflated syntax: half a megabyte of it can inflate
to a gigabyte, and it would have to be inflated before anything could be checked (threats.md).

`choose` is the heart of DB.SO.85: of the syntaxes a PACS proposes for a presentation context, take the
one that the client of this very request likes best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"
JPEG2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG2000 = "1.2.840.10008.1.2.4.91"
MPEG2_MAIN = "1.2.840.10008.1.2.4.100"
MPEG2_HIGH = "1.2.840.10008.1.2.4.101"
MPEG4_41 = "1.2.840.10008.1.2.4.102"
MPEG4_41_BD = "1.2.840.10008.1.2.4.103"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"


@attrs.frozen
class TransferSyntax:
    """A transfer syntax of PS3.6 annex A."""

    uid: str
    name: str
    #: True when it cannot lose a bit: native, or a reversible compression.
    lossless: bool
    #: True when pixel data is in fragments (PS3.5 A.4).
    encapsulated: bool
    #: True when tables 4 to 7 let it travel between DRIMboxes (requirements.md 3.9).
    shared: bool = False


def _table(*rows: TransferSyntax) -> dict[str, TransferSyntax]:
    return {row.uid: row for row in rows}


#: The ten shared syntaxes first, in the order of the specification's table, then the others.
TABLE: dict[str, TransferSyntax] = _table(
    TransferSyntax(EXPLICIT_LE, "Explicit VR Little Endian", True, False, True),
    TransferSyntax(JPEG_BASELINE, "JPEG Baseline (Process 1)", False, True, True),
    TransferSyntax(JPEG_EXTENDED, "JPEG Extended (Process 2 & 4)", False, True, True),
    TransferSyntax(JPEG_LOSSLESS_SV1, "JPEG Lossless (Process 14, SV1)", True, True, True),
    TransferSyntax(JPEG_LS_LOSSLESS, "JPEG-LS Lossless", True, True, True),
    TransferSyntax(JPEG2000, "JPEG 2000", False, True, True),
    TransferSyntax(MPEG2_MAIN, "MPEG2 Main Profile / Main Level", False, True, True),
    TransferSyntax(MPEG2_HIGH, "MPEG2 Main Profile / High Level", False, True, True),
    TransferSyntax(MPEG4_41, "MPEG-4 AVC/H.264 High Profile / Level 4.1", False, True, True),
    TransferSyntax(
        MPEG4_41_BD, "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", False, True, True
    ),
    TransferSyntax(IMPLICIT_LE, "Implicit VR Little Endian", True, False),
    TransferSyntax(DEFLATED_LE, "Deflated Explicit VR Little Endian", True, False),
    TransferSyntax(EXPLICIT_BE, "Explicit VR Big Endian", True, False),
    TransferSyntax(JPEG_LOSSLESS, "JPEG Lossless (Process 14)", True, True),
    TransferSyntax(JPEG_LS_NEAR_LOSSLESS, "JPEG-LS Near-Lossless", False, True),
    TransferSyntax(JPEG2000_LOSSLESS, "JPEG 2000 Lossless", True, True),
    TransferSyntax("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 Multi-component Lossless", True, True),
    TransferSyntax("1.2.840.10008.1.2.4.93", "JPEG 2000 Part 2 Multi-component", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 2D", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 3D", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.106", "MPEG-4 AVC/H.264 Stereo High Profile", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main Profile / Level 5.1", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.110", "JPEG XL Lossless", True, True),
    TransferSyntax("1.2.840.10008.1.2.4.111", "JPEG XL JPEG Recompression", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.112", "JPEG XL", False, True),
    TransferSyntax("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000 Lossless", True, True),
    TransferSyntax("1.2.840.10008.1.2.4.202", "High-Throughput JPEG 2000 RPCL Lossless", True, True),
    TransferSyntax("1.2.840.10008.1.2.4.203", "High-Throughput JPEG 2000", False, True),
    TransferSyntax(RLE_LOSSLESS, "RLE Lossless", True, True),
)

#: What may travel between DRIMboxes, in the order of the specification's table (DB.CS.83).
SHARED: tuple[str, ...] = tuple(uid for uid, row in TABLE.items() if row.shared)
#: What cannot lose a bit.
LOSSLESS: frozenset[str] = frozenset(uid for uid, row in TABLE.items() if row.lossless)
ENCAPSULATED: frozenset[str] = frozenset(uid for uid, row in TABLE.items() if row.encapsulated)
_SHARED = frozenset(SHARED)


class Ranking(Protocol):
    """What `choose` needs to know of a client's wishes; `drimbox.wado.accept.Acceptable` has it."""

    def rank(self, transfer_syntax: str) -> tuple[float, bool] | None:
        """Return a sort key, smallest best, or None when the client does not want it."""


def is_known(uid: str) -> bool:
    """Say whether `uid` is a transfer syntax with a row in `TABLE`."""
    return uid in TABLE


def is_shared(uid: str) -> bool:
    """Say whether DRIMboxes may exchange images in this syntax (tables 4 to 7, DB.CS.83)."""
    return uid in _SHARED


def is_lossless(uid: str) -> bool:
    """Say whether `uid` is known and cannot lose a bit."""
    return uid in LOSSLESS


def describe(uid: str) -> str:
    """Return `name (uid)` for people, or the bare uid when it is not known."""
    row = TABLE.get(uid)
    return f"{row.name} ({uid})" if row else uid


def served_as(uid: str) -> str | None:
    """Return the syntax in which an instance received as `uid` leaves without touching a pixel.

    A shared one leaves as it came, Implicit VR Little Endian leaves as Explicit (DB.SO.41), any other
    cannot leave: None.
    """
    if uid in _SHARED:
        return uid
    return EXPLICIT_LE if uid == IMPLICIT_LE else None


def choose(proposed: Sequence[str], acceptable: Ranking) -> str | None:
    """Choose among the syntaxes a PACS proposes in one presentation context (DB.SO.85).

    `proposed` is in the order of the A-ASSOCIATE-RQ. The client's q decides; at equal q what loses
    nothing comes first, then what is encapsulated (a PACS proposes a compressed form because it stores
    it; its native form may be an expansion, with more bytes to carry), then Explicit before Implicit,
    which costs us a conversion, then the PACS's own order. Returns a member of `proposed`, or None when
    the client wants none of them: then this context is rejected and transcoding is somebody else's
    decision (decisions.md: a higher q alone never makes us transcode).
    """
    best: tuple[tuple[float, bool], bool, bool, int] | None = None
    for index, uid in enumerate(proposed):
        leaves_as = served_as(uid)
        if leaves_as is None:
            continue
        rank = acceptable.rank(leaves_as)
        if rank is None:
            continue
        key = (rank, uid not in ENCAPSULATED, uid != leaves_as, index)
        if best is None or key < best:
            best = key
    return None if best is None else proposed[best[3]]


def offered(proposed: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return what could be offered, for the detail of a 406 (decisions.md).

    `proposed` is what the PACS proposes for the instances at hand, None when it has not been asked yet:
    then every shared syntax. The order is that of the specification's table; nothing comes twice.
    """
    if proposed is None:
        return SHARED
    possible = {served_as(uid) for uid in proposed}
    return tuple(uid for uid in SHARED if uid in possible)


def offered_text(proposed: Iterable[str] | None = None) -> str:
    """Return `offered` in words for a person, in French."""
    names = [describe(uid) for uid in offered(proposed)]
    return "syntaxes de transfert disponibles : " + (", ".join(names) if names else "aucune")

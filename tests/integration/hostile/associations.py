"""Hostile callers at the DICOM door: strangers, and a PACS that has been taken over."""

from __future__ import annotations

import random
import struct

from tests.dicom.box import message, store_request, storing, talk
from tests.dicom.datasets import EXPLICIT, ct, encode
from tests.dicom.fuzzing import mutated
from tests.dicom.peers.test_hostile import NASTY, associate, context
from tests.integration.hostile.target import Attack, Target, heard

_CT = "1.2.840.10008.5.1.4.1.1.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NAMES = sorted(set(NASTY) - {"endless command"})


def _title(text: str) -> bytes:
    return text.ljust(16).encode()


def _ours(target: Target, chance: random.Random, data: bytes) -> bytes:
    """Put real AE titles in the place of those of the samples."""
    return data.replace(_title("DRIM1"), _title(chance.choice(target.titles)), 1).replace(
        _title("PACS"), _title(target.pacs), 1
    )


def _say(target: Target, source: str, *pieces: bytes) -> bytes:
    """Send each piece after the answer to the one before."""
    answer = b""
    with target.connect(target.dicom, source) as connection:
        for piece in pieces[:-1]:
            connection.sendall(piece)
            connection.settimeout(2.0)
            answer += connection.recv(65536)
        return answer + heard(connection, pieces[-1], end=True)


def nasty(target: Target, chance: random.Random, source: str) -> None:
    """PDUs, items and commands that lie about themselves."""
    _say(target, source, *(_ours(target, chance, piece) for piece in NASTY[chance.choice(_NAMES)]))


def damaged(target: Target, chance: random.Random, source: str) -> None:
    """A C-STORE with damage anywhere."""
    session = storing() + message(1, store_request(), encode(ct(), EXPLICIT))
    _say(target, source, mutated(chance, _ours(target, chance, session)))


def deflated(target: Target, chance: random.Random, source: str) -> None:
    """Only a deflated syntax offered."""
    request = _ours(target, chance, associate(context(1, _CT, _DEFLATED)))
    bomb = message(1, store_request(), b"\x03" + b"\0" * 30_000)
    _say(target, source, request, bomb)


def nested(target: Target, chance: random.Random, source: str) -> None:
    """Sequences in sequences, a thousand deep."""
    level = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    level += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    _say(target, source, _ours(target, chance, storing()), message(1, store_request(), level * 1000))


def unasked(target: Target, chance: random.Random, source: str) -> None:
    """Images that nobody asked for, of whatever patient: none may be taken."""
    data = encode(ct(), EXPLICIT)
    answer = _say(target, source, _ours(target, chance, storing()), message(1, store_request(), data))
    # The status of a C-STORE-RSP, when there is one: 0000 would be success.
    assert struct.pack("<HHIH", 0, 0x0900, 2, 0) not in answer


def failing(target: Target, chance: random.Random, source: str) -> None:
    """One association that fails, for those who count them: no waiting."""
    pieces = [_ours(target, chance, piece) for piece in NASTY[chance.choice(_NAMES)]]
    talk(target.dicom, *pieces[:2], half=True, wait=2.0)


ATTACKS: dict[str, tuple[Attack, ...]] = {
    "PDU length bomb": (nasty, damaged),
    "DICOM deflate bomb": (deflated,),
    "nested sequences, recursion": (nested,),
    "path traversal by UID, AE title, file name": (nasty,),
    "log and audit injection, flooding": (nasty,),
    "memory leaks by repeated requests": (nasty, unasked),
}

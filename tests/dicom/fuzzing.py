"""Damage made on purpose, the same at every run, and what reading it costs.

Mutations are drawn from a generator with a fixed seed: a failure names the seed and the round, and comes
again. `ROUNDS` is what continuous integration has time for; DRIMBOX_SOAK multiplies it.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: How many times as many mutations as usual.
EFFORT = 40 if os.environ.get("DRIMBOX_SOAK") else 1
#: Values that lengths, counts and tags are replaced by.
_EDGES = (
    b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80",
    b"\xfe\xff\0\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0", b"UN\0\0\xff\xff\xff\xff",
    b"SQ\0\0\xff\xff\xff\xff", b"\r\n", b"\r\n--", b"--\r\n", b'"', b"\\", b",", b";", b"=", b"\0\r\n\r\n",
)  # fmt: skip


def mutated(random_: random.Random, sample: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Damage a sample in one to four places."""
    data = bytearray(sample)
    for _ in range(random_.choice((1, 1, 2, 4))):
        place = random_.randrange(len(data) + 1)
        match random_.randrange(7):
            case 0:
                data[place : place + 1] = bytes([random_.randrange(256)])
            case 1:
                if place < len(data):
                    data[place] ^= 1 << random_.randrange(8)
            case 2:
                edge = random_.choice(_EDGES)
                data[place : place + len(edge)] = edge
            case 3:
                data[place:place] = random_.choice(_EDGES)
            case 4:
                del data[place : place + random_.choice((1, 2, 7, 8, 100))]
            case 5:
                end = place + random_.choice((2, 8, 40, 200))
                data[place:place] = data[place:end] * random_.choice((1, 2, 20))
            case _:
                other = random_.choice(others or (sample,))
                start = random_.randrange(len(other) + 1)
                data[place:] = other[start:]
    return bytes(data)


def damages(samples: Sequence[bytes], rounds: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Give `rounds` mutations of the samples, times the effort, each with the name it fails under."""
    random_ = random.Random(seed)
    for number in range(rounds * EFFORT):
        sample = random_.choice(samples)
        yield f"seed {seed}, round {number}", mutated(random_, sample, samples)


def cut(data: bytes, seed: int) -> list[bytes]:
    """Cut bytes at random places, some of them into single bytes."""
    random_ = random.Random(seed)
    pieces = []
    while data:
        size = random_.choice((1, 1, 2, 7, 40, 1000, len(data)))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def calls(work: Callable[[], object]) -> int:
    """Count the calls that work makes, Python's and C's: the same number at every run."""
    count = 0

    def count_one(frame: object, event: str, argument: object) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(count_one)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def processor(work: Callable[[], object]) -> float:
    """Seconds of processor that work takes, the best of three: copies show here and not among the calls."""
    best = float("inf")
    gc.collect()
    # Its passes over everything alive would be counted as work of whoever happens to run.
    gc.disable()
    try:
        for _ in range(3):
            start = time.process_time()
            work()
            best = min(best, time.process_time() - start)
    finally:
        gc.enable()
    return best


def assert_linear(make: Callable[[int], Callable[[], object]], size: int) -> None:
    """Check that four times the input is about four times the work, where a square would be sixteen."""
    few, many = calls(make(size)), calls(make(4 * size))
    assert many <= 6 * few + 200, f"{few} calls for {size}, {many} for four times as much"
    short, long = processor(make(size)), processor(make(4 * size))
    # Below a few milliseconds the clock itself is what is measured.
    assert long <= 10 * max(short, 0.004), f"{short:.4f} s for {size}, {long:.4f} s for four times as much"


def assert_keeps_nothing(work: Callable[[], Any], most: int = 256 * 1024) -> None:
    """Check that doing it again leaves no more memory behind than doing it once."""
    work()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < most, f"{kept} bytes kept"

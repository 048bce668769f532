"""The pool of codec workers, with real processes: one bad instance costs one answer, never the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from drimbox import metrics
from drimbox.config import TranscodingSettings
from drimbox.dicom import codecwire
from drimbox.dicom.codecpool import CodecPool
from drimbox.dicom.codecwire import FrameReader, WireRefused, frame_head
from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG2000, JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS
from drimbox.dicom.transcode import transcode
from drimbox.dicom.transcoding import TranscodeFailed
from tests.dicom.images import encoded, image, read, texture

#: A worker whose codec does what its "data set" says.
BAD_WORKER = """
import ctypes, json, os, sys, time
from drimbox.dicom import codecworker
from drimbox.dicom.elements import DatasetRefused

def transcode(dataset, source, target, settings):
    order = bytes(dataset).split(b" ")[0]
    if order == b"segfault": ctypes.string_at(0)
    if order == b"exit": os._exit(3)
    if order == b"hang": time.sleep(3600)
    if order == b"spin":
        while True: pass
    if order == b"eat": return [bytearray(1 << 33)]
    if order == b"refuse": raise DatasetRefused("not an image")
    if order == b"bug": raise KeyError("patient name")
    if order == b"print": print("noise on standard output"); os.write(1, b"more noise")
    if order == b"lie": os.write(3, b"\\xff" * 64); os.write(4, b"\\xff" * 64)
    if order == b"huge": return [b"x" * 1000] * 1000
    if order == b"file":
        with open(bytes(dataset).split(b" ")[1], "w") as target_file: target_file.write("x")
    if order == b"who": return [json.dumps({
        "pid": os.getpid(), "environ": sorted(os.environ), "files": len(os.listdir("/proc/self/fd")) - 1,
    }).encode()]
    if order == b"first" and target == "1.2.840.10008.1.2.4.80": ctypes.string_at(0)
    return [b"done ", target.encode()]

codecworker.transcode = transcode
sys.exit(codecworker.main())
"""


@attrs.define
class Pools:
    """Makes pools, and closes them all."""

    folder: Path
    made: list[CodecPool] = attrs.field(factory=list)

    def real(self, **settings: Any) -> CodecPool:
        pool = CodecPool(reactor, TranscodingSettings(**settings))
        self.made.append(pool)
        return pool

    def bad(self, script: str = BAD_WORKER, **options: Any) -> CodecPool:
        settings = TranscodingSettings(**{"workers": 2, "timeout": 30.0, **options})
        path = self.folder / "worker.py"
        path.write_text(script, encoding="utf-8")
        command = (sys.executable, str(path), json.dumps(attrs.asdict(settings)))
        pool = CodecPool(reactor, settings, command=command)
        self.made.append(pool)
        return pool


@pytest_twisted.async_yield_fixture
async def pools(tmp_path: Path) -> AsyncIterator[Pools]:
    made = Pools(tmp_path)
    yield made
    for pool in made.made:
        await pool.close()
        assert pool.workers == 0


def ask(pool: CodecPool, order: bytes, target: str = JPEG_LS_LOSSLESS) -> Deferred[Any]:
    return ensureDeferred(pool.transcode(order, EXPLICIT_LE, target))


async def failure(waiting: Deferred[Any]) -> str:
    with pytest.raises(TranscodeFailed) as caught:
        await waiting
    return caught.value.result


def counted(result: str) -> float:
    return sum(
        sample.value
        for metric in metrics.TRANSCODED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["result"] == result
    )


@pytest.mark.requirement("DB.CS.83")
@pytest_twisted.ensureDeferred
async def test_instances_come_back_in_the_wanted_syntax(pools: Pools) -> None:
    pool = pools.real(workers=2)
    assert pool.workers == 0  # nothing is started before there is work
    pixels = texture(64, 64, 12, signed=True)
    data = encoded(image(pixels, stored=12))
    waiting = [ask(pool, data, target) for target in (JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG2000) * 4]
    answers = [await one for one in waiting]
    settings = TranscodingSettings()
    assert [bytes(answer) for answer in answers] == [
        b"".join(transcode(data, EXPLICIT_LE, target, settings))
        for target in (JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG2000) * 4
    ]
    assert pool.workers == 2
    back = await pool.transcode(answers[0], JPEG_LS_LOSSLESS, EXPLICIT_LE)
    assert read(bytes(back)).PixelData == pixels.tobytes()


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest_twisted.ensureDeferred
async def test_large_instances_go_through_in_steps(pools: Pools) -> None:
    pool = pools.real(workers=1)
    pixels = texture(256, 256, 16, frames=40)  # 5 MB
    data = encoded(image(pixels, stored=16))
    there = await pool.transcode(data, EXPLICIT_LE, JPEG_LS_LOSSLESS)
    back = await pool.transcode(there, JPEG_LS_LOSSLESS, EXPLICIT_LE)
    assert read(bytes(back)).PixelData == pixels.tobytes()


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.parametrize(
    ("order", "result"),
    [
        (b"segfault", "crashed"),
        (b"exit", "crashed"),
        (b"lie", "crashed"),
        (b"eat", "memory"),
        (b"refuse", "refused"),
        (b"bug", "bug"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bad_codec_costs_its_own_instance_only(order: bytes, result: str, pools: Pools) -> None:
    pool = pools.bad()
    waiting = [ask(pool, b"good") for _ in range(3)]
    bad = ask(pool, order)
    waiting += [ask(pool, b"good") for _ in range(5)]
    assert await failure(bad) == result
    for one in waiting:
        assert bytes(await one) == b"done " + JPEG_LS_LOSSLESS.encode()
    assert bytes(await ask(pool, b"good")).startswith(b"done")


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.parametrize("order", [b"hang", b"spin"])
@pytest_twisted.ensureDeferred
async def test_hanging_codec_is_killed_and_not_tried_again(order: bytes, pools: Pools) -> None:
    pool = pools.bad(timeout=3.0)
    await ask(pool, b"good")
    retried = counted("retried")
    started = time.monotonic()
    bad = ask(pool, order)
    others = [ask(pool, b"good") for _ in range(20)]
    for one in others:
        await one
    assert time.monotonic() - started < 3.0, "the others waited for it"
    assert await failure(bad) == "timeout"
    assert counted("retried") == retried
    assert bytes(await ask(pool, b"good")).startswith(b"done")


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest_twisted.ensureDeferred
async def test_crash_is_tried_on_one_other_worker_and_no_more(pools: Pools) -> None:
    pool = pools.bad(workers=1)
    retried, crashed = counted("retried"), counted("crashed")
    assert await failure(ask(pool, b"segfault")) == "crashed"
    assert counted("retried") == retried + 1
    assert counted("crashed") == crashed + 1


@pytest.mark.requirement("DB.CS.83")
@pytest_twisted.ensureDeferred
async def test_instance_leaves_in_another_syntax_when_a_codec_dies_of_it(pools: Pools) -> None:
    pool = pools.bad()
    answer = await pool.transcode_to_first(b"first", EXPLICIT_LE, (JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1))
    assert answer.syntax == JPEG_LOSSLESS_SV1
    assert bytes(answer.data) == b"done " + JPEG_LOSSLESS_SV1.encode()
    nowhere = ensureDeferred(pool.transcode_to_first(b"segfault", EXPLICIT_LE, (JPEG2000, JPEG_BASELINE)))
    assert await failure(nowhere) == "crashed"
    nothing = ensureDeferred(pool.transcode_to_first(b"good", EXPLICIT_LE, ()))
    assert await failure(nothing) == "refused"


@pytest_twisted.ensureDeferred
async def test_what_a_library_prints_is_not_an_answer(pools: Pools) -> None:
    pool = pools.bad(workers=1)
    assert bytes(await ask(pool, b"print")).startswith(b"done")
    assert bytes(await ask(pool, b"good")).startswith(b"done")


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest_twisted.ensureDeferred
async def test_worker_inherits_nothing_and_writes_nowhere(
    pools: Pools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRIMBOX_SECRET", "s3cret")
    pool = pools.bad(workers=1)
    seen = json.loads(bytes(await ask(pool, b"who")))
    assert seen["pid"] != os.getpid()
    allowed = {"PYTHONPATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "LC_ALL", "LC_CTYPE"}
    assert set(seen["environ"]) <= allowed
    # Standard streams, both ends of the talk, and nothing of the gateway's.
    assert seen["files"] <= 6
    assert await failure(ask(pool, b"file " + bytes(tmp_path / "leak"))) == "bug"
    assert (tmp_path / "leak").read_bytes() == b""


@pytest_twisted.ensureDeferred
async def test_answer_longer_than_any_image_ends_the_worker(pools: Pools) -> None:
    pool = pools.bad(workers=1, max_decoded_bytes=1 << 20, max_instance_bytes=1 << 20)
    assert bytes(await ask(pool, b"huge")) == b"x" * 1_000_000
    with pytest.raises(WireRefused):
        codecwire.read_lengths(frame_head({}, 1 << 40), 1 << 30)


@pytest_twisted.ensureDeferred
async def test_queue_is_bounded_in_number_and_bytes(pools: Pools) -> None:
    pool = pools.bad(workers=1, max_queue=3, max_queue_bytes=1000)
    waiting = [ask(pool, b"good") for _ in range(3)]
    assert await failure(ask(pool, b"good")) == "busy"
    for one in waiting:
        await one
    first = ask(pool, b"good " + b"x" * 900)  # taken by the idle worker at once
    second = ask(pool, b"good " + b"x" * 900)
    assert pool.waiting == 1
    assert await failure(ask(pool, b"good " + b"x" * 900)) == "busy"
    both = ensureDeferred(pool.transcode_to_first(b"g" * 900, EXPLICIT_LE, (JPEG2000, JPEG_BASELINE)))
    assert await failure(both) == "busy"
    await first
    await second
    assert pool.waiting == 0
    assert bytes(await ask(pool, b"good " + b"x" * 900)).startswith(b"done")


@pytest_twisted.ensureDeferred
async def test_too_long_an_instance_or_an_unknown_target_is_refused_at_once(pools: Pools) -> None:
    pool = pools.bad(max_instance_bytes=1 << 20)
    assert await failure(ask(pool, bytes((1 << 20) + 1))) == "refused"
    assert await failure(ask(pool, b"good", "1.2.840.10008.1.2.5")) == "refused"
    assert pool.workers == 0


@pytest_twisted.ensureDeferred
async def test_giving_up_frees_the_place_and_harms_nobody(pools: Pools) -> None:
    pool = pools.bad(workers=1, timeout=1.0)
    await ask(pool, b"good")
    running, queued, after = ask(pool, b"hang"), ask(pool, b"good"), ask(pool, b"good")
    assert pool.waiting == 2
    for one in (running, queued):
        one.cancel()
        with pytest.raises(CancelledError):
            await one
    assert pool.waiting == 1
    assert bytes(await after).startswith(b"done")


@pytest_twisted.ensureDeferred
async def test_close_ends_everybody(pools: Pools) -> None:
    pool = pools.bad(workers=1)
    await ask(pool, b"good")
    running, queued = ask(pool, b"hang"), ask(pool, b"good")
    results = [failure(running), failure(queued)]
    await pool.close()
    assert [await result for result in results] == ["closed", "closed"]
    assert pool.workers == 0
    assert await failure(ask(pool, b"good")) == "closed"
    await pool.close()


@pytest_twisted.ensureDeferred
async def test_workers_that_do_not_start_fail_what_waits(pools: Pools) -> None:
    pool = pools.bad(script="raise SystemExit(1)")
    waiting = [ask(pool, b"good") for _ in range(4)]
    assert [await failure(one) for one in waiting] == ["crashed"] * 4
    (pools.folder / "worker.py").write_text(BAD_WORKER, encoding="utf-8")
    assert bytes(await ask(pool, b"good")).startswith(b"done")


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest_twisted.ensureDeferred
async def test_mangled_images_never_cost_more_than_themselves(pools: Pools) -> None:
    """Bytes overwritten anywhere in compressed pixels: an answer or a failure, and the pool lives."""
    pool = pools.real(workers=2)
    good = encoded(image(texture(64, 64, 8, frames=2), stored=8))
    settings = TranscodingSettings()
    kinds = {s: b"".join(transcode(good, EXPLICIT_LE, s, settings)) for s in MANGLED}
    results = []
    for number in range(120):
        syntax = MANGLED[number % len(MANGLED)]
        data = bytearray(kinds[syntax])
        # The pixels stand at the end; a fixed sequence of places and values.
        at = len(data) - 1 - (number * 7919) % (len(data) // 2)
        data[at : at + 3] = bytes((number * 37 % 256, 255 - number, number * 11 % 256))
        try:
            await pool.transcode(data, syntax, EXPLICIT_LE)
            results.append("done")
        except TranscodeFailed as error:
            results.append(error.result)
    assert len(results) == 120
    # A stumble of our own code would be a bug.
    assert set(results) <= {"done", "refused", "crashed", "memory", "timeout"}
    assert "done" in results
    assert "refused" in results
    assert await pool.transcode(good, EXPLICIT_LE, JPEG_LS_LOSSLESS)


MANGLED = (JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000)


@pytest.mark.threat("forged dimensions, codec out of bounds")
def test_the_gateway_itself_loads_no_codec() -> None:
    """What decodes images from outside must not even be in its memory."""
    code = (
        "import sys, drimbox.dicom.codecpool, drimbox.dicom.targets, drimbox.dicom.pixels;"
        "print(sorted({'imagecodecs', 'openjpeg', 'jpeg_ls', 'rle', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# --- the wire -----------------------------------------------------------------------------------------


@given(
    frames=st.lists(
        st.tuples(st.dictionaries(st.text(max_size=5), st.integers()), st.binary()), max_size=5
    ),
    cuts=st.lists(st.integers(1, 50), max_size=30),
)
def test_any_cutting_gives_the_same_frames(
    frames: list[tuple[dict[str, int], bytes]], cuts: list[int]
) -> None:
    data = b"".join(frame_head(header, len(payload)) + payload for header, payload in frames)
    reader = FrameReader(1000)
    found = [frame for piece in cut_up(data, cuts) for frame in reader.feed(piece)]
    assert found == frames


def cut_up(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    for size in cuts:
        yield data[:size]
        data = data[size:]
    yield data


@pytest.mark.parametrize(
    "data",
    [
        frame_head({}, 1001),
        codecwire._HEAD.pack(codecwire.MAX_HEADER + 1, 0),
        codecwire._HEAD.pack(4, 0) + b"null",
        codecwire._HEAD.pack(4, 0) + b"\xff\xff\xff\xff",
        codecwire._HEAD.pack(4000, 0) + b"[" * 4000,
    ],
)
def test_frames_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(WireRefused):
        FrameReader(1000).feed(data)

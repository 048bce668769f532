"""`kill -9` at any moment leaves a cache whose every entry is whole, and nothing that was purged."""

from __future__ import annotations

import random
import selectors
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.store.cache_scene import Scene, content, read_all

ROOT = Path(__file__).resolve().parent.parent.parent


def run_and_kill(folder: Path, seed: int, seconds: float) -> list[list[str]]:
    """Let the victim work for `seconds` after it is ready, kill it, and return what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.cache_victim", str(folder), str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=False,
    )
    assert process.stdout is not None
    said = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + 30
            while time.monotonic() < end:
                if selector.select(0.01):
                    piece = process.stdout.read1(65536)
                    assert piece, "the victim died of itself"
                    if not said:
                        end = time.monotonic() + seconds
                    said += piece
    finally:
        process.kill()
        said += process.communicate(timeout=10)[0]
    # The last line may be cut.
    return [line.split() for line in said.decode().split("\n")[:-1]]


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    purged: set[str] = set()
    for turn in range(3):
        for words in run_and_kill(tmp_path, 100 * seed + turn, chance.uniform(0.02, 0.4)):
            if words[0] == "purged":
                purged.add(words[1])
            elif words[0] == "kept":
                purged.discard(words[1])
        entries = list((tmp_path / "entries").iterdir())
        scene = Scene(tmp_path, max_bytes=40_000_000)
        assert scene.cache.enabled, scene.cache.problem
        # Every entry there is whole: a start removes none.
        assert len(list((tmp_path / "entries").iterdir())) == len(entries) == scene.cache.series
        assert scene.cache.used == scene.on_disk()
        for key in list(scene.cache._index):
            reader = scene.find(key.series_uid, study=key.study_uid, count=3)
            assert reader is not None
            size = reader.instances[0].size
            assert read_all(reader) == content(key.series_uid, size, 3)
        # A purge that was told is done is done; one kept after it without a word may have been cut short.
        silent = {key.series_uid for key in scene.cache._index} & purged
        assert len(silent) <= 1
        purged -= silent
        scene.cache.folder.close()

"""A process that fills, reads and purges a cache until it is killed; its arguments: folder, seed.

It writes a line to standard output after every commit and purge that it was told is done: what the
test may then count on.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.store.cache_scene import Scene, content, now, read_all


def main(folder: str, seed: str) -> None:
    chance = random.Random(int(seed))
    scene = Scene(Path(folder), max_bytes=40_000_000)
    print("open", flush=True)
    while True:
        series = f"1.{chance.randrange(20)}"
        if chance.randrange(4) == 0:
            now(scene.cache.purge("site", f"2.{series}"))
            print("purged", series, flush=True)
        elif scene.keep(series, study=f"2.{series}", size=chance.choice([10, 700_000, 1_500_000]), count=3):
            print("kept", series, flush=True)
        else:
            reader = scene.find(series, study=f"2.{series}", count=3)
            if reader is not None:
                assert set(read_all(reader)) == set(content(series, 0, 3))


if __name__ == "__main__":
    main(*sys.argv[1:])

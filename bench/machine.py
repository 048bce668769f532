"""The machine under the bench: what it is, how fast, and how much a second core brings here.

Figures: `machine.speed`, MB/s of SHA-256 by one process; `machine.scaling`, what as many processes as
cores do together over that. Virtual cores are often half a core each, and a machine may have other work:
whatever scales with cores here cannot scale further than this. Measured at the start and at the end of a
run (`machine.speed_after`), so that a run on a machine that was disturbed shows.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from bench.results import Results

_DISTRIBUTIONS = (
    "drimbox",
    "twisted",
    "pyopenssl",
    "cryptography",
    "pydicom",
    "pynetdicom",
    "imagecodecs",
    "pyjpegls",
    "pylibjpeg-openjpeg",
    "numpy",
)
#: Part of its cores that a machine with nothing else to do gives.
FREE = 0.85
_SECONDS = 0.7
_BLOCK = bytes(1 << 20)


def describe() -> dict[str, object]:
    """Describe this machine: processor, cores, memory, system, Python and the libraries that matter."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in _DISTRIBUTIONS},
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_machine(results: Results) -> None:
    """Measure one process, then one per core."""
    alone = speed(1)
    results.add("machine.speed", alone / 1e6, "MB/s")
    results.add("machine.scaling", speed(cores()) / alone, "ratio")


def measure_again(results: Results) -> None:
    """Measure one process once more."""
    results.add("machine.speed_after", speed(1) / 1e6, "MB/s")


def speed(processes: int) -> float:
    """Return the bytes a second that so many processes hash together."""
    with get_context("spawn").Pool(processes) as pool:
        pool.map(_hash, [0.05] * processes)
        return sum(pool.map(_hash, [_SECONDS] * processes, chunksize=1))


def _hash(seconds: float) -> float:
    digest = hashlib.sha256()
    count, start = 0, time.monotonic()
    while (spent := time.monotonic() - start) < seconds:
        digest.update(_BLOCK)
        count += len(_BLOCK)
    return count / spent


def _field(file: str, name: str) -> str:
    try:
        for line in Path(file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""

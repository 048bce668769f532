"""Simulators as processes, and curl as the peer that talks to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from drimbox.sim.pki import Pair


@contextmanager
def simulator(module: str, *options: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run `python -m <module>`; yields the process and the JSON line it says when ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, options)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@attrs.frozen
class Curled:
    """What curl saw; `code` is its exit code: 7 refused, 28 timed out, 52 or 56 cut, 18 truncated."""

    code: int
    status: int
    body: bytes
    head: str


def curl(
    url: str,
    *,
    roots: Path,
    folder: Path,
    pair: Pair | None = None,
    headers: Sequence[str] = (),
    data: bytes | None = None,
    options: Sequence[str] = (),
) -> Curled:
    command = ["curl", "-sS", "--cacert", str(roots), "-m", "10", "-o", str(folder / "out")]
    command += ["-D", str(folder / "head"), "-w", "%{http_code}", *options]
    if pair is not None:
        command += ["--cert", str(pair.certificate), "--key", str(pair.key)]
    for header in headers:
        command += ["-H", header]
    if data is not None:
        (folder / "in").write_bytes(data)
        command += ["--data-binary", f"@{folder / 'in'}", "-H", "Expect:"]
    for name in ("out", "head"):
        (folder / name).write_bytes(b"")
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=20)
    head = (folder / "head").read_text("latin-1")
    return Curled(done.returncode, int(done.stdout or 0), (folder / "out").read_bytes(), head)

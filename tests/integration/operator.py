"""The `drimbox` command in a process of its own, as an operator runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.internet.threads import deferToThread


async def drimbox(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `drimbox` with a configuration; return what it wrote and its exit status."""
    command = [sys.executable, "-m", "drimbox.cli", *arguments, "--config", str(config)]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=90, env=environment, check=False
        )

    done: subprocess.CompletedProcess[str] = await deferToThread(run)
    return done

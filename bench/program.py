"""The bench's own programs: each a process that speaks lines of JSON over its standard input and output.

A program prints one line when it is ready, then one line for every line it is told, and ends with its
standard input: so nothing is left behind when the bench itself dies. They are processes, not threads,
so that nothing measured shares an interpreter with what measures it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Root of the checkout: what the programs import comes from here, not from what may be installed.
ROOT = Path(__file__).resolve().parents[1]


class ProgramFailed(Exception):
    """A program of the bench ended, or did not answer; the end of its error output follows."""


class Program:
    """One program as a child process: `python -m MODULE ARGUMENTS`; a context manager.

    `log` receives its error output. `timeout` bounds each answer, in seconds.
    """

    def __init__(self, module: str, *arguments: str, log: Path, timeout: float = 60.0) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process number while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; `read` gives its first line."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def tell(self, **order: object) -> None:
        """Send a line."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as gone:
            raise self._failed("ended") from gone

    def read(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Wait for its next line. Raises `ProgramFailed`."""
        assert self._process is not None
        assert self._process.stdout is not None
        limit = time.monotonic() + (self._timeout if timeout is None else timeout)
        file = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = limit - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                raise self._failed("did not answer in time")
            data = os.read(file, 65536)
            if not data:
                raise self._failed("ended")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise self._failed(str(answer["failed"]))
        return answer

    def ask(self, *, timeout: float | None = None, **order: object) -> dict[str, Any]:
        """Send a line and wait for the answer. Raises `ProgramFailed`."""
        self.tell(**order)
        return self.read(timeout=timeout)

    def stop(self, *, patience: float = 20.0) -> None:
        """Close its standard input and wait; kill it when it does not end. Harmless when not running."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _failed(self, what: str) -> ProgramFailed:
        tail = self._log.read_bytes()[-1500:].decode("utf-8", "replace").strip()
        return ProgramFailed(f"{self._command[2]} {what}\n{tail}".strip())


def say(**values: object) -> None:
    """Print one line: what a program answers."""
    print(json.dumps(values), flush=True)


def answer_lines(answer: Callable[[dict[str, Any]], dict[str, object]]) -> None:
    """Answer every line of the standard input until it ends; what goes wrong is the answer too."""
    for line in sys.stdin:
        try:
            say(**answer(json.loads(line)))
        except Exception as error:  # whatever it is, the one who asked must hear of it
            say(failed=f"{type(error).__name__}: {error}")

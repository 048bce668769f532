"""Backups begun through the admin listener: the `drimbox` command makes and checks them, on its own.

Copying and packing a store takes minutes of processor time that deliveries need, cannot be broken off in
the middle, and opens the store a second time: nothing for the process of the gateway. The command is the
one that operators and timers run; a stop of the gateway ends it, and it clears away what it had begun.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from drimbox.backup import making, sealing
from drimbox.backupfiles import backups_in, made_at
from drimbox.config import Config
from drimbox.ports import Clock, InThread
from drimbox.source.jobs import JobFailed, Jobs, JobStopped, Progress
from drimbox.systemerrors import system_reason

#: How the command says, on its error output, which stage begins.
STAGE = "stage "
#: Bytes of what the command writes, at the most: a manifest names some dozens of files.
_MAX_OUTPUT, _MAX_ERRORS = 8 * 1024 * 1024, 64 * 1024
#: Seconds between the polite end of the command and the other one.
_GRACE = 10.0
#: Backups listed at the most.
MAX_LISTED = 1000


class BackupRuns:
    """Makes and checks backups, one at a time."""

    def __init__(
        self, config: Config, path: Path | None, reactor: Any, clock: Clock, in_thread: InThread
    ) -> None:
        """`path` is the file that `config` was read from, None when it came from nowhere."""
        self.settings = config.backup
        self.jobs = Jobs(clock, "les sauvegardes")
        self._config = config
        self._path = path
        self._reactor = reactor
        self._in_thread = in_thread
        self._child: _Child | None = None

    async def make(
        self, progress: Progress, folder: Path, recipients: Sequence[str], keep: int | None
    ) -> Mapping[str, Any]:
        """Make one; return its file, size, SHA-256, what was removed and its manifest.

        Raises `JobFailed`, and `JobStopped` when the gateway stops.
        """
        if self._path is None:
            raise JobFailed("la passerelle ne vient d'aucun fichier de configuration : rien à sauvegarder")
        arguments = ["backup", str(folder), "--stages", "--json", "--config", str(self._path)]
        arguments += [word for each in recipients for word in ("--recipient", each)]
        arguments += ["--keep", str(keep)] if keep is not None else []
        progress.total = len(making.STAGES)
        return await self._run(progress, arguments)

    async def check(self, progress: Progress, file: Path) -> Mapping[str, Any]:
        """Verify one that is not sealed; return its file, size and manifest. Raises as `make`."""
        try:
            sealed = await self._in_thread(lambda: sealing.is_sealed(file))
        except OSError as error:
            raise JobFailed(f"{file} : lecture impossible ({system_reason(error)})") from None
        if sealed:
            raise JobFailed(
                f"{file.name} est chiffrée pour une clé que cette machine n'a pas : la vérifier là où est "
                "la clé, par « drimbox restore --check --identity »"
            )
        progress.total, progress.stage = 1, "vérification"
        return await self._run(progress, ["restore", "--check", "--json", str(file)])

    async def files(self, folder: Path) -> list[dict[str, Any]]:
        """List the backups of this gateway in a folder, newest first. Raises `OSError`."""

        def look() -> list[dict[str, Any]]:
            found = backups_in(folder, self._config.drimbox.system_id)
            return [_facts(each) for each in reversed(found[-MAX_LISTED:])]

        return await self._in_thread(look)

    async def stop(self) -> None:
        """End what runs."""
        if self.jobs.last is not None:
            self.jobs.last.progress.stopping = True
        if self._child is not None:
            self._child.end()
        await self.jobs.stop()

    async def _run(self, progress: Progress, arguments: Sequence[str]) -> Mapping[str, Any]:
        def stage(number: int) -> None:
            progress.done, progress.stage = number, making.STAGES[number]

        if progress.stopping:
            raise JobStopped
        child = self._child = _Child(self._reactor, stage)
        # -P: what is imported never depends on the folder we stand in.
        command = [sys.executable, "-P", "-m", "drimbox.cli", *arguments]
        # What is unpacked to be checked is as private as the store, and as large.
        environment = {**os.environ, "TMPDIR": str(self._config.drimbox.state_dir)}
        child.start(command, environment, self.settings.timeout)
        try:
            code = await child.ended
        finally:
            self._child = None
        if progress.stopping:
            raise JobStopped
        if code != 0:
            raise JobFailed(child.reason(self.settings.timeout))
        result: dict[str, Any] = json.loads(child.output)
        # The files of the configuration, secrets among them, are nobody's business here.
        result["members"] = len(result["members"])
        progress.done, progress.stage = progress.total, ""
        return result


class _Child(ProcessProtocol):
    """The command at work; `ended` fires with its exit status, None when a signal ended it."""

    def __init__(self, reactor: Any, stage: Callable[[int], None]) -> None:
        self.ended: Deferred[int | None] = Deferred()
        self.output = b""
        self._reactor = reactor
        self._stage = stage
        self._errors = b""
        self._late = False
        self._timers: list[IDelayedCall] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str], timeout: float) -> None:
        """Run it, for `timeout` seconds at the most."""
        self._reactor.spawnProcess(self, command[0], command, env=dict(environment))
        self._timers.append(self._reactor.callLater(timeout, self._too_late))

    def end(self) -> None:
        """Have it clear away and end, or end it."""
        self._signal("TERM")
        self._timers.append(self._reactor.callLater(_GRACE, self._signal, "KILL"))

    def reason(self, timeout: float) -> str:
        """Return what it said when it failed, in French."""
        if self._late:
            return f"abandonnée après {timeout:.0f} s ([backup] timeout)"
        lines = [line for line in self._errors.decode("utf-8", "replace").splitlines() if line.strip()]
        words = [line for line in lines if not line.startswith(STAGE)]
        return (
            re.sub(r"^Erreur : ", "", words[-1]) if words else "le processus de sauvegarde s'est interrompu"
        )

    # -- Twisted -----------------------------------------------------------------------------------

    def outReceived(self, data: bytes) -> None:
        """Keep its answer."""
        self.output = (self.output + data)[:_MAX_OUTPUT]

    def errReceived(self, data: bytes) -> None:
        """Follow its stages; keep the end of what it says."""
        self._errors = (self._errors + data)[-_MAX_ERRORS:]
        for found in re.findall(rb"(?m)^stage ([0-9]+)$", self._errors)[-1:]:
            if int(found) < len(making.STAGES):
                self._stage(int(found))

    def processEnded(self, reason: Failure) -> None:
        """Tell whoever waits."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        code: int | None = getattr(reason.value, "exitCode", None)
        self.ended.callback(code)

    # -- own ---------------------------------------------------------------------------------------

    def _too_late(self) -> None:
        self._late = True
        self.end()

    def _signal(self, name: str) -> None:
        try:
            if self.transport is not None:
                self.transport.signalProcess(name)
        except ProcessExitedAlready:
            pass


def _facts(path: Path) -> dict[str, Any]:
    facts = path.stat()
    made = made_at(path)
    return {
        "file": str(path),
        "name": path.name,
        "size": facts.st_size,
        "made_at": made.isoformat() if made is not None else None,
        "sealed": path.name.endswith(".age"),
    }

"""What a gateway process holds: memory, descriptors, objects, AE titles; read from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from drimbox.sim.stand import LOOPBACK
from tests.integration.hospital import Hospital

_CENSUS = Path(__file__).parent / "census"
_SAMPLE = re.compile(r"^(drimbox_\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)
#: Gauges that are zero when nothing is being done.
AT_REST = (
    "drimbox_deliveries_running",
    "drimbox_pool_used",
    "drimbox_pool_waiting",
    "drimbox_spool_bytes",
    "drimbox_window_bytes",
    "drimbox_transcoding_waiting",
)


@contextmanager
def counted(folder: Path) -> Iterator[None]:
    """Let the gateway that is started inside this block be counted (`Probe.census`)."""
    before = {key: os.environ.get(key) for key in ("PYTHONPATH", "DRIMBOX_CENSUS")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_CENSUS), before["PYTHONPATH"])))
    os.environ["DRIMBOX_CENSUS"] = str(folder / "census.json")
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@attrs.frozen
class Holdings:
    """What the process holds at a moment when nothing is being done."""

    #: Bytes of memory, after a collection.
    memory: int
    descriptors: Counter[str]
    processes: int
    objects: dict[str, int] = attrs.field(repr=False)

    def more_than(self, before: Holdings, tolerance: int = 0) -> dict[str, int]:
        """Return the objects of which there are more than before."""
        grown = {name: count - before.objects.get(name, 0) for name, count in self.objects.items()}
        return {name: count for name, count in grown.items() if count > tolerance}


class Probe:
    """Looks at the gateway of a hospital; its methods block, so they are for threads."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital
        self._census = hospital.folder / "census.json"

    @property
    def _proc(self) -> Path:
        return Path(f"/proc/{self._hospital.stand.pid}")

    def resident(self) -> int:
        """Bytes of memory."""
        return int((self._proc / "status").read_text().split("VmRSS:")[1].split()[0]) * 1024

    def descriptors(self) -> Counter[str]:
        """Open files by name; sockets, pipes and files without a name by kind.

        Less the store's, which opens a few connections when it needs them.
        """
        found: Counter[str] = Counter()
        for each in (self._proc / "fd").iterdir():
            with suppress(FileNotFoundError):
                target = os.readlink(each)
                kind, colon, _ = target.partition(":")
                if "/drimbox.db" in target:
                    continue
                found["nameless file" if target.endswith("(deleted)") else kind if colon else target] += 1
        return found

    def processes(self) -> int:
        """Child processes."""
        return len((self._proc / "task" / self._proc.name / "children").read_text().split())

    def gauges(self) -> dict[str, float]:
        """Every metric; those with labels under their name, summed, and with their labels."""
        url = f"http://{LOOPBACK}:{self._hospital.stand.admin_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        values: dict[str, float] = {}
        for name, labels, value in _SAMPLE.findall(text):
            values[name] = values.get(name, 0.0) + float(value)
            if labels:
                values[name + labels] = float(value)
        return values

    def busy(self) -> dict[str, float]:
        """Return what is not at rest."""
        gauges = self.gauges()
        return {name: gauges[name] for name in AT_REST if gauges[name]}

    def at_rest(self, *, seconds: float = 30.0) -> float:
        """Wait until nothing is being done; return how long that took, in seconds."""
        start = time.monotonic()
        while busy := self.busy():
            assert time.monotonic() < start + seconds, busy
            time.sleep(0.05)
        return time.monotonic() - start

    def objects(self) -> dict[str, int]:
        """Count what lives in the process."""
        self._census.unlink(missing_ok=True)
        pid, limit = self._hospital.stand.pid, time.monotonic() + 60
        os.kill(pid, signal.SIGUSR2)
        while not self._census.exists():
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(1)
                raise AssertionError("no census\n" + Path(f"{self._census}.stacks").read_text())
            time.sleep(0.02)
        counts: dict[str, int] = json.loads(self._census.read_text())
        assert "error" not in counts, counts["error"]
        return counts

    def holdings(self) -> Holdings:
        """Look, once nothing is being done any more."""
        self.at_rest()
        objects = self.objects()
        return Holdings(self.resident(), self.descriptors(), self.processes(), objects)

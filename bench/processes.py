"""What a process costs, read from /proc: processor time and resident memory (proc(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time, user and system, of one process without its children, in seconds."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / _TICKS


def exact_cpu_seconds(pid: int) -> float:
    """Return the same from the clock of that process, which counts in nanoseconds, not in hundredths.

    The number of the clock is the one that clock_getcpuclockid(3) makes of the process's.
    """
    return time.clock_gettime(~pid << 3 | 2)


def session_cpu_seconds(pid: int) -> float:
    """Return the processor time of a session led by `pid`: all its processes, those reaped included."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = _stat(entry / "stat")
        except OSError:
            continue  # it has just ended; its parent has its time from now on
        if int(fields[3]) == pid:
            total += sum(int(value) for value in fields[11:15])
    return total / _TICKS


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    return _status(pid, "VmRSS")


def peak_mb(pid: int) -> float:
    """Return the most resident memory since the last `reset_peak`, MB."""
    return _status(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Make the peak start again from the present."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _stat(path: Path) -> list[str]:
    """Return the fields of a stat file from the third on: the second may hold blanks."""
    return path.read_text().rpartition(")")[2].split()


def _status(pid: int, key: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024 / 1e6

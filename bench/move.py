"""A C-MOVE asked for by DCMTK's `movescu`, timed, into whatever receiver.

For receivers that cannot ask by themselves. Its own start, and the acknowledgements it delays, are part
of the time (some 100 ms in all); the floor that the gateway is held against has neither (`bench.mover`).
"""

from __future__ import annotations

import subprocess
import time
from typing import Protocol

import attrs

from bench.null_receiver import MAXIMUM_PDU
from drimbox.sim.peers import Peer, find_program
from drimbox.sim.studies import GeneratedStudy

CALLING = "DRIMBOX"


class Archive(Protocol):
    """What is asked: a PACS on this machine."""

    ae_title: str
    port: int


class MoveFailed(Exception):
    """The C-MOVE did not end in success; the message is what `movescu` said."""


@attrs.frozen
class MoveTime:
    """One C-MOVE: when it was asked for, and when its final response had come (monotonic clock)."""

    started_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.started_at


def bare_move(
    pacs: Peer,
    study: GeneratedStudy,
    destination: str,
    *,
    receive_on: int | None = None,
    timeout: float = 600.0,
) -> MoveTime:
    """Move the images of a study, series by series as the gateway does, to a destination AE title.

    With `receive_on`, `movescu` itself is the receiver, on that port (`+P`, data ignored). Raises
    `MoveFailed` on anything but success, and after `timeout` seconds for each series.
    """
    command = [find_program("movescu"), "-S", "-aet", CALLING, "-aec", pacs.ae_title, "-aem", destination]
    if receive_on is not None:
        command += ["+P", str(receive_on), "--ignore", "+xt", "-pdu", str(MAXIMUM_PDU)]
    command += [pacs.host, str(pacs.port), "-k", "QueryRetrieveLevel=SERIES"]
    command += ["-k", f"StudyInstanceUID={study.study_uid}"]
    started_at = time.monotonic()
    for series in study.series:
        try:
            done = subprocess.run(
                [*command, "-k", f"SeriesInstanceUID={series.series_uid}"],
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise MoveFailed(f"movescu had not ended after {timeout:.0f} s") from late
        if done.returncode != 0:
            said = (done.stderr + done.stdout).decode(errors="replace").strip()
            raise MoveFailed(f"movescu ended with {done.returncode}: {said[-500:]}")
    return MoveTime(started_at, time.monotonic())

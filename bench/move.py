"""A bare C-MOVE, timed: the PACS, the wire and a receiver, without the gateway.

The one who asks is DCMTK's `movescu`: a program in C++ that does next to nothing per answer, so that on
two cores it takes little from the two ends being measured. Its own start (some 20 ms) is part of the
time, as the gateway's handling of a request is part of the gateway's.
"""

from __future__ import annotations

import subprocess
import time

import attrs

from bench.null_receiver import MAXIMUM_PDU
from drimbox.sim.peers import Peer, find_program
from drimbox.sim.studies import GeneratedStudy

CALLING = "DRIMBOX"


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

"""What a delivery needs of transcoding: a door, an answer, and one way to fail.

`codecpool` implements it; use-cases know nothing of its processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from drimbox.dicom.elements import Buffer


class TranscodeFailed(Exception):
    """The instance could not be transcoded; nothing else has suffered.

    `result` says why, in one word of a closed list: `refused` (the data set, or the target for it),
    `memory`, `timeout`, `crashed`, `busy` (the queue is full: try again later), `bug`, `closed`.
    """

    def __init__(self, result: str, why: str) -> None:
        super().__init__(f"{result}: {why}")
        self.result = result


@attrs.frozen
class Transcoded:
    """A data set without file meta, in the transfer syntax `syntax`."""

    syntax: str
    data: Buffer


class Transcoder(Protocol):
    """Turns whole instances into other transfer syntaxes, outside this process (DB.CS.83)."""

    async def transcode_to_first(self, dataset: Buffer, source: str, targets: Sequence[str]) -> Transcoded:
        """Try `targets` in turn, best first; raise the `TranscodeFailed` of the last one."""

"""What the figures are held against: each target once, for every figure whose name it fits."""

from __future__ import annotations

import re
from typing import Final

import attrs


@attrs.frozen
class Target:
    """A bound on the figures whose name `pattern` fits."""

    pattern: str
    at_most: float | None = None
    at_least: float | None = None

    def covers(self, name: str) -> bool:
        """Say whether it is about that figure."""
        return re.fullmatch(self.pattern, name) is not None

    def met(self, value: float) -> bool:
        """Say whether a value is within it."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"


_PACS: Final = r"(dcmqrscp|orthanc)\."

TARGETS: Final = (
    Target(_PACS + r"(pipeline|movescu)_ratio", at_most=1.5),
    Target(_PACS + r"first_image", at_most=0.1),
    Target(_PACS + r"first_image_after_store", at_most=0.02),
    Target(_PACS + r"obvious_ratio", at_least=5.0),
    Target(_PACS + r"dicomweb_ratio", at_most=2.0),
    # Linear: an instance of the largest study costs no more than a tenth above one of the reference.
    Target(_PACS + r"growth\.linearity", at_most=1.1),
    # Flat: not even the window of one delivery (8 MiB) apart.
    Target(_PACS + r"growth\.memory_spread", at_most=8.4),
    Target(_PACS + r"parallel\.\d+\.kept", at_least=0.9),
    Target(_PACS + r"tiny\.rate", at_least=1000.0),
    Target(_PACS + r"transcoded\.first_image", at_most=0.15),
    # The national limits (DB.SO.113, DB.SO.100), in seconds.
    Target(r"(dcmqrscp|orthanc|native)\.study", at_most=17.0),
    Target(r"native\.first_image", at_most=2.0),
    # The feed.
    Target(r"feed\.latency\.(large\.)?dmp", at_most=0.5),
    Target(r"feed\.accept\.\d+\.rate", at_least=100.0),
    Target(r"feed\.publications", at_least=20.0),
    # It must not sink while the tables grow: by a tenth at the most.
    Target(r"drain\.kept", at_least=0.9),
    Target(r"archive\.lookup(_p99)?", at_most=0.005),
    # Issue 6: 100 polls a second.
    Target(r"health\.kept\.cpu", at_most=3.0),
    # Issue 6: among ten million events, however cold.
    Target(r"audit\.(search(_cold)?(_p99)?|command)", at_most=1.0),
    Target(r"audit\.verify_memory", at_most=32.0),
    # A session of a viewer's name would open a WADO name (threats.md): nothing resumes.
    Target(r"door\.resumed", at_most=0.0),
    # Constant memory: a few batches and the numbers of a month, whatever the archive.
    Target(r"(export\.memory|archive\.walk_memory|scale\.\w+\.memory)", at_most=32.0),
)


def target_of(name: str) -> Target | None:
    """Return the target of a figure, None when it has none."""
    return next((target for target in TARGETS if target.covers(name)), None)

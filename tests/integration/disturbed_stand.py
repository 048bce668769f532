"""A feed stand whose gateway process a test disturbs from outside (`disturbed`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drimbox.sim.stand import PacsAddress
from tests.integration.disturbed import VARIABLE, Disturbance
from tests.integration.feed_stand import FeedStand

ROOT = Path(__file__).resolve().parents[2]


class DisturbedStand(FeedStand):
    """`FeedStand` whose gateway process is `disturbed`."""

    def __init__(self, folder: Path, pacses: Sequence[PacsAddress], **options: Any) -> None:
        super().__init__(folder, pacses, **options)
        (folder / "disturbed").mkdir(parents=True)
        self.disturbance = Disturbance(folder / "disturbed")

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "tests.integration.disturbed"]

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "PYTHONPATH": str(ROOT),
            VARIABLE: str(self.disturbance.folder),
        }

"""Where the published samples are, when they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def published(name: str) -> bytes:
    """Return the bytes of a published sample; skip the test when it is not there."""
    base = Path(os.environ.get("DRIMBOX_SAMPLES", ROOT.parent / "shared" / "data" / "ans-poc"))
    for path in (base / name, base / "ans-poc" / name):
        if path.is_file():
            return path.read_bytes()
    pytest.skip(f"published sample {name} not present (DRIMBOX_SAMPLES)")

"""What the machine can do is measured before every run of the bench: in its tests for a moment only."""

from __future__ import annotations

import pytest

from bench import machine


@pytest.fixture(autouse=True)
def a_moment_of_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SECONDS", 0.05)

"""`drimbox doctor` at the front ends: which are declared, and whether they say who calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from drimbox import metrics
from drimbox.doctor.doors import front_ends
from drimbox.doctor.findings import State

pytestmark = pytest.mark.requirement("DB.SO.35")


def test_front_ends_declared_or_not_and_one_without_header() -> None:
    config: Any = SimpleNamespace(
        wado=SimpleNamespace(front_ends=()), hl7=SimpleNamespace(front_ends=("10.0.0.7/32",))
    )
    before = metrics.REGISTRY.get_sample_value(
        "drimbox_connections_refused_total", {"door": "hl7", "reason": "front_end"}
    )
    wado, hl7 = front_ends(config)
    assert (wado.subject, wado.state) == ("wado", State.OK)
    assert "aucun frontal" in wado.text
    assert "10.0.0.7/32" in hl7.text
    metrics.CONNECTIONS_REFUSED.labels("hl7", "front_end").inc(2)
    _, hl7 = front_ends(config)
    assert hl7.state is State.WARNING
    assert f"{int(before or 0) + 2} connexion(s) refusée(s)" in hl7.text
    assert "send-proxy" in hl7.mend

"""Several processes behind HAProxy: all of them work, on a small scale."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from bench.machine import describe
from bench.nodes import measure_nodes
from bench.plan import QUICK
from bench.report import filled
from bench.results import Results

PLAN = attrs.evolve(QUICK, feed_instances=2, nodes=(2,), nodes_burst=12)


@pytest.mark.peer("postgres", "haproxy", "dcmqrscp")
def test_reports_and_deliveries_are_shared_by_two_nodes(tmp_path: Path) -> None:
    results = Results()
    measure_nodes(results, PLAN, tmp_path)
    figures = {each.name.removeprefix("nodes.2."): each.value for each in results.all()}
    assert set(figures) == {"accepted", "published", "publication_cpu", "delivered", "busiest"}
    assert all(value > 0 for value in figures.values())
    # Four deliveries at once: none of the two had them all.
    assert figures["busiest"] < 0.95
    results.write(tmp_path / "nodes.json", describe())
    document = "<!-- figures: nodes -->\n<!-- end -->"
    text = filled(document, {"nodes": json.loads((tmp_path / "nodes.json").read_text())})
    assert "| 2 |" in text

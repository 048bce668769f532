"""Metrics, alert rules and dashboard agree with the code and with the operators' document."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric

from drimbox import metrics
from drimbox.sim.peers import find_program

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "etc" / "prometheus" / "drimbox.rules.yml"
CASES = Path(__file__).parent / "alerts.yml"
DASHBOARD = ROOT / "etc" / "grafana" / "drimbox.json"
DOCUMENT = ROOT / "docs" / "exploitation-supervision.md"

ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))
#: Given to every series by Prometheus, or by a histogram.
FREE_LABELS = {"job", "instance", "le"}


def promtool(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run promtool."""
    program = find_program("promtool")
    return subprocess.run([program, *arguments], input=given, capture_output=True, timeout=120, check=False)


def families() -> dict[str, Metric]:
    """Return every series name of the gateway with its family."""
    found: dict[str, Metric] = {}
    for family in metrics.REGISTRY.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
        }.get(family.type, ("",))
        found |= {family.name + suffix: family for suffix in suffixes}
    return found


def labels_of(name: str) -> set[str]:
    """Return the labels that the code gives a series."""
    collector = metrics.REGISTRY._names_to_collectors.get(name)
    assert collector is not None, name
    return set(getattr(collector, "_labelnames", ()))


def expressions() -> list[str]:
    """Return every query of rules and dashboard."""
    rules = re.findall(r"expr: >-\n\s+(.+)", RULES.read_text("utf-8"))
    board = json.loads(DASHBOARD.read_text("utf-8"))
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(rules) == len(ALERTS)
    assert len(panels) > 30
    return [*rules, *panels]


@pytest.mark.peer("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", str(RULES)),
        ("check", "config", str(RULES.with_name("prometheus.yml"))),
        ("test", "rules", str(CASES)),
    ],
)
def test_promtool_approves_of_rules_and_their_tests(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.peer("promtool")
def test_promtool_approves_of_the_metrics() -> None:
    done = promtool("check", "metrics", given=metrics.exposition())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.peer("promtool")
def test_a_rule_that_says_something_else_fails_its_test(tmp_path: Path) -> None:
    rules = RULES.read_text("utf-8").replace("drimbox_queue_parked > 0", "drimbox_queue_parked > 5")
    assert rules != RULES.read_text("utf-8")
    (tmp_path / "drimbox.rules.yml").write_text(rules, "utf-8")
    cases = re.sub(r"- \S+drimbox\.rules\.yml", "- drimbox.rules.yml", CASES.read_text("utf-8"))
    (tmp_path / "alerts.yml").write_text(cases, "utf-8")
    assert promtool("test", "rules", str(tmp_path / "alerts.yml")).returncode == 1


def test_every_alert_is_tried_silent_and_firing() -> None:
    cases = re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\]|\n +- exp_labels)", CASES.read_text("utf-8"))
    assert len(ALERTS) == len(set(ALERTS)) >= 20
    assert {name for name, result in cases if result == " []"} == set(ALERTS)
    assert {name for name, result in cases if result != " []"} == set(ALERTS)


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    text = DOCUMENT.read_text("utf-8")
    sections = dict(re.findall(r"^### (Drimbox\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(ALERTS)
    for name, body in sections.items():
        assert "**Que faire**" in body, name


def test_rules_and_dashboard_ask_only_for_metrics_and_labels_that_exist() -> None:
    known = families()
    for expression in expressions():
        bare = re.sub(r'"[^"]*"', "", expression)
        names = re.findall(r"\b(?:drimbox|process)_[a-z0-9_]+\b", bare)
        assert names or expression.startswith("up{"), expression
        assert set(names) <= set(known), (expression, set(names) - set(known))
        allowed = FREE_LABELS.union(*(labels_of(known[name].name) for name in names))
        used = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        used |= set(re.findall(r"[{,]\s*(\w+)(?:=~|!=|=)", expression))
        assert used <= allowed, (expression, used - allowed)


def test_values_that_rules_select_are_said_somewhere_in_the_code() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "drimbox").rglob("*.py"))
    for expression in expressions():
        for value in re.findall(r'=~?"([\w|.]+)"', expression):
            for word in value.split("|"):
                assert f'"{word}"' in code or word == "drimbox", (expression, word)


def test_panels_of_the_dashboard_stand_beside_each_other() -> None:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        at = panel["gridPos"]
        columns, rows = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_no_metric_has_a_label_that_could_hold_an_identity() -> None:
    allowed = {
        *("ris", "ack", "result", "queue", "list", "certificate", "outcome", "channel", "site", "code"),
        *("pacs", "state", "role", "reason", "target", "kind", "end", "verdict", "transaction", "syntax"),
        *("door", "standing"),
    }
    for name in {family.name for family in metrics.REGISTRY.collect()}:
        assert labels_of(name) <= allowed, name

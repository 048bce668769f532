"""What the operators' pages tell people to type and to watch exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from prometheus_client.metrics import MetricWrapperBase

from drimbox import metrics
from drimbox.cli import cli
from drimbox.configfile.keys import RULES

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("exploitation*.md"))


_CALL = re.compile(r"(?:^|\s)drimbox ([a-z][a-z|-]*(?: [a-z][a-z\\|-]*)*)")
_KEYS = (re.compile(r"`\[[a-z.]+\] ([a-z_]+)`"), re.compile(r"`([a-z]+_[a-z_]+)(?: = [^`]*)?`"))


def commands(text: str) -> list[str]:
    """Return what stands behind `drimbox` in code, up to the first option or value."""
    code = re.findall(r"`([^`\n]+)`", text)
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
        code += block.splitlines()
    calls = [call for line in code for call in _CALL.findall(line.partition("#")[0])]
    # `sudo -u drimbox drimbox ...`: the first is the account.
    return [call.removeprefix("drimbox ") for call in calls]


def known(words: list[str]) -> bool:
    """Say whether these words are a command; what follows one that has no subcommands are its values."""
    current: click.Command = cli
    for word in words:
        if not isinstance(current, click.Group):
            return True
        names = re.split(r"\\?\|", word)
        if not all(name in current.commands for name in names):
            return False
        current = current.commands[names[0]]
    return True


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_exists(path: Path) -> None:
    missing = [call for call in commands(path.read_text("utf-8")) if not known(call.split())]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_metric_exists(path: Path) -> None:
    found = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    names = {each._name for each in found} | {f"{each._name}_total" for each in found}
    named = set(re.findall(r"\bdrimbox_[a-z][a-z0-9_]+", path.read_text("utf-8")))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} - names == set()


def test_every_page_is_in_the_guide() -> None:
    guide = (DOCS / "exploitation.md").read_text("utf-8")
    assert [path.name for path in PAGES if path.name not in guide] == ["exploitation.md"]


def test_every_key_named_in_the_guide_exists() -> None:
    keys = {key for rules in RULES.values() for key in rules}
    text = (DOCS / "exploitation.md").read_text("utf-8")
    named = {name for pattern in _KEYS for name in pattern.findall(text)}
    assert {name for name in named if not name.startswith("drimbox_")} - keys == set()

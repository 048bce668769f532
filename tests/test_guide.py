"""What the operators' pages tell people to type and to watch exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client.metrics import MetricWrapperBase

from drimbox import metrics
from drimbox.cli import cli
from drimbox.configfile.keys import RULES

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXAMPLE = DOCS.parent / "etc" / "drimbox.toml"
PAGES = sorted(DOCS.glob("exploitation*.md"))


_KEYS = (re.compile(r"`\[[a-z.]+\] ([a-z_]+)`"), re.compile(r"`([a-z]+_[a-z_]+)(?: = [^`]*)?`"))
#: A whole command line: behind a prompt, another account, another command, or a path.
_CALL = re.compile(r"(?:^|[\s/=])(?<!-u )(?<!--name )drimbox ([a-z][^#>&;(),]*)")
#: What stands for a value: `FICHIER`, `NOM`; what goes on beside a line in a block.
_STANDS_FOR = re.compile(r"[A-ZÉ@:]{3,}|.*…")


def lines_of(text: str) -> Iterator[tuple[str, bool]]:
    """Yield what stands behind `drimbox` in code, and whether it is a whole line of a block."""
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n\s+", "", block).splitlines():
            yield from ((call.strip(), True) for call in _CALL.findall(re.sub(r"^[$#] ", "", line.strip())))
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield from ((call.strip(), False) for call in _CALL.findall(code.replace("\\|", "|")))


def refused(call: str, *, whole: bool) -> str:
    """Say why the command line would refuse this, empty when it would not.

    A mention in a sentence may leave out what a whole line may not; a value that stands for another, and a
    file that is not here, are no mistakes.
    """
    words = shlex.split(re.sub(r"^(?:drimbox )+|[\[\]]", "", call))
    current: click.Command = cli
    while isinstance(current, click.Group) and words and not words[0].startswith("-"):
        names = words.pop(0).split("|")
        missing = [name for name in names if name not in current.commands]
        if missing:
            return f"no command {missing}"
        current = current.commands[names[0]]
    if isinstance(current, click.Group) and not words:
        return "a group alone" if whole and not current.invoke_without_command else ""
    if "--help" in words or not (words or whole):
        return ""
    try:
        with current.make_context("drimbox", list(words)):
            return ""
    except (click.MissingParameter, click.BadOptionUsage) as error:
        return error.format_message() if whole else ""
    except click.BadParameter as error:
        stands = any(_STANDS_FOR.fullmatch(word) for word in words)
        return "" if stands or "introuvable" in error.message else error.format_message()
    except click.UsageError as error:
        return error.format_message()
    except (click.exceptions.Exit, click.ClickException):
        return ""


PAGES_OF_ALL = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", EXAMPLE]


@pytest.mark.parametrize("path", PAGES_OF_ALL, ids=lambda path: path.stem)
def test_every_command_line_would_be_taken(path: Path) -> None:
    calls = list(lines_of(path.read_text("utf-8")))
    wrong = [(call, why) for call, whole in calls if (why := refused(call, whole=whole))]
    assert wrong == []


def test_wrong_command_lines_are_found() -> None:
    text = (
        "`drimbox notices lst` `drimbox audit verify --jsno`\n```\n$ sudo -u drimbox drimbox restore\n```\n"
    )
    assert [call for call, whole in lines_of(text) if refused(call, whole=whole)] == [
        "restore",
        "notices lst",
        "audit verify --jsno",
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_metric_exists(path: Path) -> None:
    found = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    names = {each._name for each in found} | {f"{each._name}_total" for each in found}
    named = set(re.findall(r"\bdrimbox_[a-z][a-z0-9_]+", path.read_text("utf-8")))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} - names == set()


def test_every_page_is_in_the_guide() -> None:
    guide = (DOCS / "exploitation.md").read_text("utf-8")
    assert [path.name for path in PAGES if path.name not in guide] == ["exploitation.md"]


def keys_by_section() -> dict[str, set[str]]:
    """Return the keys of each section of the example, which has them all."""
    found: dict[str, set[str]] = {}
    section = ""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"#?\[{1,2}([a-z0-9.]+)\]{1,2}", line):
            section = heading[1]
        elif key := re.match(r"#?([a-z0-9_]+) = ", line):
            found.setdefault(section, set()).add(key[1])
    return found


@pytest.mark.parametrize("path", PAGES_OF_ALL, ids=lambda path: path.stem)
def test_every_key_is_named_with_its_section(path: Path) -> None:
    keys = keys_by_section()
    named = re.findall(r"`\[{1,2}([a-z.]+)\]{1,2} ([a-z0-9_]+)", path.read_text("utf-8"))
    assert [(section, key) for section, key in named if key not in keys.get(section, ())] == []


def test_every_key_named_alone_in_the_guide_exists() -> None:
    keys = {key for rules in RULES.values() for key in rules}
    text = (DOCS / "exploitation.md").read_text("utf-8")
    named = {name for pattern in _KEYS for name in pattern.findall(text)}
    assert {name for name in named if not name.startswith("drimbox_")} - keys == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_selected_of_a_metric_exists(path: Path) -> None:
    sources = [each for each in (DOCS.parent / "drimbox").rglob("*.py") if "configfile" not in each.parts]
    code = "".join(each.read_text("utf-8") for each in sources)
    for name, selected in re.findall(r"\b(drimbox_\w+)\{([^}]*)\}", path.read_text("utf-8")):
        collector = metrics.REGISTRY._names_to_collectors[name]
        for part in selected.split(","):
            label, _equals, value = part.strip().partition("=")
            assert label in getattr(collector, "_labelnames", ()), (name, label)
            assert not value or f'"{value.strip(chr(34))}"' in code, (name, value)

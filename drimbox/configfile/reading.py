"""Reads the TOML file into `drimbox.config.Config` and says everything that is wrong with it at once.

Theory of operation. The file goes through four steps, none of which has a side effect:

1. *syntax*: bytes to tables (`tomllib`); a mistake here hides the rest, so it is reported alone;
2. *shape*: the classes of `drimbox.config` say which tables and keys exist; each value goes through its
   rule (`rules`, `keys`). The outcome is a tree of good values: what was wrong is left out and reported;
3. *sense*: what several values say together (`sense`), then what the paths lead to (`paths`),
   on whatever part of the tree is good, so that one mistake does not hide another;
4. *build*: only when no error was found, the tree becomes a `Config`.

Every mistake carries its path in the file (`site[0].pacs.port`), the problem and the way to mend it, in
French. A secret is always a path to a file, never a value, and no value that may be one is printed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from drimbox.config import Config, Listener
from drimbox.configfile import health, native, notifications, proxy, sense, trust
from drimbox.configfile.lines import with_lines
from drimbox.configfile.report import ConfigMistake, Report, Tree
from drimbox.configfile.shape import Shape, build
from drimbox.configfile.syntax import parse


class ConfigErrors(Exception):
    """The file cannot be used. `mistakes` are the errors, in the order of the file's sections."""

    def __init__(self, path: Path, mistakes: list[ConfigMistake]) -> None:
        super().__init__(f"{path} : " + " / ".join(map(str, mistakes)))
        self.path = path
        self.mistakes = mistakes


def load(path: Path, *, files: bool = True, now: datetime | None = None) -> Config:
    """Return the configuration, every path made absolute.

    `files=False` leaves the files named in it unread, for commands that need none of them. Raises
    `ConfigErrors` with all mistakes at once.
    """
    config, report = _examine(path, files=files, now=now)
    if config is None:
        raise ConfigErrors(path, report.errors)
    return config


def check(
    path: Path, *, files: bool = True, now: datetime | None = None
) -> tuple[list[ConfigMistake], list[ConfigMistake]]:
    """Return the errors (the gateway would not start) and the warnings (it would, but look)."""
    _, report = _examine(path, files=files, now=now)
    return report.errors, report.warnings


def admin_listener(path: Path) -> Listener:
    """Return where the running process listens for commands, whatever the rest of the file holds.

    An operator may ask for the status without being allowed to read the private keys. Raises
    `ConfigErrors` when the file cannot be read or `[admin]` itself is wrong.
    """
    report = Report()
    raw = parse(path, report)
    section = Shape(report, path.parent).read(Config, {"admin": raw.get("admin", {})}, "", only="admin")
    if report.errors or "admin" not in section:
        raise ConfigErrors(path, with_lines(report.errors, report.document))
    built: Listener = build(Listener, section["admin"])
    return built


def _examine(path: Path, *, files: bool, now: datetime | None) -> tuple[Config | None, Report]:
    report = Report()
    tree = _judge(path, report, files=files, now=now)
    report.errors = with_lines(report.errors, report.document)
    report.warnings = with_lines(report.warnings, report.document)
    if report.errors:
        return None, report
    config: Config = build(Config, tree)
    return config, report


def _judge(path: Path, report: Report, *, files: bool, now: datetime | None) -> Tree:
    """Return the good values of the file, everything that is wrong noted in `report`."""
    raw = parse(path, report)
    if report.errors:
        return {}
    tree = Shape(report, path.absolute().parent).read(Config, raw, "")
    sense.check(tree, report)
    native.check(tree, report)
    notifications.check(tree, report)
    health.check(tree, report)
    proxy.check(tree, report)
    trust.check(tree, report)
    if files:
        # It reads certificates, and so takes half as long to import as everything else here.
        from drimbox.configfile import paths

        paths.check(tree, report, now or datetime.now(UTC))
    return tree

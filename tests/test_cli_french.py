"""What an operator reads of the `drimbox` command is French, whoever wrote the words."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy.exc import OperationalError

from drimbox.cli import cli
from drimbox.commands.french import _TEXTS
from drimbox.commands.words import _KEYS, french
from drimbox.store.words import database_reason
from drimbox.systemerrors import system_reason

ROOT = Path(__file__).parent.parent


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], prog_name="drimbox")


def test_every_text_that_click_translates_is_french() -> None:
    """A new version of click brings new texts: put them into the table, or here when nobody meets them."""
    unmet = (
        # Completion, editors, pagers and Windows; options and types that no command of ours has.
        *("Bash", "Editing failed", "Windows error", "DeprecationWarning", "deprecated", "UUID", "format"),
        *("Do you want to continue", "Confirm the action", "version", "Press any key", "Unknown color"),
        *("Takes {nargs}", "takes {nargs}", "requires {nargs}", "values are required", "Choice({choices})"),
        # Mistakes of whoever writes a command.
        *("Could not determine name", "No options defined", "defined twice", "exactly one parameter"),
        *("cannot use the same flag", "Value must be an iterable", "Unknown standard stream", "(dynamic)"),
    )
    folder = Path(click.__file__).parent
    calls = [node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    texts = {
        argument.value
        for call in calls
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("_", "ngettext")
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    assert len(texts) > 50
    assert sorted(text for text in texts - set(_TEXTS) if not any(part in text for part in unmet)) == ["d"]


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its path."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_help_is_french() -> None:
    for path, command in commands(cli):
        # Click would name the variable in its errors, in English.
        assert not any(getattr(each, "show_envvar", False) for each in command.params)
        result = run(*path, "--help")
        assert result.exit_code == 0
        # What click calls a value nobody gave a name to, and a default nobody translated.
        assert not re.search(r"\b(TEXT|INTEGER|FLOAT|PATH|DIRECTORY|default|required)\b", result.output), (
            path
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("backup", "/absent"), "Dossier '/absent' introuvable"),
        (("restore", "/absent"), "Fichier '/absent' introuvable"),
        (("restore", "/etc"), "Fichier '/etc' est un dossier"),
        (("restore", "/etc/passwd", "--state-dir", "/etc/passwd"), "Dossier '/etc/passwd' est un fichier"),
        (("accounts", "add", "anne"), "Option manquante '--role'. Choisir parmi"),
        (("audit", "search", "--limit", "0"), "0 n'est pas dans l'intervalle"),
    ],
)
def test_wrong_values_are_refused_in_french(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_two_passwords_that_differ_are_said_in_french(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["un mot de passe", "un autre", "un mot de passe", "un mot de passe"])
    said: list[str] = []
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda text: said.append(text) or next(typed))
    monkeypatch.setattr("click.termui.echo", lambda text, **_: said.append(text))
    click.prompt("Mot de passe", hide_input=True, confirmation_prompt=True)
    assert "Le répéter: " in said
    assert "Erreur : les deux saisies diffèrent." in said


def test_output_to_a_full_disk_is_an_error_of_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "drimbox.cli", "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr.decode()) == (1, "Erreur : disque plein\n")


# --- answers ----------------------------------------------------------------------------------------


def keys_of(value: Any) -> Iterator[str]:
    """Yield every key of an answer; `<…>` stands for a name."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("<"):
                yield key
            yield from keys_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys_of(item)


@pytest.mark.parametrize("route", ["GET /status", "GET /queues/{queue}/{id}"])
def test_every_key_of_an_answer_that_is_shown_has_its_word(route: str) -> None:
    document = (ROOT / "docs" / "admin-api.md").read_text("utf-8")
    section = document.partition(f"### `{route}`\n")[2].partition("\n### ")[0]
    block = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert block is not None
    told = set(keys_of(json.loads(block[1]))) | set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", section))
    # Words of both languages, names of queues, and what stands only in the sentences.
    same = {"version", "code", "archive", "inbox", "feed"}
    assert told - same - set(_KEYS) == set()


def test_states_and_instants_of_an_answer_are_translated_and_names_are_not() -> None:
    shown = french(
        {
            "queues": {"inbox": {"done": 3, "oldest": "2026-01-12T08:00:00+00:00"}},
            "kos": {"published": 1},
            "sites": [{"name": "done", "ae_titles": {"FREE": "free", "name": "quarantined"}}],
            "outbox": [{"kind": "remove", "state": "done"}],
            "due_at": None,
        }
    )
    assert re.fullmatch(r"2026-01-1\d \d\d:00:00", shown["files"]["inbox"].pop("plus ancienne"))
    assert shown == {
        "files": {"inbox": {"terminée": 3}},
        "KOS": {"publié": 1},
        "sites": [{"nom": "done", "AE titles": {"FREE": "libre", "name": "en quarantaine"}}],
        "envois au DMP": [{"sorte": "retrait", "état": "terminée"}],
        "échéance": None,
    }


# --- what the system and the database say -----------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ECONNREFUSED])
def test_what_the_system_says_is_translated(number: int) -> None:
    assert os.strerror(number) not in system_reason(OSError(number, os.strerror(number)))


def test_what_is_not_in_the_table_has_its_symbol() -> None:
    told = os.strerror(errno.EXDEV)
    assert system_reason(OSError(errno.EXDEV, told)) == f"erreur du système EXDEV {errno.EXDEV}"
    # Our own code raised this one.
    assert system_reason(OSError(errno.ENOTEMPTY, "dossier non vide")) == "dossier non vide"
    assert system_reason(OSError(-2, "Name or service not known")) == "nom introuvable"


def test_what_a_database_says_is_translated(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError) as absent:
        sqlite3.connect(f"file:{tmp_path}/absent.db?mode=ro", uri=True)
    assert database_reason(absent.value) == "fichier inaccessible à ce compte"
    wrapped = OperationalError("SELECT 1", None, sqlite3.OperationalError("database or disk is full"))
    assert database_reason(wrapped) == "disque plein"
    assert database_reason(sqlite3.Error("what no table has")) == "what no table has"

"""The file of accounts and the command that writes it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from drimbox.accounts import AccountsUnusable, Role, make_account, read_accounts
from drimbox.cli import cli

pytestmark = pytest.mark.requirement("DB.CS.06")
PASSWORD = "un mot de passe assez long"


def run(path: Path, *arguments: str, password: str = PASSWORD) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["accounts", *arguments, "--file", str(path)], input=password + "\n")
    return result.exit_code, result.output


def test_added_listed_changed_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "comptes"
    assert run(path, "add", "anne", "--role", "operator")[0] == 0
    assert run(path, "add", "aude", "--role", "auditor")[0] == 0
    assert PASSWORD not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_accounts(path)
    assert found["anne"].accepts(PASSWORD)
    assert not found["anne"].accepts(PASSWORD + "x")
    assert found["anne"].key != found["aude"].key, "each has its own salt"
    assert "modifié" in run(path, "add", "anne", "--role", "auditor", password="un autre mot de passe")[1]
    assert read_accounts(path)["anne"].role is Role.AUDITOR
    assert not read_accounts(path)["anne"].accepts(PASSWORD)
    assert run(path, "list")[1].split() == ["anne", "auditor", "aude", "auditor"]
    assert run(path, "remove", "anne")[0] == 0
    assert run(path, "remove", "anne")[0] == 1
    assert set(read_accounts(path)) == {"aude"}


@pytest.mark.parametrize(
    ("name", "password"), [("a b", PASSWORD), ("anne", "court"), ("anne", "x" * 300), (":", PASSWORD)]
)
def test_what_is_no_account_is_not_written(tmp_path: Path, name: str, password: str) -> None:
    path = tmp_path / "comptes"
    assert run(path, "add", name, "--role", "operator", password=password)[0] == 1
    assert not path.exists()


def test_lines_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "comptes"
    good = make_account("anne", Role.OPERATOR, PASSWORD).line()
    greedy = good.replace("$32768$8$", "$4194304$16$")
    odd = good.replace("$32768$", "$32767$")
    for text in (
        f"{good}\n{good}\n",
        greedy,
        odd,
        good.replace("operator", "root"),
        good[:-30],
        "anne:secret",
        "\0",
    ):
        path.write_text(text)
        with pytest.raises(AccountsUnusable):
            read_accounts(path)
    path.write_text(f"# commentaire\n\n{good}\n")
    assert set(read_accounts(path)) == {"anne"}
    path.write_bytes(b"#" * 100_000)
    with pytest.raises(AccountsUnusable):
        read_accounts(path)

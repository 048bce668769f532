"""The threat model and the tests it names; and what no line of the product may do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Calls that run a shell, or make objects out of bytes.
FORBIDDEN = {
    "os.system",
    "os.popen",
    "eval",
    "exec",
    "pickle.loads",
    "pickle.load",
    "marshal.loads",
    "yaml.load",
    "subprocess.getoutput",
}


def test_every_proof_named_in_the_threat_model_exists() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 70
    missing = []
    for file, test in named:
        path = ROOT / "tests" / file
        source = path.read_text("utf-8") if path.exists() else ""
        if re.search(rf"^(async )?def {test}\(", source, re.MULTILINE) is None:
            missing.append(f"{file}::{test}")
    assert not missing


def table_rows() -> list[str]:
    """Return the rows of the table of rules and proofs."""
    text = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    table = text[text.index("## Rules and their proofs") : text.index("## Revocation of the servers")]
    return [line for line in table.splitlines() if line.startswith("|")][2:]


def test_every_threat_names_a_proof() -> None:
    rows = table_rows()
    assert len(rows) >= 30
    assert not [row for row in rows if "::test_" not in row]


def marks(path: Path) -> set[str]:
    """Return the rows that the tests of a file are marked with; the attacks of the siege are by row too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.threat"):
            found |= {each.value for each in node.args if isinstance(each, ast.Constant)}
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ATTACKS":
            assert isinstance(node.value, ast.Dict)
            found |= {each.value for each in node.value.keys if isinstance(each, ast.Constant)}
    return found


def test_the_rows_and_the_marks_of_the_tests_are_the_same() -> None:
    """A row without a test marked with its name is a promise; a mark without a row is nobody's."""
    rows = {row.split("|")[1].strip() for row in table_rows()}
    marked: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name in marks(path):
            marked.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert rows - set(marked) == set()
    assert {name: files for name, files in marked.items() if name not in rows} == {}


def test_a_proof_is_marked_with_its_row() -> None:
    missing = []
    for row in table_rows():
        name = row.split("|")[1].strip()
        files = {ROOT / "tests" / file for file in re.findall(r"`([\w/]+\.py)::test_", row)}
        missing += [
            (name, str(file.relative_to(ROOT))) for file in sorted(files) if name not in marks(file)
        ]
    assert not missing


@pytest.mark.threat("unsafe deserialisation")
@pytest.mark.threat("OS command injection")
def test_no_shell_and_no_unsafe_reader_in_the_product() -> None:
    found = []
    for path in sorted((ROOT / "drimbox").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            shell = any(each.arg == "shell" for each in node.keywords)
            if shell or ast.unparse(node.func) in FORBIDDEN:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}")
    assert not found

"""The threat model and the tests it names; and what no line of the product may do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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


def test_every_threat_names_a_proof() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    table = text[text.index("## Rules and their proofs") : text.index("## What is left")]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 30
    assert not [row for row in rows if "::test_" not in row]


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

"""Every test that docs/retrieval-faults.md names as a proof exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = {"D": "dicom", "I": "integration", "S": "source", "W": "wado", "P": "properties", "T": "trust"}


def test_every_proof_named_in_the_table_of_faults_exists() -> None:
    text = (ROOT / "docs" / "retrieval-faults.md").read_text("utf-8")
    named = re.findall(r"`([DISWPT]) (test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 80
    missing = []
    for folder, file, test in named:
        path = ROOT / "tests" / FOLDERS[folder] / file
        source = path.read_text("utf-8") if path.exists() else ""
        if not source or (test and re.search(rf"^(async )?def {test}\(", source, re.MULTILINE) is None):
            missing.append(f"{folder} {file}::{test}")
    assert not missing


def test_every_row_names_a_proof() -> None:
    text = (ROOT / "docs" / "retrieval-faults.md").read_text("utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("|") and not line.startswith(("|---", "| #"))
    ]
    heads = [line for line in rows if line.rstrip().endswith("Tests |")]
    assert heads
    assert not [line for line in rows if line not in heads and re.search(r"`[DISWPT] test_", line) is None]

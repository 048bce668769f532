"""What the documents state is what the code does."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.tag import Tag

from drimbox import statements
from drimbox.dicom import targets
from drimbox.statements import DOCUMENTS, TABLES, fill
from tests.kos import samples

CONFORMANCE = DOCUMENTS / "dicom-conformance.md"


@pytest.mark.requirement("DB.CS.160", "DB.CS.161")
@pytest.mark.parametrize("path", sorted(DOCUMENTS.glob("*.md")), ids=lambda path: path.name)
def test_no_table_is_stale(path: Path) -> None:
    """To mend: python -m drimbox.statements"""
    text = path.read_text("utf-8")
    assert fill(text) == text


@pytest.mark.requirement("DB.CS.160")
def test_every_table_stands_in_a_document() -> None:
    texts = "".join(path.read_text("utf-8") for path in DOCUMENTS.glob("*.md"))
    assert {name for name in TABLES if f"<!-- table: {name} -->" in texts} == set(TABLES)


@pytest.mark.requirement("DB.CS.160")
def test_a_change_of_the_code_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CONFORMANCE.read_text("utf-8")
    monkeypatch.setattr(targets, "PRODUCED", targets.PRODUCED[1:])
    assert fill(text) != text


@pytest.mark.requirement("DB.CS.160", "DB.SO.18")
def test_the_manifest_is_described_attribute_by_attribute() -> None:
    described = {
        Tag(int(group, 16), int(element, 16))
        for group, element in re.findall(
            r"^\| \(([0-9A-F]{4}),([0-9A-F]{4})\) \|", CONFORMANCE.read_text("utf-8"), re.MULTILINE
        )
    }
    manifest = dcmread(BytesIO(samples.build(patient={"used_family": "AUTRE", "birth_place": "63220"})))
    assert {element.tag for element in manifest} == described


@pytest.mark.requirement("DB.CS.160")
def test_the_statement_has_the_parts_that_the_programme_asks_for() -> None:
    text = CONFORMANCE.read_text("utf-8")
    for part in (
        "N.5.1 Storage SOP",
        "N.5.2 DIMSE",
        "N.5.2.5.1.1 Transcoding",
        "N.5.3 DICOM web",
        "N.9 Key Object",
    ):
        assert part in text
    assert "1.2.840.10008.5.1.4.1.1.2`" in statements.storage_classes()

"""dciodvfy finds no error and only the warnings the national format makes; dsrdump reads the tree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

from drimbox.kos.reading import KeyImage
from drimbox.model import Instance, Series
from tests.kos.samples import CT, SITE, STRUCTURE, build, published, series, study

SR = "1.2.840.10008.5.1.4.1.1.88.67"
_EXTRA = "Warning - Attribute is not present in standard DICOM IOD - "
#: interfaces.md 3.8: what the national format adds to the standard, and nothing else.
TOLERATED = {
    "KeyObjectSelectionDocument",
    f"{_EXTRA}(0x0008,0x1190) UR Retrieve URL ",
    f"{_EXTRA}(0x0020,0x0011) IS Series Number ",
    f"{_EXTRA}(0x0020,0x0013) IS Instance Number ",
    "Warning - Dicom dataset contains attributes not present in standard DICOM IOD"
    " - this is a Standard Extended SOP Class",
    "Warning - Missing attribute or value that would be needed to build DICOMDIR - Study ID",
}
NO_DATE = {
    "Warning - Missing attribute or value that would be needed to build DICOMDIR - Study Date",
    "Warning - Missing attribute or value that would be needed to build DICOMDIR - Study Time",
}
KEY_IMAGES = {
    _EXTRA + line
    for line in (
        "(0x0008,0x1199) SQ Referenced SOP Sequence ",
        "(0x0008,0x1150) UI Referenced SOP Class UID ",
        "(0x0008,0x1155) UI Referenced SOP Instance UID ",
        "(0x0020,0x000e) UI Series Instance UID ",
        "(0x0040,0xa043) SQ Concept Name Code Sequence ",
        "(0x0008,0x0100) SH Code Value ",
        "(0x0008,0x0102) SH Coding Scheme Designator ",
        "(0x0008,0x0104) LO Code Meaning ",
        "(0x0040,0xa730) SQ Content Sequence ",
        "(0x0040,0xa160) UT Text Value ",
    )
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "located": {"site": attrs.evolve(SITE, retrieve_location_uid="2.25.77")},
    "long names": {
        "patient": {
            "family": "NOM-À-RALLONGE " * 8,
            "given": "PRÉNOM " * 8,
            "given_list": "ÉLÉONORE " * 12,
            "used_family": "D'USAGE " * 12,
        },
        "structure": attrs.evolve(STRUCTURE, name="Hôpital d'Évry et de l'Essonne " * 4),
        "study": study(series(1, description="é" * 200), description="à" * 200),
    },
    "utf-8": {
        "patient": {"family": "ŁUKASZEWICZ" * 6, "given": "Ź" * 40, "given_list": "ŻÓŁĆ " * 30},
        "structure": attrs.evolve(STRUCTURE, name="Œuvre du Cœur " * 8),
        "study": study(series(1, description="Ω" * 90), description="Ω" * 90),
    },
    "no used name": {"patient": {"used_family": "", "used_given": ""}},
    "used given name alone": {"patient": {"used_family": ""}},
    "nothing from the PACS but UIDs": {
        "study": study(
            Series("2.25.1001.9", "CT", (Instance("2.25.1001.9.1", CT),)), date="", time="", description=""
        )
    },
    "reports and notes": {
        "study": study(
            series(1),
            series(2, 1, SR, "SR"),
            series(3, 1, "1.2.840.10008.5.1.4.1.1.88.59", "KO"),
            series(4, 2, "1.2.840.10008.5.1.4.1.1.11.1", "PR"),
            series(5, 1, "1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
            series(6, 1, "1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"),
            series(7, 1, "1.2.840.10008.5.1.4.1.1.9.1.1", "ECG"),
            series(8, 1, "1.3.46.670589.11.0.0.12.1", "MR"),
        )
    },
    "key images": {"key_images": {"2.25.1001.1.1": [KeyImage("2.25.31", "2.25.32", "Nodule à suivre")]}},
}


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("name", CASES)
def test_dciodvfy_finds_nothing_but_the_national_additions(name: str, tmp_path: Path) -> None:
    file = tmp_path / "kos.dcm"
    file.write_bytes(build(**CASES[name]))
    run = subprocess.run(["dciodvfy", str(file)], capture_output=True, timeout=30, check=False)
    said = set((run.stdout + run.stderr).decode("latin-1").splitlines())
    tolerated = set(TOLERATED)
    if name.startswith("nothing"):
        tolerated |= NO_DATE
    if name == "key images":
        tolerated |= KEY_IMAGES
    assert said - tolerated == set()
    assert run.returncode == 0


@pytest.mark.peer("dciodvfy")
def test_a_used_family_name_alone_draws_its_known_warning(tmp_path: Path) -> None:
    file = tmp_path / "kos.dcm"
    file.write_bytes(build(patient={"used_given": ""}))
    run = subprocess.run(["dciodvfy", str(file)], capture_output=True, timeout=30, check=False)
    (more,) = set(run.stderr.decode("latin-1").splitlines()) - TOLERATED
    assert "(0x0010,0x1001) PN Other Patient Names  PN [2]" in more
    assert more.startswith("Warning")
    assert more.endswith("Retired Person Name form")


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.peer("dsrdump")
@pytest.mark.parametrize("name", CASES)
def test_dsrdump_reads_the_content_tree(name: str, tmp_path: Path) -> None:
    file = tmp_path / "kos.dcm"
    file.write_bytes(build(**CASES[name]))
    run = subprocess.run(["dsrdump", "-Er", str(file)], capture_output=True, timeout=30, check=False)
    assert run.returncode == 0, run.stderr
    assert b"E: " not in run.stderr
    assert b"contains TEXT" in run.stdout
    if name == "reports and notes":
        assert run.stdout.count(b"contains COMPOSITE") == 8
        assert run.stdout.count(b"contains IMAGE") == 3


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_the_published_manifest_draws_no_error_either(tmp_path: Path) -> None:
    """The judge is calibrated: it accepts the object the national test platform accepted."""
    file = tmp_path / "kos.dcm"
    file.write_bytes(published("KOS/ko.dcm"))
    run = subprocess.run(["dciodvfy", str(file)], capture_output=True, timeout=30, check=False)
    assert run.returncode == 0
    assert b"Error" not in run.stderr

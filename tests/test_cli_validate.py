"""`drimbox validate`: what it prints, in French and in JSON, and its exit code."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from drimbox.cli import cli
from drimbox.commands import validate
from drimbox.conformance.kos_rules import validate_kos
from drimbox.conformance.report import Finding, Severity
from drimbox.sim.ris import build_message
from drimbox.sim.ris_report import SimReport, build_cda
from tests.cda.samples import published
from tests.conformance import cross_inputs, xds_inputs
from tests.conformance.answers import answer, image, part
from tests.kos import samples
from tests.xds.pki import Authority

REQUESTS = Path(__file__).parent / "conformance" / "requests"


def run(*arguments: object, data: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], prog_name="drimbox", input=data)


def as_json(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def errors(data: bytes) -> list[Finding]:
    return [each for each in validate_kos(data).findings if each.severity is Severity.ERROR]


# --- requests ---------------------------------------------------------------------------------------


def test_a_good_request() -> None:
    result = run("validate", "wado-request", REQUESTS / "good" / "specification.http")
    assert result.exit_code == 0
    assert "requête WADO-RS conforme (0 erreur" in result.output
    assert "examen : 2.999.10.20.30" in result.output


def test_a_bad_request_says_line_and_clause() -> None:
    result = run("validate", "wado-request", REQUESTS / "bad" / "blank-before-colon.http")
    assert result.exit_code == 1
    assert "non conforme (1 erreur," in result.output
    assert "ligne 10 : blanc entre le nom" in result.output
    assert "[RFC 9112 5.1]" in result.output


def test_json_and_standard_input() -> None:
    data = (REQUESTS / "bad" / "many-faults.http").read_bytes()
    result = run("validate", "wado-request", "-", "--json", data=data)
    assert result.exit_code == 1
    found = as_json(result)
    assert (found["file"], found["ok"], found["errors"]) == ("-", False, 9)
    assert {"severity", "text", "clause", "count", "line"} <= set(found["findings"][-1])


@pytest.mark.threat("log and audit injection, flooding")
def test_a_capture_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.http"
    path.write_bytes(b"GET /dicom-web-rs/studies/\x1b[2J/series/1 HTTP/1.1\r\nX\x1b[31m: y\r\n\r\n")
    result = run("validate", "wado-request", path)
    assert result.exit_code == 1
    assert "\x1b" not in result.output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("wado-request", "wado-response", "kos", "xds"):
        result = run("validate", name, tmp_path / "absent")
        assert result.exit_code == 1
        assert "absent" in result.output
        assert "Traceback" not in result.output


# --- answers ----------------------------------------------------------------------------------------


def test_a_good_answer_and_its_manifest(tmp_path: Path) -> None:
    path, kos = tmp_path / "answer.http", tmp_path / "kos.dcm"
    path.write_bytes(answer(part(image(1)), part(image(2))))
    kos.write_bytes(samples.build(study=samples.study(samples.series(1, 3))))
    assert run("validate", "wado-response", path).exit_code == 0
    result = run("validate", "wado-response", path, "--kos", kos)
    assert result.exit_code == 1
    assert "1 instance(s) attendue(s) absente(s)" in result.output
    kos.write_bytes(samples.build(study=samples.study(samples.series(1, 2))))
    result = run("validate", "wado-response", path, "--kos", kos, "--json")
    assert result.exit_code == 0
    assert as_json(result)["facts"]["instances"] == 2
    kos.write_bytes(b"x")
    result = run("validate", "wado-response", path, "--kos", kos)
    assert result.exit_code == 1
    assert "kos.dcm" in result.output


def test_an_answer_from_standard_input() -> None:
    result = run("validate", "wado-response", "-", data=answer(part(image(1)), closing=False))
    assert result.exit_code == 1
    assert "délimiteur de fin absent" in result.output


# --- manifest, report and images --------------------------------------------------------------------


@pytest.fixture
def crossed(tmp_path: Path) -> Path:
    """A folder with a report, its manifest and the images of the study."""
    study = cross_inputs.make_images(tmp_path / "images")
    kos = cross_inputs.make_manifest(study)
    (tmp_path / "kos.dcm").write_bytes(kos)
    (tmp_path / "metadata.xml").write_bytes(cross_inputs.make_metadata(study, kos))
    (tmp_path / "report.hl7").write_bytes(build_message(cross_inputs.REPORT))
    (tmp_path / "report.xml").write_bytes(build_cda(cross_inputs.REPORT))
    return tmp_path


@pytest.mark.requirement("DB.SO.105", "DB.SO.18")
@pytest.mark.parametrize("name", ["report.hl7", "report.xml"])
def test_a_manifest_that_is_of_its_report_and_images(crossed: Path, name: str) -> None:
    files = ("--report", crossed / name, "--kos", crossed / "kos.dcm", "--images", crossed / "images")
    result = run("validate", "cross", *files)
    assert result.exit_code == 0, result.output
    assert "contrôle croisé KOS, compte rendu, images conforme (0 erreur, 0 avertissement)" in result.output
    result = run("validate", "cross", *files, "--xds", crossed / "metadata.xml")
    assert result.exit_code == 0, result.output
    assert "KOS, compte rendu, métadonnées, images conforme (0 erreur" in result.output
    result = run("validate", "cross", *files, "--xds", crossed / "kos.dcm")
    assert result.exit_code == 1
    assert "métadonnées illisibles" in result.output
    assert cross_inputs.REPORT.ins not in result.output


def test_a_manifest_that_is_not(crossed: Path) -> None:
    next((crossed / "images").glob("CT*")).unlink()
    (crossed / "other.xml").write_bytes(build_cda(SimReport()))
    files = ("--kos", crossed / "kos.dcm", "--images", crossed / "images")
    result = run("validate", "cross", "--report", crossed / "other.xml", *files)
    assert result.exit_code == 1
    assert "erreur         StudyInstanceUID absent du compte rendu [DB.SO.105]" in result.output
    assert "1 instance(s) du manifeste sans fichier" in result.output
    found = as_json(run("validate", "cross", "--report", crossed / "other.xml", *files, "--json"))
    assert {"cross.study.other", "images.missing"} <= {each["rule"] for each in found["findings"]}


def test_a_folder_that_is_not_there(crossed: Path) -> None:
    files = ("--report", crossed / "report.xml", "--kos", crossed / "kos.dcm")
    result = run("validate", "cross", *files, "--images", crossed / "absent")
    assert result.exit_code == 1
    assert "absent" in result.output
    assert "Traceback" not in result.output
    assert run("validate", "cross", *files[:2]).exit_code == 2


# --- what goes to the DMP -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def publication(tmp_path_factory: pytest.TempPathFactory) -> xds_inputs.Pieces:
    return xds_inputs.make_publication(xds_inputs.make_pair(Authority(tmp_path_factory.mktemp("cli-pki"))))


@pytest.mark.requirement("DB.CS.159", "DB.SO.105")
def test_a_publication(publication: xds_inputs.Pieces, tmp_path: Path) -> None:
    path = tmp_path / "td21.http"
    path.write_bytes(publication.capture())
    result = run("validate", "xds", path)
    assert result.exit_code == 0, result.output
    assert "publication dans le DMP (TD2.1) conforme (0 erreur, 0 avertissement)" in result.output
    assert "documents : 2" in result.output
    path.write_bytes(publication.capture().replace(b"urn:dmp", b"urn:xyz"))
    result = run("validate", "xds", path)
    assert result.exit_code == 1
    assert "VIHF : attribut Ressource_URN : valeur mal formée ou non prévue [DMP VIHF" in result.output
    found = as_json(run("validate", "xds", "-", "--json", data=path.read_bytes()))
    assert {"vihf.attribute_form", "vihf.digest"} <= {each["rule"] for each in found["findings"]}


@pytest.mark.peer("xmlsec1")
def test_xmlsec1_is_asked_and_says_so(publication: xds_inputs.Pieces, tmp_path: Path) -> None:
    path = tmp_path / "td21.http"
    path.write_bytes(publication.capture().replace(b"<saml2:NameID>8", b"<saml2:NameID>9"))
    found = as_json(run("validate", "xds", path, "--json"))
    assert found["facts"]["xmlsec1"] is True
    assert "vihf.judge" in {each["rule"] for each in found["findings"]}


def test_a_manifest_given_beside_the_envelope(publication: xds_inputs.Pieces, tmp_path: Path) -> None:
    envelope, kos = tmp_path / "envelope.xml", tmp_path / "kos.dcm"
    envelope.write_bytes(publication.envelope())
    kos.write_bytes(publication.kos)
    result = run("validate", "xds", envelope, "--kos", kos)
    assert result.exit_code == 0, result.output
    kos.write_bytes(samples.build(sop_instance_uid="2.25.9009"))
    result = run("validate", "xds", envelope, "--kos", kos)
    assert result.exit_code == 1
    assert "uniqueId n'est pas le SOPInstanceUID du KOS" in result.output


@pytest.mark.threat("path traversal by UID, AE title, file name")
def test_a_metadata_file_and_what_lies_beside_it(publication: xds_inputs.Pieces, tmp_path: Path) -> None:
    folder = tmp_path / "IHE_XDM" / "SS000001"
    folder.mkdir(parents=True)
    (folder / "metadata.xml").write_bytes(xds_inputs.make_xdm(publication))
    assert "document absent" in run("validate", "xds", folder / "metadata.xml").output
    (folder / "kos_1_1.dcm").write_bytes(publication.kos)
    result = run("validate", "xds", folder / "metadata.xml")
    assert result.exit_code == 0, result.output
    assert "METADATA.XML d'une archive XDM conforme" in result.output
    assert "document absent" not in result.output
    (folder / "kos_1_1.dcm").write_bytes(publication.kos + b"x")
    assert "hash n'est pas le SHA-1 du document" in run("validate", "xds", folder / "metadata.xml").output
    (folder / "kos_1_1.dcm").unlink()
    (tmp_path / "outside").write_bytes(publication.kos)
    (folder / "kos_1_1.dcm").symlink_to(tmp_path / "outside")
    assert "document absent" in run("validate", "xds", folder / "metadata.xml").output


# --- manifests --------------------------------------------------------------------------------------


def test_our_manifest_has_nothing_to_say_about_it(tmp_path: Path) -> None:
    path = tmp_path / "kos.dcm"
    path.write_bytes(samples.build())
    result = run("validate", "kos", path)
    assert result.exit_code == 0, result.output
    assert "conforme (0 erreur, 0 avertissement)" in result.output
    assert samples.PATIENT.ins not in result.output
    assert samples.PATIENT.family not in result.output


@pytest.mark.peer("dciodvfy")
def test_dciodvfy_is_asked_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "kos.dcm"
    path.write_bytes(samples.build())
    result = run("validate", "kos", path, "--json")
    assert as_json(result)["facts"]["dciodvfy"] is True
    # A text too long for LT: only the independent judge knows the limit of each VR.
    long = samples.build(patient={"birth_place": "7" * 20000})
    path.write_bytes(long)
    found = as_json(run("validate", "kos", path, "--json"))
    assert any(each["clause"].startswith("dciodvfy") for each in found["findings"])
    assert "7777777" not in json.dumps(found)


def test_without_dciodvfy_the_rest_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate.shutil, "which", lambda name: None)
    path = tmp_path / "kos.dcm"
    path.write_bytes(samples.build())
    found = as_json(run("validate", "kos", path, "--json"))
    assert (found["ok"], found["facts"]["dciodvfy"]) == (True, False)


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("#!/bin/sh\nsleep 30\n", "n'a pas répondu"),
        ("#!/bin/sh\nkill -9 $$\n", "arrêté"),
        ("#!/bin/sh\necho 'Error - Value dubious = <DURAND^JEAN>' >&2\n", "Error - Value dubious = <…>"),
    ],
    ids=["slow", "crashes", "quotes-a-value"],
)
def test_a_judge_that_misbehaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, word: str
) -> None:
    program = tmp_path / "dciodvfy"
    program.write_text(script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(validate.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(validate, "JUDGE_TIMEOUT", 0.5)
    path = tmp_path / "kos.dcm"
    path.write_bytes(samples.build())
    result = run("validate", "kos", path)
    assert word in result.output
    assert "DURAND" not in result.output


@pytest.mark.parametrize("path", ["KOS/ko.dcm", "XDM/KA202401/IHE_XDM/SS000001/KOS_1_1.DCM"])
def test_published_manifests_break_nothing_but_https(path: str) -> None:
    found = errors(published(path))
    assert {each.text for each in found} <= {"RetrieveURL qui n'est pas en https"}


def _without(data: bytes, tag: tuple[int, int]) -> bytes:
    from io import BytesIO

    from pydicom import dcmread, dcmwrite

    dataset = dcmread(BytesIO(data))
    del dataset[tag]
    out = BytesIO()
    dcmwrite(out, dataset)
    return out.getvalue()


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.parametrize(
    ("tag", "word"),
    [
        ((0x0008, 0x0005), "SpecificCharacterSet"),
        ((0x0008, 0x0012), "InstanceCreationDate"),
        ((0x0008, 0x0050), "AccessionNumber"),
        ((0x0008, 0x1111), "ReferencedPerformedProcedureStepSequence"),
        ((0x0010, 0x0020), "PatientID"),
        ((0x0010, 0x0024), "IssuerOfPatientIDQualifiersSequence"),
        ((0x0010, 0x1002), "OtherPatientIDsSequence"),
        ((0x0020, 0x0010), "StudyID"),
        ((0x0040, 0xA040), "ValueType"),
        ((0x0040, 0xA043), "ConceptNameCodeSequence"),
        ((0x0040, 0xA370), "ReferencedRequestSequence"),
        ((0x0040, 0xA375), "CurrentRequestedProcedureEvidenceSequence"),
        ((0x0040, 0xA730), "ContentSequence"),
    ],
)
def test_a_missing_attribute_is_named(tag: tuple[int, int], word: str) -> None:
    assert any(
        each.text.startswith(word) and "absent" in each.text
        for each in errors(_without(samples.build(), tag))
    )


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b"113030", b"113001", "113030 attendu"),
        (b"https://", b"HTTPX://", "https"),
        (b"19840701", b"1984-7-1", "PatientBirthDate"),
        (b"SEPARATE", b"CONTINUO", "SEPARATE attendu"),
        (b"1.2.250.1.213.1.4.10", b"1.2.250.1.213.1.9.10", "OID d'INS inconnu"),
        (b"284070100499094", b"28407010049909X", "matricule INS"),
        (b"2.25.1001.1.1\0", b"2.25.1001.9.1\0", "évidence"),
        (b"CONTAINS", b"HAS PROP", "CONTAINS attendue"),
    ],
)
def test_a_wrong_value_is_told_without_being_quoted(old: bytes, new: bytes, word: str) -> None:
    data = samples.build()
    assert old in data
    # Only the first, so that two places that must agree do not.
    found = errors(data.replace(old, new, 1))
    assert any(word in each.text for each in found), found
    assert not any(b"28407" in each.text.encode() or b"1984" in each.text.encode() for each in found)


def test_damaged_manifests_are_told() -> None:
    good = samples.build()
    for bad in (b"", b"x" * 500, good[:-10], good[:400]):
        assert errors(bad)


@pytest.mark.peer("dciodvfy")
def test_the_judge_is_where_the_tests_think() -> None:
    assert shutil.which("dciodvfy")


def test_help_is_french() -> None:
    text = run("validate", "--help").output
    assert "Vérifier la conformité" in text
    for name in ("wado-request", "wado-response", "kos", "cross", "xds"):
        assert name in text
        assert "JSON" in run("validate", name, "--help").output

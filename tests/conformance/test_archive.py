"""The archive validator: a good export says nothing, and every rule has an archive that breaks it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from drimbox.cli import cli
from drimbox.conformance import archive
from drimbox.conformance.archive import Known, validate_archive
from drimbox.conformance.report import MAX_FINDINGS, Report, Severity
from drimbox.conformance.rules import Rule
from tests.xdm.builders import published, write, zipped

pytestmark = pytest.mark.requirement("DB.SO.29", "DB.SO.30")
Entries = dict[str, bytes]
TOP = "KA202601/"
ONE, TWO = TOP + "IHE_XDM/SS000001/", TOP + "IHE_XDM/SS000002/"
RULES = list(archive.RULES)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month of two sets as the gateway exports it."""
    return write(tmp_path_factory.mktemp("export"), published(1).exported(), published(2).exported())


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings if finding.severity is not Severity.INFORMATION}


def removed(*names: str) -> Callable[[Entries], None]:
    def spoil(held: Entries) -> None:
        for name in names:
            del held[name]

    return spoil


def renamed(before: str, after: str) -> Callable[[Entries], None]:
    def spoil(held: Entries) -> None:
        for name in list(held):
            if before in name:
                held[name.replace(before, after)] = held.pop(name)

    return spoil


def replaced(name: str, before: bytes, after: bytes) -> Callable[[Entries], None]:
    def spoil(held: Entries) -> None:
        assert before in held[name]
        held[name] = held[name].replace(before, after)

    return spoil


def same_set_twice(held: Entries) -> None:
    for name in [each for each in held if each.startswith(ONE)]:
        held[name.replace(ONE, TWO)] = held[name]


def two_in_one(held: Entries) -> None:
    held[ONE + "KOS_1_2.DCM"] = held[TWO + "KOS_2_1.DCM"]


#: For each rule, how a good archive breaks it; the rules that need more than other entries are below.
SPOILT: dict[str, Callable[[Entries], None]] = {
    "archive.unusable": renamed("README.TXT", "../README.TXT"),
    "archive.empty": renamed("IHE_XDM", "AUTRE"),
    "archive.numbers": renamed("SS000002", "SS000003"),
    "archive.page": removed(TOP + "INDEX.HTM"),
    "archive.not_listed": replaced(TOP + "INDEX.HTM", b"SS000002/KOS_2_1.DCM", b"SS000002/KOS_2_9.DCM"),
    "archive.set_damaged": lambda held: held.update({ONE + "metadata.xml": b"x"}),
    "archive.refused": replaced(ONE + "KOS_1_1.DCM", b"Axial", b"Coron"),
    "archive.metadata": removed(ONE + "METADATA.XML"),
    "archive.reports": removed(ONE + "CR.TXT"),
    "archive.remark": lambda held: held.update(
        {ONE + "CR.TXT": held[ONE + "CR.TXT"] + b"2.25.9;1.2.250.1.213.1.4.10;191017589012345\r\n"}
    ),
    "archive.several": two_in_one,
    "archive.kos_name": renamed("SS000002/KOS_2_1", "SS000002/KOS_7_1"),
    "archive.uri_set": replaced(TWO + "METADATA.XML", b"SS000002/KOS", b"SS000001/KOS"),
    "archive.kos_twice": same_set_twice,
}


def judged(entries: Entries, folder: Path, name: str = "KA202601.ZIP") -> Report:
    path = folder / name
    path.write_bytes(zipped(entries))
    return validate_archive(path)


def test_a_good_export_says_nothing(good: Path) -> None:
    report = validate_archive(good)
    assert (rules(report), report.ok) == (set(), True)
    assert report.facts == {"sets": 2, "kos": 2}


def test_the_folder_it_was_unpacked_to_is_as_good(good: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(good) as opened:
        opened.extractall(tmp_path)
    report = validate_archive(tmp_path / "KA202601")
    assert (rules(report), report.facts) == (set(), {"sets": 2, "kos": 2})
    (tmp_path / "KA202601" / "INDEX.HTM").unlink()
    assert rules(validate_archive(tmp_path / "KA202601")) == {"archive.page"}


def unmarked(folder: Path) -> Path:
    """A good archive whose README.TXT has a damaged byte."""
    path = folder / "KA202601.ZIP"
    data = bytearray(zipped(dict.fromkeys(("KA202601/INDEX.HTM", "KA202601/README.TXT"), b"x" * 9)))
    at = data.rindex(b"KA202601/README.TXT", 0, data.index(b"PK\x01\x02")) + len("KA202601/README.TXT")
    data[at] ^= 0xFF
    path.write_bytes(data)
    return path


#: For each other rule, an archive that breaks it.
MADE: dict[str, Callable[[Path, Entries], Report]] = {
    "archive.name": lambda folder, held: judged(held, folder, "export.zip"),
    "archive.month": lambda folder, held: judged(held, folder, "KA202511.ZIP"),
    "archive.large": lambda folder, held: judged(held, folder),
    "archive.page_damaged": lambda folder, held: validate_archive(unmarked(folder)),
    "archive.study_twice": lambda folder, held: validate_archive(
        write(folder, published(1).exported(), published(3, of=1).exported())
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_one_broken_rule(rule: Rule, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = entries_of(good)
    if rule.id == "archive.large":
        monkeypatch.setattr(archive, "FAT_LIMIT", 1000)
    if rule.id in MADE:
        report = MADE[rule.id](tmp_path, held)
    else:
        SPOILT[rule.id](held)
        report = judged(held, tmp_path)
    found = {each.rule: each for each in report.findings}
    assert rule.id in found, sorted(found)
    assert found[rule.id].severity is rule.severity
    assert "{" not in found[rule.id].text + found[rule.id].clause


def test_the_rules_of_metadata_and_manifest_count_with_their_set(good: Path, tmp_path: Path) -> None:
    held = entries_of(good)
    replaced(TWO + "METADATA.XML", b"IMG-KOS", b"IMG-XXX")(held)
    replaced(TWO + "KOS_2_1.DCM", b"1.2.250.1.213.1.4.10", b"1.2.250.1.213.1.4.99")(held)
    report = judged(held, tmp_path)
    texts = {each.text: each for each in report.findings if each.severity is Severity.ERROR}
    assert {text.partition(" : ")[0] for text in texts} >= {"METADATA.XML", "KOS"}
    assert all(each.places == [2] for each in texts.values())
    assert "submission.kos" in rules(report)
    assert "document.hash" in rules(report)


def test_one_fault_of_many_sets_is_one_finding(tmp_path: Path) -> None:
    path = write(tmp_path, *(published(number).exported() for number in range(1, 31)))
    held = entries_of(path)
    for name in list(held):
        if name.endswith("CR.TXT"):
            del held[name]
    (tmp_path / "bad").mkdir()
    report = judged(held, tmp_path / "bad")
    (found,) = [each for each in report.findings if each.rule == "archive.reports"]
    assert (found.count, found.place_count, found.places) == (30, 30, list(range(1, 11)))
    assert "jeux 1, 2, 3" in found.where


def test_the_same_kos_in_two_months_is_told(good: Path, tmp_path: Path) -> None:
    known = Known()
    assert validate_archive(good, known=known).ok
    later = tmp_path / "KA202602.ZIP"
    later.write_bytes(good.read_bytes().replace(b"KA202601", b"KA202602"))
    assert "archive.kos_twice" in rules(validate_archive(later, known=known))


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["validate", "archive", *map(str, arguments)], prog_name="drimbox")
    return result.exit_code, result.stdout, result.stderr


def test_the_command_judges_one_archive_or_a_folder_of_them(good: Path, tmp_path: Path) -> None:
    code, told, _ = run(good)
    assert code == 0, told
    assert "KA202601.ZIP : archive XDM conforme (0 erreur" in told
    assert "jeux de soumission : 2" in told
    held = entries_of(good)
    SPOILT["archive.metadata"](held)
    (tmp_path / "KA202602.ZIP").write_bytes(zipped(held))
    (tmp_path / "KA202601.ZIP").write_bytes(good.read_bytes())
    code, told, _ = run(tmp_path)
    assert code == 1
    assert "KA202601.ZIP : archive XDM conforme" in told
    assert "KA202602.ZIP : archive XDM non conforme" in told
    assert "jeu 1 : METADATA.XML absent [DB.SO.29" in told
    code, told, _ = run(tmp_path, "--json")
    found = json.loads(told)
    assert (code, found["ok"], [each["ok"] for each in found["archives"]]) == (1, False, [True, False])
    findings = {each.get("rule"): each for each in found["archives"][1]["findings"]}
    assert findings["archive.metadata"]["set"] == [1]


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    code, _, said = run(tmp_path)
    assert code == 1
    assert "ni archive KAAAAAMM.ZIP ni dossier" in said
    (tmp_path / "KA202601.ZIP").write_bytes(b"not a zip")
    code, told, _ = run(tmp_path)
    assert code == 1
    assert "archive inutilisable" in told


@pytest.mark.threat("patient data in logs and notices")
def test_findings_hold_no_patient(good: Path, tmp_path: Path) -> None:
    held = entries_of(good)
    for name in ("archive.refused", "archive.remark", "archive.metadata"):
        SPOILT[name](held)
    (tmp_path / "KA202601.ZIP").write_bytes(zipped(held))
    _, told, _ = run(tmp_path, "--json")
    for secret in ("284070100499094", "191017589012345", "PATIENT"):
        assert secret not in told


def test_an_error_beyond_what_a_report_keeps_still_counts() -> None:
    inner, outer = Report("jeu"), Report("archive")
    for number in range(MAX_FINDINGS):
        inner.warning(f"constat {number}", "X")
    inner.error("le dernier", "X")
    outer.include(inner, "KOS", set=3)
    assert (outer.ok, outer.counts[Severity.ERROR], outer.counts[Severity.WARNING]) == (
        False,
        1,
        MAX_FINDINGS,
    )
    assert outer.omitted == 1

"""Cross validation: manifests against the report they were made for, and against the images.

The entry of the rules in `cross_rules` and `cross_images`. With several manifests, those of one report:
each study must have exactly one. Never raises for what the files contain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from drimbox.conformance import cross_images, cross_metadata, cross_rules
from drimbox.conformance.image_facts import ImageFacts, NotDicom, TooManyFiles, files_of, read_image
from drimbox.conformance.kos_facts import KosFacts, KosUnreadable, read_kos
from drimbox.conformance.report import Report, shown
from drimbox.conformance.report_facts import ReportFacts, ReportUnreadable, read_report
from drimbox.conformance.rules import RuleBook

#: Manifests of one run.
MAX_MANIFESTS: Final = 100

RULES = RuleBook("files")
_REPORT = RULES.error("report", "compte rendu illisible : {why}", "CISIS3 ; HL7 CDA R2")
_KOS = RULES.error("kos", "manifeste illisible : {why}", "PS3.10 7.1")
_MANY = RULES.error(
    "kos_many", f"plus de {MAX_MANIFESTS} manifestes : les suivants ne sont pas lus", "DB.SO.12"
)
_IMAGES = RULES.error("images", "dossier d'images : {why}", "DB.SO.14")
_TWO = RULES.error("kos_twice", "plusieurs manifestes pour l'examen {uid}", "DB.SO.12")
_LACKING = RULES.error("kos_missing", "examen {uid} du compte rendu sans manifeste", "DB.SO.12")


def validate_cross(
    report: bytes,
    manifests: Sequence[bytes],
    images: Path | None = None,
    *,
    metadata: bytes | None = None,
    excluded_roots: Sequence[str] = (),
) -> Report:
    """Judge manifests against a report (CDA, or HL7 message carrying it) and, if given, a folder of images.

    `metadata` is a publication or METADATA.XML that must say the same as the report.

    `excluded_roots` are roots of SOP Instance UIDs that the Source leaves out on purpose (DB.SO.199).
    Raises `OSError` when the folder cannot be listed.
    """
    sides = ["KOS", "compte rendu"]
    sides += ["métadonnées"] * (metadata is not None) + ["images"] * (images is not None)
    out = Report("contrôle croisé " + ", ".join(sides))
    facts = _report(report, out)
    if len(manifests) > MAX_MANIFESTS:
        _MANY.broken(out)
    read = [
        (kos, f"KOS n° {rank}" if len(manifests) > 1 else "")
        for rank, data in enumerate(manifests[:MAX_MANIFESTS], 1)
        if (kos := _manifest(data, rank, out)) is not None
    ]
    if facts is not None:
        cross_rules.check_report(facts, out)
        for kos, where in read:
            cross_rules.check_manifest(kos, facts, out, where)
        if len(manifests) > 1:
            _check_coverage(facts, [kos for kos, _ in read], out)
        if metadata is not None:
            uids = [kos.instance_uid for kos, _ in read]
            cross_metadata.check_metadata(metadata, facts, uids, out)
    if images is not None and read:
        _check_images(images, facts, read, cross_images.Roots(excluded_roots), out)
    out.facts["manifests"] = [_summary(kos) for kos, _ in read]
    if facts is not None:
        out.facts["studies"] = [act.study_uid[:64] for act in facts.acts]
        out.facts["requests"] = len(facts.pairs)
    return out


def _report(data: bytes, out: Report) -> ReportFacts | None:
    try:
        return read_report(data)
    except ReportUnreadable as why:
        _REPORT.broken(out, why=why)
        return None


def _manifest(data: bytes, rank: int, out: Report) -> KosFacts | None:
    try:
        return read_kos(data)
    except KosUnreadable as why:
        _KOS.broken(out, f"KOS n° {rank}", why=why)
        return None


def _check_coverage(report: ReportFacts, manifests: Sequence[KosFacts], out: Report) -> None:
    counts = Counter(kos.study_uid for kos in manifests)
    for uid, count in counts.items():
        if count > 1:
            _TWO.broken(out, uid=shown(uid, 64))
    for act in report.acts:
        if not counts[act.study_uid]:
            _LACKING.broken(out, uid=shown(act.study_uid, 64))


def _check_images(
    folder: Path,
    report: ReportFacts | None,
    read: Sequence[tuple[KosFacts, str]],
    roots: cross_images.Roots,
    out: Report,
) -> None:
    images: list[ImageFacts] = []
    unreadable = 0
    try:
        for path in files_of(folder):
            try:
                images.append(read_image(path))
            except (NotDicom, OSError):
                unreadable += path.name.upper() != "DICOMDIR"
    except TooManyFiles as why:
        _IMAGES.broken(out, why=why)
    studies = {kos.study_uid for kos, _ in read}
    found = cross_images.check_files(images, unreadable, studies, out)
    for kos, where in read:
        cross_images.check_images(kos, report, found, roots, out, where)
    out.facts["files"] = len(images)


def _summary(kos: KosFacts) -> dict[str, object]:
    return {
        "study_uid": kos.study_uid[:64],
        "kos_uid": kos.instance_uid[:64],
        "series": len({each.series_uid for each in kos.references}),
        "instances": len(kos.references),
    }

"""Holding manifests against the images of their studies (DB.SO.14, 16, 18, 191, 194; RAD-66).

The manifest must list the instances that are there, as they are, and no others: same study, series,
class and numbers. The images must be the patient's, by the INS where they carry one, else by the local
identifier. Rejection notes and key image notes found among the files say which instances should not be
listed, or be marked.

UIDs are quoted, identifiers of the patient never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from drimbox.conformance.image_facts import ImageFacts
from drimbox.conformance.kos_facts import KEY_OBJECT, KosFacts, Reference
from drimbox.conformance.report import Report, shown
from drimbox.conformance.report_facts import ReportFacts
from drimbox.conformance.rules import Rule, RuleBook

_LIST: Final = "DB.SO.14 ; DB.SO.18"
_REFERENCE: Final = "DB.SO.18 ; PS3.3 C.17.2"
#: Titles of rejection notes (PS3.16 CID 7011), and of a key image note.
_REJECTIONS: Final = frozenset({"113001", "113037", "113038", "113039"})
_OF_INTEREST: Final = "113000"
_MANIFEST: Final = "113030"
_SHOWN: Final = 3

RULES = RuleBook("images")
_NONE = RULES.error("none", "aucun fichier DICOM dans le dossier", _LIST)
_UNREADABLE = RULES.warning(
    "unreadable", "{count} fichier(s) qui ne sont pas des objets DICOM", "PS3.10 7.1"
)
_TWICE = RULES.warning("twice", "{count} instance(s) dans plusieurs fichiers", "PS3.5 9")
_MISSING = RULES.error("missing", "{count} instance(s) du manifeste sans fichier ({uids})", _LIST)
_EXTRA = RULES.error("extra", "{count} instance(s) de l'examen absente(s) du manifeste ({uids})", _LIST)
_FOREIGN = RULES.warning("foreign", "{count} fichier(s) d'un examen sans manifeste ({uids})", _LIST)
_FILTERED = RULES.error(
    "filtered", "{count} instance(s) listée(s) sous une racine d'UID exclue ({uids})", "DB.SO.199"
)
_STUDY = RULES.error(
    "study", "{count} instance(s) listée(s) dont le fichier est d'un autre examen", _REFERENCE
)
_SERIES = RULES.error(
    "series", "{count} instance(s) listée(s) dans une autre série que la leur", _REFERENCE
)
_CLASS = RULES.error("class", "{count} instance(s) listée(s) avec une autre classe SOP", _REFERENCE)
_NUMBER = RULES.warning(
    "number", "{count} InstanceNumber différent(s) de ceux des images", "CI-SIS IMG-KOS"
)
_SERIES_NUMBER = RULES.warning(
    "series_number", "{count} SeriesNumber différent(s) de ceux des images", "CI-SIS IMG-KOS"
)
_MODALITY = RULES.warning(
    "modality",
    "texte « Série-… » : {count} modalité(s) différente(s) de celles des images",
    "CI-SIS IMG-KOS",
)
_DATE = RULES.warning("date", "StudyDate différente de celle des images", "CI-SIS IMG-KOS")
_INS = RULES.error("patient.ins", "{count} image(s) d'un autre INS", "DB.SO.16 ; DB.SO.134 E1006")
_IPP = RULES.error("patient.ipp", "{count} image(s) d'un autre IPP", "DB.SO.16 ; DB.SO.134 E1006")
_NOBODY = RULES.error("patient.nobody", "{count} image(s) sans identifiant de patient", "DB.SO.134 E1006")
_BIRTH = RULES.warning(
    "patient.birth_date",
    "{count} image(s) dont la date de naissance n'est pas celle du compte rendu",
    "DB.SO.191",
)
_REJECTED = RULES.error(
    "rejected", "{count} instance(s) listée(s) malgré une note de rejet ({uids})", "DB.SO.25 ; RAD-66"
)
_NOTE_LISTED = RULES.warning("rejection_note", "{count} note(s) de rejet listée(s)", "RAD-66")
_UNMARKED = RULES.warning(
    "key.unmarked", "{count} image(s) clé(s) sans repère de leur note ({uids})", "DB.SO.194"
)
_UNKNOWN = RULES.error(
    "key.unknown", "{count} repère(s) d'une note absente des images ({uids})", "DB.SO.194"
)
_UNCITED = RULES.error(
    "key.uncited", "{count} repère(s) d'une note qui ne cite pas l'image ({uids})", "DB.SO.194"
)
_KEY_SERIES = RULES.error(
    "key.series", "{count} repère(s) avec une autre série que celle de la note", "DB.SO.194"
)
_TITLE = RULES.error(
    "key.title", "{count} repère(s) d'un objet clé qui n'est pas d'intérêt (113000)", "DB.SO.194"
)


class Roots:
    """Roots of SOP Instance UIDs whose instances stay inside the structure (DB.SO.199)."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._roots = tuple(root.strip().rstrip(".") + "." for root in roots)

    def hold(self, uid: str) -> bool:
        """Say whether an instance is under one of them."""
        return f"{uid}.".startswith(self._roots)


def check_files(
    images: Collection[ImageFacts], unreadable: int, studies: Collection[str], out: Report
) -> dict[str, ImageFacts]:
    """Judge the folder as a whole; return its instances by UID. `studies` are those of the manifests."""
    found: dict[str, ImageFacts] = {}
    twice = set()
    for image in images:
        if image.instance_uid in found:
            twice.add(image.instance_uid)
        found.setdefault(image.instance_uid, image)
    if not found:
        _NONE.broken(out)
    if unreadable:
        _UNREADABLE.broken(out, count=unreadable)
    if twice:
        _TWICE.broken(out, count=len(twice))
    foreign = [uid for uid, image in found.items() if image.study_uid not in studies]
    _tell(_FOREIGN, foreign, out, "")
    return found


def check_images(
    kos: KosFacts,
    report: ReportFacts | None,
    found: Mapping[str, ImageFacts],
    roots: Roots,
    out: Report,
    where: str = "",
) -> None:
    """Hold one manifest against the instances found."""
    listed = {each.instance_uid: each for each in kos.references}
    notes = {uid: image for uid, image in found.items() if image.key_object is not None}
    rejecting = [image for image in notes.values() if _title(image) in _REJECTIONS]
    rejected = {uid for image in rejecting for uid in _cited(image)}
    own = [uid for uid, image in found.items() if image.study_uid == kos.study_uid]
    # Neither a rejection note nor a manifest that lies among the images belongs into a manifest.
    silent = {image.instance_uid for image in rejecting}
    exempt = rejected | silent | {uid for uid, note in notes.items() if _title(note) == _MANIFEST}
    _tell(_MISSING, [uid for uid in listed if uid not in found and uid not in rejected], out, where)
    extra = [uid for uid in own if uid not in listed and uid not in exempt and not roots.hold(uid)]
    _tell(_EXTRA, extra, out, where)
    _tell(_FILTERED, [uid for uid in listed if roots.hold(uid)], out, where)
    _tell(_REJECTED, [uid for uid in listed if uid in rejected], out, where)
    _tell(_NOTE_LISTED, [uid for uid in listed if uid in silent], out, where)
    pairs = [(reference, found[uid]) for uid, reference in listed.items() if uid in found]
    _check_references(kos, pairs, out, where)
    if report is not None:
        _check_patient(report, [image for _, image in pairs], out, where)
    _check_keys(kos, notes, out, where)


def _check_references(
    kos: KosFacts, pairs: list[tuple[Reference, ImageFacts]], out: Report, where: str
) -> None:
    broken: Counter[str] = Counter()
    rules = {rule.id: rule for rule in (_STUDY, _SERIES, _CLASS, _NUMBER)}
    series_numbers, modalities = set(), set()
    for reference, image in pairs:
        broken[_STUDY.id] += reference.study_uid != image.study_uid
        broken[_SERIES.id] += reference.series_uid != image.series_uid
        broken[_CLASS.id] += reference.sop_class_uid != image.sop_class_uid
        numbers = (reference.number, image.number)
        broken[_NUMBER.id] += None not in numbers and numbers[0] != numbers[1]
        numbers = (reference.series_number, image.series_number)
        if None not in numbers and numbers[0] != numbers[1]:
            series_numbers.add(reference.series_uid)
        told = kos.modalities.get(reference.series_uid)
        if told and image.modality and told != image.modality:
            modalities.add(reference.series_uid)
    for name, count in broken.items():
        if count:
            rules[name].broken(out, where, count=count)
    for rule, series in ((_SERIES_NUMBER, series_numbers), (_MODALITY, modalities)):
        if series:
            rule.broken(out, where, count=len(series))
    dates = {image.study_date for _, image in pairs if image.study_date}
    if kos.study_date and dates and kos.study_date not in dates:
        _DATE.broken(out, where)


def _check_patient(report: ReportFacts, images: list[ImageFacts], out: Report, where: str) -> None:
    """Hold the images against the patient of the report, by the INS first, else by the IPP."""
    local = {value for value, _ in report.local_ids}
    broken: Counter[str] = Counter()
    for image in images:
        if image.ins:
            same = any(each.value == report.ins for each in image.ins)
            other = any(each.value != report.ins and each.authority == report.ins_oid for each in image.ins)
            broken[_INS.id] += other or not same
        elif not image.patient_id:
            broken[_NOBODY.id] += 1
        elif local:
            broken[_IPP.id] += image.patient_id not in local or _other_authority(image, report)
        if report.birth_date and image.birth_date and image.birth_date != report.birth_date:
            broken[_BIRTH.id] += 1
    for rule in (_INS, _IPP, _NOBODY, _BIRTH):
        if broken[rule.id]:
            rule.broken(out, where, count=broken[rule.id])


def _other_authority(image: ImageFacts, report: ReportFacts) -> bool:
    """Say whether image and report name different domains (OIDs) for the same local identifier."""
    told = {authority for value, authority in report.local_ids if value == image.patient_id and authority}
    return bool(image.patient_authority and told and image.patient_authority not in told)


def _check_keys(kos: KosFacts, notes: Mapping[str, ImageFacts], out: Report, where: str) -> None:
    """Hold the marks of the manifest against the key image notes, both ways."""
    unknown, uncited, titles, series = [], [], 0, 0
    marked: set[tuple[str, str]] = set()
    images = {each.instance_uid for each in kos.references if each.sop_class_uid != KEY_OBJECT}
    for reference in kos.references:
        for mark in reference.marks:
            marked.add((mark.note_uid, reference.instance_uid))
            note = notes.get(mark.note_uid)
            if note is None:
                unknown.append(mark.note_uid)
                continue
            titles += _title(note) != _OF_INTEREST
            series += note.series_uid != mark.series_uid
            if reference.instance_uid not in _cited(note):
                uncited.append(reference.instance_uid)
    _tell(_UNKNOWN, unknown, out, where)
    _tell(_UNCITED, uncited, out, where)
    if titles:
        _TITLE.broken(out, where, count=titles)
    if series:
        _KEY_SERIES.broken(out, where, count=series)
    unmarked = [
        image
        for uid, note in notes.items()
        if _title(note) == _OF_INTEREST
        for image in _cited(note) & images
        if (uid, image) not in marked
    ]
    _tell(_UNMARKED, sorted(unmarked), out, where)


def _title(note: ImageFacts) -> str:
    return note.key_object.title if note.key_object is not None else ""


def _cited(note: ImageFacts) -> frozenset[str]:
    return note.key_object.cited if note.key_object is not None else frozenset()


def _tell(rule: Rule, uids: list[str], out: Report, where: str) -> None:
    """Report a rule broken by some instances: how many, and the first of them."""
    if uids:
        known = list(dict.fromkeys(uids))
        more = ", …" if len(known) > _SHOWN else ""
        rule.broken(
            out, where, count=len(known), uids=", ".join(shown(uid, 64) for uid in known[:_SHOWN]) + more
        )

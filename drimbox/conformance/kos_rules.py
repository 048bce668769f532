"""Validating a manifest: is it the IMG-KOS that the national record and every Consumer expect?

Three looks at the same bytes. First the attributes, one table row each, with the value they must have
(interfaces.md 3.1, 3.2): type 1 must have a value, type 2 must be there. Then what holds the object
together: one study, series with an address, instances named in the evidence and in the content tree
alike, the text a Consumer shows (3.3). Last the reader that a Consumer uses (`kos.reading`): what it
refuses is an error, whatever else was found.

Texts name attributes, never their values: a manifest is full of a patient.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

import attrs

from drimbox.conformance.kos_details import check_details
from drimbox.conformance.report import Report, shown
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.tree import Item, read_tree
from drimbox.kos.classes import value_type
from drimbox.kos.reading import KOS_SOP_CLASS, MAX_BYTES, Manifest, ManifestRefused, read_manifest
from drimbox.model import INS_OIDS, is_uid

_NATIONAL: Final = "CI-SIS IMG-KOS"
_DICOM: Final = "PS3.3 A.35.4"
_READABLE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:\.[0-9]{1,6})?)?)?")
_ZONE = re.compile(r"[+-][0-9]{4}")
_SEX = re.compile(r"[MFO]")
_MATRICULE = re.compile(r"[12378][0-9]{4}(?:[0-9]{2}|2[AB])[0-9]{8}")
_PATIENT_ID, _QUALIFIERS = 0x00100020, 0x00100024
_EVIDENCE, _CONTENT, _SOPS, _SERIES = 0x0040A375, 0x0040A730, 0x00081199, 0x00081115
_INSTANCE, _CLASS = 0x00081155, 0x00081150


@attrs.frozen
class _Rule:
    """One attribute: its type (1 with a value, 2 present), its clause, the value or form it must have."""

    tag: int
    name: str
    kind: int
    clause: str = _DICOM
    value: str | None = None
    form: re.Pattern[str] | None = None


_ROOT: Final = (
    _Rule(0x00080005, "SpecificCharacterSet", 1, _NATIONAL),
    _Rule(0x00080012, "InstanceCreationDate", 1, _NATIONAL, form=_DATE),
    _Rule(0x00080013, "InstanceCreationTime", 1, _NATIONAL, form=_TIME),
    _Rule(0x00080016, "SOPClassUID", 1, value=KOS_SOP_CLASS),
    _Rule(0x00080018, "SOPInstanceUID", 1),
    _Rule(0x00080020, "StudyDate", 2, form=_DATE),
    _Rule(0x00080023, "ContentDate", 1, form=_DATE),
    _Rule(0x00080030, "StudyTime", 2, form=_TIME),
    _Rule(0x00080033, "ContentTime", 1, form=_TIME),
    _Rule(0x00080050, "AccessionNumber", 2),
    _Rule(0x00080060, "Modality", 1, value="KO"),
    _Rule(0x00080070, "Manufacturer", 2),
    _Rule(0x00080090, "ReferringPhysicianName", 2),
    _Rule(0x00081111, "ReferencedPerformedProcedureStepSequence", 2),
    _Rule(0x00100010, "PatientName", 2),
    _Rule(_PATIENT_ID, "PatientID", 1, _NATIONAL),
    _Rule(0x00100021, "IssuerOfPatientID", 1, _NATIONAL),
    _Rule(_QUALIFIERS, "IssuerOfPatientIDQualifiersSequence", 1, _NATIONAL),
    _Rule(0x00100030, "PatientBirthDate", 2, form=_DATE),
    _Rule(0x00100040, "PatientSex", 2, form=_SEX),
    _Rule(0x00101002, "OtherPatientIDsSequence", 1, _NATIONAL),
    _Rule(0x0020000D, "StudyInstanceUID", 1),
    _Rule(0x0020000E, "SeriesInstanceUID", 1),
    _Rule(0x00200010, "StudyID", 2),
    _Rule(0x00200011, "SeriesNumber", 1),
    _Rule(0x00200013, "InstanceNumber", 1),
    _Rule(0x0040A040, "ValueType", 1, value="CONTAINER"),
    _Rule(0x0040A043, "ConceptNameCodeSequence", 1),
    _Rule(0x0040A050, "ContinuityOfContent", 1, value="SEPARATE"),
    _Rule(0x0040A370, "ReferencedRequestSequence", 1, _NATIONAL),
    _Rule(_EVIDENCE, "CurrentRequestedProcedureEvidenceSequence", 1),
    _Rule(_CONTENT, "ContentSequence", 1),
)
_AUTHORITY: Final = (
    _Rule(0x00400032, "UniversalEntityID", 1, _NATIONAL),
    _Rule(0x00400033, "UniversalEntityIDType", 1, _NATIONAL, value="ISO"),
)
_OTHER_ID: Final = (
    _Rule(_PATIENT_ID, "PatientID", 1, _NATIONAL),
    _Rule(0x00100022, "TypeOfPatientID", 1, _NATIONAL, value="TEXT"),
    _Rule(_QUALIFIERS, "IssuerOfPatientIDQualifiersSequence", 1, _NATIONAL),
)
_REQUEST: Final = (
    _Rule(0x00080050, "AccessionNumber", 1, _NATIONAL),
    _Rule(0x00080051, "IssuerOfAccessionNumberSequence", 1, _NATIONAL),
    _Rule(0x00081110, "ReferencedStudySequence", 2),
    _Rule(0x0020000D, "StudyInstanceUID", 1),
    _Rule(0x00321060, "RequestedProcedureDescription", 2),
    _Rule(0x00321064, "RequestedProcedureCodeSequence", 2),
    _Rule(0x00400026, "OrderPlacerIdentifierSequence", 1, _NATIONAL),
    _Rule(0x00401001, "RequestedProcedureID", 2),
    _Rule(0x00402016, "PlacerOrderNumberImagingServiceRequest", 1, _NATIONAL),
    _Rule(0x00402017, "FillerOrderNumberImagingServiceRequest", 2),
)
_SERIES_RULES: Final = (
    _Rule(0x00081190, "RetrieveURL", 1, "DB.SO.18 ; CI-SIS IMG-KOS"),
    _Rule(_SOPS, "ReferencedSOPSequence", 1),
    _Rule(0x0020000E, "SeriesInstanceUID", 1),
)
_REFERENCE: Final = (
    _Rule(_CLASS, "ReferencedSOPClassUID", 1),
    _Rule(_INSTANCE, "ReferencedSOPInstanceUID", 1),
)
_CODE: Final = (
    _Rule(0x00080100, "CodeValue", 1, "DB.SO.18 ; PS3.16 CID 7010", value="113030"),
    _Rule(0x00080102, "CodingSchemeDesignator", 1, "PS3.16 CID 7010", value="DCM"),
    _Rule(0x00080104, "CodeMeaning", 1, "PS3.3 8.3"),
)


def validate_kos(data: bytes) -> Report:
    """Judge a manifest file (DB.SO.18; CI-SIS IMG-KOS; PS3.3 A.35.4). Never raises."""
    report = Report("manifeste KOS")
    if len(data) > MAX_BYTES:
        report.error(f"fichier de plus de {MAX_BYTES // 2**20} Mio", _NATIONAL)
        return report
    try:
        meta = read_file_meta(data)
        root = read_tree(data[meta.dataset_offset :], meta.transfer_syntax_uid)
    except DatasetRefused as refused:
        report.error(f"fichier DICOM illisible ({refused})", "PS3.10 7.1")
        return report
    if any(data[:128]):
        report.warning("préambule non nul : place possible d'un programme", "PS3.10 7.1")
    if meta.transfer_syntax_uid not in _READABLE:
        report.error("syntaxe de transfert : Explicit ou Implicit VR Little Endian attendue", _NATIONAL)
    for name, told, held in (
        ("SOPInstanceUID", meta.sop_instance_uid, root.text(0x00080018)),
        ("SOPClassUID", meta.sop_class_uid, root.text(0x00080016)),
    ):
        if told != held:
            report.error(f"{name} : le groupe 0002 et le jeu de données diffèrent", "PS3.10 7.1")
    _check_rules(root, _ROOT, "", report)
    _check_items(root, report)
    _check_patient(root, report)
    _check_evidence(root, report)
    check_details(data, meta, root, report)
    try:
        manifest = read_manifest(data)
    except ManifestRefused as refusal:
        report.error(f"illisible pour une DRIMbox : {refusal}", "DB.CO.122")
    else:
        _check_manifest(manifest, report)
    return report


def _check_rules(item: Item, rules: tuple[_Rule, ...], where: str, report: Report) -> None:
    for rule in rules:
        name = f"{rule.name} ({rule.tag >> 16:04X},{rule.tag & 0xFFFF:04X})" + (
            f" de {where}" if where else ""
        )
        if rule.tag not in item.members:
            report.error(f"{name} absent", rule.clause)
        elif not item.members[rule.tag] or (
            isinstance(item.members[rule.tag], bytes) and not item.text(rule.tag)
        ):
            if rule.kind == 1:
                report.error(f"{name} vide", rule.clause)
        elif rule.value is not None and item.text(rule.tag) != rule.value:
            report.error(f"{name} : {rule.value} attendu", rule.clause)
        elif rule.form is not None and rule.form.fullmatch(item.text(rule.tag)) is None:
            report.error(f"{name} : valeur mal formée", "PS3.5 6.2")


def _check_items(root: Item, report: Report) -> None:
    """Judge the sequences of the root, item by item."""
    _check_rules(root.first(0x0040A043), _CODE, "titre", report)
    for request in root.items(0x0040A370):
        _check_rules(request, _REQUEST, "ReferencedRequestSequence", report)
        for tag, name in (
            (0x00080051, "IssuerOfAccessionNumberSequence"),
            (0x00400026, "OrderPlacerIdentifierSequence"),
        ):
            for authority in request.items(tag):
                _check_rules(authority, _AUTHORITY, name, report)
        if request.text(0x0020000D) != root.text(0x0020000D):
            report.error("ReferencedRequestSequence : un autre examen que celui du KOS", _NATIONAL)
    if (zone := root.text(0x00080201)) and _ZONE.fullmatch(zone) is None:
        report.error("TimezoneOffsetFromUTC (0008,0201) : ±HHMM attendu", "PS3.3 C.12.1")
    if root.text(0x00080050):
        report.warning(
            "AccessionNumber à la racine : vide attendu, les valeurs sont en (0040,A370)", _NATIONAL
        )


def _check_patient(root: Item, report: Report) -> None:
    for where, item in (
        ("racine", root),
        *(("OtherPatientIDsSequence", each) for each in root.items(0x00101002)),
    ):
        if where != "racine":
            _check_rules(item, _OTHER_ID, where, report)
        for qualifier in item.items(_QUALIFIERS):
            _check_rules(qualifier, _AUTHORITY, f"l'identité ({where})", report)
            oid = qualifier.text(0x00400032)
            if oid and oid not in INS_OIDS:
                report.error(f"OID d'INS inconnu ({where})", "CI-SIS IMG-KOS ; référentiel INS")
    matricule = root.text(_PATIENT_ID)
    if matricule and _MATRICULE.fullmatch(matricule) is None:
        report.error("PatientID : un matricule INS de 15 caractères est attendu", "référentiel INS")
    elif matricule and not _key_holds(matricule):
        report.warning("PatientID : la clé du matricule INS n'est pas la bonne", "référentiel INS")
    others = [each.text(_PATIENT_ID) for each in root.items(0x00101002)]
    if others and matricule not in others:
        report.error("OtherPatientIDsSequence : l'INS du patient n'y est pas", _NATIONAL)


def _key_holds(matricule: str) -> bool:
    number = int(matricule[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(matricule[13:])


def _check_evidence(root: Item, report: Report) -> None:
    """Judge series and instances, and hold the content tree against them."""
    evidences = root.items(_EVIDENCE)
    if len(evidences) > 1:
        report.error("plusieurs examens dans l'évidence", "DB.SO.18")
    named: Counter[str] = Counter()
    classes: dict[str, str] = {}
    for evidence in evidences:
        if evidence.text(0x0020000D) != root.text(0x0020000D):
            report.error("l'évidence nomme un autre examen que celui du KOS", "DB.SO.18")
        for number, series in enumerate(evidence.items(_SERIES), 1):
            _check_rules(series, _SERIES_RULES, "série", report)
            _check_url(series, root.text(0x0020000D), number, report)
            for reference in series.items(_SOPS):
                _check_rules(reference, _REFERENCE, "référence", report)
                uid = reference.text(_INSTANCE)
                named[uid] += 1
                classes[uid] = reference.text(_CLASS)
                if uid and not is_uid(uid):
                    report.error("ReferencedSOPInstanceUID : pas un UID", "PS3.5 9.1")
    twice = sum(1 for count in named.values() if count > 1)
    if twice:
        report.error(f"{twice} instance(s) nommée(s) deux fois dans l'évidence", _DICOM)
    _check_tree(root, classes, report)


def _check_url(series: Item, study: str, number: int, report: Report) -> None:
    raw = series.text(0x00081190)
    url = "".join(raw.split())
    if not url:
        return
    if url != raw:
        report.warning("RetrieveURL avec des blancs ou fins de ligne", "PS3.5 6.2", series=number)
    try:
        parts = urlsplit(url)
    except ValueError:
        report.error("RetrieveURL illisible", "DB.SO.173", series=number)
        return
    if parts.scheme != "https" or not parts.hostname:
        report.error("RetrieveURL qui n'est pas en https", "DB.SO.173", series=number)
    if not parts.path.endswith(f"/studies/{study}/series/{series.text(0x0020000E)}"):
        report.error(
            "RetrieveURL : /studies/{étude}/series/{série} attendu à la fin", "DB.SO.173", series=number
        )
    elif "/dicom-web-rs/studies/" not in parts.path:
        report.warning("RetrieveURL sans le chemin /dicom-web-rs/", "DB.SO.173", series=number)


def _check_tree(root: Item, classes: dict[str, str], report: Report) -> None:
    """Hold the content tree (PS3.16 TID 2010) against the evidence."""
    shown_uids: set[str] = set()
    texts = 0
    for item in root.items(_CONTENT):
        kind = item.text(0x0040A040)
        if item.text(0x0040A010) != "CONTAINS":
            report.error("contenu : relation CONTAINS attendue", "PS3.16 TID 2010")
        if kind == "TEXT":
            texts += 1
        for reference in item.items(_SOPS):
            uid = reference.text(_INSTANCE)
            shown_uids.add(uid)
            due = value_type(reference.text(_CLASS))
            if kind != due:
                report.warning(f"contenu : type {shown(kind, 16)} pour un objet {due}", "PS3.16 TID 2010")
    for count, what in (
        (len(classes.keys() - shown_uids), "dans l'évidence mais pas dans le contenu"),
        (len(shown_uids - classes.keys()), "dans le contenu mais pas dans l'évidence"),
    ):
        if count:
            report.error(f"{count} instance(s) {what}", "PS3.3 C.17.6.2 ; PS3.16 TID 2010")
    if not texts and not root.text(0x0040A160):
        report.warning("aucun texte de description des séries", _NATIONAL)
    if not root.items(0x0040A504):
        report.inform("ContentTemplateSequence absent (TID 2010)", "PS3.16 TID 2010")


def _check_manifest(manifest: Manifest, report: Report) -> None:
    report.facts.update(
        study_uid=manifest.study_uid,
        kos_uid=manifest.sop_instance_uid,
        series=len(manifest.series),
        instances=manifest.instance_count,
        key_images=sum(1 for series in manifest.series for each in series.instances if each.key_images),
    )
    silent = [series for series in manifest.series if not series.modality]
    if silent:
        report.warning(f"{len(silent)} série(s) sans ligne « Série-… » dans le texte", _NATIONAL)
    if not manifest.act:
        report.inform("pas de ligne « Acte = » dans le texte", _NATIONAL)
    every = [each for series in manifest.series for each in series.instances]
    known = {each.sop_instance_uid for each in every}
    if any(note.sop_instance_uid not in known for each in every for note in each.key_images):
        report.warning("une note d'images clés n'est pas elle-même dans le manifeste", "DB.SO.194")

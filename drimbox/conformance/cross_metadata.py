"""Holding the metadata of a publication against the report they were made for (DB.SO.105; CI-SIS IMG-KOS).

Identity, orders, study, act, people and visibility come from the report; the metadata must say the same.
Their own form, and the manifest against them, are the business of `drimbox.conformance.xds`. Texts of
findings never quote the patient, the orders or the professional.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from drimbox.conformance.report import Report, shown
from drimbox.conformance.report_facts import ReportAct, ReportFacts
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds import capture, rim, tables, types
from drimbox.conformance.xds.entries import institutions, references
from drimbox.conformance.xds.rim import RimObject

_REPORT: Final = "DB.SO.105 ; CI-SIS IMG-KOS"
_NATIONAL: Final = "CI-SIS Partage de documents"

RULES = RuleBook("metadata")
_UNREADABLE = RULES.error("unreadable", "métadonnées illisibles (voir « validate xds »)", "ITI TF-3 4.2")
_NO_ENTRY = RULES.error("entry", "aucune entrée de KOS dans les métadonnées", "DB.SO.18")
_KOS = RULES.error("kos", "uniqueId d'aucun des KOS donnés", "IHE RAD TF-3 4.68")
_STUDY = RULES.error("study", "referenceIdList : examen absent du compte rendu", _REPORT)
_PATIENT = RULES.error("patient", "patientId n'est pas l'INS du compte rendu", _REPORT)
_TRAIT = RULES.error("trait", "sourcePatientInfo : {field} différent du compte rendu", _REPORT)
_ACCESSION = RULES.error(
    "accession", "referenceIdList : accession de la demande n° {rank} absente", _REPORT
)
_ORDER = RULES.error("order", "referenceIdList : numéro de la demande n° {rank} absent", _REPORT)
_MODALITY = RULES.error("modality", "eventCodeList : modalité {code} du compte rendu absente", _REPORT)
_REGION = RULES.error("region", "eventCodeList : région {code} du compte rendu absente", _REPORT)
_START = RULES.warning("start", "serviceStartTime à plus d'un jour de l'acte du compte rendu", _REPORT)
_SIGNER = RULES.error("authenticator", "legalAuthenticator n'est pas celui du compte rendu", _NATIONAL)
_STRUCTURE = RULES.error("structure", "authorInstitution n'est pas la situation d'exercice", _NATIONAL)
_FACILITY = RULES.error("facility", "healthcareFacilityTypeCode différent du compte rendu", _NATIONAL)
_PRACTICE = RULES.warning("practice", "practiceSettingCode différent du compte rendu", _NATIONAL)
_LANGUAGE = RULES.warning("language", "languageCode différent du compte rendu", _NATIONAL)
_VISIBILITY = RULES.error(
    "visibility", "confidentialityCode : pas la visibilité demandée par le message", "DB.SO.97 ; CISIS3"
)

_STUDY_TYPE, _ACCESSION_TYPE, _ORDER_TYPE = "studyInstanceUID", "accession", "order"


def check_metadata(data: bytes, report: ReportFacts, kos_uids: Sequence[str], out: Report) -> None:
    """Judge a capture or a METADATA.XML against a report; `kos_uids` are those of the manifests given."""
    # How it is packed and built is not this validator's business.
    apart = Report("")
    opened = capture.open_capture(data, apart)
    holder = rim.find_list(opened.root) if opened is not None else None
    if holder is None:
        _UNREADABLE.broken(out)
        return
    entries = [
        item
        for item in rim.read_objects(holder, apart)
        if item.kind == "ExtrinsicObject" and any(code.value == "IMG-KOS" for code in item.codes)
    ]
    if not entries:
        _NO_ENTRY.broken(out)
    for rank, entry in enumerate(entries, 1):
        where = f"métadonnées n° {rank}" if len(entries) > 1 else "métadonnées"
        if kos_uids and entry.external(tables.UNIQUE) not in kos_uids:
            _KOS.broken(out, where)
        _check_entry(entry, report, out, where)


def _check_entry(entry: RimObject, report: ReportFacts, out: Report, where: str) -> None:
    patient = types.patient(entry.external(tables.PATIENT))
    if report.ins and patient != (report.ins, report.ins_oid):
        _PATIENT.broken(out, where)
    _check_traits(entry, report, out, where)
    told = references(entry)
    studies = {value for value, _ in told.get(_STUDY_TYPE, set())}
    act = next((each for each in report.acts if each.study_uid in studies), None)
    if act is None:
        _STUDY.broken(out, where)
    else:
        _check_act(entry, act, out, where)
    for rank, pair in enumerate(report.pairs, 1):
        if pair.accession[0] and pair.accession not in told.get(_ACCESSION_TYPE, set()):
            _ACCESSION.broken(out, where, rank=rank)
        if pair.order[0] and pair.order not in told.get(_ORDER_TYPE, set()):
            _ORDER.broken(out, where, rank=rank)
    signer = entry.slot("legalAuthenticator").partition("^")[0]
    if report.authenticator and types.unescaped(signer) != report.authenticator:
        _SIGNER.broken(out, where)
    places = institutions(entry)
    if report.structure_id and places and report.structure_id not in places:
        _STRUCTURE.broken(out, where)
    if report.facility and report.facility not in _codes(entry, tables.FACILITY):
        _FACILITY.broken(out, where)
    if report.language and entry.slot("languageCode") != report.language:
        _LANGUAGE.broken(out, where)
    if report.masks is not None and _codes(entry, tables.CONFIDENTIALITY) - {"N"} != report.masks:
        _VISIBILITY.broken(out, where)


def _check_traits(entry: RimObject, report: ReportFacts, out: Report, where: str) -> None:
    for line in entry.slots.get("sourcePatientInfo", ()):
        field, _, value = line.partition("|")
        parts = value.split("^")
        told = {
            "PID-5": (types.letters(parts[0]), types.letters(report.family)),
            "PID-7": (value[:8], report.birth_date),
            "PID-8": (value, report.sex),
            "PID-11": (parts[-1], report.birth_place),
        }.get(field)
        # Names may be cut to fit; what is there must be the beginning.
        if told is not None and told[1] and (not told[0] or not told[1].startswith(told[0])):
            _TRAIT.broken(out, where, field=field)


def _check_act(entry: RimObject, act: ReportAct, out: Report, where: str) -> None:
    events = _codes(entry, tables.EVENTS)
    for rule, codes in ((_MODALITY, act.modalities), (_REGION, act.regions)):
        for code in dict.fromkeys(codes):
            if code not in events:
                rule.broken(out, where, code=shown(code, 24))
    told, due = types.instant(entry.slot("serviceStartTime")), _day(act.start)
    if told is not None and due is not None and abs((told - due).days) > 1:
        _START.broken(out, where)
    if act.practice and act.practice not in _codes(entry, tables.PRACTICE):
        _PRACTICE.broken(out, where)


def _codes(entry: RimObject, scheme: str) -> set[str]:
    return {code.value for code in entry.coded(scheme) if code.value}


def _day(ts: str) -> datetime | None:
    return types.instant(ts[:8]) if len(ts) >= 8 else None

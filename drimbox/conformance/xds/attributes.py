"""Judging SubmissionSet and DocumentEntry attributes, each against its table (ITI TF-3 4.2.3; CI-SIS).

The rows are in `tables`; here is what it means for an object to meet them, and what several attributes
of one object must say together: times in order, a modality and a region, orders in pairs.
"""

from __future__ import annotations

from typing import Final

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds import tables, types
from drimbox.conformance.xds.rim import Code, RimObject
from drimbox.conformance.xds.tables import CodeRow, IdRow, SlotRow, Table

_XDS: Final = "ITI TF-3 4.2.3"
_NATIONAL: Final = "CI-SIS Partage de documents"

RULES = RuleBook("attribute")
_SLOT_ABSENT = RULES.error("slot", "{name} absent", "{clause}")
_SLOT_MANY = RULES.error("slot_many", "{name} : {count} valeurs, une seule attendue", _XDS)
_SLOT_FORM = RULES.error("slot_form", "{name} : valeur mal formée", "{clause}")
_SLOT_UNKNOWN = RULES.warning("slot_unknown", "Slot {name} inconnu", _XDS)
_TIME_ZONE = RULES.warning("time_zone", "{name} : fuseau horaire, DTM en UTC attendu", "ITI TF-3 4.2.3.1.7")
_TIME_SHORT = RULES.warning("time_short", "{name} : précision à la seconde attendue", _NATIONAL)
_CODE_ABSENT = RULES.error("code", "{name} absent ({count} trouvé(s), {least} attendu(s))", "{clause}")
_CODE_MANY = RULES.error("code_many", "{name} : {count} trouvés, {most} au plus", "{clause}")
_CODE_SCHEME = RULES.error("code_scheme", "{name} : nomenclature {scheme} non prévue", "{clause}")
_CODE_FORMER = RULES.warning("code_former", "{name} : ancienne nomenclature {scheme}", "{clause}")
_CODE_VALUE = RULES.error("code_value", "{name} : code {code} non prévu", "{clause}")
_CODE_EMPTY = RULES.error("code_empty", "{name} sans code (nodeRepresentation)", _XDS)
_CODE_TWICE = RULES.error("code_twice", "{name} : le même code deux fois", _XDS)
_CODE_NAME = RULES.warning("code_name", "{name} : code {code} sans libellé", _XDS)
_CODE_UNKNOWN = RULES.warning("code_unknown", "classification {scheme} inconnue", _XDS)
_AUTHOR = RULES.error("author", "author absent", "ITI TF-3 4.2.3.1")
_AUTHOR_PERSON = RULES.error(
    "author_person", "authorPerson absent ou mal formé (XCN)", "ITI TF-3 4.2.3.1.7"
)
_AUTHOR_PLACE = RULES.error(
    "author_institution", "authorInstitution absent ou mal formé (XON)", "ITI TF-3 4.2.3.1.7"
)
_AUTHOR_NODE = RULES.warning("author_node", "author avec un nodeRepresentation", "ITI TF-3 4.2.3.1")
_STRUCTURE = RULES.warning(
    "structure", "authorInstitution : identifiant de structure inhabituel", _NATIONAL
)
_ID_ABSENT = RULES.error("identifier", "{name} absent", "{clause}")
_ID_MANY = RULES.error("identifier_many", "{name} donné {count} fois", "{clause}")
_ID_FORM = RULES.error("identifier_form", "{name} : valeur mal formée", "{clause}")
_ID_NAME = RULES.error(
    "identifier_name", "{name} : Name de l'ExternalIdentifier différent", "ITI TF-3 4.2.3.1"
)
_ID_UNKNOWN = RULES.warning("identifier_unknown", "ExternalIdentifier {scheme} inconnu", _XDS)
_KEY = RULES.warning("ins_key", "matricule INS : forme ou clé inhabituelle", "référentiel INS")
_NODE = RULES.error("set_node", "classificationNode du SubmissionSet attendu une fois", "ITI TF-3 4.2.1")
_TYPE = RULES.error("object_type", "objectType : document stable (7edca82f-…) attendu", "ITI TF-3 4.2.3.2")
_MIME = RULES.error("mime", "mimeType : {due} attendu", "{clause}")
_TITLE = RULES.error("title", "titre (Name) absent", _NATIONAL)
_TITLE_TEXT = RULES.inform("title_text", "titre ou commentaire autre que « {due} »", "CI-SIS IMG-KOS")
_NORMAL = RULES.error("normal", "confidentialityCode N (2.16.840.1.113883.5.25) attendu", _NATIONAL)
_SIGNATURE_MASKS = RULES.error(
    "signature_masks", "confidentialityCode : N, MASQUE_PS et INVISIBLE_PATIENT attendus", _NATIONAL
)
_NO_MODALITY = RULES.error("modality", "eventCodeList sans modalité", "DB.SO.105 ; CI-SIS IMG-KOS")
_NO_REGION = RULES.warning("region", "eventCodeList sans région anatomique", "DB.SO.105 ; CI-SIS IMG-KOS")
_REFERENCE_TYPE = RULES.warning(
    "reference_type", "referenceIdList : type {kind} inconnu", "ITI TF-3 4.2.3.1.7"
)
_NO_STUDY = RULES.error(
    "reference_study", "referenceIdList : un StudyInstanceUID et un seul attendu", "DB.SO.105"
)
_NO_ACCESSION = RULES.error("reference_accession", "referenceIdList sans numéro d'accession", "DB.SO.105")
_NO_ORDER = RULES.error("reference_order", "referenceIdList sans numéro de demande", "DB.SO.105")
_NO_AUTHORITY = RULES.error(
    "reference_authority", "referenceIdList : numéro sans autorité", "DB.SO.105 ; ITI TF-3 4.2.3.1.7"
)
_STUDY_FORM = RULES.error(
    "reference_uid", "referenceIdList : StudyInstanceUID qui n'est pas un UID", "PS3.5 9.1"
)
_STOP = RULES.error("stop", "serviceStopTime avant serviceStartTime", "ITI TF-3 4.2.3.2")
_OLDER = RULES.warning(
    "older", "creationTime après submissionTime : fuseaux différents ?", "ITI TF-3 4.2.3.2"
)
_INFO_FIELDS = RULES.error(
    "patient_info", "sourcePatientInfo : PID-5, PID-7 et PID-8, une fois chacun", _NATIONAL
)
_INFO_FORM = RULES.error("patient_info_form", "sourcePatientInfo : {field} mal formé", "ITI TF-3 4.2.3.2")
_INFO_SIGNATURE = RULES.error(
    "patient_info_signature", "sourcePatientInfo sur l'entrée de signature", _NATIONAL
)
_REGISTRY = RULES.warning("registry", "{name} : c'est au registre de l'écrire", "ITI TF-3 4.2.3.2")

#: Slots and attributes that other profiles add.
_TOLERATED: Final = frozenset({"URI", "PreviousVersion"})
_STUDY: Final = "urn:ihe:iti:xds:2016:studyInstanceUID"
_ACCESSION: Final = "urn:ihe:iti:xds:2013:accession"
_ORDER: Final = "urn:ihe:iti:xds:2013:order"
_KNOWN_TYPES: Final = frozenset(
    {
        _STUDY,
        _ACCESSION,
        _ORDER,
        "urn:ihe:iti:xds:2013:uniqueId",
        "urn:ihe:iti:xds:2013:referral",
        "urn:ihe:iti:xds:2013:workflowInstanceId",
        "urn:ihe:iti:xds:2015:encounterId",
    }
)


def check_set(item: RimObject, out: Report) -> None:
    """Judge the SubmissionSet."""
    where = "SubmissionSet"
    _check_table(item, tables.SET, where, out)
    if [code.node for code in item.codes if code.node] != [tables.SET_NODE]:
        _NODE.broken(out, where)


def check_entry(item: RimObject, table: Table, where: str, out: Report, *, update: bool = False) -> None:
    """Judge a DocumentEntry; `table` is `tables.KOS` or `tables.SIGNATURE`."""
    _check_table(item, table, where, out)
    if item.attributes.get("objectType") != tables.STABLE:
        _TYPE.broken(out, where)
    if item.attributes.get("mimeType") != table.mime:
        _MIME.at("CI-SIS IMG-KOS" if table is tables.KOS else "IHE ITI DSG").broken(
            out, where, due=table.mime
        )
    if not item.name:
        _TITLE.broken(out, where)
    elif (item.name, item.description or "") != (table.title, table.description):
        _TITLE_TEXT.broken(out, where, due=table.title)
    if not update:
        for name in ("lid", "status", "home"):
            if name in item.attributes:
                _REGISTRY.broken(out, where, name=name)
    _check_times(item, where, out)
    _check_references(item, where, out)
    codes = [code.value for code in item.coded(tables.CONFIDENTIALITY)]
    if table is tables.SIGNATURE:
        if sorted(filter(None, codes)) != ["INVISIBLE_PATIENT", "MASQUE_PS", "N"]:
            _SIGNATURE_MASKS.broken(out, where)
        if "sourcePatientInfo" in item.slots:
            _INFO_SIGNATURE.broken(out, where)
        return
    if "N" not in codes:
        _NORMAL.broken(out, where)
    schemes = {code.coding_scheme for code in item.coded(tables.EVENTS)}
    if not schemes & {tables.DCM, tables.FORMER_MODALITY}:
        _NO_MODALITY.broken(out, where)
    # Regions were once written under the CCAM's own scheme: then nothing tells them from acts.
    if not schemes & {tables.SNOMED, tables.FORMER_REGION, "1.2.250.1.213.2.5"}:
        _NO_REGION.broken(out, where)
    _check_patient_info(item, where, out)


def _check_table(item: RimObject, table: Table, where: str, out: Report) -> None:
    for slot in table.slots:
        _check_slot(item, slot, where, out)
    known = {row.name for row in table.slots} | _TOLERATED | {"sourcePatientInfo"}
    for name in item.slots:
        if name == "repositoryUniqueId":
            _REGISTRY.broken(out, where, name=name)
        elif name not in known:
            _SLOT_UNKNOWN.broken(out, where, name=shown(name))
    for row in table.codes:
        _check_codes(item, row, where, out)
    _check_authors(item.coded(table.author), where, out)
    schemes = {row.scheme for row in table.codes} | {table.author, ""}
    for code in item.codes:
        if code.scheme not in schemes or (not code.scheme and not code.node):
            _CODE_UNKNOWN.broken(out, where, scheme=shown(code.scheme))
    for identifier in table.identifiers:
        _check_identifier(item, identifier, where, out)
    for each in item.identifiers:
        if each.scheme not in {row.scheme for row in table.identifiers}:
            _ID_UNKNOWN.broken(out, where, scheme=shown(each.scheme))


def _check_slot(item: RimObject, row: SlotRow, where: str, out: Report) -> None:
    name = row.name.rpartition(":")[2]
    values = item.slots.get(row.name, ())
    if not any(values):
        if row.required:
            _SLOT_ABSENT.at(row.clause).broken(out, where, name=name)
        return
    if len(values) > 1 and not row.many:
        _SLOT_MANY.broken(out, where, name=name, count=len(values))
    faults = {types.time_fault(value) for value in values} if row.time else set()
    if "form" in faults or (row.fits is not None and not all(map(row.fits, values))):
        _SLOT_FORM.at(row.clause).broken(out, where, name=name)
    if "zone" in faults:
        _TIME_ZONE.broken(out, where, name=name)
    if "short" in faults:
        _TIME_SHORT.broken(out, where, name=name)


def _check_codes(item: RimObject, row: CodeRow, where: str, out: Report) -> None:
    found = item.coded(row.scheme)
    if len(found) < row.least:
        _CODE_ABSENT.at(row.clause).broken(out, where, name=row.name, count=len(found), least=row.least)
    if row.most is not None and len(found) > row.most:
        _CODE_MANY.at(row.clause).broken(out, where, name=row.name, count=len(found), most=row.most)
    for code in found:
        _check_code(code, row, where, out)
    pairs = [(code.value, code.coding_scheme) for code in found]
    if len(set(pairs)) != len(pairs):
        _CODE_TWICE.broken(out, where, name=row.name)


def _check_code(code: Code, row: CodeRow, where: str, out: Report) -> None:
    if not code.value:
        _CODE_EMPTY.broken(out, where, name=row.name)
        return
    scheme = code.coding_scheme
    if scheme in row.allowed:
        codes = row.allowed[scheme]
    elif scheme in row.former:
        codes = row.former[scheme]
        _CODE_FORMER.at(row.clause).broken(out, where, name=row.name, scheme=scheme)
    else:
        _CODE_SCHEME.at(row.clause).broken(out, where, name=row.name, scheme=shown(scheme))
        return
    if codes is not None and code.value not in codes:
        _CODE_VALUE.at(row.clause).broken(out, where, name=row.name, code=shown(code.value))
    if not code.display:
        _CODE_NAME.broken(out, where, name=row.name, code=shown(code.value))


def _check_authors(authors: list[Code], where: str, out: Report) -> None:
    if not authors:
        _AUTHOR.broken(out, where)
    for author in authors:
        if author.value:
            _AUTHOR_NODE.broken(out, where)
        people = author.slots.get("authorPerson", ())
        if not people or not all(map(types.person, people)):
            _AUTHOR_PERSON.broken(out, where)
        places = [types.institution(value) for value in author.slots.get("authorInstitution", ())]
        if not places or None in places:
            _AUTHOR_PLACE.broken(out, where)
        elif not all(types.is_structure(place or "") for place in places):
            _STRUCTURE.broken(out, where)


def _check_identifier(item: RimObject, row: IdRow, where: str, out: Report) -> None:
    found = [each for each in item.identifiers if each.scheme == row.scheme]
    name = row.name.partition(".")[2]
    if not found:
        _ID_ABSENT.at(row.clause).broken(out, where, name=name)
        return
    if len(found) > 1:
        _ID_MANY.at(row.clause).broken(out, where, name=name, count=len(found))
    if found[0].name != row.name:
        _ID_NAME.broken(out, where, name=name)
    if not row.fits(found[0].value):
        _ID_FORM.at(row.clause).broken(out, where, name=name)
    elif (patient := types.patient(found[0].value)) is not None and not types.key_holds(patient[0]):
        _KEY.broken(out, where)


def _check_times(item: RimObject, where: str, out: Report) -> None:
    names = ("serviceStartTime", "serviceStopTime", "creationTime", "submissionTime")
    start, stop, created, submitted = (types.instant(item.slot(name)) for name in names)
    if start is not None and stop is not None and stop < start:
        _STOP.broken(out, where)
    if created is not None and submitted is not None and submitted < created:
        _OLDER.broken(out, where)


def _check_references(item: RimObject, where: str, out: Report) -> None:
    values = item.slots.get(tables.REFERENCES, ())
    found = [each for value in values if (each := types.reference(value)) is not None]
    if not found:
        return
    by_type: dict[str, list[tuple[str, str]]] = {}
    for value, authority, kind in found:
        by_type.setdefault(kind, []).append((value, authority))
    for kind in by_type.keys() - _KNOWN_TYPES:
        _REFERENCE_TYPE.broken(out, where, kind=shown(kind))
    studies = {value for value, _ in by_type.get(_STUDY, [])}
    if len(studies) != 1:
        _NO_STUDY.broken(out, where)
    elif not all(map(types.is_oid, studies)):
        _STUDY_FORM.broken(out, where)
    for kind, rule in ((_ACCESSION, _NO_ACCESSION), (_ORDER, _NO_ORDER)):
        if not by_type.get(kind):
            rule.broken(out, where)
        elif any(not authority for _, authority in by_type[kind]):
            _NO_AUTHORITY.broken(out, where)


def _check_patient_info(item: RimObject, where: str, out: Report) -> None:
    values = item.slots.get("sourcePatientInfo", ())
    fields = [value.partition("|")[0] for value in values]
    if {"PID-5", "PID-7", "PID-8"} - set(fields) or len(set(fields)) != len(fields):
        _INFO_FIELDS.broken(out, where)
    for field, value in (each.partition("|")[::2] for each in values):
        parts = value.split("^")
        good = {
            "PID-5": len(parts) >= 2 and bool(parts[0]) and parts[6:7] == ["L"],
            "PID-7": len(value) == 8 and types.time_fault(value) == "short",
            "PID-8": value in ("M", "F", "O", "U"),
            "PID-11": len(parts) >= 9 and parts[6] == "BDL",
        }.get(field, True)
        if value and not good:
            _INFO_FORM.broken(out, where, field=field)


def same_patient(objects: list[RimObject]) -> set[str]:
    """Return the distinct patientIds of set and entries."""
    found = {item.external(scheme) for item in objects for scheme in (tables.SET_PATIENT, tables.PATIENT)}
    return found - {""}


def structures(item: RimObject, table: Table) -> set[str]:
    """Return the structures of an object's authors."""
    values = [
        value for code in item.coded(table.author) for value in code.slots.get("authorInstitution", ())
    ]
    return {place for value in values if (place := types.institution(value)) is not None}

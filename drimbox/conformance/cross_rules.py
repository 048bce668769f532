"""Holding a manifest against the report it was made for (DB.SO.12, DB.SO.105; CI-SIS IMG-KOS).

The report decides who the patient is and which orders and studies there are; the manifest must say the
same. A trait that the manifest leaves out is a warning, since older objects leave some out; one that says
something else is an error. Texts and dates come from two systems, and differences there are warnings.

Texts of findings name attributes, codes and UIDs, never the patient's values nor those of the orders.
"""

from __future__ import annotations

import unicodedata
from datetime import date
from typing import Final

from drimbox.conformance.kos_facts import KEY_OBJECT, KosFacts, Request
from drimbox.conformance.report import Report, shown
from drimbox.conformance.report_facts import Id, Pair, ReportAct, ReportFacts
from drimbox.conformance.rules import Rule, RuleBook
from drimbox.model import is_uid

_TABLE: Final = "DB.SO.12 ; DRIM-M tableau 1"
_PATIENT: Final = "DB.SO.105 ; CI-SIS IMG-KOS"
_ORDER: Final = "DB.SO.105 ; PS3.3 C.17.6.2"

RULES = RuleBook("cross")
_NO_STUDY = RULES.error("report.study", "aucun StudyInstanceUID (serviceEvent/id)", _TABLE)
_BAD_STUDY = RULES.error("report.study_uid", "StudyInstanceUID mal formé", _TABLE)
_NO_ORDER = RULES.error("report.order", "aucune demande (inFulfillmentOf/order)", _TABLE)
_PART_ORDER = RULES.error("report.order_part", "demande n° {rank} : {name} absent(e)", _TABLE)
_NO_INS = RULES.error("report.ins", "INS du patient absent (recordTarget/patientRole/id)", _TABLE)
_NO_STRUCTURE = RULES.error(
    "report.structure", "situation d'exercice absente (legalAuthenticator, PRT-8.10)", _TABLE
)
_NO_MODALITY = RULES.error("report.modality", "examen n° {rank} sans modalité (121139)", _TABLE)
_NO_REGION = RULES.error("report.region", "examen n° {rank} sans région anatomique (39111-0)", _TABLE)
_MESSAGE_INS = RULES.error(
    "message.ins", "l'INS du message (PID-3) n'est pas celui du compte rendu", "DB.SO.45 E001 ; CISIS3"
)
_MESSAGE_IPP = RULES.error(
    "message.ipp", "l'IPP du message (PID-3) n'est pas celui du compte rendu", "DB.SO.45 E001 ; CISIS3"
)

_CLASS = RULES.error("kos.class", "cet objet n'est pas un manifeste (88.59, titre 113030)", "DB.SO.18")
_STUDY = RULES.error("study.other", "StudyInstanceUID absent du compte rendu", "DB.SO.105")
_MANY = RULES.error("study.several", "le manifeste vise plusieurs examens", "DB.SO.12 ; DB.SO.18")
_INS = RULES.error("patient.ins", "PatientID n'est pas l'INS du compte rendu", _PATIENT)
_OID = RULES.error("patient.oid", "OID de l'INS différent de celui du compte rendu", _PATIENT)
_ISSUER = RULES.warning(
    "patient.issuer", "IssuerOfPatientID (0010,0021) : {due} attendu pour cet OID", "CI-SIS IMG-KOS"
)
_TRAIT = RULES.error("patient.trait", "{name} différent(e) de celui du compte rendu", _PATIENT)
_NAME = RULES.warning("patient.name", "{name} différent(e) de celui du compte rendu", "CI-SIS IMG-KOS")
_SPELLING = RULES.warning(
    "patient.spelling", "{name} : seuls casse, accents ou ponctuation diffèrent", _PATIENT
)
_CUT = RULES.inform("patient.cut", "{name} abrégé(e) à la longueur de son VR", "PS3.5 6.2")
_TRAIT_ABSENT = RULES.warning("patient.absent", "{name} donné(e) par le compte rendu, absent(e)", _PATIENT)

_ACCESSION = RULES.error(
    "request.accession", "numéro d'accession de la demande n° {rank} du compte rendu absent", _ORDER
)
_PLACER = RULES.error(
    "request.order", "numéro de demande n° {rank} du compte rendu absent (0040,2016)", _ORDER
)
_ACCESSION_OID = RULES.error(
    "request.accession_issuer",
    "autorité du numéro d'accession de la demande n° {rank} : autre OID que le compte rendu (0008,0051)",
    _ORDER,
)
_PLACER_OID = RULES.error(
    "request.order_issuer",
    "autorité du numéro de demande n° {rank} : autre OID que le compte rendu (0040,0026)",
    _ORDER,
)
_PAIR = RULES.error(
    "request.pair", "demande n° {rank} : ses deux numéros ne sont pas dans le même item", _ORDER
)
_EXTRA = RULES.warning("request.extra", "{count} demande(s) que le compte rendu ne cite pas", _ORDER)
_TWICE = RULES.warning("request.twice", "la même demande figure deux fois", _ORDER)
_REQUEST_STUDY = RULES.error(
    "request.study", "ReferencedRequestSequence : un autre examen que celui du KOS", _ORDER
)

_ACT = RULES.warning("act.text", "ligne « Acte = » : autre libellé que serviceEvent/code", "CI-SIS IMG-KOS")
_ACT_REGION = RULES.inform(
    "act.region", "ligne « Acte = » : la région, forme ancienne, au lieu de l'acte", "CI-SIS IMG-KOS"
)
_MODALITY = RULES.warning(
    "act.modality", "modalité {code} du compte rendu : aucune série du manifeste", "DB.SO.105"
)
_STRUCTURE = RULES.error(
    "structure.id", "InstitutionName : autre structure que la situation d'exercice", "CI-SIS IMG-KOS"
)
_STRUCTURE_ABSENT = RULES.warning(
    "structure.absent", "InstitutionName sans identifiant de structure (composant 10)", "CI-SIS IMG-KOS"
)
_STUDY_DATE = RULES.warning(
    "date.study", "StudyDate à plus d'un jour de l'acte (serviceEvent/effectiveTime)", "CI-SIS IMG-KOS"
)
_CREATED = RULES.warning("date.created", "KOS créé avant la date du compte rendu", "CI-SIS IMG-KOS")

_NIR_ISSUER, _NIA_ISSUER, _NIA_OID = "ASIP-SANTE-INS-NIR", "ASIP-SANTE-INS-NIA", "1.2.250.1.213.1.4.9"
#: Length of a component group of a PN; some count characters, others bytes.
_MAX_NAME: Final = 64


def check_report(report: ReportFacts, out: Report) -> None:
    """Say what the report itself lacks of table 1: without it no manifest can be right."""
    where = "compte rendu"
    if not report.acts:
        _NO_STUDY.broken(out, where)
    for rank, act in enumerate(report.acts, 1):
        if not is_uid(act.study_uid):
            _BAD_STUDY.broken(out, where)
        if not act.modalities:
            _NO_MODALITY.broken(out, where, rank=rank)
        if not act.regions:
            _NO_REGION.broken(out, where, rank=rank)
    if not report.pairs:
        _NO_ORDER.broken(out, where)
    for rank, pair in enumerate(report.pairs, 1):
        for value, name in zip(
            (*pair.accession, *pair.order),
            ("numéro d'accession", "autorité d'accession", "numéro de demande", "autorité de demande"),
            strict=True,
        ):
            if not value:
                _PART_ORDER.broken(out, where, rank=rank, name=name)
    if not report.ins:
        _NO_INS.broken(out, where)
    if not report.structure_id:
        _NO_STRUCTURE.broken(out, where)
    if report.message_ins is not None and report.message_ins[:13] != report.ins[:13]:
        _MESSAGE_INS.broken(out, where)
    told = report.message_ipp
    if told is not None and told[1]:
        same = {value for value, authority in report.local_ids[1:] if authority == told[1]}
        if same and told[0] not in same:
            _MESSAGE_IPP.broken(out, where)


def check_manifest(kos: KosFacts, report: ReportFacts, out: Report, where: str = "") -> None:
    """Hold one manifest against the report; `where` names it when there are several."""
    if kos.sop_class_uid != KEY_OBJECT or kos.title != "113030":
        _CLASS.broken(out, where)
    act = next((each for each in report.acts if each.study_uid == kos.study_uid), None)
    if act is None:
        _STUDY.broken(out, where)
    if {each.study_uid for each in kos.references} - {kos.study_uid}:
        _MANY.broken(out, where)
    _check_patient(kos, report, out, where)
    _check_requests(kos, report.pairs, out, where)
    if act is not None:
        _check_act(kos, act, out, where)
    if not kos.institution_id:
        _STRUCTURE_ABSENT.broken(out, where)
    elif report.structure_id and not _same_structure(kos.institution_id, report.structure_id):
        _STRUCTURE.broken(out, where)
    made, signed = _day(kos.created), _day(report.effective_time)
    if made is not None and signed is not None and made < signed:
        _CREATED.broken(out, where)


# --- patient -----------------------------------------------------------------------------------------


def _check_patient(kos: KosFacts, report: ReportFacts, out: Report, where: str) -> None:
    if report.ins and kos.patient_id != report.ins:
        _INS.broken(out, where)
    if report.ins_oid and kos.patient_oid != report.ins_oid:
        _OID.broken(out, where)
    due = _NIA_ISSUER if kos.patient_oid == _NIA_OID else _NIR_ISSUER
    if kos.issuer != due:
        _ISSUER.broken(out, where, due=due)
    for name, held, told in (
        ("date de naissance", kos.birth_date, report.birth_date),
        ("sexe", kos.sex, report.sex),
        ("lieu de naissance (0010,4000)", kos.comments, report.birth_place),
    ):
        if told and not held:
            _TRAIT_ABSENT.broken(out, where, name=name)
        elif told and held != told:
            _TRAIT.broken(out, where, name=name)
    _check_name("nom de naissance", kos.name[0], report.family, report.given, _TRAIT, out, where)
    _check_name("premier prénom", kos.name[1], report.given, report.family, _TRAIT, out, where)
    # Newer objects: the list of given names stands first, without family name, then the used names.
    listed = not (kos.other_names and kos.other_names[0][0])
    names = kos.other_names if listed else ()
    given_list = names[0][1] if names else ""
    used = names[1] if len(names) > 1 else ("", "")
    for name, held, told, beside in (
        ("liste des prénoms (0010,1001)", given_list, report.given_list, ""),
        ("nom utilisé (0010,1001)", used[0], report.used_family, report.used_given),
        ("prénom utilisé (0010,1001)", used[1], report.used_given, report.used_family),
    ):
        _check_name(name, held, told, beside, _NAME, out, where)


def _check_name(name: str, held: str, told: str, beside: str, rule: Rule, out: Report, where: str) -> None:
    """Compare a name; `beside` is what shares the 64 characters of its PN with it."""
    if not told or held == told:
        return
    if not held:
        _TRAIT_ABSENT.broken(out, where, name=name)
    elif _folded(held) == _folded(told):
        _SPELLING.broken(out, where, name=name)
    elif told.startswith(held) and len(f"{told}^{beside}".encode()) > _MAX_NAME:
        _CUT.broken(out, where, name=name)
    else:
        rule.broken(out, where, name=name)


def _folded(text: str) -> str:
    """Return a text without case, accents and punctuation, to tell a spelling from another name."""
    plain = unicodedata.normalize("NFD", text.casefold())
    return "".join(letter for letter in plain if letter.isalnum())


# --- orders ------------------------------------------------------------------------------------------


def _check_requests(kos: KosFacts, pairs: tuple[Pair, ...], out: Report, where: str) -> None:
    held = kos.requests
    for rank, pair in enumerate(pairs, 1):
        found = [
            _has(pair.accession, [each.accession for each in held], _ACCESSION, _ACCESSION_OID),
            _has(pair.order, [each.order for each in held], _PLACER, _PLACER_OID),
        ]
        for rule in found:
            if rule is not None:
                rule.broken(out, where, rank=rank)
        together = any((each.accession, each.order) == (pair.accession, pair.order) for each in held)
        if found == [None, None] and not together:
            _PAIR.broken(out, where, rank=rank)
    told = {(pair.accession[0], pair.order[0]) for pair in pairs}
    extra = sum(1 for each in held if _values(each) not in told)
    if pairs and extra:
        _EXTRA.broken(out, where, count=extra)
    if len(set(held)) != len(held):
        _TWICE.broken(out, where)
    if any(each.study_uid not in ("", kos.study_uid) for each in held):
        _REQUEST_STUDY.broken(out, where)


def _has(wanted: Id, held: list[Id], absent: Rule, other_authority: Rule) -> Rule | None:
    """Return the rule that the identifiers of the manifest break for one of the report, or None."""
    if not wanted[0] or wanted in held:
        return None
    return other_authority if any(value == wanted[0] for value, _ in held) else absent


def _values(request: Request) -> Id:
    return request.accession[0], request.order[0]


# --- act, structure, dates ---------------------------------------------------------------------------


def _check_act(kos: KosFacts, act: ReportAct, out: Report, where: str) -> None:
    texts = [text for each in act.texts if (text := _folded(each))]
    if kos.act and texts:
        line = _folded(kos.act)
        if not any(text in line for text in texts):
            regions = {_folded(text) for text in act.region_texts}
            (_ACT_REGION if line in regions else _ACT).broken(out, where)
    if kos.modalities:
        for code in dict.fromkeys(act.modalities):
            if code not in kos.modalities.values():
                _MODALITY.broken(out, where, code=shown(code, 16))
    held, done = _day(kos.study_date), _day(act.start)
    if held is not None and done is not None and abs((held - done).days) > 1:
        _STUDY_DATE.broken(out, where)


def _same_structure(one: str, other: str) -> bool:
    """Compare identifiers of structures; a FINESS or SIREN may come without its prefix digit."""
    bare = [each[1:] if len(each) == 10 and each[0] in "12" else each for each in (one, other)]
    return one == other or bare[0] == bare[1]


def _day(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None

"""The finer rules of a manifest: file, encoding, identifiers, names, text, marks of key images.

`kos_rules` judges what must be there; here is how it must be said (interfaces: CI-SIS IMG-KOS, PS3.3
A.35.4, PS3.5). What only older published objects do is a warning, or worth knowing. Texts name
attributes, never their values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from drimbox.conformance.dataset_walk import DatasetWalk
from drimbox.conformance.file_meta import meta_end, meta_faults
from drimbox.conformance.report import Report
from drimbox.conformance.rules import RuleBook
from drimbox.dicom.elements import IMPLICIT_LITTLE, DatasetRefused, tag_text
from drimbox.dicom.part10 import FileMeta
from drimbox.dicom.tree import Item
from drimbox.model import is_uid

_NATIONAL: Final = "CI-SIS IMG-KOS"
_KEYS: Final = "DB.SO.194 ; CI-SIS IMG-KOS"

RULES = RuleBook("kos")
_META = RULES.error("meta", "{fault}", "PS3.10 7.1")
_ORDER = RULES.error("order", "{tag} après {before} : ordre croissant exigé", "PS3.5 7.1")
_ODD = RULES.error("odd", "{tag} de longueur impaire", "PS3.5 7.1")
_CHARSET = RULES.warning("charset", "SpecificCharacterSet : ISO_IR 100 ou ISO_IR 192 attendu", _NATIONAL)
_BYTES = RULES.error("bytes", "{tag} : octets hors du jeu de caractères annoncé", "PS3.5 6.1")
_UID = RULES.error("uid", "{name} : pas un UID", "PS3.5 9.1")
_NUMBER = RULES.error("number", "{name} : entier attendu", "PS3.5 6.2")
_OWN_SERIES = RULES.error("own_series", "le KOS est dans une série de l'examen qu'il liste", "PS3.3 A.35.4")
_OWN_INSTANCE = RULES.error("own_instance", "le KOS se liste lui-même", "PS3.3 A.35.4")
_SERIES_TWICE = RULES.warning("series_twice", "une série figure deux fois dans l'évidence", "PS3.3 C.17.2")
_AET = RULES.warning("retrieve_aet", "RetrieveAETitle (0008,0054) : à ne pas émettre", _NATIONAL)
_HOSTS = RULES.warning("hosts", "RetrieveURL de plusieurs hôtes dans un manifeste", "DB.SO.173")
_LOCATION = RULES.error("location", "RetrieveLocationUID : pas un UID", "IHE RAD TF-3 XDS-I.b ; PS3.5 9.1")

_QUALIFIERS = RULES.error("qualifiers", "{name} : un seul item attendu", _NATIONAL)
_ISSUER = RULES.warning("issuer", "IssuerOfPatientID : {due} attendu pour cet OID", _NATIONAL)
_OTHER_OID = RULES.error(
    "other_oid", "OtherPatientIDsSequence : autre OID que celui du PatientID", _NATIONAL
)
_DEMONSTRATION = RULES.warning("demonstration", "INS du domaine de démonstration", "référentiel INS")
_TRAIT = RULES.warning("trait", "trait strict de l'INS vide : {name}", "DB.SO.105 ; référentiel INS")
_NAME = RULES.warning("name", "PatientName : NOM^PRÉNOM attendu", _NATIONAL)
_OTHER_NAMES = RULES.inform(
    "other_names", "OtherPatientNames : « ^PRÉNOMS » n'est pas la première valeur", _NATIONAL
)
_BIRTH_PLACE = RULES.warning(
    "birth_place", "PatientComments : code INSEE du lieu de naissance attendu", _NATIONAL
)
_STRUCTURE = RULES.warning(
    "structure", "InstitutionName sans identifiant de structure (composant 10)", _NATIONAL
)
_STRUCTURE_LONG = RULES.error("structure_long", "InstitutionName de plus de 64 caractères", "PS3.5 6.2")
_ZONE = RULES.inform("zone", "TimezoneOffsetFromUTC (0008,0201) absent", _NATIONAL)

_LONG = RULES.warning("request_long", "{name} hors des limites de son VR ({most} caractères)", "PS3.5 6.2")
_OID = RULES.error(
    "request_oid", "{name} : UniversalEntityID n'est pas un OID", f"{_NATIONAL} ; PS3.3 10.14"
)
_REQUEST_TWICE = RULES.warning("request_twice", "la même demande figure deux fois", _NATIONAL)

_TEXT_CONCEPT = RULES.warning("text_concept", "texte : titre 113012 (DCM) attendu", "PS3.16 TID 2010")
_TEXT_MANY = RULES.warning("text_many", "{count} textes de description : un seul attendu", _NATIONAL)
_TEXT_SERIES = RULES.warning("text_series", "texte : ligne d'une série absente de l'évidence", _NATIONAL)
_TEXT_EXAM = RULES.inform("text_exam", "texte sans ligne « Examen : » en tête", _NATIONAL)
_TEXT_ENDS = RULES.warning("text_ends", "texte : lignes qui ne finissent pas par LF seul", _NATIONAL)
_TEMPLATE = RULES.error("template", "ContentTemplateSequence : DCMR, 2010 attendu", "PS3.16 TID 2010")

_MARK_UID = RULES.error("mark_uid", "repère d'image clé : {name} absent ou pas un UID", _KEYS)
_MARK_CLASS = RULES.error("mark_class", "repère d'image clé : classe 88.59 attendue", _KEYS)
_MARK_NO_CLASS = RULES.inform("mark_no_class", "repère d'image clé sans ReferencedSOPClassUID", _KEYS)
_MARK_TITLE = RULES.warning("mark_title", "repère d'image clé : titre 113000 (DCM) attendu", _KEYS)
_MARK_SERIES = RULES.error(
    "mark_series", "repère d'image clé : autre série que celle où la note est listée", _KEYS
)
_MARK_CONTENT = RULES.warning(
    "mark_content", "repère d'image clé dans le contenu : évidence seule attendue", _KEYS
)

_KEY_OBJECT: Final = "1.2.840.10008.5.1.4.1.1.88.59"
_EVIDENCE, _CONTENT, _SOPS, _SERIES = 0x0040A375, 0x0040A730, 0x00081199, 0x00081115
_INSTANCE, _CLASS = 0x00081155, 0x00081150
_STUDY_UID, _SERIES_UID = 0x0020000D, 0x0020000E
_CONCEPT, _CODE, _SCHEME, _TEXT = 0x0040A043, 0x00080100, 0x00080102, 0x0040A160
_PATIENT_ID, _QUALIFIER_SEQUENCE, _UNIVERSAL_ID = 0x00100020, 0x00100024, 0x00400032
_INSTITUTION: Final = 0x00080080
#: Texts whose bytes depend on the character set.
_TEXTS: Final = (0x00080070, _INSTITUTION, 0x00081030, 0x00100010, 0x00101001, 0x00104000)
_NIA_OID, _DEMONSTRATION_OID = "1.2.250.1.213.1.4.9", "1.2.250.1.213.1.4.11"
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)
_OID_FORM = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*))+", re.ASCII)
_PLACE = re.compile(r"[0-9][0-9AB][0-9]{3}", re.ASCII)
_SERIES_LINE = re.compile(rb"S\S{1,3}rie-([0-9.]+)")


def check_details(data: bytes, meta: FileMeta, root: Item, report: Report) -> None:
    """Judge the finer rules of a manifest whose tree has been read."""
    _check_file(data, meta, report)
    _check_texts(root, report)
    _check_identifiers(root, report)
    _check_patient(root, report)
    _check_requests(root, report)
    _check_description(root, report)
    _check_marks(root, report)


def _check_file(data: bytes, meta: FileMeta, report: Report) -> None:
    elements: dict[int, bytes] = {}
    end = meta_end(data, elements, final=True)
    for fault in meta_faults(elements, end) if end is not None else ():
        _META.broken(report, fault=fault)
    walk = DatasetWalk(implicit=meta.transfer_syntax_uid == IMPLICIT_LITTLE)
    try:
        walk.feed(data[meta.dataset_offset :])
    except DatasetRefused:
        # The tree could be read: what the walk alone cannot bear is told by others.
        return
    if walk.disorder is not None:
        before, tag = walk.disorder
        _ORDER.broken(report, tag=tag_text(tag), before=tag_text(before))
    if walk.odd is not None:
        _ODD.broken(report, tag=tag_text(walk.odd))


def _check_texts(root: Item, report: Report) -> None:
    charset = root.text(0x00080005)
    if charset not in ("ISO_IR 100", "ISO_IR 192"):
        _CHARSET.broken(report)
        return
    values = [(tag, root.value(tag)) for tag in _TEXTS]
    values += [(_TEXT, item.value(_TEXT)) for item in (root, *root.items(_CONTENT))]
    for tag, value in values:
        if value and not _fits(value, charset):
            _BYTES.broken(report, tag=tag_text(tag))


def _fits(value: bytes, charset: str) -> bool:
    if charset == "ISO_IR 100":
        return not any(0x80 <= byte < 0xA0 for byte in value)
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _references(root: Item) -> Iterator[tuple[Item, Item]]:
    """Yield each reference of the evidence with its series."""
    for evidence in root.items(_EVIDENCE):
        for series in evidence.items(_SERIES):
            for reference in series.items(_SOPS):
                yield series, reference


def _check_identifiers(root: Item, report: Report) -> None:
    listed = [series for evidence in root.items(_EVIDENCE) for series in evidence.items(_SERIES)]
    uids = [
        ("SOPInstanceUID", root.text(0x00080018)),
        ("StudyInstanceUID", root.text(_STUDY_UID)),
        ("SeriesInstanceUID", root.text(_SERIES_UID)),
        *(("SeriesInstanceUID de série", each.text(_SERIES_UID)) for each in listed),
        *(("ReferencedSOPClassUID", each.text(_CLASS)) for _, each in _references(root)),
    ]
    for name, value in uids:
        if value and not is_uid(value):
            _UID.broken(report, name=name)
    numbers = [("SeriesNumber", root.text(0x00200011)), ("InstanceNumber", root.text(0x00200013))]
    numbers += [("SeriesNumber de série", each.text(0x00200011)) for each in listed]
    numbers += [("InstanceNumber de référence", each.text(0x00200013)) for _, each in _references(root)]
    for name, value in numbers:
        if value and _INTEGER.fullmatch(value) is None:
            _NUMBER.broken(report, name=name)
    series = Counter(each.text(_SERIES_UID) for each in listed)
    if root.text(_SERIES_UID) in series:
        _OWN_SERIES.broken(report)
    if any(reference.text(_INSTANCE) == root.text(0x00080018) for _, reference in _references(root)):
        _OWN_INSTANCE.broken(report)
    if any(count > 1 for count in series.values()):
        _SERIES_TWICE.broken(report)
    if any(0x00080054 in each.members for each in listed):
        _AET.broken(report)
    if len({_host(each.text(0x00081190)) for each in listed} - {""}) > 1:
        _HOSTS.broken(report)
    if any((location := each.text(0x0040E011)) and not is_uid(location) for each in listed):
        _LOCATION.broken(report)


def _host(url: str) -> str:
    try:
        return urlsplit("".join(url.split())).netloc.lower()
    except ValueError:
        return ""


def _check_patient(root: Item, report: Report) -> None:
    oid = root.first(_QUALIFIER_SEQUENCE).text(_UNIVERSAL_ID)
    if len(root.items(_QUALIFIER_SEQUENCE)) > 1:
        _QUALIFIERS.broken(report, name="IssuerOfPatientIDQualifiersSequence")
    due = "ASIP-SANTE-INS-NIA" if oid == _NIA_OID else "ASIP-SANTE-INS-NIR"
    if root.text(0x00100021) not in ("", due):
        _ISSUER.broken(report, due=due)
    if oid == _DEMONSTRATION_OID:
        _DEMONSTRATION.broken(report)
    for other in root.items(0x00101002):
        told = other.first(_QUALIFIER_SEQUENCE).text(_UNIVERSAL_ID)
        if other.text(_PATIENT_ID) == root.text(_PATIENT_ID) and oid and told not in ("", oid):
            _OTHER_OID.broken(report)
    for tag, name in (
        (0x00100010, "PatientName"),
        (0x00100030, "PatientBirthDate"),
        (0x00100040, "PatientSex"),
    ):
        if tag in root.members and not root.text(tag):
            _TRAIT.broken(report, name=name)
    family, _, given = root.text(0x00100010).partition("^")
    if (family or given) and not (family and given):
        _NAME.broken(report)
    others = root.text(0x00101001)
    if others and not others.startswith("^"):
        _OTHER_NAMES.broken(report)
    place = root.text(0x00104000)
    if place and _PLACE.fullmatch(place) is None:
        _BIRTH_PLACE.broken(report)
    institution = root.text(_INSTITUTION)
    parts = institution.split("^")
    if len(parts) < 10 or not parts[9].strip():
        _STRUCTURE.broken(report)
    # In UTF-8 a letter may take two bytes; the limit is in characters.
    if len((root.value(_INSTITUTION) or b"").decode("utf-8", "replace").strip()) > 64:
        _STRUCTURE_LONG.broken(report)
    if not root.text(0x00080201):
        _ZONE.broken(report)


def _check_requests(root: Item, report: Report) -> None:
    seen = set()
    for request in root.items(0x0040A370):
        for tag, name, most in (
            (0x00080050, "numéro d'accession", 16),
            (0x00402016, "numéro de demande", 64),
        ):
            value = request.text(tag)
            if len(value) > most or "\\" in value:
                _LONG.broken(report, name=name, most=most)
        authorities = []
        for tag, name in (
            (0x00080051, "IssuerOfAccessionNumberSequence"),
            (0x00400026, "OrderPlacerIdentifierSequence"),
        ):
            items = request.items(tag)
            if len(items) > 1:
                _QUALIFIERS.broken(report, name=name)
            oid = request.first(tag).text(_UNIVERSAL_ID)
            authorities.append(oid)
            if oid and _OID_FORM.fullmatch(oid) is None:
                _OID.broken(report, name=name)
        key = (request.text(0x00080050), request.text(0x00402016), *authorities)
        if key in seen:
            _REQUEST_TWICE.broken(report)
        seen.add(key)


def _check_description(root: Item, report: Report) -> None:
    texts = [item for item in root.items(_CONTENT) if item.text(0x0040A040) == "TEXT"]
    if len(texts) > 1:
        _TEXT_MANY.broken(report, count=len(texts))
    for item in texts:
        concept = item.first(_CONCEPT)
        if (concept.text(_CODE), concept.text(_SCHEME)) != ("113012", "DCM"):
            _TEXT_CONCEPT.broken(report)
    raw = next((value for item in texts if (value := item.value(_TEXT))), None) or root.value(_TEXT) or b""
    if not raw:
        return
    listed = {series.text(_SERIES_UID) for series, _ in _references(root)}
    for found in _SERIES_LINE.findall(raw):
        if found.decode("ascii") not in listed:
            _TEXT_SERIES.broken(report)
    if not raw.lstrip().startswith(b"Examen"):
        _TEXT_EXAM.broken(report)
    if b"\r" in raw or not raw.rstrip(b" \0").endswith(b"\n"):
        _TEXT_ENDS.broken(report)
    for template in root.items(0x0040A504):
        if (template.text(0x00080105), template.text(0x0040DB00)) != ("DCMR", "2010"):
            _TEMPLATE.broken(report)


def _check_marks(root: Item, report: Report) -> None:
    """Judge what stands behind the key images of the evidence."""
    where = {reference.text(_INSTANCE): series.text(_SERIES_UID) for series, reference in _references(root)}
    for _, reference in _references(root):
        for mark in reference.items(_SOPS):
            for tag, name in ((_INSTANCE, "ReferencedSOPInstanceUID"), (_SERIES_UID, "SeriesInstanceUID")):
                if not mark.text(tag) or not is_uid(mark.text(tag)):
                    _MARK_UID.broken(report, name=name)
            told = mark.text(_CLASS)
            if not told:
                _MARK_NO_CLASS.broken(report)
            elif told != _KEY_OBJECT:
                _MARK_CLASS.broken(report)
            concept = mark.first(_CONCEPT)
            if (concept.text(_CODE), concept.text(_SCHEME)) != ("113000", "DCM"):
                _MARK_TITLE.broken(report)
            if where.get(mark.text(_INSTANCE), mark.text(_SERIES_UID)) != mark.text(_SERIES_UID):
                _MARK_SERIES.broken(report)
    for item in root.items(_CONTENT):
        if any(reference.items(_SOPS) for reference in item.items(_SOPS)):
            _MARK_CONTENT.broken(report)

"""The documents of a submission: found, hashed, and the manifest held against its entry (IHE XDS-I.b, XDM).

A document comes from the `xdsb:Document` of the message, inline or by `xop:Include`; for a METADATA.XML,
from the file its URI names, which the caller reads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Container, Iterable
from datetime import timedelta
from typing import Final

from drimbox.conformance.kos_facts import KEY_OBJECT, KosFacts, KosUnreadable, read_kos
from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds import tables, types
from drimbox.conformance.xds.capture import Capture
from drimbox.conformance.xds.entries import institutions, references
from drimbox.conformance.xds.envelope import XDSB
from drimbox.conformance.xds.rim import RimObject
from drimbox.xml import Element

_XOP: Final = "http://www.w3.org/2004/08/xop/include"
_MTOM: Final = "W3C XOP 2.1 ; ITI TF-2 V.3"
_XDM: Final = "ITI TF-2 3.32"
_CONTENT: Final = "DB.SO.105 ; IHE RAD TF-3 4.68"

RULES = RuleBook("document")
_MISSING = RULES.error("missing", "aucun Document pour cette entrée", "ITI TF-2 3.41")
_ORPHAN = RULES.error("orphan", "Document {id} sans entrée", "ITI TF-2 3.41")
_TWICE = RULES.error("twice", "Document {id} donné deux fois", "ITI TF-2 3.41")
_CID = RULES.error("cid", "xop:Include {href} : aucune partie de ce Content-ID", "W3C XOP 2.1 ; RFC 2392")
_INCLUDE = RULES.error("include", "Document {id} : xop:Include seul, ou base64, attendu", _MTOM)
_INLINE = RULES.inform("inline", "Document {id} en base64 dans le XML, non en pièce jointe", _MTOM)
_UNUSED = RULES.warning("unused", "{count} partie(s) qu'aucun Document ne cite", "W3C XOP 3")
_HASH = RULES.error("hash", "hash n'est pas le SHA-1 du document", "ITI TF-3 4.2.3.2.10")
_SIZE = RULES.error("size", "size {told}, document de {held} octets", "ITI TF-3 4.2.3.2")
_NOT_READ = RULES.inform(
    "not_read", "document absent de la capture : ni hash ni contenu vérifiés", "ITI TF-3 4.2.3.2.10"
)

_URI = RULES.error("uri", "URI absent", _XDM)
_URI_SIGNATURE = RULES.inform(
    "uri_signature", "URI absent : la signature n'est pas dans l'archive", f"DB.SO.29 ; {_XDM}"
)
_URI_FORM = RULES.error(
    "uri_form", "URI : chemin relatif « SSNNNNNN/NOM.EXT » attendu", f"{_XDM} ; ISO 9660"
)
_URI_TWICE = RULES.error("uri_twice", "URI : deux entrées pour le même fichier", _XDM)

_KOS = RULES.error("kos", "manifeste illisible : {why}", "PS3.10 7.1")
_NOT_KOS = RULES.error("kos_class", "le document n'est pas un manifeste (88.59, titre 113030)", "DB.SO.18")
_UID = RULES.error("unique_id", "uniqueId n'est pas le SOPInstanceUID du KOS", "IHE RAD TF-3 4.68")
_PATIENT = RULES.error("patient", "patientId n'est pas celui du KOS", _CONTENT)
_TRAIT = RULES.error("trait", "sourcePatientInfo : {field} différent de celui du KOS", _CONTENT)
_STUDY = RULES.error("study", "referenceIdList : le StudyInstanceUID n'est pas celui du KOS", _CONTENT)
_ACCESSION = RULES.error(
    "accession", "referenceIdList : {count} numéro(s) d'accession du KOS absent(s)", _CONTENT
)
_ORDER = RULES.error("order", "referenceIdList : {count} numéro(s) de demande du KOS absent(s)", _CONTENT)
_EXTRA = RULES.warning("reference", "referenceIdList : {count} numéro(s) absent(s) du KOS", _CONTENT)
_MODALITY = RULES.warning("modality", "eventCodeList : modalité {code} du KOS absente", _CONTENT)
_CREATED = RULES.error("creation", "creationTime n'est pas l'instant de création du KOS", "CI-SIS IMG-KOS")
_CREATED_ZONE = RULES.warning(
    "creation_zone", "creationTime : heure locale du KOS, UTC attendu", "ITI TF-3 4.2.3.1.7"
)
_STUDY_DATE = RULES.warning(
    "study_date", "serviceStartTime à plus d'un jour de StudyDate du KOS", "CI-SIS IMG-KOS"
)
_STRUCTURE = RULES.warning(
    "structure", "authorInstitution : autre structure qu'InstitutionName du KOS", "CI-SIS IMG-KOS"
)

#: PS3.16 CID 32, part: modalities of series that hold no images, which eventCodeList need not name.
_NO_IMAGES: Final = frozenset(
    {"KO", "SR", "PR", "DOC", "SEG", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "OT", "AU"}
)
_URI_PATH = re.compile(r"[A-Z0-9_]{1,8}/[A-Z0-9_]{1,11}\.[A-Z0-9]{1,3}", re.ASCII)
_ZONE = re.compile(r"([+-])([0-9]{2})([0-9]{2})", re.ASCII)


def read_documents(body: Element, capture: Capture, out: Report) -> dict[str, bytes]:
    """Return the documents of a Provide and Register request by entry id, as far as they can be read."""
    found: dict[str, bytes] = {}
    used: set[str] = set()
    for document in body.findall(f"{{{XDSB}}}Document"):
        identifier = document.get("id") or ""
        if identifier in found:
            _TWICE.broken(out, id=shown(identifier, 40))
        children = list(document.iterchildren("*"))
        text = "".join((document.text or "").split())
        if not children:
            content = _inline(text)
            (_INCLUDE if content is None else _INLINE).broken(out, id=shown(identifier, 40))
        elif len(children) > 1 or children[0].tag != f"{{{_XOP}}}Include" or text:
            _INCLUDE.broken(out, id=shown(identifier, 40))
            continue
        else:
            href = children[0].get("href") or ""
            part = capture.part(href)
            if part is None:
                # A bare envelope has no parts: that is told once for each entry.
                if capture.parts is not None:
                    _CID.broken(out, href=shown(href))
                continue
            used.add(part[0])
            content = part[1]
        if content is not None:
            found.setdefault(identifier, content)
    unused = (capture.parts or {}).keys() - used
    if unused:
        _UNUSED.broken(out, count=len(unused))
    return found


def _inline(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if text else None
    except (binascii.Error, ValueError):
        return None


def check_presence(body: Element, entries: Iterable[tuple[RimObject, str]], out: Report) -> None:
    """Hold the Documents of a request against its entries; these come with their names in French."""
    told = {document.get("id") or "" for document in body.findall(f"{{{XDSB}}}Document")}
    ids = set()
    for entry, where in entries:
        ids.add(entry.id)
        if entry.id not in told:
            _MISSING.broken(out, where)
    for identifier in sorted(told - ids):
        _ORPHAN.broken(out, id=shown(identifier, 40))


def check_content(entry: RimObject, data: bytes | None, where: str, out: Report) -> None:
    """Hold hash and size against the bytes of a document."""
    if data is None:
        _NOT_READ.broken(out, where)
        return
    told = entry.slot("hash").lower()
    # XDS fixes SHA-1 for this attribute: it tells documents apart, it protects nothing.
    if told and told != hashlib.sha1(data, usedforsecurity=False).hexdigest():
        _HASH.broken(out, where)
    size = entry.slot("size")
    if size.isdigit() and len(size) < 16 and int(size) != len(data):
        _SIZE.broken(out, where, told=size, held=len(data))


def uri_of(entry: RimObject) -> str | None:
    """Return the URI of an XDM entry when it is a path below IHE_XDM that may be opened."""
    uri = entry.slot("URI")
    return uri if _URI_PATH.fullmatch(uri.upper()) else None


def check_uris(
    entries: Iterable[tuple[RimObject, str]], signatures: Container[RimObject], out: Report
) -> None:
    """Judge the URI slots of a METADATA.XML; the national archive need not hold the signature's file."""
    seen: set[str] = set()
    for entry, where in entries:
        uri = entry.slot("URI")
        if not uri:
            (_URI_SIGNATURE if entry in signatures else _URI).broken(out, where)
        elif uri_of(entry) is None:
            _URI_FORM.broken(out, where)
        elif uri.upper() in seen:
            _URI_TWICE.broken(out, where)
        seen.add(uri.upper())


def check_kos(entry: RimObject, data: bytes, where: str, out: Report) -> None:
    """Hold the entry of a manifest against the manifest."""
    try:
        kos = read_kos(data)
    except KosUnreadable as why:
        _KOS.broken(out, where, why=why)
        return
    out.facts["study_uid"] = kos.study_uid[:64]
    if kos.sop_class_uid != KEY_OBJECT or kos.title != "113030":
        _NOT_KOS.broken(out, where)
    if entry.external(tables.UNIQUE) != kos.instance_uid:
        _UID.broken(out, where)
    patient = types.patient(entry.external(tables.PATIENT))
    if patient is not None and (
        patient[0] != kos.patient_id or (kos.patient_oid and kos.patient_oid != patient[1])
    ):
        _PATIENT.broken(out, where)
    _check_traits(entry, kos, where, out)
    _check_references(entry, kos, where, out)
    events = {code.value for code in entry.coded(tables.EVENTS)}
    for code in dict.fromkeys(kos.modalities.values()):
        if code not in events and code not in _NO_IMAGES:
            _MODALITY.broken(out, where, code=shown(code, 16))
    _check_creation(entry, kos, where, out)
    started, done = types.instant(entry.slot("serviceStartTime")), types.instant(kos.study_date)
    if started is not None and done is not None and abs((started - done).days) > 1:
        _STUDY_DATE.broken(out, where)
    places = institutions(entry)
    if kos.institution_id and places and kos.institution_id not in places:
        _STRUCTURE.broken(out, where)


def _check_traits(entry: RimObject, kos: KosFacts, where: str, out: Report) -> None:
    for value in entry.slots.get("sourcePatientInfo", ()):
        field, _, text = value.partition("|")
        parts = text.split("^")
        same = {
            # Delimiters of HL7 are blanks here, and names may be cut: the letters must be the same.
            "PID-5": not kos.name[0] or types.letters(kos.name[0]).startswith(types.letters(parts[0])[:20]),
            "PID-7": not kos.birth_date or text == kos.birth_date,
            "PID-8": not kos.sex or text == kos.sex,
            "PID-11": not kos.comments or parts[-1] == kos.comments,
        }.get(field, True)
        if not same:
            _TRAIT.broken(out, where, field=field)


def _check_references(entry: RimObject, kos: KosFacts, where: str, out: Report) -> None:
    by_type = references(entry)
    studies = {value for value, _ in by_type.get("studyInstanceUID", set())}
    if studies and kos.study_uid not in studies:
        _STUDY.broken(out, where)
    extra = 0
    for kind, rule, held in (
        ("accession", _ACCESSION, {each.accession for each in kos.requests}),
        ("order", _ORDER, {each.order for each in kos.requests}),
    ):
        told = by_type.get(kind, set())
        if missing := held - told:
            rule.broken(out, where, count=len(missing))
        extra += len({value for value, _ in told} - {value for value, _ in held})
    if extra:
        _EXTRA.broken(out, where, count=extra)


def _check_creation(entry: RimObject, kos: KosFacts, where: str, out: Report) -> None:
    told = types.instant(entry.slot("creationTime"))
    made = types.instant(kos.created)
    if told is None or made is None or len(kos.created) < 14 or made.year < 2:
        return
    zone = _ZONE.fullmatch(kos.zone)
    if zone is None:
        # Without a zone, France's own two offsets and UTC are possible.
        offsets = [timedelta(0), timedelta(hours=1), timedelta(hours=2)]
        if told not in [made - offset for offset in offsets]:
            _CREATED.broken(out, where)
        return
    minutes = (int(zone[2]) * 60 + int(zone[3])) * (-1 if zone[1] == "-" else 1)
    if told == made - timedelta(minutes=minutes):
        return
    (_CREATED_ZONE if told == made else _CREATED).broken(out, where)

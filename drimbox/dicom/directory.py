"""What a PACS holds of a study: C-FIND, whatever query model it speaks (DB.SO.14, interfaces.md 12.1).

One relational query at IMAGE level where the PACS negotiates it (PS3.4 C.4.1.2.2.1); else the study, its
series, then the images series by series. DCMTK and Orthanc answer no extended negotiation, so the
second way is the common one.

What the answers say of the patient is kept, each statement once (DB.SO.16, DB.SO.191): after a wrong merge
the images of one study may be of two patients, and the study's own answer shows only one of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from pydicom.dataset import Dataset

from drimbox.config import Pacs
from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.identifiers import Identifier
from drimbox.dicom.patientids import ins_among
from drimbox.dicom.requestor import STUDY_ROOT_FIND, Links, Requestor
from drimbox.errors import PacsCommunicationError
from drimbox.model import Instance, Series, StatedPatient, Study, is_uid

#: Most matches accepted from one query: far beyond any study, far below what would hurt.
MAX_MATCHES = 200_000
_STUDY_KEYS = (
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientName",
)
#: Empty: their items are wanted whole (PS3.4 C.2.2.2.6).
_STUDY_SEQUENCES = ("OtherPatientIDsSequence", "IssuerOfPatientIDQualifiersSequence")
_SERIES_KEYS = ("Modality", "SeriesNumber", "SeriesDescription")
_IMAGE_KEYS = ("SOPClassUID", "InstanceNumber")
_RELATIONAL = b"\x01"


async def find_study(links: Links, pacs: Pacs, study_uid: str) -> Study | None:
    """List a study's series and instances, or return None when the PACS holds none.

    An instance whose SOP class the PACS does not tell has an empty `sop_class_uid`. Raises
    `PacsCommunicationError` (E003).
    """
    wish = {STUDY_ROOT_FIND: _RELATIONAL} if pacs.relational == "auto" else None
    requestor = await links.open(pacs, [STUDY_ROOT_FIND], wish)
    try:
        relational = wish is not None and requestor.extended.get(STUDY_ROOT_FIND, b"")[:1] == _RELATIONAL
        if relational:
            return await _find_relational(requestor, study_uid)
        return await _find_by_level(requestor, study_uid)
    finally:
        await links.done(requestor)


async def _find_relational(requestor: Requestor, study_uid: str) -> Study | None:
    keys = (*_STUDY_KEYS, *_SERIES_KEYS, *_IMAGE_KEYS)
    query = _query("IMAGE", keys, StudyInstanceUID=study_uid, SeriesInstanceUID="", SOPInstanceUID="")
    first: Identifier | None = None
    said: dict[StatedPatient, None] = {}
    by_series: dict[str, tuple[Identifier, dict[str, Instance]]] = {}
    async for match in _find(requestor, query):
        if _uid(match, "StudyInstanceUID") != study_uid:
            continue
        if first is None:
            first = match
        said[_patient(match)] = None
        _, images = by_series.setdefault(_uid(match, "SeriesInstanceUID"), (match, {}))
        _add(images, match)
    if first is None:
        return None
    series = [_series(match, uid, images) for uid, (match, images) in by_series.items()]
    return _study(first, study_uid, series, said)


async def _find_by_level(requestor: Requestor, study_uid: str) -> Study | None:
    study: Identifier | None = None
    said: dict[StatedPatient, None] = {}
    async for match in _find(requestor, _query("STUDY", _STUDY_KEYS, StudyInstanceUID=study_uid)):
        if _uid(match, "StudyInstanceUID") == study_uid:
            study = match if study is None else study
            said[_patient(match)] = None
    if study is None:
        return None
    found: dict[str, Identifier] = {}
    query = _query("SERIES", _SERIES_KEYS, StudyInstanceUID=study_uid, SeriesInstanceUID="")
    async for match in _find(requestor, query):
        if _within(match, StudyInstanceUID=study_uid):
            found.setdefault(_uid(match, "SeriesInstanceUID"), match)
            _overhear(said, match)
    series = []
    for uid, match in found.items():
        above = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": uid}
        images: dict[str, Instance] = {}
        async for image in _find(requestor, _query("IMAGE", _IMAGE_KEYS, **above, SOPInstanceUID="")):
            if _within(image, **above):
                _add(images, image)
                _overhear(said, image)
        if images:
            series.append(_series(match, uid, images))
    return _study(study, study_uid, series, said) if series else None


async def _find(requestor: Requestor, query: Dataset) -> AsyncIterator[Identifier]:
    """Yield the matches of one query as they come. Raises `PacsCommunicationError`.

    Bounded three ways: time between two answers, number of answers, time in all.
    """
    pacs = requestor.pacs
    deadline = requestor.clock.seconds() + pacs.move_ceiling
    requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ, priority=0), query)
    for _ in range(MAX_MATCHES):
        response = await requestor.response(pacs.query_timeout)
        status = response.command.status
        if status == Status.SUCCESS:
            return
        if response.final or response.dataset is None:
            # Its comment is the PACS's own text and may name the patient: only the status is told.
            raise PacsCommunicationError(f"C-FIND : état 0x{status or 0:04X} ({pacs.name})")
        if requestor.clock.seconds() > deadline:
            raise PacsCommunicationError(f"C-FIND : plus de {pacs.move_ceiling:.0f} s ({pacs.name})")
        yield response.dataset
    raise PacsCommunicationError(f"C-FIND : plus de {MAX_MATCHES} réponses ({pacs.name})")


def _within(match: Identifier, **above: str) -> bool:
    """Say whether a match belongs where we asked.

    A PACS that ignores a key must not add another patient's images. One that does not repeat the keys
    above the level it was asked about is believed.
    """
    return all(_text(match, keyword) in ("", uid) for keyword, uid in above.items())


def _add(images: dict[str, Instance], match: Identifier) -> None:
    instance, sop_class = _uid(match, "SOPInstanceUID"), _text(match, "SOPClassUID")
    number = _number(match, "InstanceNumber")
    images[instance] = Instance(instance, sop_class if is_uid(sop_class) else "", number)


def _query(level: str, returned: tuple[str, ...], **keys: str) -> Dataset:
    query = Dataset()
    query.SpecificCharacterSet = "ISO_IR 100"
    query.QueryRetrieveLevel = level
    for keyword in returned:
        setattr(query, keyword, None if keyword.endswith("Number") and keyword != "AccessionNumber" else "")
    if "PatientID" in returned:
        for keyword in _STUDY_SEQUENCES:
            setattr(query, keyword, [])
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _text(match: Identifier, keyword: str) -> str:
    value: Any = match.get(keyword)
    return "" if value is None else str(value).strip()


def _number(match: Identifier, keyword: str) -> int | None:
    try:
        return int(_text(match, keyword))
    except ValueError:
        return None


def _uid(match: Identifier, keyword: str) -> str:
    uid = _text(match, keyword)
    if not is_uid(uid):
        raise PacsCommunicationError(f"C-FIND : {keyword} absent ou invalide")
    return uid


def _series(match: Identifier, uid: str, images: dict[str, Instance]) -> Series:
    return Series(
        uid,
        _text(match, "Modality"),
        tuple(images.values()),
        _number(match, "SeriesNumber"),
        _text(match, "SeriesDescription"),
    )


def _study(match: Identifier, study_uid: str, series: list[Series], said: Iterable[StatedPatient]) -> Study:
    patients = tuple(said)
    return Study(
        study_uid,
        tuple(series),
        date=_text(match, "StudyDate"),
        time=_text(match, "StudyTime"),
        description=_text(match, "StudyDescription"),
        patient_id=_text(match, "PatientID"),
        patient_id_issuer=_text(match, "IssuerOfPatientID"),
        patient_birth_date=_text(match, "PatientBirthDate"),
        ins=next((each.value for patient in patients for each in patient.ins), None),
        patients=patients,
    )


def _patient(match: Identifier) -> StatedPatient:
    return StatedPatient(
        patient_id=_text(match, "PatientID") or None,
        patient_id_issuer=_text(match, "IssuerOfPatientID") or None,
        patient_id_authority=next(iter(_authorities(match)), None),
        ins=ins_among(
            (_text(item, "PatientID"), _text(item, "IssuerOfPatientID"), _authorities(item))
            for item in match.get("OtherPatientIDsSequence") or []
        ),
        birth_date=_text(match, "PatientBirthDate"),
    )


def _overhear(said: dict[StatedPatient, None], match: Identifier) -> None:
    """Keep what an answer says of the patient unasked: below the study nobody may ask (PS3.4 C.4.1.3.1)."""
    patient = _patient(match)
    if patient != StatedPatient():
        said[patient] = None


def _authorities(item: Identifier) -> list[str]:
    """Return who gave a PatientID, as OIDs."""
    qualifiers = item.get("IssuerOfPatientIDQualifiersSequence") or []
    return [text for each in qualifiers if (text := _text(each, "UniversalEntityID"))]

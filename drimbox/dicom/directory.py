"""What a PACS holds of a study: C-FIND, whatever query model it speaks (DB.SO.14, interfaces.md 12.1).

One relational query at IMAGE level where the PACS negotiates it (PS3.4 C.4.1.2.2.1); else the study, its
series, then the images series by series. DCMTK and Orthanc answer no extended negotiation, so the
second way is the common one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydicom.dataset import Dataset

from drimbox.config import Pacs
from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.requestor import STUDY_ROOT_FIND, Links, Requestor
from drimbox.errors import PacsCommunicationError
from drimbox.model import INS_OIDS, Instance, Series, Study, is_uid

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
    first: Dataset | None = None
    by_series: dict[str, tuple[Dataset, dict[str, Instance]]] = {}
    async for match in _find(requestor, query):
        if _uid(match, "StudyInstanceUID") != study_uid:
            continue
        if first is None:
            first = match
        _, images = by_series.setdefault(_uid(match, "SeriesInstanceUID"), (match, {}))
        _add(images, match)
    if first is None:
        return None
    series = [_series(match, uid, images) for uid, (match, images) in by_series.items()]
    return _study(first, study_uid, series)


async def _find_by_level(requestor: Requestor, study_uid: str) -> Study | None:
    study: Dataset | None = None
    async for match in _find(requestor, _query("STUDY", _STUDY_KEYS, StudyInstanceUID=study_uid)):
        if _uid(match, "StudyInstanceUID") == study_uid and study is None:
            study = match
    if study is None:
        return None
    found: dict[str, Dataset] = {}
    query = _query("SERIES", _SERIES_KEYS, StudyInstanceUID=study_uid, SeriesInstanceUID="")
    async for match in _find(requestor, query):
        if _within(match, StudyInstanceUID=study_uid):
            found.setdefault(_uid(match, "SeriesInstanceUID"), match)
    series = []
    for uid, match in found.items():
        above = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": uid}
        images: dict[str, Instance] = {}
        async for image in _find(requestor, _query("IMAGE", _IMAGE_KEYS, **above, SOPInstanceUID="")):
            if _within(image, **above):
                _add(images, image)
        if images:
            series.append(_series(match, uid, images))
    return _study(study, study_uid, series) if series else None


async def _find(requestor: Requestor, query: Dataset) -> AsyncIterator[Dataset]:
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


def _within(match: Dataset, **above: str) -> bool:
    """Say whether a match belongs where we asked.

    A PACS that ignores a key must not add another patient's images. One that does not repeat the keys
    above the level it was asked about is believed.
    """
    return all(_text(match, keyword) in ("", uid) for keyword, uid in above.items())


def _add(images: dict[str, Instance], match: Dataset) -> None:
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
        query.OtherPatientIDsSequence = []
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _text(match: Dataset, keyword: str) -> str:
    value: Any = match.get(keyword)
    return "" if value is None else str(value).strip()


def _number(match: Dataset, keyword: str) -> int | None:
    try:
        return int(_text(match, keyword))
    except ValueError:
        return None


def _uid(match: Dataset, keyword: str) -> str:
    uid = _text(match, keyword)
    if not is_uid(uid):
        raise PacsCommunicationError(f"C-FIND : {keyword} absent ou invalide")
    return uid


def _series(match: Dataset, uid: str, images: dict[str, Instance]) -> Series:
    return Series(
        uid,
        _text(match, "Modality"),
        tuple(images.values()),
        _number(match, "SeriesNumber"),
        _text(match, "SeriesDescription"),
    )


def _study(match: Dataset, study_uid: str, series: list[Series]) -> Study:
    return Study(
        study_uid,
        tuple(series),
        date=_text(match, "StudyDate"),
        time=_text(match, "StudyTime"),
        description=_text(match, "StudyDescription"),
        patient_id=_text(match, "PatientID"),
        patient_id_issuer=_text(match, "IssuerOfPatientID"),
        patient_birth_date=_text(match, "PatientBirthDate"),
        ins=_ins(match),
    )


def _ins(match: Dataset) -> str | None:
    """Find the INS among the other patient identifiers, by its domain (DB.SO.16)."""
    for item in match.get("OtherPatientIDsSequence") or []:
        for qualifier in item.get("IssuerOfPatientIDQualifiersSequence") or []:
            if _text(qualifier, "UniversalEntityID") in INS_OIDS:
                return _text(item, "PatientID") or None
    return None

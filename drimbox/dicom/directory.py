"""What a PACS holds of a study: C-FIND, whatever query model it speaks (DB.SO.14, interfaces.md 12.1).

One relational query at IMAGE level where the PACS negotiates it (PS3.4 C.4.1.2.2.1); else the study, its
series, then the images series by series. DCMTK and Orthanc answer no extended negotiation, so the
second way is the common one.
"""

from __future__ import annotations

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
    matches = [
        match for match in await _find(requestor, query) if match.get("StudyInstanceUID") == study_uid
    ]
    if not matches:
        return None
    by_series: dict[str, list[Dataset]] = {}
    for match in matches:
        by_series.setdefault(_uid(match, "SeriesInstanceUID"), []).append(match)
    series = [_series(images[0], uid, images) for uid, images in by_series.items()]
    return _study(matches[0], study_uid, series)


async def _find_by_level(requestor: Requestor, study_uid: str) -> Study | None:
    query = _query("STUDY", _STUDY_KEYS, StudyInstanceUID=study_uid)
    studies = [
        match for match in await _find(requestor, query) if match.get("StudyInstanceUID") == study_uid
    ]
    if not studies:
        return None
    query = _query("SERIES", _SERIES_KEYS, StudyInstanceUID=study_uid, SeriesInstanceUID="")
    series = []
    for match in await _find(requestor, query):
        uid = _uid(match, "SeriesInstanceUID")
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": uid, "SOPInstanceUID": ""}
        images = await _find(requestor, _query("IMAGE", _IMAGE_KEYS, **keys))
        if images:
            series.append(_series(match, uid, images))
    return _study(studies[0], study_uid, series) if series else None


async def _find(requestor: Requestor, query: Dataset) -> list[Dataset]:
    requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ, priority=0), query)
    matches: list[Dataset] = []
    while True:
        response = await requestor.response(requestor.pacs.query_timeout)
        status = response.command.status
        if status == Status.SUCCESS:
            return matches
        if status not in (Status.PENDING, Status.PENDING_WARNING) or response.dataset is None:
            comment = response.command.error_comment or ""
            raise PacsCommunicationError(
                f"C-FIND : état 0x{status or 0:04X} {comment}".rstrip() + f" ({requestor.pacs.name})"
            )
        matches.append(response.dataset)
        if len(matches) > MAX_MATCHES:
            raise PacsCommunicationError(f"C-FIND : plus de {MAX_MATCHES} réponses ({requestor.pacs.name})")


def _of(study_uid: str, matches: list[Dataset]) -> list[Dataset]:
    """Keep the matches of that very study: a PACS that ignores a key must not add another patient's."""
    return [match for match in matches if match.get("StudyInstanceUID") == study_uid]


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


def _series(match: Dataset, uid: str, images: list[Dataset]) -> Series:
    instances: dict[str, Instance] = {}
    for image in images:
        instance = _uid(image, "SOPInstanceUID")
        sop_class = _text(image, "SOPClassUID")
        instances[instance] = Instance(
            instance, sop_class if is_uid(sop_class) else "", _number(image, "InstanceNumber")
        )
    return Series(
        uid,
        _text(match, "Modality"),
        tuple(instances.values()),
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

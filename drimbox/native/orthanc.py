"""Orthanc as a native archive, over its REST interface on the same machine (DB.SO.165).

Theory of operation. Orthanc names its resources by identifiers of its own. A question begins with
`/tools/lookup`, which finds those of a DICOM UID in its index; lists come from `/tools/bulk-content`, a
few hundred instances at a time, so that the first image leaves while the list of the others is still being
read; bytes are those of `/instances/{id}/file`, the stored file exactly as it was received. Nothing here
needs a plugin; Orthanc 1.9.4 or later.

Identifiers are digests of PatientID and UIDs, so that Orthanc can hold one StudyInstanceUID under two
patients. Whose images those are cannot be told: such a study is refused rather than mixed.

Changes (DB.SO.27). `/changes` tells what was added, never what was removed. The cursor therefore holds,
beside the number of the last change, how many instances Orthanc held: fewer than that number and what was
added since explain means that something was removed, and the gateway looks at each study it knows (`mark`).
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from drimbox.dicom.patientids import ins_among
from drimbox.model import Instance, Series, StatedPatient, Study, is_uid
from drimbox.native.http import Client, Reply, basic, drop
from drimbox.native.store import (
    Changes,
    ImageStore,
    InstanceGone,
    InThread,
    StoredInstance,
    StoreUnavailable,
)
from drimbox.secretfile import SecretUnusable, read_secret

#: Bytes of a JSON answer: the list of 200,000 instance identifiers takes 11 MB.
MAX_JSON = 64 * 1024 * 1024
#: Bytes beyond which an answer is parsed off the reactor thread.
_LONG = 256 * 1024
#: Instances described by one question: few at first, so that the first image leaves early.
_FIRST_CHUNK, _CHUNK = 16, 250
#: Changes of one page, and pages read at one time; the rest is for the next.
_PAGE, _PAGES = 1000, 100
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")
_CURSOR = re.compile(r"([0-9]{1,18}):([0-9]{1,18})")


class OrthancStore(ImageStore):
    """Reads one Orthanc."""

    def __init__(self, client: Client, in_thread: InThread) -> None:
        self._client = client
        self._in_thread = in_thread

    # -- ImageStore --------------------------------------------------------------------------------

    async def find_study(self, study_uid: str) -> Study | None:
        """List the study, with the patient's identifiers as the KOS needs them."""
        identifier = await self._study_id(study_uid)
        if identifier is None:
            return None
        found = await self._bulk([identifier], "Study")
        described = await self._bulk([identifier], "Series")
        patient = await self._maybe(f"/studies/{identifier}/module-patient")
        if not found or patient is None:
            return None
        series = [await self._series(each) for each in described]
        tags = _tags(found[0])
        said = _patient(patient)
        return Study(
            study_uid,
            tuple(sorted(filter(None, series), key=lambda each: (each.number or 0, each.series_uid))),
            date=_text(tags, "StudyDate"),
            time=_text(tags, "StudyTime"),
            description=_text(tags, "StudyDescription"),
            patient_id=said.patient_id or "",
            patient_id_issuer=said.patient_id_issuer or "",
            patient_birth_date=said.birth_date,
            ins=next((each.value for each in said.ins), None),
            patients=(said,),
        )

    async def instances(
        self, study_uid: str, series_uid: str, instance_uid: str | None = None
    ) -> AsyncIterator[StoredInstance]:
        """Yield the instances of a series, in the order of Orthanc's index."""
        wanted = await self._instance_ids(study_uid, series_uid, instance_uid)
        start, size = 0, _FIRST_CHUNK
        while start < len(wanted):
            for described in await self._bulk(wanted[start : start + size], "Instance"):
                metadata = described.get("Metadata")
                yield StoredInstance(
                    _uid(_tags(described), "SOPInstanceUID"),
                    _text(metadata, "SopClassUid"),
                    _text(metadata, "TransferSyntax"),
                    key=_id(described.get("ID")),
                )
            start, size = start + size, _CHUNK

    async def read(self, instance: StoredInstance) -> AsyncIterator[bytes]:
        """Yield the stored file."""
        reply = await self._client.get(f"/instances/{instance.key}/file")
        try:
            if reply.status == 404:
                raise InstanceGone
            _approve(reply)
            async for block in reply:
                yield block
        finally:
            if reply.status == 200:
                reply.close()
            else:
                await drop(reply)

    async def changes(self, cursor: str | None) -> Changes:
        """Say what was added since `cursor`, and whether something may have been removed."""
        last = _number(await self._json("GET", "/changes?last"), "Last")
        known = _CURSOR.fullmatch(cursor or "")
        if known is None or int(known[1]) > last:
            # The first time, or another database than the one the cursor is of.
            return Changes((), f"{last}:{await self._count()}", complete=False)
        since, before = int(known[1]), int(known[2])
        studies: set[str] = set()
        for _ in range(_PAGES):
            page = await self._json("GET", f"/changes?since={since}&limit={_PAGE}")
            new = [_id(each.get("ID")) for each in _list(page, "Changes") if _added(each)]
            for described in await self._bulk(new, "Study") if new else ():
                studies.add(_uid(_tags(described), "StudyInstanceUID"))
            before += len(new)
            since = max(since, _number(page, "Last"))
            if page.get("Done") is True:
                count = await self._count()
                return Changes(studies, f"{since}:{count}", complete=count >= before)
        # The count says nothing while additions are left to read.
        return Changes(studies, f"{since}:{before}")

    async def mark(self, study_uid: str) -> str | None:
        """Return how many series, instances and bytes the study has."""
        identifier = await self._study_id(study_uid)
        if identifier is None:
            return None
        counts = await self._maybe(f"/studies/{identifier}/statistics")
        if counts is None:
            return None
        keys = ("CountSeries", "CountInstances", "DicomUncompressedSize", "UncompressedSize")
        return ":".join([identifier, *(str(counts.get(key, "")) for key in keys)])

    async def close(self) -> None:
        """Cut every connection."""
        self._client.close()

    # -- index -------------------------------------------------------------------------------------

    async def _lookup(self, uid: str, kind: str) -> list[str]:
        """Return the identifiers of the resources of one kind that have this UID."""
        if not is_uid(uid):
            return []
        found = await self._json("POST", "/tools/lookup", uid.encode("ascii"))
        if not isinstance(found, list):
            raise _nonsense()
        return [
            _id(each.get("ID")) for each in found if isinstance(each, dict) and each.get("Type") == kind
        ]

    async def _study_id(self, study_uid: str) -> str | None:
        found = await self._lookup(study_uid, "Study")
        if len(found) > 1:
            raise StoreUnavailable("l'archive range cet examen sous plusieurs patients")
        return found[0] if found else None

    async def _instance_ids(self, study_uid: str, series_uid: str, instance_uid: str | None) -> list[str]:
        """Return the identifiers of what a request is for, in this very study and series."""
        study = await self._study_id(study_uid)
        if study is None:
            return []
        for series in await self._lookup(series_uid, "Series"):
            described = await self._maybe(f"/series/{series}")
            if described is None or described.get("ParentStudy") != study:
                continue
            held = [_id(each) for each in _list(described, "Instances")]
            if instance_uid is None:
                return held
            return [each for each in await self._lookup(instance_uid, "Instance") if each in held]
        return []

    async def _series(self, described: dict[str, Any]) -> Series | None:
        tags = _tags(described)
        wanted = [_id(each) for each in _list(described, "Instances")]
        instances: list[Instance] = []
        for start in range(0, len(wanted), _CHUNK):
            for each in await self._bulk(wanted[start : start + _CHUNK], "Instance"):
                own = _tags(each)
                instances.append(
                    Instance(
                        _uid(own, "SOPInstanceUID"),
                        _text(each.get("Metadata"), "SopClassUid"),
                        _integer(_text(own, "InstanceNumber")),
                    )
                )
        if not instances:
            return None
        instances.sort(key=lambda each: (each.number or 0, each.sop_instance_uid))
        return Series(
            _uid(tags, "SeriesInstanceUID"),
            _text(tags, "Modality"),
            tuple(instances),
            _integer(_text(tags, "SeriesNumber")),
            _text(tags, "SeriesDescription"),
        )

    async def _bulk(self, resources: Sequence[str], level: str) -> list[dict[str, Any]]:
        """Describe resources, or those of another level above or below them; what is gone is left out."""
        question = {"Resources": list(resources), "Level": level, "Metadata": level == "Instance"}
        found = await self._json("POST", "/tools/bulk-content", json.dumps(question).encode("ascii"))
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise _nonsense()
        return found

    async def _count(self) -> int:
        return _number(await self._json("GET", "/statistics"), "CountInstances")

    # -- HTTP --------------------------------------------------------------------------------------

    async def _maybe(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object at a path, None when it is gone."""
        reply = await self._client.get(path)
        if reply.status == 404:
            await drop(reply)
            return None
        found = await self._read(reply)
        if not isinstance(found, dict):
            raise _nonsense()
        return found

    async def _json(self, method: str, path: str, body: bytes = b"") -> Any:
        client = self._client
        return await self._read(await (client.get(path) if method == "GET" else client.post(path, body)))

    async def _read(self, reply: Reply) -> Any:
        if reply.status != 200:
            await drop(reply)
        _approve(reply)
        text = await reply.body(MAX_JSON)
        return _parse(text) if len(text) < _LONG else await self._in_thread(lambda: _parse(text))


def read_password(user: str | None, path: Path | None) -> str | None:
    """Return the Authorization header of `user`, whose password is the one line of a file.

    Raises `StoreUnavailable` when the file cannot be used.
    """
    if user is None or path is None:
        return None
    try:
        return basic(user, read_secret(path, blanks=True))
    except SecretUnusable as error:
        raise StoreUnavailable(str(error)) from None


# --- what Orthanc says ------------------------------------------------------------------------------


def _nonsense() -> StoreUnavailable:
    return StoreUnavailable("réponse d'Orthanc incompréhensible")


def _approve(reply: Reply) -> None:
    if reply.status in (401, 403):
        raise StoreUnavailable("accès refusé par Orthanc : vérifier user et password_file")
    if reply.status != 200:
        raise StoreUnavailable(f"Orthanc a répondu {reply.status}")


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _nonsense() from None


def _id(value: object) -> str:
    """Return an identifier of Orthanc's: it goes into paths."""
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise _nonsense()
    return value


def _tags(described: dict[str, Any]) -> dict[str, Any]:
    tags = described.get("MainDicomTags")
    return tags if isinstance(tags, dict) else {}


def _list(described: Any, key: str) -> list[Any]:
    value = described.get(key) if isinstance(described, dict) else None
    if not isinstance(value, list):
        raise _nonsense()
    return value


def _number(described: Any, key: str) -> int:
    value = described.get(key) if isinstance(described, dict) else None
    if not isinstance(value, int) or value < 0:
        raise _nonsense()
    return value


def _text(values: Any, key: str) -> str:
    value = values.get(key) if isinstance(values, dict) else None
    return value.strip(" \0") if isinstance(value, str) else ""


def _uid(tags: dict[str, Any], key: str) -> str:
    uid = _text(tags, key)
    if not is_uid(uid):
        raise _nonsense()
    return uid


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _added(change: Any) -> bool:
    return isinstance(change, dict) and change.get("ChangeType") == "NewInstance"


def _value(module: Any, tag: str) -> str:
    """Return the text of an element of Orthanc's full JSON."""
    return _text(module.get(tag) if isinstance(module, dict) else None, "Value")


def _items(module: Any, tag: str) -> list[Any]:
    element = module.get(tag) if isinstance(module, dict) else None
    value = element.get("Value") if isinstance(element, dict) else None
    return value if isinstance(value, list) else []


def _patient(module: dict[str, Any]) -> StatedPatient:
    """Return what Orthanc's patient module says; a patient of Orthanc's has one PatientID."""
    return StatedPatient(
        patient_id=_value(module, "0010,0020") or None,
        patient_id_issuer=_value(module, "0010,0021") or None,
        patient_id_authority=next(iter(_authorities(module)), None),
        ins=ins_among(
            (_value(other, "0010,0020"), _value(other, "0010,0021"), _authorities(other))
            for other in _items(module, "0010,1002")
        ),
        birth_date=_value(module, "0010,0030"),
    )


def _authorities(module: Any) -> list[str]:
    """Return who gave a PatientID, as OIDs."""
    return [text for each in _items(module, "0010,0024") if (text := _value(each, "0040,0032"))]

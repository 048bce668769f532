"""What must hold between the record, the archive and the model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import attrs
import pydicom

from tests.histories.messages import PATIENTS, document_id
from tests.histories.model import Manifest, Model, study_uid


def check(good: bool, text: str) -> None:
    """Fail with `text` unless `good`; a plain assertion would be rewritten at length."""
    if not good:
        raise AssertionError(text)


@attrs.frozen
class Shown:
    """A current manifest as the record shows it."""

    unique_id: str
    uuid: str
    patient: str
    confidentiality: frozenset[str]
    listed: Mapping[str, frozenset[str]]
    marks: Mapping[str, frozenset[str]]
    addresses: frozenset[str]
    accessions: frozenset[str]


@attrs.frozen
class Archived:
    """A manifest as the archive of the gateway has it."""

    unique_id: str
    state: str
    site: str
    uuid: str | None
    reports: frozenset[str]


def read(document: bytes, uuid: str, confidentiality: Iterable[str]) -> Shown:
    """Read a document of the record with pydicom."""
    kos = pydicom.dcmread(io.BytesIO(document))
    (evidence,) = kos.CurrentRequestedProcedureEvidenceSequence
    marks: dict[str, frozenset[str]] = {}
    listed: dict[str, frozenset[str]] = {}
    for series in evidence.ReferencedSeriesSequence:
        references = series.ReferencedSOPSequence
        listed[str(series.SeriesInstanceUID)] = frozenset(
            str(one.ReferencedSOPInstanceUID) for one in references
        )
        for one in references:
            notes = one.get("ReferencedSOPSequence", [])
            if notes:
                marks[str(one.ReferencedSOPInstanceUID)] = frozenset(
                    str(note.ReferencedSOPInstanceUID) for note in notes
                )
    return Shown(
        str(kos.SOPInstanceUID),
        uuid,
        str(kos.PatientID),
        frozenset(confidentiality),
        listed,
        marks,
        frozenset(str(series.RetrieveURL) for series in evidence.ReferencedSeriesSequence),
        frozenset(str(item.AccessionNumber) for item in kos.ReferencedRequestSequence),
    )


def agrees(shown: Shown, manifest: Manifest, study: int) -> bool:
    """Say whether a manifest of the record is one that would be right."""
    uid = study_uid(study)
    base = f"https://db{manifest.pacs + 1}.349.mesimagesmedicales.fr"
    return (
        shown.listed == manifest.listed
        and (manifest.marks is None or shown.marks == manifest.marks)
        and shown.confidentiality - {"N"} == _codes(manifest.hidden)
        and shown.accessions == {f"ACC-{name}" for name in manifest.accessions}
        and shown.patient == PATIENTS[manifest.patient]
        and {_without_port(each) for each in shown.addresses}
        == {f"{base}/dicom-web-rs/studies/{uid}/series/{series}" for series in manifest.listed}
    )


def _codes(flags: frozenset[str]) -> set[str]:
    """Return the XDS codes of the flags of a message (1.4)."""
    return {flag.replace("REP_LEGAUX", "REPRESENTANTS_LEGAUX") for flag in flags}


def _without_port(address: str) -> str:
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.partition(':')[0]}{slash}{path}"


def judge(model: Model, study: int, current: Sequence[Shown], *, excused: bool) -> None:
    """Hold the record's current manifests of a study against the model; `excused`: it refused something."""
    uid = study_uid(study)
    check(len(current) <= 1, f"{len(current)} current manifests of {uid}")
    if excused:
        return
    allowed = model.allowed(study)
    if not current:
        check(None in allowed, f"no manifest of {uid}, but due is one of {allowed}")
        return
    (shown,) = current
    right = any(each is not None and agrees(shown, each, study) for each in allowed)
    check(right, f"{uid}: the record shows {shown}, but right is one of {allowed}")


def judge_archive(
    study: int, current: Sequence[Shown], archived: Sequence[Archived], known: Mapping[str, str]
) -> None:
    """Hold the archive against the record."""
    uid = study_uid(study)
    published = [each for each in archived if each.state == "published"]
    check(
        [each.unique_id for each in published] == [each.unique_id for each in current],
        f"{uid}: the archive says {list(archived)}, the record shows {list(current)}",
    )
    for each in archived:
        check(each.state != "pending", f"{uid}: {each} is still on its way, and nothing waits")
        held = known.get(each.unique_id)
        check(each.uuid in (None, held), f"{uid}: {each} is {held} in the record")
        came = held is not None or each.state in ("refused", "depublished")
        check(came, f"{uid}: {each} never came into the record")


def judge_reports(study: int, model: Model, archived: Sequence[Archived]) -> None:
    """The manifest knows the report that has the word on it (DB.SO.22)."""
    said = model.speaker(study)
    for each in archived:
        if each.state == "published" and said is not None:
            check(document_id(said.document) in each.reports, f"{each} does not know {said}")

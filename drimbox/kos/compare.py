"""Has anything changed? Before publishing, and when the PACS or the report moves (DB.SO.12, DB.SO.13).

`fingerprint` answers from what a manifest and its XDS metadata would be made of, before anything is
made: two submissions with the same fingerprint would differ in nothing but identifiers and instants, so
the second need not be sent. It is kept with the archived manifest. `difference` says which series and
instances two lists do not share, for the log, the audit and the resynchronisation report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from drimbox.config import Site
from drimbox.kos.reading import KeyImage, Manifest
from drimbox.kos.values import clean, date, time
from drimbox.model import Code, Report, Series, Study, StudyAct, Visibility


def fingerprint(
    *,
    report: Report,
    study: Study,
    site: Site,
    structure_id: str,
    visibility: Visibility,
    retrieve_base: str,
    key_images: Mapping[str, Sequence[KeyImage]] | None = None,
) -> str:
    """Digest everything that shows in the manifest or in its XDS metadata; SHA-256 in lower-case hex.

    Order of series, instances, requests and codes does not count, nor what never leaves the gateway:
    document ids and versions, display names of codes, what the PACS says of the patient. Instants of
    creation and generated UIDs are not inputs.
    """
    content = {
        "patient": attrs.asdict(report.patient),
        "ipp": None if report.ipp is None else [report.ipp.value, report.ipp.authority],
        "requests": _sorted(
            [pair.accession.value, pair.accession.authority, pair.order.value, pair.order.authority]
            for pair in report.requests
        ),
        "acts": _sorted(_act(act) for act in report.acts if act.study_uid == study.study_uid),
        "structure": structure_id,
        "visibility": attrs.asdict(visibility),
        "confidentiality": report.confidentiality,
        "facility": _code(report.facility_type),
        "authenticator": report.legal_authenticator.id,
        "language": report.language,
        "study": [study.study_uid, date(study.date), time(study.time), clean(study.description)],
        "series": _sorted(_series(series) for series in study.series if series.instances),
        "location": [retrieve_base, site.retrieve_location_uid],
    }
    if key_images:
        content["key images"] = _sorted(
            [uid, _sorted([each.sop_instance_uid, each.series_uid, each.description] for each in notes)]
            for uid, notes in key_images.items()
        )
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


@attrs.frozen
class Difference:
    """What the second of two lists lacks or has more than the first.

    Instances are (SeriesInstanceUID, SOPInstanceUID); those of whole series added or removed are counted
    with them. All sorted.
    """

    series_added: tuple[str, ...]
    series_removed: tuple[str, ...]
    instances_added: tuple[tuple[str, str], ...]
    instances_removed: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.instances_added or self.instances_removed)

    def __str__(self) -> str:
        return (
            f"+{len(self.instances_added)} -{len(self.instances_removed)} instances, "
            f"+{len(self.series_added)} -{len(self.series_removed)} séries"
        )


def difference(before: Manifest | Study, after: Manifest | Study) -> Difference:
    """Compare the series and instances of two manifests, or of a manifest and what a PACS holds."""
    old, new = _instances(before), _instances(after)
    old_series, new_series = {series for series, _ in old}, {series for series, _ in new}
    return Difference(
        series_added=tuple(sorted(new_series - old_series)),
        series_removed=tuple(sorted(old_series - new_series)),
        instances_added=tuple(sorted(new - old)),
        instances_removed=tuple(sorted(old - new)),
    )


def _instances(listing: Manifest | Study) -> set[tuple[str, str]]:
    return {
        (series.series_uid, instance.sop_instance_uid)
        for series in listing.series
        for instance in series.instances
    }


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Sort values of any shape by their JSON text; the same value twice counts once."""
    distinct = {json.dumps(value, sort_keys=True): value for value in values}
    return [distinct[key] for key in sorted(distinct)]


def _code(code: Code | None) -> list[str] | None:
    return None if code is None else [code.value, code.scheme]


def _act(act: StudyAct) -> dict[str, Any]:
    return {
        "modalities": _sorted(_code(code) for code in act.modalities),
        "regions": _sorted(_code(code) for code in act.regions),
        "description": clean(act.description),
        "start": act.start,
        "stop": act.stop,
        "setting": _code(act.practice_setting),
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "uid": series.series_uid,
        "modality": series.modality,
        "number": series.number,
        "description": clean(series.description),
        "instances": _sorted(
            [each.sop_instance_uid, each.sop_class_uid, each.number] for each in series.instances
        ),
    }

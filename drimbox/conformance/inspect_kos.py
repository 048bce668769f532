"""Showing what a manifest says, for the integrator who wonders what was published or received.

The answer is plain JSON data with English keys, so that it can be printed, compared or tested with any
tool. It holds the patient's traits: it is for the one who holds the file, never for a log.
"""

from __future__ import annotations

from typing import Any

from drimbox.kos.reading import Manifest, ManifestInstance, ManifestSeries, read_manifest
from drimbox.model import RequestIds


def inspect_kos(data: bytes) -> dict[str, Any]:
    """Describe a manifest file as JSON data (interfaces.md 3).

    Raises `ManifestRefused`, with a French text, for a file that is no readable manifest.
    """
    manifest = read_manifest(data)
    return {
        "study": {
            "study_uid": manifest.study_uid,
            "date": manifest.study_date,
            "time": manifest.study_time,
            "description": manifest.study_description,
            "act": manifest.act,
        },
        "sop_instance_uid": manifest.sop_instance_uid,
        "series_uid": manifest.series_uid,
        "title_code": manifest.title_code,
        "transfer_syntax": manifest.transfer_syntax_uid,
        "created": {
            "date": manifest.creation_date,
            "time": manifest.creation_time,
            "timezone": manifest.timezone,
        },
        "manufacturer": manifest.manufacturer,
        "institution": {"name": manifest.institution_name, "id": manifest.institution_id},
        "patient": _patient(manifest),
        "requests": [_request(pair) for pair in manifest.requests],
        "series": [_series(series) for series in manifest.series],
        "series_count": len(manifest.series),
        "instance_count": manifest.instance_count,
    }


def _patient(manifest: Manifest) -> dict[str, str]:
    patient = manifest.patient
    return {
        "ins": patient.ins,
        "ins_oid": patient.ins_oid,
        "family": patient.family,
        "given": patient.given,
        "given_list": patient.given_list,
        "used_family": patient.used_family,
        "used_given": patient.used_given,
        "birth_date": patient.birth_date,
        "sex": patient.sex,
        "birth_place": patient.birth_place,
    }


def _request(pair: RequestIds) -> dict[str, str]:
    return {
        "accession": pair.accession.value,
        "accession_authority": pair.accession.authority,
        "order": pair.order.value,
        "order_authority": pair.order.authority,
    }


def _series(series: ManifestSeries) -> dict[str, Any]:
    return {
        "series_uid": series.series_uid,
        "modality": series.modality,
        "number": series.number,
        "description": series.description,
        "retrieve_url": series.retrieve_url,
        "retrieve_location_uid": series.retrieve_location_uid,
        "instance_count": len(series.instances),
        "instances": [_instance(instance) for instance in series.instances],
    }


def _instance(instance: ManifestInstance) -> dict[str, Any]:
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "number": instance.number,
        "key_images": [
            {
                "sop_instance_uid": note.sop_instance_uid,
                "series_uid": note.series_uid,
                "description": note.description,
            }
            for note in instance.key_images
        ],
    }

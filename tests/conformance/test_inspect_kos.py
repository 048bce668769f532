"""`inspect_kos` says, as JSON, what pydicom finds in the file."""

from __future__ import annotations

import io
import json

import pytest
from pydicom import dcmread

from drimbox.conformance.inspect_kos import inspect_kos
from drimbox.kos.reading import KeyImage, ManifestRefused
from tests.cda.samples import published
from tests.kos.samples import build


@pytest.mark.requirement("DB.SO.18")
def test_the_description_is_json_and_complete() -> None:
    note = KeyImage("2.25.31", "2.25.32", "Nodule")
    told = json.loads(json.dumps(inspect_kos(build(key_images={"2.25.1001.1.2": [note]}))))
    assert told["sop_instance_uid"] == "2.25.9001"
    assert told["title_code"] == "113030"
    assert told["transfer_syntax"] == "1.2.840.10008.1.2.1"
    assert told["study"] == {
        "study_uid": "2.25.1001",
        "date": "20260112",
        "time": "083000.123",
        "description": "TDM crâne",
        "act": "Scanner du crâne",
    }
    assert told["institution"] == {"name": "CENTRE HOSPITALIER D'ÉVRY", "id": "1999999999"}
    assert told["patient"]["ins"] == "284070100499094"
    assert told["patient"]["given_list"] == "ZOÉ ANNE MARIE"
    assert told["requests"][1] == {
        "accession": "ACC-7789",
        "accession_authority": "2.25.53",
        "order": "5502",
        "order_authority": "2.25.54",
    }
    assert (told["series_count"], told["instance_count"]) == (2, 5)
    first = told["series"][0]
    assert (first["modality"], first["number"], first["instance_count"]) == ("CT", 1, 3)
    assert first["retrieve_url"].endswith("/dicom-web-rs/studies/2.25.1001/series/2.25.1001.1")
    assert first["instances"][1] == {
        "sop_instance_uid": "2.25.1001.1.2",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "number": 2,
        "key_images": [{"sop_instance_uid": "2.25.31", "series_uid": "2.25.32", "description": "Nodule"}],
    }


def test_a_published_manifest_is_described() -> None:
    data = published("KOS/ko.dcm")
    told, ds = inspect_kos(data), dcmread(io.BytesIO(data))
    assert told["sop_instance_uid"] == ds.SOPInstanceUID
    assert told["instance_count"] == 20
    assert told["created"] == {"date": "20231114", "time": "144457", "timezone": "+0200"}


def test_another_file_is_refused() -> None:
    with pytest.raises(ManifestRefused):
        inspect_kos(b"%PDF-1.7")

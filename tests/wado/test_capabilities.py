"""The WADL of the WADO ping: what the specification's example declares, with our path."""

from __future__ import annotations

import pytest

from drimbox.config import WadoSettings
from drimbox.wado.capabilities import ALLOW, CONTENT_TYPE, NAMESPACE, wadl
from drimbox.wado.request import Level, read_target
from drimbox.xml import safe_parse

SETTINGS = WadoSettings()
WITH_INSTANCES = WadoSettings(instance_level=True)
_NS = {"w": NAMESPACE}


def resources(document: bytes) -> dict[str, object]:
    root = safe_parse(document)
    assert root.tag == f"{{{NAMESPACE}}}application"
    return {each.get("path"): each for each in root.iterfind("w:resources/w:resource", _NS)}


@pytest.mark.requirement("DB.SO.103")
def test_the_series_resource_is_the_one_of_the_specification() -> None:
    found = resources(wadl(SETTINGS))
    assert list(found) == ["dicom-web-rs/studies/{studyUID}/series/{seriesUID}"]
    (series,) = found.values()
    templates = series.findall("w:param", _NS)  # type: ignore[attr-defined]
    assert [(each.get("name"), each.get("style"), each.get("required")) for each in templates] == [
        ("studyUID", "template", "true"),
        ("seriesUID", "template", "true"),
    ]
    assert {each.get("type") for each in templates} == {"xs:string"}
    assert {each.nsmap["xs"] for each in templates} == {"http://www.w3.org/2001/XMLSchema"}
    (method,) = series.findall("w:method", _NS)  # type: ignore[attr-defined]
    assert (method.get("name"), method.get("id")) == ("GET", "GET")
    headers = method.findall("w:request/w:param", _NS)
    assert [each.get("name") for each in headers] == [
        "Accept",
        "Authorization",
        "KOS-SOPInstanceUID",
        "Situation",
    ]
    assert {(each.get("style"), each.get("required")) for each in headers} == {("header", "true")}
    assert headers[0].get("default") == "multipart/related; type=application/dicom"
    (response,) = method.findall("w:response", _NS)
    assert response.get("status") == "200"
    media = response.find("w:representation", _NS).get("mediaType")
    assert media == "multipart/related; type=application/dicom"


@pytest.mark.requirement("DB.SO.103")
def test_instances_are_declared_only_with_the_option() -> None:
    found = resources(wadl(WITH_INSTANCES))
    assert list(found) == [
        "dicom-web-rs/studies/{studyUID}/series/{seriesUID}",
        "dicom-web-rs/studies/{studyUID}/series/{seriesUID}/instances/{sopInstanceUID}",
    ]
    root = safe_parse(wadl(WITH_INSTANCES))
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))


@pytest.mark.requirement("DB.SO.103")
@pytest.mark.parametrize("prefix", ["dicom-web-rs", "/a/b/", ""])
def test_declared_paths_are_those_that_are_served(prefix: str) -> None:
    settings = WadoSettings(prefixes=(prefix, "wado-rs"), instance_level=True)
    levels = []
    for path in resources(wadl(settings)):
        target = path.format(studyUID="1.2", seriesUID="1.2.3", sopInstanceUID="1.2.3.4")
        levels.append(read_target(b"/" + target.encode("ascii"), settings).level)
    assert levels == [Level.SERIES, Level.INSTANCE]


def test_the_document_and_its_head() -> None:
    document = wadl(SETTINGS)
    assert document.startswith(b"<?xml")
    root = safe_parse(document)
    (doc,) = root.findall("w:doc", _NS)
    assert doc.get("title") == "DRIMbox"
    assert doc.get("{http://www.w3.org/XML/1998/namespace}lang") == "en"
    assert root.find("w:resources", _NS).get("base") == ""
    assert CONTENT_TYPE == b"application/vnd.sun.wadl+xml"
    assert ALLOW == b"GET, OPTIONS"


def test_a_prefix_cannot_break_the_document() -> None:
    found = resources(wadl(WadoSettings(prefixes=('a"><b',))))
    assert next(iter(found)).startswith('a"><b/studies/')

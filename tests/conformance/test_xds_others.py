"""The DMP validator on what others made, beside other judges, and on damaged input."""

from __future__ import annotations

import copy
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree

from drimbox.commands.signatures import xmlsec1_verifies
from drimbox.commands.validate import beside
from drimbox.conformance.xds.validate import validate_xds
from drimbox.sim.pki import make_pki
from tests.cda.samples import published
from tests.conformance.xds_inputs import Pieces, make_pair, make_publication, make_removal, request
from tests.kos import samples
from tests.sim.dmp_requests import STRUCTURE, Maker
from tests.xds.builders import schemas
from tests.xds.pki import Authority

RIM = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    return make_publication(make_pair(Authority(tmp_path_factory.mktemp("pki"))))


@pytest.fixture(scope="module")
def schema() -> etree.XMLSchema:
    path = schemas() / "xds/ebRS30/lcm.xsd"
    if not path.exists():
        pytest.skip("public XML schemas not present (DRIMBOX_SCHEMAS)")
    return etree.XMLSchema(etree.parse(str(path)))


# --- published samples -------------------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.159")
def test_the_published_publication() -> None:
    """Its authors indented the text (delimiters, digests, hash of the signature) and masked values."""
    report = validate_xds(published("XDS/publication.xml"))
    assert {each.rule for each in report.findings} == {
        "packaging.mime.indented",
        "packaging.mime.line_ends",
        "packaging.mime.base64",
        "soap.must_understand_ns",
        "vihf.digest",
        "vihf.certificate",
        "vihf.sha1",
        "rim.order",
        "attribute.code_former",
        "document.hash",
        "document.size",
        "document.creation_zone",
        # Sent for a report of another exam.
        "document.study_date",
        "submission.vihf_structure",
        "xades.digest",
        "xades.value",
        "xades.sha1",
    }
    # The manifest itself is the one announced: only the signature's own hash and size are wrong.
    spoilt = [each.text for each in report.findings if each.rule in ("document.hash", "document.size")]
    assert all(text.startswith("entrée de signature") for text in spoilt)


@pytest.mark.requirement("DB.CS.159", "DB.SO.29")
def test_the_published_metadata_file(tmp_path: Path) -> None:
    """Whole, but for masked certificates and a hash of the signature that is its authors' known fault."""
    for name in ("METADATA.XML", "KOS_1_1.DCM", "SIGN_1.XML"):
        (tmp_path / name).write_bytes(published(f"XDM/KA202401/IHE_XDM/SS000001/{name}"))
    report = validate_xds(
        (tmp_path / "METADATA.XML").read_bytes(), folder=lambda uri: beside(tmp_path, uri)
    )
    assert {each.rule for each in report.findings} == {
        "soap.must_understand_ns",
        "vihf.certificate",
        "vihf.sha1",
        "rim.order",
        "attribute.code_former",
        "attribute.identifier_unknown",
        "document.hash",
        "document.size",
        "document.creation_zone",
        # Sent for a report of another exam.
        "document.study_date",
        "submission.times",
        "xades.certificate",
        "xades.sha1",
    }
    assert report.facts["documents"] == 2


def test_the_published_answer_is_no_request() -> None:
    report = validate_xds(published("XDS/response.xml"))
    assert not report.ok


# --- requests that no code of the gateway made -----------------------------------------------------------


@pytest.mark.peer("xmlsec1")
@pytest.mark.requirement("DB.CS.159")
@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_publication_signed_by_xmlsec1(tmp_path: Path, algorithm: str) -> None:
    """Written from templates of its own; its metadata carry short names and a bare manifest."""
    pki = make_pki(tmp_path / "pki")
    maker = Maker(pki, tmp_path, pki.structures[STRUCTURE].signature, algorithm)
    sent = maker.publication()
    report = validate_xds(request(sent.content_type, sent.body), judge=xmlsec1_verifies)
    sha1 = {"vihf.sha1", "xades.sha1"} if algorithm == "sha1" else set()
    assert {each.rule for each in report.findings} == sha1 | {
        # Name of every ExternalIdentifier, and the title of the manifest.
        "attribute.identifier_name",
        "document.kos_class",
        "document.reference",
        # Dated long before the certificate was made and the assertion issued.
        "xades.certificate_date",
        "submission.vihf_date",
    }
    removal = maker.removal("urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11")
    report = validate_xds(request(removal.content_type, removal.body), judge=xmlsec1_verifies)
    assert {each.rule for each in report.findings} == (sha1 - {"xades.sha1"}) | {
        "attribute.identifier_name",
        "submission.vihf_date",
    }


# --- beside other judges ---------------------------------------------------------------------------------


@pytest.mark.peer("xmlsec1")
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_our_arithmetic_and_that_of_xmlsec1_agree(data: st.DataObject, good: Pieces) -> None:
    """One character of a signed document changed: both take it, or neither does."""
    piece = data.draw(st.sampled_from(["assertion", "signature"]))
    document: bytes = getattr(good, piece)
    at = data.draw(st.integers(0, len(document) - 1))
    letter = data.draw(st.sampled_from(b"aZ9 =/"))
    changed = document[:at] + bytes([letter]) + document[at + 1 :]
    pieces = attrs.evolve(good, **{piece: changed})
    verdicts: list[bool | None] = []

    def second(document: bytes, certificate: bytes) -> bool | None:
        verdicts.append(xmlsec1_verifies(document, certificate))
        return None

    report = validate_xds(pieces.capture(), judge=second)
    told = {each.rule for each in report.findings}
    if len(verdicts) < 2:
        # Not worth handing on: that must have been told.
        assert report.findings
        return
    ours = not told & {"vihf.digest", "vihf.value", "xades.digest", "xades.value"}
    assert ours is all(verdicts)


def test_the_schema_takes_what_we_take(good: Pieces, schema: etree.XMLSchema) -> None:
    schema.assertValid(etree.fromstring(good.metadata))
    schema.assertValid(etree.fromstring(make_removal(good).metadata))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_what_the_schema_refuses_is_told(
    data: st.DataObject, good: Pieces, schema: etree.XMLSchema
) -> None:
    """One change of the structure: never silence where rim.xsd says no."""
    root = etree.fromstring(good.metadata)
    elements = list(root.iter("*"))[1:]
    element = elements[data.draw(st.integers(0, len(elements) - 1))]
    change = data.draw(st.sampled_from(["remove", "double", "last", "attribute", "rename", "stranger"]))
    parent = element.getparent()
    if change == "remove":
        parent.remove(element)
    elif change == "double":
        element.addnext(copy.deepcopy(element))
    elif change == "last":
        parent.append(element)
    elif change == "attribute":
        names = sorted(element.attrib)
        if names:
            del element.attrib[data.draw(st.sampled_from(names))]
    elif change == "rename":
        element.tag = (
            f"{{{RIM}}}{data.draw(st.sampled_from(['Slot', 'Name', 'Value', 'Classification', 'X']))}"
        )
    else:
        etree.SubElement(element, "{urn:other}X")
    if not schema.validate(root):
        pieces = attrs.evolve(good, metadata=etree.tostring(root))
        assert validate_xds(pieces.capture()).findings, schema.error_log


# --- damage ----------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_gives_a_report_without_the_patient(data: st.DataObject, good: Pieces) -> None:
    whole = data.draw(
        st.sampled_from([good.capture(), good.envelope(), good.metadata, make_removal(good).capture()])
    )
    at = data.draw(st.integers(0, len(whole)))
    damage = data.draw(st.binary(max_size=16))
    spoilt = whole[:at] + damage + (b"" if data.draw(st.booleans()) else whole[at + len(damage) :])
    text = "\n".join(validate_xds(spoilt, kos=good.kos, folder=lambda uri: None).lines())
    for value in (samples.PATIENT.ins, samples.PATIENT.family, "ACC-7788"):
        assert value not in text


@given(st.binary(max_size=400))
@example(b"")
@example(b"--")
@example(b"--x\r\n\r\n--x--")
@example(b"POST / HTTP/1.1\r\n\r\n")
@example(b"\xff\xfe<\x00a\x00/\x00>\x00")
@settings(max_examples=200, deadline=None)
def test_anything_gives_a_report(data: bytes) -> None:
    assert not validate_xds(data).ok


@pytest.mark.threat("XXE, billion laughs, DTD")
@pytest.mark.parametrize(
    "doctype",
    [
        b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    ],
)
def test_a_doctype_is_refused_wherever_it_stands(good: Pieces, doctype: bytes) -> None:
    envelope = good.envelope()
    assert {each.rule for each in validate_xds(doctype + envelope).findings} == {"packaging.xml"}
    pieces = attrs.evolve(good, signature=doctype + good.signature.partition(b"?>")[2].strip())
    assert "xades.xml" in {each.rule for each in validate_xds(pieces.capture()).findings}


@pytest.mark.threat("Content-Length and body bombs")
def test_what_is_huge_is_cut_short(good: Pieces) -> None:
    code = b'<Classification xmlns="%s" id="x" classificationScheme="urn:x%d"/>'
    many = b"".join(code % (RIM.encode(), number) for number in range(20_000))
    metadata = good.metadata.replace(b"<Name", many + b"<Name", 1)
    report = validate_xds(attrs.evolve(good, metadata=metadata).capture())
    assert len(report.lines()) < 600
    assert report.omitted

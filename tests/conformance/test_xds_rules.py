"""The DMP validator: a good message says nothing, and every rule has an input that breaks it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from lxml import etree

from drimbox.commands.signatures import xmlsec1_verifies
from drimbox.conformance.report import Report, Severity
from drimbox.conformance.rules import Rule
from drimbox.conformance.xds import (
    assertion,
    attributes,
    capture,
    documents,
    envelope,
    links,
    rim,
    tables,
    validate,
    xades,
)
from drimbox.conformance.xds.validate import validate_xds
from drimbox.xdm.metadata import exported
from tests.conformance import xds_cases
from tests.conformance.xds_cases import BROKEN, NS, XDM_BROKEN, copy_of
from tests.conformance.xds_inputs import (
    Pieces,
    make_pair,
    make_publication,
    make_removal,
    make_xdm,
)
from tests.kos import samples
from tests.xds.pki import Authority

MODULES = (capture, envelope, assertion, rim, attributes, links, documents, xades, validate)
RULES = [rule for module in MODULES for rule in module.RULES]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def good(authority: Authority) -> Pieces:
    pair = make_pair(authority)
    xds_cases.CERTIFICATES["root"] = x509.load_pem_x509_certificate(authority.roots().read_bytes())
    xds_cases.CERTIFICATES["expired"] = expired(authority, pair.certificate)
    return make_publication(pair)


def expired(authority: Authority, like: x509.Certificate) -> x509.Certificate:
    """The same certificate, whose time is over."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(like.issuer)
        .public_key(like.public_key())
        .serial_number(like.serial_number)
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now - timedelta(days=8))
        .sign(authority.key, hashes.SHA256())
    )


def judge(pieces: Pieces) -> Report:
    return validate_xds(pieces.capture(), kos=pieces.given_kos, judge=lambda document, certificate: None)


@pytest.mark.requirement("DB.CS.159", "DB.SO.105")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_one_broken_rule(rule: Rule, good: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule.id in XDM_BROKEN:
        root = etree.fromstring(make_xdm(good) if rule.id != "document.uri_signature" else good.metadata)
        XDM_BROKEN[rule.id](root)
        report = validate_xds(etree.tostring(root), folder=lambda uri: good.kos)
    else:
        if rule.id == "packaging.size":
            monkeypatch.setattr(capture, "MAX_BYTES", 1000)
        if rule.id == "rim.objects":
            monkeypatch.setattr(rim, "_MAX_OBJECTS", 3)
        pieces = copy_of(good)
        BROKEN[rule.id](pieces)
        second = xmlsec1_verifies if rule.id.endswith(".judge") else None
        report = validate_xds(pieces.capture(), kos=pieces.given_kos, judge=second)
    found = {each.rule: each for each in report.findings}
    assert rule.id in found, sorted(found)
    assert found[rule.id].severity is rule.severity
    assert "{" not in found[rule.id].text + found[rule.id].clause


@pytest.mark.peer("xmlsec1")
@pytest.mark.requirement("DB.CS.159", "DB.SO.105", "DB.SO.18")
@pytest.mark.parametrize(
    "settings", [{}, {"author": "professional"}, {"source_patient_id": "ipp"}], ids=str
)
def test_nothing_broken_is_nothing_said(good: Pieces, settings: dict[str, str]) -> None:
    verdicts = []

    def second(document: bytes, certificate: bytes) -> bool | None:
        verdicts.append(xmlsec1_verifies(document, certificate))
        return verdicts[-1]

    for replaces in (None, "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"):
        pieces = make_publication(good.pair, replaces=replaces, **settings)
        assert validate_xds(pieces.capture(), judge=second).findings == []
    assert verdicts == [True] * 4


def test_what_a_configuration_may_choose_is_a_warning_at_most(good: Pieces) -> None:
    sha1 = make_publication(good.pair, digest="sha1")
    assert {each.rule for each in judge(sha1).findings} == {"vihf.sha1", "xades.sha1"}


@pytest.mark.peer("xmlsec1")
@pytest.mark.parametrize("rule", list(xades.RULES), ids=lambda rule: rule.id)
def test_every_rule_of_the_signature_counts_in_the_later_xades_too(
    rule: Rule, good: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NS, "e", "http://uri.etsi.org/01903/v1.3.2#")
    pieces = make_publication(good.pair, version="1.3.2")
    BROKEN[rule.id](pieces)
    report = validate_xds(pieces.capture(), kos=pieces.given_kos, judge=xmlsec1_verifies)
    assert rule.id in {each.rule for each in report.findings}


@pytest.mark.parametrize("version", ["1.1.1", "1.3.2"])
def test_the_version_judged_is_the_one_declared(good: Pieces, version: str) -> None:
    assert judge(make_publication(good.pair, version=version)).facts["xades"] == version


def test_a_signature_of_two_versions_is_of_none(good: Pieces) -> None:
    pieces = copy_of(good)
    other = make_publication(good.pair, version="1.3.2")
    (later,) = etree.fromstring(other.signature).xpath(
        "//*[local-name()='QualifyingProperties']", namespaces=NS
    )
    pieces.edit(
        "signature", lambda root: root.xpath("//e:QualifyingProperties", namespaces=NS)[0].addnext(later)
    )
    assert "xades.shape" in {each.rule for each in judge(pieces).findings}


def test_the_later_xades_is_judged_as_strictly(good: Pieces) -> None:
    later = make_publication(good.pair, version="1.3.2")
    assert judge(later).findings == []
    xmlsec1 = xmlsec1_verifies(later.signature, good.pair.certificate_der)
    assert xmlsec1 in (True, None)
    for before, after, rule in (
        (b"01903#SignedProperties", b"01903/v1.3.2#SignedProperties", "xades.reference_type"),
        (b"2026-", b"2025-", "xades.digest"),
        (b"<Cert>", b'<Cert xmlns="http://uri.etsi.org/01903/v1.1.1#">', "xades.shape"),
    ):
        assert before in later.signature
        spoilt = attrs.evolve(later, signature=later.signature.replace(before, after, 1))
        assert rule in {each.rule for each in judge(spoilt).findings}, rule
    local = make_publication(good.pair, times="local")
    assert {each.rule for each in judge(local).findings} == {"document.creation_zone"}


def test_the_envelope_alone_is_judged_as_far_as_it_goes(good: Pieces) -> None:
    report = validate_xds(good.envelope())
    assert [each.rule for each in report.findings] == ["document.not_read"] * 2
    assert validate_xds(good.envelope(), kos=good.kos).facts["documents"] == 1
    spoilt = xds_cases.edited(good.kos, lambda dataset: setattr(dataset, "Manufacturer", "X"))
    assert "document.hash" in {each.rule for each in validate_xds(good.envelope(), kos=spoilt).findings}


def test_the_body_without_its_http_head(good: Pieces) -> None:
    data = good.capture()
    assert validate_xds(data[data.index(b"\r\n\r\n") + 4 :]).findings == []
    # A delimiter that looks like a header field, as CXF writes them.
    boundary = re.search(rb'boundary="([^"]+)"', data)
    assert boundary is not None
    named = data.replace(boundary[1], b"uuid:3d6c1f2e-0000")
    assert validate_xds(named[named.index(b"\r\n\r\n") + 4 :]).findings == []
    # The Content-Type alone before it, and chunks.
    content_type = data[data.index(b"Content-Type") :]
    assert validate_xds(content_type).findings == []
    head, _, body = data.partition(b"\r\n\r\n")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    head = head[: head.index(b"Content-Length")] + b"Transfer-Encoding: chunked"
    assert validate_xds(head + b"\r\n\r\n" + chunked).findings == []


@pytest.mark.requirement("DB.CS.159")
def test_a_removal(good: Pieces) -> None:
    report = judge(make_removal(good))
    assert (report.subject, report.findings) == ("mise à jour dans le DMP (TD3.3)", [])


def test_a_metadata_file(good: Pieces) -> None:
    asked = []

    def folder(uri: str) -> bytes | None:
        asked.append(uri)
        return good.kos

    report = validate_xds(make_xdm(good), folder=folder)
    assert (report.findings, asked) == ([], ["SS000001/KOS_1_1.DCM"])
    missing = validate_xds(make_xdm(good), folder=lambda uri: None)
    assert [each.rule for each in missing.findings] == ["document.not_read"]
    other = validate_xds(make_xdm(good), folder=lambda uri: good.kos + b"x")
    assert {"document.hash", "document.size"} <= {each.rule for each in other.findings}


@pytest.mark.requirement("DB.SO.29")
def test_a_metadata_file_of_our_archive(good: Pieces) -> None:
    """The archive keeps the entry of the signature, whose file it does not hold."""
    data = exported(good.metadata, "2.25.9001", "SS000001/KOS_1_1.DCM", good.kos)
    report = validate_xds(data, folder=lambda uri: good.kos)
    assert {each.rule for each in report.findings} == {"document.uri_signature", "document.not_read"}
    assert report.ok
    assert report.facts["documents"] == 1


@pytest.mark.threat("path traversal by UID, AE title, file name")
def test_a_uri_that_leaves_the_archive_is_never_opened(good: Pieces) -> None:
    for uri in (
        "../../etc/passwd",
        "/etc/passwd",
        "SS000001/../X.DCM",
        "SS000001\\X.DCM",
        "A/B/C.DCM",
        "SS/..",
    ):
        data = make_xdm(good).replace(b"SS000001/KOS_1_1.DCM", uri.encode())
        report = validate_xds(data, folder=lambda uri: pytest.fail(f"asked for {uri}"))
        assert "document.uri_form" in {each.rule for each in report.findings}


# --- every row of the tables -----------------------------------------------------------------------------

_TABLES = {
    "SubmissionSet01": tables.SET,
    "DocumentKOS": tables.KOS,
    "Signature01": tables.SIGNATURE,
}
_SLOTS = [(owner, row) for owner, table in _TABLES.items() for row in table.slots]
_CODES = [(owner, row) for owner, table in _TABLES.items() for row in table.codes]
_IDS = [(owner, row) for owner, table in _TABLES.items() for row in table.identifiers]


def rules_of(good: Pieces, root: etree._Element) -> set[tuple[str, str]]:
    pieces = attrs.evolve(good, metadata=etree.tostring(root))
    return {(each.rule, each.text) for each in validate_xds(pieces.capture()).findings}


def said(found: set[tuple[str, str]], rule: str, name: str) -> bool:
    return any(each == rule and name in text for each, text in found)


@pytest.mark.requirement("DB.CS.159", "DB.SO.105")
@pytest.mark.parametrize(("owner", "row"), _SLOTS, ids=lambda value: getattr(value, "name", value))
def test_each_slot(good: Pieces, owner: str, row: tables.SlotRow) -> None:
    root = etree.fromstring(good.metadata)
    slot = root.xpath(f"//r:*[@id='{owner}']/r:Slot[@name='{row.name}']", namespaces=NS)[0]
    name = row.name.rpartition(":")[2]
    slot.find(".//r:Value", NS).text = "§"
    assert said(rules_of(good, root), "attribute.slot_form", name)
    slot.getparent().remove(slot)
    assert said(rules_of(good, root), "attribute.slot", name) is row.required


@pytest.mark.requirement("DB.CS.159", "DB.SO.105")
@pytest.mark.parametrize(("owner", "row"), _CODES, ids=lambda value: getattr(value, "name", value))
def test_each_code(good: Pieces, owner: str, row: tables.CodeRow) -> None:
    def codes(root: etree._Element) -> list[etree._Element]:
        path = f"//r:*[@id='{owner}']/r:Classification[@classificationScheme='{row.scheme}']"
        found: list[etree._Element] = root.xpath(path, namespaces=NS)
        return found

    root = etree.fromstring(good.metadata)
    codes(root)[0].find("r:Slot/r:ValueList/r:Value", NS).text = "2.999.9"
    assert said(rules_of(good, root), "attribute.code_scheme", row.name)
    for code in codes(root):
        code.getparent().remove(code)
    assert said(rules_of(good, root), "attribute.code", row.name)
    for scheme, allowed in row.allowed.items():
        if allowed is None:
            continue
        root = etree.fromstring(good.metadata)
        first = codes(root)[0]
        first.find("r:Slot/r:ValueList/r:Value", NS).text = scheme
        first.set("nodeRepresentation", "§")
        assert said(rules_of(good, root), "attribute.code_value", row.name)


@pytest.mark.requirement("DB.CS.159", "DB.SO.105")
@pytest.mark.parametrize(("owner", "row"), _IDS, ids=lambda value: getattr(value, "name", value))
def test_each_identifier(good: Pieces, owner: str, row: tables.IdRow) -> None:
    root = etree.fromstring(good.metadata)
    path = f"//r:*[@id='{owner}']/r:ExternalIdentifier[@identificationScheme='{row.scheme}']"
    item = root.xpath(path, namespaces=NS)[0]
    name = row.name.partition(".")[2]
    item.set("value", "§")
    assert said(rules_of(good, root), "attribute.identifier_form", name)
    item.getparent().remove(item)
    assert said(rules_of(good, root), "attribute.identifier", name)


@pytest.mark.requirement("DB.CS.159")
@pytest.mark.parametrize("name", [*assertion.TEXTS, *assertion.CODED])
def test_each_attribute_of_the_vihf(good: Pieces, name: str) -> None:
    pieces = copy_of(good)
    xds_cases.edits("assertion", xds_cases.attribute(name), xds_cases.removes)(pieces)
    found = {(each.rule, each.text) for each in judge(pieces).findings}
    assert said(found, "vihf.attribute", name.rpartition(":")[2])


@pytest.mark.parametrize("scheme", ["1.2.250.1.213.1.1.5.695", "1.2.250.1.213.2.5"])
def test_former_schemes_are_accepted_with_a_warning(good: Pieces, scheme: str) -> None:
    pieces = copy_of(good)
    xds_cases.metadata(xds_cases.REGION + xds_cases.CODING, xds_cases.says(scheme))(pieces)
    found = judge(pieces).findings
    assert [(each.rule, each.severity) for each in found] == [("attribute.code_former", Severity.WARNING)]


def test_nothing_of_the_patient_is_quoted(good: Pieces) -> None:
    other = good.metadata.replace(samples.PATIENT.ins.encode(), b"184070100499094")
    text = "\n".join(judge(attrs.evolve(good, metadata=other)).lines())
    assert "patientId n'est pas celui du KOS" in text
    for value in (samples.PATIENT.ins, "184070100499094", "NÉIL", "19840701", "ACC-7788", "MARTIN"):
        assert value not in text


def test_the_command_of_the_second_opinion_is_asked_only_of_known_algorithms(good: Pieces) -> None:
    def refuse(document: bytes, certificate: bytes) -> bool | None:
        return pytest.fail("asked")

    pieces = copy_of(good)
    for piece in ("assertion", "signature"):
        xds_cases.edits(
            piece,
            "//ds:SignedInfo/ds:Reference",
            lambda element: element.insert(
                0,
                etree.fromstring(
                    f'<Transforms xmlns="{NS["ds"]}"><Transform Algorithm="http://www.w3.org/TR/1999/'
                    'REC-xslt-19991116"/></Transforms>'
                ),
            ),
        )(pieces)
    report = validate_xds(pieces.capture(), judge=refuse)
    assert {"vihf.transforms", "xades.transforms"} <= {each.rule for each in report.findings}

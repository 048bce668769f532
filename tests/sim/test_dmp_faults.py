"""Every fault of a DMP request, one at a time, gets the error the DMP would give."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drimbox.sim.dmp_service import DmpService
from drimbox.sim.dmp_trust import Trust
from drimbox.sim.pki import Pki
from tests.sim.dmp_requests import (
    INS,
    LATE,
    NOW,
    PATIENT,
    STRUCTURE,
    TD21,
    HttpRequest,
    Maker,
    make_kos,
)
from tests.sim.dmp_talk import GET, codes, entries, published, send, told, unique

pytestmark = pytest.mark.skipif(shutil.which("xmlsec1") is None, reason="xmlsec1 is not installed")

APPROVED = "('urn:oasis:names:tc:ebxml-regrep:StatusType:Approved')"


# --- one fault at a time: registry errors ---------------------------------------------------------


def _drop_slot(name: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf'<Slot name="{re.escape(name)}">.*?</Slot>', "", text, count=1)


def _drop_code(scheme: str) -> Callable[[str], str]:
    pattern = rf'<Classification [^>]*classificationScheme="urn:uuid:{scheme}"[^>]*>.*?</Classification>'

    def edit(text: str) -> str:
        head, mark, tail = text.partition("<ExtrinsicObject")
        return head + mark + re.sub(pattern, "", tail, count=1)

    return edit


def _swap(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return edit


METADATA = "XDSRegistryMetadataError"
SIZE = 'name="size"><ValueList><Value>'
MANDATORY_SLOTS = [
    *("submissionTime", "creationTime", "languageCode", "legalAuthenticator", "serviceStartTime"),
    *("sourcePatientId", "hash", "size", "sourcePatientInfo"),
    *("urn:ihe:iti:xds:2013:referenceIdList", "authorPerson", "authorInstitution", "codingScheme"),
    "SubmissionSetStatus",
]
MANDATORY_CODES = [
    *("41a5887f-8865-4c09-adf7-e362475b143a", "f0306f51-975f-434e-a61c-c59651d33983"),
    *("f4f85eac-e6cb-4883-b524-f2705394840f", "a09d5840-386c-46f2-b5ad-9c3699a4309d"),
    *("f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1", "cccf5598-8b07-4b77-a05e-ae952c785ead"),
    "93606bcf-9494-43ec-9b4e-a7748d1a838d",
]

FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    *((f"slot {name}", METADATA, {"metadata": _drop_slot(name)}) for name in MANDATORY_SLOTS),
    *((f"code {scheme[:8]}", METADATA, {"metadata": _drop_code(scheme)}) for scheme in MANDATORY_CODES),
    ("wrong typeCode", METADATA, {"metadata": _swap('"IMG-KOS"', '"IMG-KOZ"')}),
    ("wrong scheme", METADATA, {"metadata": _swap("1.2.250.1.213.1.1.4.12<", "1.2.3<")}),
    ("wrong mimeType", METADATA, {"metadata": _swap("application/dicom", "text/plain")}),
    ("title missing", METADATA, {"metadata": _swap("Reference d'Objets d'un Examen d'Imagerie", "")}),
    ("no set node", METADATA, {"metadata": _swap("urn:uuid:a54d6aa5", "urn:uuid:a54d6aa6")}),
    ("local time with zone", METADATA, {"metadata": _swap("20260112094500", "20260112094500+0100")}),
    ("unknown slot twice", METADATA, {"metadata": _swap('name="size"', 'name="hash"')}),
    ("id twice", METADATA, {"metadata": _swap('id="Signature01"', 'id="DocumentKOS"')}),
    (
        "other patient",
        "XDSPatientIdDoesNotMatch",
        {"metadata": _swap('value="284070100499094', 'value="184070100499094')},
    ),
    (
        "wrong hash",
        "XDSRepositoryMetadataError",
        {
            "metadata": lambda text: re.sub(
                r'(name="hash"><ValueList><Value>).{40}', r"\g<1>" + "0" * 40, text, count=1
            )
        },
    ),
    (
        "wrong size",
        "XDSRepositoryMetadataError",
        {"metadata": _swap(SIZE, SIZE + "1")},
    ),
    ("nothing signs", METADATA, {"metadata": _swap("AssociationType:signs", "AssociationType:XFRM")}),
    (
        "signed by the manifest",
        METADATA,
        {
            "metadata": _swap(
                'sourceObject="Signature01" targetObject="SubmissionSet01"',
                'sourceObject="DocumentKOS" targetObject="SubmissionSet01"',
            )
        },
    ),
    (
        "xades digest of the document",
        METADATA,
        {
            "xades_before": lambda text: re.sub(
                r'(URI="urn:oid:2\.999\.20\.1">.*?<DigestValue>).', r"\g<1>/", text, count=1
            )
        },
    ),
    ("hash", "XDSRepositoryMetadataError", {"sent_kos": make_kos("2.999.20.1") + b"\0\0"}),
    ("kos of another uid", "XDSRepositoryMetadataError", {"kos": make_kos("2.999.20.99")}),
    (
        "kos of another study",
        "XDSRepositoryMetadataError",
        {"kos": make_kos("2.999.20.1", study="2.999.10")},
    ),
    (
        "kos of another patient",
        "XDSRepositoryMetadataError",
        {"kos": make_kos("2.999.20.1", ins="1" * 15)},
    ),
    ("no dicom", "XDSRepositoryMetadataError", {"kos": b"DICM" * 40}),
    (
        "document without metadata",
        "XDSMissingDocumentMetadata",
        {"envelope": _swap('Document id="DocumentKOS"', 'Document id="Other"')},
    ),
    (
        "metadata without document",
        "XDSMissingDocument",
        {"envelope": _swap('Document id="DocumentKOS"', 'Document id="Other"')},
    ),
    (
        "uid twice",
        "XDSRepositoryDuplicateUniqueIdInMessage",
        {"metadata": _swap('value="2.999.22.1"', 'value="2.999.20.1"')},
    ),
    (
        "target unknown",
        "UnresolvedReferenceException",
        {"replaces": "urn:uuid:11111111-1111-4111-8111-111111111111"},
    ),
    ("xades purpose", METADATA, {"xades_before": _swap("1.12.1.14", "1.12.1.15")}),
    ("xades manifest", METADATA, {"xades_before": _swap("urn:oid:2.999.20.1", "urn:oid:2.999.20.2")}),
    ("xades set", METADATA, {"xades_before": _swap("urn:oid:2.999.21.1", "urn:oid:2.999.21.2")}),
    ("xades serial", METADATA, {"xades_before": _swap("<X509SerialNumber xmlns=", "<Other xmlns=")}),
    (
        "xades type",
        METADATA,
        {"xades_before": _swap('Type="http://www.w3.org/2000/09/xmldsig#Manifest"', "")},
    ),
    ("xades altered property", METADATA, {"xades_after": _swap("09:45:00.000+", "09:45:01.000+")}),
    (
        "xades value",
        METADATA,
        {"xades_after": lambda text: re.sub(r"(<SignatureValue>\s*)[A-Za-z]", r"\g<1>0", text)},
    ),
    ("xades policy", METADATA, {"xades_before": _swap("<SignaturePolicyImplied/>", "")}),
    ("xades not xml", METADATA, {"xades_after": lambda _: "nothing"}),
]


def _fix_serial(text: str) -> str:
    return text.replace("</X509SerialNumber>", "</Other>", 1)


@pytest.mark.peer("xmlsec1")
@pytest.mark.parametrize(("name", "expected", "options"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_each_fault_of_a_submission_gets_its_error(
    sim_pki: Pki,
    maker: Maker,
    service: DmpService,
    name: str,
    expected: str,
    options: dict[str, Any],
) -> None:
    if name == "xades serial":
        spoil = options["xades_before"]
        options = {"xades_before": lambda text: _fix_serial(spoil(text))}
    answer = send(service, sim_pki, maker.publication(**options))
    assert answer.status == 200
    assert expected in codes(service), told(service)
    assert f'errorCode="{expected}"'.encode() in answer.body
    assert not service.registry.entries


def test_duplicates_are_refused_whole(sim_pki: Pki, maker: Maker, service: DmpService) -> None:
    published(service, sim_pki, maker)
    send(service, sim_pki, maker.publication(set_uid="2.999.21.2", signature_uid="2.999.22.2"))
    assert codes(service) == ("XDSDuplicateUniqueIdInRegistry",)
    send(service, sim_pki, maker.publication(kos_uid="2.999.20.2", signature_uid="2.999.22.2"))
    assert codes(service) == ("XDSDuplicateUniqueIdInRegistry",)
    other = make_kos("2.999.20.1") + b"\x09\x00\x10\x00LO\x02\x00X "
    send(service, sim_pki, maker.publication(kos=other, set_uid="2.999.21.2", signature_uid="2.999.22.2"))
    assert codes(service) == ("XDSDuplicateUniqueIdInRegistry", "XDSNonIdenticalHash")
    assert len(service.registry.entries) == 2


def test_replacing_what_is_already_replaced(sim_pki: Pki, maker: Maker, service: DmpService) -> None:
    first = published(service, sim_pki, maker, 1)
    published(service, sim_pki, maker, 2, replaces=first)
    request = maker.publication(
        kos_uid="2.999.20.3", set_uid="2.999.21.3", signature_uid="2.999.22.3", replaces=first
    )
    send(service, sim_pki, request)
    assert codes(service) == ("XDSRegistryDeprecatedDocumentError",)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"original": "urn:oasis:names:tc:ebxml-regrep:StatusType:Deprecated"}, "XDSMetadataUpdateError"),
        ({"new": "urn:oasis:names:tc:ebxml-regrep:StatusType:Gone"}, "XDSMetadataUpdateOperationError"),
        ({"set_uid": "2.999.21.1"}, "XDSDuplicateUniqueIdInRegistry"),
        ({"entry_uuid": "urn:uuid:0"}, "UnresolvedReferenceException"),
    ],
)
def test_each_fault_of_a_removal_gets_its_error(
    sim_pki: Pki, maker: Maker, service: DmpService, options: dict[str, str], expected: str
) -> None:
    entry = published(service, sim_pki, maker)
    send(service, sim_pki, maker.removal(**{"entry_uuid": entry, **options}))
    assert codes(service) == (expected,)
    assert service.registry.entries[entry].status.endswith("Approved")


# --- one fault at a time: SOAP faults -------------------------------------------------------------

ATTRIBUTES = [
    *("VIHF_Version", "Identifiant_Structure", "Secteur_Activite", "Ressource_URN"),
    *("urn:oasis:names:tc:xspa:1.0:subject:subject-id", "LPS_Nom", "LPS_ID", "LPS_Version"),
    *("LPS_ID_HOMOLOGATION_DMP", "urn:oasis:names:tc:xacml:2.0:resource:resource-id"),
    *("urn:oasis:names:tc:xacml:2.0:subject:role", "urn:oasis:names:tc:xspa:1.0:subject:purposeofuse"),
    "Authentification_Mode",
]
VIHF_FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (f"no {name[-20:]}", "wsse:InvalidSecurityToken", {"before": _swap(f'Name="{name}"', 'Name="x"')})
        for name in ATTRIBUTES
    ),
    ("altered", "wsse:FailedCheck", {"after": _swap("PAUL DURAND", "PAUL DUPOND")}),
    ("too old", "wsse:MessageExpired", {"issued": NOW - LATE}),
    ("in the future", "wsse:InvalidSecurityToken", {"issued": NOW + LATE}),
    ("structure", "wsse:FailedAuthentication", {"before": _swap(f">{STRUCTURE}<", ">499700000009999<")}),
    ("issuer", "wsse:InvalidSecurityToken", {"before": _swap(">CN=DRIMbox", ">CN=Other")}),
    ("mode", "wsse:InvalidSecurityToken", {"before": _swap(">INDIRECTE<", ">MAGIQUE<")}),
    ("direct mode", "wsse:FailedAuthentication", {"before": _swap(">INDIRECTE<", ">DIRECTE<")}),
    ("sector", "wsse:InvalidSecurityToken", {"before": _swap(">SA07^", ">07^")}),
    ("resource", "wsse:InvalidSecurityToken", {"before": _swap("urn:dmp", "urn:other")}),
    ("two assertions", "wsse:InvalidSecurity", {"after": lambda text: text + text}),
    ("name id", "wsse:InvalidSecurityToken", {"before": _swap(">899700000001<", "><")}),
    (
        "inclusive c14n",
        "wsse:UnsupportedAlgorithm",
        {
            "before": lambda text: text.replace(
                "http://www.w3.org/2001/10/xml-exc-c14n#", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
            )
        },
    ),
]


@pytest.mark.peer("xmlsec1")
@pytest.mark.parametrize(
    ("name", "expected", "options"), VIHF_FAULTS, ids=[fault[0] for fault in VIHF_FAULTS]
)
def test_each_fault_of_the_vihf_is_a_soap_fault(
    sim_pki: Pki,
    maker: Maker,
    service: DmpService,
    name: str,
    expected: str,
    options: dict[str, Any],
) -> None:
    answer = send(service, sim_pki, maker.publication(vihf=maker.vihf(**options)))
    assert answer.status == 500
    assert codes(service) == (expected,), told(service)
    assert expected.encode() in answer.body
    assert not service.registry.entries


@pytest.mark.threat("XML signature wrapping")
def test_wrapped_assertion_is_refused(sim_pki: Pki, maker: Maker, service: DmpService) -> None:
    """The signed assertion hides in another one with the same ID."""
    signed = maker.vihf()
    signature = re.search(r"<ds:Signature.*</ds:Signature>", signed, re.DOTALL)
    assert signature is not None
    inner = signed.replace(signature[0], "")
    hidden = signature[0].replace("</ds:Signature>", f"<ds:Object>{inner}</ds:Object></ds:Signature>")
    evil = inner.replace("PAUL DURAND", "EVE").replace("</saml2:Issuer>", "</saml2:Issuer>" + hidden, 1)
    send(service, sim_pki, maker.publication(vihf=evil))
    assert codes(service) == ("wsse:InvalidSecurityToken",)


@pytest.mark.parametrize("bad", ["stranger", "expired", "revoked", "authentication"])
def test_signing_certificates_that_are_refused(
    sim_pki: Pki, maker: Maker, tmp_path: Path, bad: str
) -> None:
    pair = sim_pki.structures[STRUCTURE].signature
    if bad == "authentication":
        pair = sim_pki.structures[STRUCTURE].authentication
    elif bad == "revoked":
        sim_pki.revoke(pair)
    else:
        pair = sim_pki.issue_org(
            STRUCTURE, "sign", name=f"bad-{bad}", stranger=bad == "stranger", expired=bad == "expired"
        )
    service = DmpService(Trust.load(sim_pki.roots, sim_pki.crls))
    sim_pki.revoke()
    spoiled = Maker(sim_pki, tmp_path, pair)
    send(service, sim_pki, maker.publication(vihf=spoiled.vihf()))
    assert codes(service) == ("wsse:FailedAuthentication",), told(service)
    good = maker.vihf() if bad != "revoked" else None
    if good is not None:
        send(service, sim_pki, spoiled.publication(vihf=good))
        assert METADATA in codes(service), told(service)


def test_replay_is_refused(sim_pki: Pki, maker: Maker, service: DmpService) -> None:
    request = maker.existence()
    assert send(service, sim_pki, request).status == 200
    send(service, sim_pki, request)
    assert codes(service) == ("wsse:InvalidSecurityToken",)


def test_tls_client_of_another_structure_is_refused(
    sim_pki: Pki, maker: Maker, service: DmpService
) -> None:
    other = sim_pki.issue_org("499700000009999", "auth", name="other-structure").load()
    send(service, sim_pki, maker.publication(), client=other)
    assert codes(service) == ("wsse:FailedAuthentication",)


ENVELOPE_FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "no MessageID",
        "wsa:MessageAddressingHeaderRequired",
        {"envelope": lambda text: re.sub(r"<MessageID.*?</MessageID>", "", text)},
    ),
    ("bad MessageID", "wsa:InvalidAddressingHeader", {"envelope": _swap("urn:uuid:", "uuid:")}),
    (
        "no mustUnderstand",
        "wsa:InvalidAddressingHeader",
        {"envelope": _swap(' soap:mustUnderstand="true"', "")},
    ),
    ("other Action", "wsa:ActionMismatch", {"envelope": _swap(f">{TD21}<", ">urn:x<")}),
    ("other To", "wsa:DestinationUnreachable", {"envelope": _swap("services/repository", "services/x")}),
    (
        "unknown mandatory header",
        "soap:MustUnderstand",
        {"envelope": _swap("<wsse:Security", '<x xmlns="urn:x" soap:mustUnderstand="1"/><wsse:Security')},
    ),
    (
        "soap 1.1",
        "soap:VersionMismatch",
        {"envelope": _swap("2003/05/soap-envelope", "2001/12/soap-envelope")},
    ),
    ("doctype", "soap:Sender", {"envelope": lambda text: "<!DOCTYPE x>" + text}),
    ("no start", "soap:Sender", {"content_type": _swap('start="<0.1>"; ', "")}),
    ("no type", "soap:Sender", {"content_type": _swap('type="application/xop+xml"; ', "")}),
    ("not soap", "soap:Sender", {"content_type": lambda _: "text/xml"}),
    ("no closing boundary", "soap:Sender", {"mime": lambda data: data.replace(b"--Bound--\r\n", b"")}),
    ("part missing", "soap:Sender", {"mime": lambda data: data.replace(b"<0.2>", b"<0.9>")}),
    ("bare line feeds", "soap:Sender", {"mime": lambda data: data.replace(b"--Bound\r\n", b"--Bound\n")}),
]


@pytest.mark.parametrize(
    ("name", "expected", "options"), ENVELOPE_FAULTS, ids=[fault[0] for fault in ENVELOPE_FAULTS]
)
def test_each_fault_of_the_envelope_is_a_soap_fault(
    sim_pki: Pki,
    maker: Maker,
    service: DmpService,
    name: str,
    expected: str,
    options: dict[str, Any],
) -> None:
    answer = send(service, sim_pki, maker.publication(**options))
    assert answer.status in (415, 500)
    assert codes(service) == (expected,), told(service)
    assert not service.registry.entries


def test_wrong_service_for_an_action(sim_pki: Pki, maker: Maker, service: DmpService) -> None:
    made = maker.publication(envelope=_swap("services/repository", "services/registry"))
    send(
        service,
        sim_pki,
        HttpRequest(made.path.replace("repository", "registry"), made.content_type, made.body),
    )
    assert codes(service) == ("wsa:ActionNotSupported",)


def test_schema_order_is_only_a_warning(sim_pki: Pki, maker: Maker, service: DmpService) -> None:
    def reorder(text: str) -> str:
        found = re.search(r'<Slot name="urn:ihe:iti:xds:2013:referenceIdList">.*?</Slot>', text)
        assert found is not None
        text = text.replace(found[0], "", 1)
        return text.replace("</ExtrinsicObject>", found[0] + "</ExtrinsicObject>", 1)

    send(service, sim_pki, maker.publication(metadata=reorder))
    assert service.exchanges[-1].outcome == "success", told(service)
    assert "child order" in str(service.exchanges[-1].warnings)


OTHER = "499700000009999"


@pytest.fixture
def other(sim_pki: Pki, tmp_path: Path) -> Maker:
    """Requests of another structure."""
    return Maker(sim_pki, tmp_path, sim_pki.issue_org(OTHER, "sign", name="other-sign"), structure=OTHER)


def test_document_signed_by_another_structure_is_refused(
    sim_pki: Pki, maker: Maker, other: Maker, service: DmpService
) -> None:
    send(service, sim_pki, other.publication(vihf=maker.vihf()))
    assert "OU of the signer is not the structure" in told(service)
    assert codes(service) == (METADATA,)


def test_only_the_structure_that_published_replaces_or_removes(
    sim_pki: Pki, maker: Maker, other: Maker, service: DmpService
) -> None:
    entry = published(service, sim_pki, maker)
    client = sim_pki.issue_org(OTHER, "auth", name="other-auth").load()
    send(service, sim_pki, other.removal(entry), client=client)
    assert codes(service) == ("XDSMetadataUpdateError",)
    replacing = other.publication(
        kos_uid="2.999.20.2", set_uid="2.999.21.2", signature_uid="2.999.22.2", replaces=entry
    )
    send(service, sim_pki, replacing, client=client)
    assert codes(service) == ("XDSReplaceFailed",)
    assert len(service.registry.entries) == 2


def test_another_patient_sees_and_replaces_nothing(
    sim_pki: Pki, maker: Maker, service: DmpService, tmp_path: Path
) -> None:
    entry = published(service, sim_pki, maker)
    patient = PATIENT.replace(INS, "184070100499011")
    stranger = Maker(sim_pki, tmp_path, maker.signer, patient=patient)
    answer = send(service, sim_pki, stranger.query(GET, "LeafClass", unique("2.999.20.1")))
    assert entries(answer.body) == []
    assert "another patient" in told(service)
    replacing = stranger.publication(
        kos_uid="2.999.20.2", set_uid="2.999.21.2", signature_uid="2.999.22.2", replaces=entry
    )
    send(service, sim_pki, replacing)
    assert codes(service) == ("XDSPatientIdDoesNotMatch",)

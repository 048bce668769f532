"""Every message we send obeys the public schemas and the written rules, whatever report and configuration.

The rules are in `ebrim_judge`, which shares nothing with our code; the schemas are OASIS's own, where
they are at hand. And the judge itself is judged: each rule must catch a message that breaks it.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from drimbox.config import Structure
from drimbox.model import Code, Identifier, Organization, Patient, Person, RequestIds, Series, Visibility
from drimbox.ports import Submission
from drimbox.xds import queries, soap
from drimbox.xds.metadata import removal_metadata, submission_metadata
from drimbox.xds.sender import SigningPair
from drimbox.xds.signature import signature_document
from tests.xds.builders import REMOVAL, REPORT, STUDY, SUBMISSION, make_kos, make_sender, schemas
from tests.xds.ebrim_judge import LCM, RIM, judge_publication, judge_removal

SIGNATURE = b"<Signature/>"
OLD = "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"
SCHEMES = {"MR": "IRM", "CT": "Scanner", "US": "Échographie"}


def patient(**changes: str) -> dict[str, Patient]:
    return {"patient": attrs.evolve(REPORT.patient, **changes)}


def doctor(family: str, given: str) -> dict[str, Person]:
    person = Person("899700000001", family, given)
    return {"author": person, "legal_authenticator": person}


def acts(*modalities: str, regions: tuple[str, ...] = ("774007",), **times: str) -> dict[str, Any]:
    act = attrs.evolve(
        REPORT.acts[0],
        modalities=tuple(
            Code(each, "1.2.250.1.213.1.1.5.618", SCHEMES.get(each, "")) for each in modalities
        ),
        regions=tuple(Code(each, "2.16.840.1.113883.6.96", "Région") for each in regions),
        **times,
    )
    return {"acts": (act, *REPORT.acts[1:])}


def requests(count: int) -> dict[str, Any]:
    return {
        "requests": tuple(
            RequestIds(Identifier(f"ACC-{n}", "2.999.5.3"), Identifier(f"{n}", "2.999.5.4"))
            for n in range(count)
        )
    }


LONG = "LE-TRÈS-LONG-NOM-D'ÉPOUSE " * 20
#: What reports differ in, by name.
REPORTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accents, apostrophe, hyphen": {
        **patient(family="D'ÀÇÉÈÊËÎÏÔÖÙÛÜŸ-ŒUVRÉ", given="ANNE-ÉLÉONORE"),
        **doctor("O'BRIEN-LÊ", "FRANÇOIS"),
        "structure": Organization("1999999999", "CABINET D'ÉCHOGRAPHIE « L'ÎLE »"),
    },
    "beyond Latin-1": {**patient(family="NGUYỄN", given="Жанна"), **doctor("Ω", "李")},
    "delimiters and markup": {
        **patient(family="A^B&C|D~E\\F", given="<b>&amp;\"'"),
        **doctor("]]>", "<!--"),
    },
    "over-long": {
        **patient(family=LONG, given=LONG),
        **doctor(LONG, LONG),
        "structure": Organization("1999999999", LONG),
        "facility_type": Code("SA08", "1.2.250.1.71.4.2.4", LONG * 5),
    },
    "control characters": {
        **patient(family="A\r\nB\x00\x0bC", given="\u2028\u200f"),
        **doctor("\t", "A\x85B"),
    },
    "given name missing": patient(given=""),
    "no birth place": patient(birth_place=""),
    "Corsican birth place": patient(birth_place="2A004"),
    "several modalities and regions": acts("MR", "CT", "US", regions=("774007", "67734004", "774007")),
    "the same modality in two acts": {"acts": (REPORT.acts[0], REPORT.acts[0])},
    "no act times": acts("MR", start="", stop=""),
    "act times without zone": acts("MR", start="20260110140000", stop="20260110143000"),
    "act times to the day": acts("MR", start="20260110", stop="20260110"),
    "act over midnight": acts("MR", start="20260111003000+0200", stop="20260111010000+0200"),
    "stop before start": acts("MR", start="20260110143000+0100", stop="20260110140000+0100"),
    "stop in another zone": acts("MR", start="20260110140000+0100", stop="20260110135900+0000"),
    "one order": requests(1),
    "thirty orders": requests(30),
    "the same order twice": {"requests": (REPORT.requests[0], REPORT.requests[0])},
    "no language": {"language": ""},
    "code without text": {"facility_type": Code("SA08", "", "")},
    "no practice setting": {"acts": (attrs.evolve(REPORT.acts[0], practice_setting=None),)},
    "no author identifier": {"author": Person("", "DURAND", "PAUL")},
}


def submission(name: str = "plain", **changes: Any) -> Submission:
    report = attrs.evolve(REPORT, **REPORTS[name])
    return attrs.evolve(SUBMISSION, report=report, **changes)


def written(structure: Structure, given: Submission, replaces: str | None = None, **options: str) -> bytes:
    sender = make_sender(attrs.evolve(structure, name=given.report.structure.name), **options)
    return submission_metadata(sender, given, SIGNATURE, replaces)


def judged(data: bytes, given: Submission) -> list[str]:
    return judge_publication(data, {"DocumentKOS": given.kos, "Signature01": SIGNATURE})


@pytest.fixture(scope="module")
def schema_of() -> Callable[[str], etree.XMLSchema | None]:
    """Return a function that gives a public schema, None where it is not at hand."""
    found: dict[str, etree.XMLSchema] = {}

    def give(name: str) -> etree.XMLSchema | None:
        path = schemas() / "xds" / "ebRS30" / name
        if name not in found and path.exists():
            found[name] = etree.XMLSchema(etree.parse(str(path)))
        return found.get(name)

    return give


Schemas = Callable[[str], etree.XMLSchema | None]


def valid(schema: etree.XMLSchema | None, data: bytes) -> None:
    if schema is not None:
        schema.assertValid(etree.fromstring(data))


# --- TD2.1 ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.159", "DB.SO.22", "DB.SO.105")
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("author", ["device", "professional"])
@pytest.mark.parametrize("times", ["utc", "local"])
@pytest.mark.parametrize("replaces", [None, OLD], ids=["new", "RPLC"])
def test_a_publication_obeys_schema_and_rules(
    structure: Structure, schema_of: Schemas, name: str, author: str, times: str, replaces: str | None
) -> None:
    given = submission(name)
    data = written(structure, given, replaces, author=author, times=times)
    assert judged(data, given) == []
    valid(schema_of("lcm.xsd"), data)


@pytest.mark.requirement("DB.CS.159", "DB.SO.97")
@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("source", ["ins", "ipp"])
def test_every_visibility_and_source_identifier_obeys(
    structure: Structure, schema_of: Schemas, number: int, source: str
) -> None:
    visibility = Visibility(bool(number & 1), bool(number & 2), bool(number & 4))
    given = submission(visibility=visibility)
    data = written(structure, given, source_patient_id=source)
    assert judged(data, given) == []
    valid(schema_of("lcm.xsd"), data)


@pytest.mark.requirement("DB.CS.159")
@pytest.mark.parametrize("modality", ["CT", "SR", "PR", "KO", "", "OT", "ZZ"])
@pytest.mark.parametrize("zone", ["+0100", "-0400", "+1100", None])
def test_what_the_pacs_adds_obeys(
    structure: Structure, schema_of: Schemas, modality: str, zone: str | None
) -> None:
    study = attrs.evolve(STUDY, series=(*STUDY.series, Series("2.25.9", modality, ())))
    kos = make_kos(date="20260112", time="000001", zone=zone)
    for times in ("utc", "local"):
        given = submission(study=study, kos=kos, submission_time=datetime(2026, 1, 13, tzinfo=UTC))
        data = written(structure, given, times=times)
        assert judged(data, given) == []
        valid(schema_of("lcm.xsd"), data)


_names = st.text(st.characters(codec="utf-8"), max_size=120)


@settings(deadline=None)
@given(family=_names, given_name=_names, institution=_names, display=_names)
def test_no_text_of_a_report_breaks_a_rule(
    structure: Structure, schema_of: Schemas, family: str, given_name: str, institution: str, display: str
) -> None:
    report = attrs.evolve(
        REPORT,
        **patient(family="A" + family, given=given_name),
        **doctor(family, given_name),
        structure=Organization("1999999999", "C" + institution),
        facility_type=Code("SA08", "1.2.250.1.71.4.2.4", display),
    )
    submitted = attrs.evolve(SUBMISSION, report=report)
    data = written(structure, submitted)
    assert judged(data, submitted) == []
    valid(schema_of("lcm.xsd"), data)


# --- TD3.3c, TD3.1 ----------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.159", "DB.SO.97", "DB.SO.26")
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("times", ["utc", "local"])
def test_a_removal_obeys_schema_and_rules(
    structure: Structure, schema_of: Schemas, name: str, times: str
) -> None:
    removal = attrs.evolve(REMOVAL, report=submission(name).report)
    data = removal_metadata(make_sender(structure, times=times), removal, OLD)
    assert judge_removal(data) == []
    valid(schema_of("lcm.xsd"), data)


@pytest.mark.requirement("DB.CS.159")
def test_the_stored_query_obeys_the_schema(schema_of: Schemas) -> None:
    data = queries.get_documents("2.25.111")
    valid(schema_of("query.xsd"), data)
    query = etree.fromstring(data).find(RIM + "AdhocQuery")
    assert query.get("id") == "urn:uuid:5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"
    assert [(slot.get("name"), "".join(slot.itertext())) for slot in query] == [
        ("$XDSDocumentEntryUniqueId", "('2.25.111')")
    ]


# --- the message around it, read with the standard library alone ------------------------------------------


@pytest.mark.requirement("DB.CS.159", "DB.SO.22")
@pytest.mark.parametrize("digest", ["sha256", "sha1"])
@pytest.mark.parametrize("kos", [SUBMISSION.kos, b"", b"--uuid:boundary\r\n\x00\xff\r\n.\r\n--"], ids=repr)
def test_every_document_is_in_the_message_byte_for_byte(
    structure: Structure, pair: SigningPair, digest: str, kos: bytes
) -> None:
    given = attrs.evolve(SUBMISSION)
    signature = signature_document(
        signature_uid=given.signature_uid,
        submission_uid=given.submission_uid,
        documents=[(given.sop_instance_uid, given.kos)],
        signing_time=given.submission_time,
        pair=pair,
        digest=digest,
    )
    metadata = submission_metadata(make_sender(structure, digest=digest), given, signature)
    header = soap.Header("https://dmp/repository", soap.PUBLISH, "urn:uuid:1", b"<assertion/>")
    # Any bytes at all may be in a part; the metadata is that of the right ones.
    message = soap.publish_request(header, metadata, kos, signature)
    parts = _parts(message)
    envelope = etree.fromstring(parts.pop("0.1"))
    documents = {
        each.get("id"): parts[each[0].get("href").removeprefix("cid:")]
        for each in envelope.iter("{urn:ihe:iti:xds-b:2007}Document")
    }
    assert documents == {"DocumentKOS": kos, "Signature01": signature}
    submitted = etree.tostring(envelope.find(f".//{LCM}SubmitObjectsRequest"))
    assert judge_publication(submitted, {**documents, "DocumentKOS": given.kos}) == []


def _parts(message: soap.HttpMessage) -> dict[str, bytes]:
    head = f"MIME-Version: 1.0\r\nContent-Type: {message.content_type}\r\n\r\n".encode()
    read = email.message_from_bytes(head + message.body, policy=email.policy.HTTP)
    assert isinstance(read, EmailMessage)
    assert read.get_content_type() == "multipart/related"
    assert read.get_param("type") == "application/xop+xml"
    assert read.get_param("start-info") == "application/soap+xml"
    found = {}
    for part in read.iter_parts():
        assert part["Content-Transfer-Encoding"] == "binary"
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found[part["Content-ID"].strip("<>")] = content
    assert f"<{next(iter(found))}>" == read.get_param("start")
    return found


# --- the judge is judged ---------------------------------------------------------------------------------


def _first(root: Any, path: str) -> Any:
    return root.findall(path.replace("r:", RIM))[0]


def _value(root: Any, slot: str, text: str, where: str = "DocumentKOS") -> None:
    _first(root, f".//*[@id='{where}']/r:Slot[@name='{slot}']/r:ValueList/r:Value").text = text


def _drop(root: Any, path: str) -> None:
    element = _first(root, path)
    element.getparent().remove(element)


def _again(root: Any, path: str) -> None:
    element = _first(root, path)
    element.addnext(etree.fromstring(etree.tostring(element)))


def _last(root: Any, path: str) -> None:
    element = _first(root, path)
    element.getparent().append(element)


def _set(root: Any, path: str, attribute: str, value: str) -> None:
    _first(root, path).set(attribute, value)


KOS, SET = ".//*[@id='DocumentKOS']", ".//*[@id='SubmissionSet01']"
LINK = ".//r:Association"
#: What a message must not be, and how it comes to be so.
BROKEN: dict[str, Callable[[Any], None]] = {
    "child order": lambda root: _last(root, f"{KOS}/r:Slot"),
    "child order in the set": lambda root: _last(root, f"{SET}/r:Name"),
    "slot twice": lambda root: _again(root, f"{KOS}/r:Slot"),
    "hash slot missing": lambda root: _drop(root, f"{KOS}/r:Slot[@name='hash']"),
    "unknown slot": lambda root: _set(root, f"{KOS}/r:Slot[@name='hash']", "name", "digest"),
    "empty slot": lambda root: _value(root, "size", ""),
    "other hash": lambda root: _value(root, "hash", "0" * 40),
    "upper-case hash": lambda root: _value(root, "hash", "A" * 40),
    "other size": lambda root: _value(root, "size", "1"),
    "time with zone": lambda root: _value(root, "creationTime", "20260112094500+0100"),
    "time of no day": lambda root: _value(root, "serviceStartTime", "20260230"),
    "set older than its document": lambda root: _value(root, "creationTime", "20270101000000"),
    "stop before start": lambda root: _value(root, "serviceStopTime", "20200101000000"),
    "another submission time": lambda root: _value(root, "submissionTime", "20260112094602"),
    "no language": lambda root: _value(root, "languageCode", "fr"),
    "reference of another kind": lambda root: _value(
        root, "urn:ihe:iti:xds:2013:referenceIdList", "A^^^&1.2&ISO^urn:ihe:iti:xds:2013:other"
    ),
    "reference without authority": lambda root: _value(
        root, "urn:ihe:iti:xds:2013:referenceIdList", "A^^^^urn:ihe:iti:xds:2013:accession"
    ),
    "references differ": lambda root: _value(
        root, "urn:ihe:iti:xds:2013:referenceIdList", "A^^^&1.2&ISO^urn:ihe:iti:xds:2013:accession"
    ),
    "authenticator without scheme": lambda root: _value(root, "legalAuthenticator", "899^X^Y"),
    "patient without domain": lambda root: _set(
        root, f"{KOS}/r:ExternalIdentifier", "value", "284070100499094"
    ),
    "another patient": lambda root: _set(
        root, f"{KOS}/r:ExternalIdentifier", "value", "284070100499095^^^&1.2.250.1.213.1.4.10&ISO^NH"
    ),
    "identifier of another object": lambda root: _set(
        root, f"{KOS}/r:ExternalIdentifier", "registryObject", "Signature01"
    ),
    "identifier missing": lambda root: _drop(root, f"{SET}/r:ExternalIdentifier"),
    "identifier not an OID": lambda root: _set(root, f"{SET}/r:ExternalIdentifier[2]", "value", "1.02"),
    "uniqueId twice": lambda root: _set(
        root,
        f"{SET}/r:ExternalIdentifier[3]",
        "value",
        _first(root, f"{KOS}/r:ExternalIdentifier[2]").get("value"),
    ),
    "classification of another object": lambda root: _set(
        root, f"{KOS}/r:Classification", "classifiedObject", "Signature01"
    ),
    "classification without code": lambda root: _first(root, f"{KOS}/r:Classification[2]").attrib.pop(
        "nodeRepresentation"
    ),
    "node and scheme": lambda root: _set(
        root, f"{KOS}/r:Classification[2]", "classificationNode", "urn:uuid:1"
    ),
    "class code missing": lambda root: _drop(root, f"{KOS}/r:Classification[2]"),
    "code of another list": lambda root: _set(
        root, f"{KOS}/r:Classification[2]", "nodeRepresentation", "10"
    ),
    "code without scheme": lambda root: _drop(root, f"{KOS}/r:Classification[2]/r:Slot"),
    "code without text": lambda root: _drop(root, f"{KOS}/r:Classification[2]/r:Name"),
    "author missing": lambda root: _drop(root, f"{KOS}/r:Classification"),
    "author with a code": lambda root: _set(root, f"{KOS}/r:Classification", "nodeRepresentation", "x"),
    "set not classified": lambda root: _drop(root, f"{SET}/r:Classification[@classificationNode]"),
    "id twice": lambda root: _set(root, f"{KOS}/r:Classification", "id", "Signature01"),
    "id empty": lambda root: _set(root, LINK, "id", ""),
    "title without charset": lambda root: _first(root, f"{KOS}/r:Name/r:LocalizedString").attrib.pop(
        "charset"
    ),
    "other title": lambda root: _set(root, f"{KOS}/r:Name/r:LocalizedString", "value", "KOS"),
    "other mime type": lambda root: _set(root, KOS, "mimeType", "text/xml"),
    "on-demand document": lambda root: _set(root, KOS, "objectType", "urn:uuid:34268e47"),
    "not a member": lambda root: _drop(root, LINK),
    "member twice": lambda root: _again(root, LINK),
    "not signed": lambda root: _drop(
        root, f"{LINK}[@associationType='urn:ihe:iti:2007:AssociationType:signs']"
    ),
    "link to nowhere": lambda root: _set(root, LINK, "targetObject", "Document02"),
    "link from nowhere": lambda root: _set(root, LINK, "sourceObject", "SubmissionSet02"),
    "link without its slot": lambda root: _drop(root, f"{LINK}/r:Slot"),
    "entry missing": lambda root: _drop(root, KOS),
    "second set": lambda root: _again(root, SET),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_judge_catches(structure: Structure, name: str) -> None:
    root = etree.fromstring(written(structure, SUBMISSION))
    assert judged(etree.tostring(root), SUBMISSION) == []
    BROKEN[name](root)
    assert judged(etree.tostring(root), SUBMISSION)


@pytest.mark.parametrize(
    ("path", "attribute", "value"),
    [
        (LINK, "targetObject", "8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"),
        (LINK, "sourceObject", "other"),
        (LINK, "associationType", "urn:ihe:iti:2007:AssociationType:RPLC"),
        (f"{SET}/r:ExternalIdentifier", "value", "x"),
    ],
)
def test_the_judge_catches_a_bad_removal(
    structure: Structure, path: str, attribute: str, value: str
) -> None:
    root = etree.fromstring(removal_metadata(make_sender(structure), REMOVAL, OLD))
    _set(root, path, attribute, value)
    assert judge_removal(etree.tostring(root))


def test_the_judge_catches_another_status(structure: Structure) -> None:
    root = etree.fromstring(removal_metadata(make_sender(structure), REMOVAL, OLD))
    for value in root.iter(RIM + "Value"):
        if (value.text or "").endswith("Deleted"):
            value.text = "urn:oasis:names:tc:ebxml-regrep:StatusType:Deprecated"
    assert judge_removal(etree.tostring(root))

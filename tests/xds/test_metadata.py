"""The SubmitObjectsRequest: valid for the schema, complete, repeatable, faithful to the report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from drimbox.config import Structure
from drimbox.errors import PublicationError, ReportNotInterpretable
from drimbox.model import Code, Identifier, Patient, RequestIds, Series, StudyAct, Visibility
from drimbox.ports import Submission
from drimbox.xds import codes, ebrim, hl7types
from drimbox.xds.ebrim import RIM
from drimbox.xds.manifest import read_facts
from drimbox.xds.metadata import removal_metadata, submission_metadata
from drimbox.xml import safe_parse
from tests.xds.builders import (
    INS,
    KOS_UID,
    REMOVAL,
    REPORT,
    STUDY,
    SUBMISSION,
    make_kos,
    make_sender,
    samples,
    schemas,
)

R = {"r": RIM}
SIGNATURE = b"<Signature/>"
Make = Callable[..., Any]


@pytest.fixture
def make(structure: Structure) -> Make:
    """Return a function that builds the metadata and parses it."""

    def build(submission: Submission = SUBMISSION, replaces: str | None = None, **settings: str) -> Any:
        return safe_parse(
            submission_metadata(make_sender(structure, **settings), submission, SIGNATURE, replaces)
        )

    return build


def with_report(**changes: Any) -> Submission:
    return attrs.evolve(SUBMISSION, report=attrs.evolve(REPORT, **changes))


def entry(root: Any, object_id: str = "DocumentKOS") -> Any:
    return root.xpath(f"//r:*[@id='{object_id}']", namespaces=R)[0]


def slots(item: Any) -> dict[str, list[str]]:
    return {
        s.get("name"): s.xpath("r:ValueList/r:Value/text()", namespaces=R)
        for s in item.iterfind("r:Slot", R)
    }


def coded(item: Any, scheme: str) -> list[tuple[str, str, str]]:
    return [
        (
            c.get("nodeRepresentation"),
            c.findtext("r:Slot/r:ValueList/r:Value", namespaces=R),
            c.find("r:Name/r:LocalizedString", R).get("value"),
        )
        for c in item.iterfind("r:Classification", R)
        if c.get("classificationScheme") == scheme
    ]


def identifiers(item: Any) -> dict[str, str]:
    return {
        e.find("r:Name/r:LocalizedString", R).get("value"): e.get("value")
        for e in item.iterfind("r:ExternalIdentifier", R)
    }


def lcm_schema() -> etree.XMLSchema:
    path = schemas() / "xds/ebRS30/lcm.xsd"
    if not path.exists():
        pytest.skip("public XML schemas not present (DRIMBOX_SCHEMAS)")
    return etree.XMLSchema(etree.parse(str(path)))


@pytest.mark.parametrize("replaces", [None, "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"])
@pytest.mark.parametrize("author", ["device", "professional"])
def test_the_schema_of_the_registry_accepts_it(make: Make, replaces: str | None, author: str) -> None:
    schema = lcm_schema()
    schema.assertValid(make(replaces=replaces, author=author))


def test_the_schema_of_the_registry_accepts_a_removal(structure: Structure) -> None:
    data = removal_metadata(make_sender(structure), attrs.evolve(REMOVAL, patient_class="I"), "abc-1")
    root = safe_parse(data)
    link = root.find(".//r:Association", R)
    assert link.get("associationType") == "urn:ihe:iti:2010:AssociationType:UpdateAvailabilityStatus"
    assert (link.get("sourceObject"), link.get("targetObject")) == ("SubmissionSet01", "urn:uuid:abc-1")
    assert slots(link) == {
        "OriginalStatus": ["urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"],
        "NewStatus": ["urn:asip:ci-sis:2010:StatusType:Deleted"],
    }
    assert coded(entry(root, "SubmissionSet01"), codes.SET_CONTENT_TYPE)[0][0] == "03"
    lcm_schema().assertValid(root)


@pytest.mark.requirement("DB.SO.105")
def test_identity_and_request_identifiers_come_from_the_report(make: Make) -> None:
    other = attrs.evolve(STUDY, patient_id="PACS-77", ins="199999999999999", patient_birth_date="19000101")
    root = make(attrs.evolve(SUBMISSION, study=other))
    text = etree.tostring(root, encoding="unicode")
    for stranger in ("PACS-77", "199999999999999", "19000101"):
        assert stranger not in text
    kos = entry(root)
    patient = f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^NH"
    assert identifiers(kos) == {"XDSDocumentEntry.patientId": patient, "XDSDocumentEntry.uniqueId": KOS_UID}
    assert slots(kos)["urn:ihe:iti:xds:2013:referenceIdList"] == [
        "ACC-7788^^^&2.999.5.3&ISO^urn:ihe:iti:xds:2013:accession",
        "2.25.222^^^&1.2.3.4.5.6&ISO^urn:ihe:iti:xds:2016:studyInstanceUID",
        "5501^^^&2.999.5.4&ISO^urn:ihe:iti:xds:2013:order",
        "ACC-7789^^^&2.999.5.3&ISO^urn:ihe:iti:xds:2013:accession",
        "5502^^^&2.999.5.4&ISO^urn:ihe:iti:xds:2013:order",
    ]
    assert slots(kos)["sourcePatientInfo"] == [
        "PID-5|EXEMPLE^CLAIRE^^^^^L",
        "PID-7|19840701",
        "PID-8|F",
        "PID-11|^^^^^^BDL^^01004",
    ]
    assert slots(kos)["sourcePatientId"] == [f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^PI"]


@pytest.mark.requirement("DB.SO.22")
def test_the_manifest_entry(make: Make) -> None:
    kos = entry(make())
    assert (kos.get("mimeType"), kos.get("objectType")) == ("application/dicom", codes.STABLE_DOCUMENT)
    held = slots(kos)
    assert held["hash"] == [hashlib.sha1(SUBMISSION.kos).hexdigest()]
    assert held["size"] == [str(len(SUBMISSION.kos))]
    assert held["creationTime"] == ["20260112094500"]
    assert held["submissionTime"] == ["20260112094601"]
    assert held["serviceStartTime"] == ["20260110130000"]
    assert held["serviceStopTime"] == ["20260110133000"]
    assert held["languageCode"] == ["fr-FR"]
    assert held["legalAuthenticator"] == ["899700000002^MARTIN^ANNE^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"]
    assert coded(kos, codes.CLASS_CODE) == [("31", "1.2.250.1.213.1.1.4.1", "Imagerie médicale")]
    assert coded(kos, codes.TYPE_CODE)[0][:2] == ("IMG-KOS", "1.2.250.1.213.1.1.4.12")
    assert coded(kos, codes.FORMAT_CODE)[0][:2] == ("1.2.840.10008.5.1.4.1.1.88.59", "1.2.840.10008.2.6.1")
    assert coded(kos, codes.FACILITY_TYPE) == [("SA08", "1.2.250.1.71.4.2.4", "Cabinet de groupe")]
    assert coded(kos, codes.PRACTICE_SETTING) == [("AMBULATOIRE", "1.2.250.1.213.1.1.4.9", "Ambulatoire")]


def test_the_signature_entry(make: Make) -> None:
    root = make(attrs.evolve(SUBMISSION, visibility=Visibility()))
    item = entry(root, "Signature01")
    held = slots(item)
    assert item.get("mimeType") == "text/xml"
    assert "sourcePatientInfo" not in held
    assert held["languageCode"] == ["art"]
    assert held["hash"] == [hashlib.sha1(SIGNATURE).hexdigest()]
    assert held["size"] == [str(len(SIGNATURE))]
    assert held["sourcePatientId"] == [f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^NH"]
    for name in ("creationTime", "submissionTime", "serviceStartTime", "serviceStopTime"):
        assert held[name] == ["20260112094601"]
    assert (
        held["urn:ihe:iti:xds:2013:referenceIdList"]
        == slots(entry(root))["urn:ihe:iti:xds:2013:referenceIdList"]
    )
    assert [c[0] for c in coded(item, codes.CONFIDENTIALITY)] == ["N", "MASQUE_PS", "INVISIBLE_PATIENT"]
    assert coded(item, codes.EVENT_CODE) == [("1.2.840.10065.1.12.1.14", "1.2.840.10065.1.12", "Source")]
    assert coded(item, codes.CLASS_CODE)[0][:2] == ("urn:oid:1.3.6.1.4.1.19376.1.2.1.1.1", "URN")
    assert coded(item, codes.TYPE_CODE)[0][:2] == ("E1762", "ASTM")
    assert identifiers(item)["XDSDocumentEntry.uniqueId"] == "2.25.555"
    author = item.xpath("r:Classification/r:Slot[@name='authorPerson']//r:Value/text()", namespaces=R)
    assert author == ["899700000001^DURAND^PAUL^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"]


def test_the_submission_set(make: Make) -> None:
    package = entry(make(), "SubmissionSet01")
    patient = f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^NH"
    assert identifiers(package) == {
        "XDSSubmissionSet.patientId": patient,
        "XDSSubmissionSet.sourceId": "2.999.30",
        "XDSSubmissionSet.uniqueId": "2.25.444",
    }
    nodes = [c.get("classificationNode") for c in package.iterfind("r:Classification", R)]
    assert "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd" in nodes
    assert slots(package) == {"submissionTime": ["20260112094601"]}
    values = package.xpath("r:Classification/r:Slot//r:Value/text()", namespaces=R)
    assert values[:2] == [
        "2.999.30^DRIMbox^Éditeur^^^^^^&1.2.250.1.71.4.2.1&ISO^U^^^EI",
        "CABINET Y^^^^^&1.2.250.1.71.4.2.2&ISO^IDNST^^^1999999999",
    ]


def test_the_author_may_be_the_professional(make: Make) -> None:
    root = make(author="professional")
    persons = root.xpath("//r:Slot[@name='authorPerson']//r:Value/text()", namespaces=R)
    assert persons == ["899700000001^DURAND^PAUL^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"] * 3


@pytest.mark.parametrize(
    ("patient_class", "code"),
    [
        ("I", "03"),
        ("O", "07"),
        ("E", "07"),
        ("R", "19"),
        ("N", "97"),
        ("", "07"),
        ("?", "07"),
        (" i ", "03"),
    ],
)
def test_content_type_from_the_patient_class(make: Make, patient_class: str, code: str) -> None:
    root = make(attrs.evolve(SUBMISSION, patient_class=patient_class))
    found = coded(entry(root, "SubmissionSet01"), codes.SET_CONTENT_TYPE)
    assert [(value, scheme) for value, scheme, _ in found] == [(code, "1.2.250.1.213.2.2")]


@pytest.mark.parametrize(
    ("visibility", "expected"),
    [
        (Visibility(), ["N"]),
        (Visibility(masked_to_professionals=True), ["N", "MASQUE_PS"]),
        (Visibility(hidden_from_patient=True), ["N", "INVISIBLE_PATIENT"]),
        (
            Visibility(True, True, True),
            ["N", "MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REPRESENTANTS_LEGAUX"],
        ),
    ],
)
def test_the_manifest_is_as_visible_as_the_report(
    make: Make, visibility: Visibility, expected: list[str]
) -> None:
    root = make(attrs.evolve(SUBMISSION, visibility=visibility))
    assert [code for code, _, _ in coded(entry(root), codes.CONFIDENTIALITY)] == expected


def test_event_codes_are_the_distinct_modalities_and_regions_of_the_study(make: Make) -> None:
    found = coded(entry(make()), codes.EVENT_CODE)
    # MR from the report (older scheme brought to DCM), CT from the PACS; SR acquires nothing; the
    # report's other study (XA, heart) has its own manifest.
    assert found == [
        ("MR", "1.2.840.10008.2.16.4", "IRM"),
        ("CT", "1.2.840.10008.2.16.4", "Scanographe"),
        ("774007", "2.16.840.1.113883.6.96", "Tête et cou"),
    ]


def test_two_acts_of_one_study_are_joined(make: Make) -> None:
    second = StudyAct(STUDY.study_uid, (Code("MR", "x", "IRM"),), (Code("67734004", "x", "Thorax"),))
    root = make(with_report(acts=(*REPORT.acts, second)))
    assert [c[0] for c in coded(entry(root), codes.EVENT_CODE)] == ["MR", "CT", "774007", "67734004"]


def test_an_unknown_modality_of_the_pacs_is_its_own_text(make: Make) -> None:
    study = attrs.evolve(STUDY, series=(Series("2.25.1", "ZZ", ()), Series("2.25.2", "", ())))
    found = coded(entry(make(attrs.evolve(SUBMISSION, study=study))), codes.EVENT_CODE)
    assert ("ZZ", "1.2.840.10008.2.16.4", "ZZ") in found
    assert len(found) == 3


# --- instants -------------------------------------------------------------------------------------


def test_local_times_are_the_digits_of_the_samples(make: Make) -> None:
    held = slots(entry(make(times="local")))
    assert held["creationTime"] == ["20260112104500"]
    assert held["submissionTime"] == ["20260112104601"]
    assert held["serviceStartTime"] == ["20260110140000"]


@pytest.mark.parametrize("times", ["utc", "local"])
def test_the_set_is_never_older_than_its_document(make: Make, times: str) -> None:
    for zone in ("+0100", "-0400", "+1100", None):
        submission = attrs.evolve(
            SUBMISSION,
            kos=make_kos(date="20260111", time="235959", zone=zone),
            submission_time=read_facts(make_kos(date="20260111", time="235959", zone=zone)).created,
        )
        held = slots(entry(make(with_time_of_report(submission), times=times)))
        assert held["creationTime"] == held["submissionTime"]


def with_time_of_report(submission: Submission) -> Submission:
    return attrs.evolve(submission, report=attrs.evolve(REPORT, effective_time="20260111"))


def test_a_manifest_without_zone_is_in_the_reports(make: Make) -> None:
    root = make(attrs.evolve(SUBMISSION, kos=make_kos(zone=None)))
    assert slots(entry(root))["creationTime"] == ["20260112094500"]


def test_an_act_without_time_takes_the_study_instant(make: Make) -> None:
    act = attrs.evolve(REPORT.acts[0], start="", stop="")
    held = slots(entry(make(with_report(acts=(act,)))))
    assert held["serviceStartTime"] == ["20260110131500"]
    assert "serviceStopTime" not in held


@pytest.mark.parametrize(
    ("ts", "expected"),
    [
        ("20260110140000+0100", "20260110130000"),
        ("20260110140000.1234+0100", "20260110130000"),
        ("202601101400+0100", "20260110130000"),
        ("20260110140000", "20260110120000"),
        ("20260110003000+0200", "20260109223000"),
        ("2026011014", "20260110"),
        ("20260110", "20260110"),
        ("2026", "2026"),
        ("20261310140000+0100", ""),
        ("00010101000000+0100", ""),
        ("hier", ""),
        ("", ""),
        ("²0260110", ""),
    ],
)
def test_service_times_in_utc(ts: str, expected: str) -> None:
    zone = hl7types.parse_offset("+0200")
    assert zone is not None
    assert hl7types.service_time(ts, zone, local=False) == expected


@pytest.mark.parametrize("offset", ["", "Z", "+01", "+9900", "+0160", "0100", "+01:00"])
def test_what_is_no_offset(offset: str) -> None:
    assert hl7types.parse_offset(offset) is None


def test_an_instant_without_zone_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zone"):
        hl7types.digits(datetime(2026, 1, 1), None)  # noqa: DTZ001


# --- repeatability and refusals -------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.22")
def test_the_same_submission_gives_the_same_bytes(structure: Structure) -> None:
    sender = make_sender(structure)
    first = submission_metadata(sender, SUBMISSION, SIGNATURE, "urn:uuid:1")
    assert first == submission_metadata(sender, attrs.evolve(SUBMISSION), SIGNATURE, "1")
    later = attrs.evolve(SUBMISSION, submission_uid="2.25.445")
    assert first != submission_metadata(sender, later, SIGNATURE, "1")


def test_a_replacement_only_adds_its_association(make: Make) -> None:
    plain, replacing = make(), make(replaces="8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11")
    links = replacing.findall(".//r:Association", R)
    assert [(a.get("associationType"), a.get("sourceObject"), a.get("targetObject")) for a in links] == [
        (codes.HAS_MEMBER, "SubmissionSet01", "DocumentKOS"),
        (codes.HAS_MEMBER, "SubmissionSet01", "Signature01"),
        (codes.SIGNS, "Signature01", "SubmissionSet01"),
        (codes.REPLACES, "DocumentKOS", "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"),
    ]
    assert all(slots(link) == {"SubmissionSetStatus": ["Original"]} for link in links)
    links[-1].getparent().remove(links[-1])
    assert etree.tostring(plain) == etree.tostring(replacing)


def test_every_symbolic_id_is_unique(make: Make) -> None:
    ids = make(replaces="x").xpath("//@id")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("which", ["ins", "ipp"])
def test_source_patient_id_may_be_the_ipp(make: Make, which: str) -> None:
    held = slots(entry(make(source_patient_id=which)))["sourcePatientId"]
    assert held == (
        ["P000123^^^&2.999.5.1&ISO^PI"] if which == "ipp" else [f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^PI"]
    )
    without = slots(entry(make(with_report(ipp=None), source_patient_id=which)))["sourcePatientId"]
    assert without == [f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^PI"]


def test_a_report_without_facility_type_is_e005(make: Make) -> None:
    with pytest.raises(ReportNotInterpretable):
        make(with_report(facility_type=None))


def test_an_identifier_is_never_cut(make: Make) -> None:
    long = RequestIds(Identifier("A" * 300, "2.999.5.3"), Identifier("1", "2.999.5.4"))
    with pytest.raises(PublicationError, match=r"3\d\d caractères"):
        make(with_report(requests=(long,)))


@pytest.mark.parametrize(
    "change",
    [
        {"sop_instance_uid": "2.25.112"},
        {"kos": b"no manifest"},
        {"study": attrs.evolve(STUDY, study_uid="2.25.9")},
    ],
)
def test_a_submission_that_contradicts_itself_is_refused(make: Make, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"manifest|study"):
        make(attrs.evolve(SUBMISSION, **change))


# --- hostile text ---------------------------------------------------------------------------------


@pytest.mark.threat("markup and query injection in what we send")
def test_delimiters_in_names_and_identifiers_stay_inside_their_component(make: Make) -> None:
    patient = attrs.evolve(REPORT.patient, family="EX^EM&PLE|~", given="CL\\AIRE")
    request = RequestIds(Identifier("A^B&C", "2.999.5.3"), Identifier("1~2", "2.999.5.4"))
    held = slots(entry(make(with_report(patient=patient, requests=(request,)))))
    assert held["sourcePatientInfo"][0] == "PID-5|EX EM PLE^CL AIRE^^^^^L"
    assert held[codes.REFERENCE_ID_LIST][0].startswith("A\\S\\B\\T\\C^^^&2.999.5.3&ISO^")
    assert held[codes.REFERENCE_ID_LIST][2].startswith("1\\R\\2^^^&2.999.5.4&ISO^")


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_identifiers_never_become_one(first: str, second: str) -> None:
    assert (hl7types.escaped(first) == hl7types.escaped(second)) == (first == second)
    assert not set("^&~|") & set(hl7types.escaped(first))


@pytest.mark.threat("markup and query injection in what we send")
@given(family=st.text(max_size=80), display=st.text(max_size=80))
def test_any_name_gives_xml_that_parses(family: str, display: str) -> None:
    structure = Structure("1", "C", None, None)  # type: ignore[arg-type]
    patient: Patient = attrs.evolve(REPORT.patient, family=family)
    submission = with_report(patient=patient, facility_type=Code("SA08", "1.2", display))
    root = safe_parse(submission_metadata(make_sender(structure), submission, SIGNATURE))
    assert len(root.findall(".//r:ExtrinsicObject", R)) == 2


# --- against the published submission -------------------------------------------------------------


def test_it_carries_every_attribute_of_the_published_one(make: Make) -> None:
    published = samples() / "XDM/KA202401/IHE_XDM/SS000001/METADATA.XML"
    if not published.exists():
        pytest.skip("published samples not present (DRIMBOX_SAMPLES)")
    theirs, ours = safe_parse(published.read_bytes()), make()
    for object_id in ("SubmissionSet01", "DocumentKOS", "Signature01"):
        reference, own = entry(theirs, object_id), entry(ours, object_id)
        # URI belongs to the XDM archive, not to the submission.
        assert set(slots(reference)) - {"URI"} <= set(slots(own))
        for attribute in ("classificationScheme", "classificationNode"):
            wanted = {c.get(attribute) for c in reference.iterfind("r:Classification", R)}
            assert wanted == {c.get(attribute) for c in own.iterfind("r:Classification", R)}
        schemes = {e.get("identificationScheme") for e in reference.iterfind("r:ExternalIdentifier", R)}
        assert schemes - {"1.2.3"} == {
            e.get("identificationScheme") for e in own.iterfind("r:ExternalIdentifier", R)
        }
        for scheme in (codes.CLASS_CODE, codes.TYPE_CODE, codes.FORMAT_CODE):
            assert coded(reference, scheme) == coded(own, scheme)


def test_the_published_manifest_is_read() -> None:
    published = samples() / "KOS/ko.dcm"
    if not published.exists():
        pytest.skip("published samples not present (DRIMBOX_SAMPLES)")
    facts = read_facts(published.read_bytes())
    assert facts.sop_instance_uid.startswith("1.3.2.751468943.")
    assert facts.created is not None
    assert facts.created.astimezone(UTC).year == 2023


def test_every_character_is_kept_that_xml_carries_and_nothing_controls() -> None:
    everything = "".join(map(chr, range(0x110000)))
    controls = {*range(0x20), *range(0x7F, 0xA0)}
    refused = controls | {*range(0xD800, 0xE000), 0xFFFE, 0xFFFF}
    kept = ebrim.printable(everything)
    assert kept == "".join(" " if ord(each) in refused else each for each in everything)

"""The values of table 3.1 and their tolerances (interfaces.md 2.1, 2.2; requirements.md 3.1)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import attrs
import pytest

from drimbox.cda.header import (
    MAX_ITEMS,
    build_report,
    ins_key_valid,
    missing_values,
    read_header,
)
from drimbox.errors import PatientMismatch, ReportNotInterpretable
from drimbox.hl7.message import read_report_message
from drimbox.model import (
    DCM_OID,
    SNOMED_OID,
    Code,
    Identifier,
    MessageAction,
    Organization,
    Patient,
    Person,
    Report,
    RequestIds,
    StudyAct,
)
from drimbox.sim.ris import SimAct, SimMessage, SimOrder, SimReport, build_cda, build_message
from drimbox.xml import XmlRefused
from tests.cda.samples import published

SETTING = Code("AMBULATOIRE", "1.2.250.1.213.1.1.4.9", "Ambulatoire")
ACT = StudyAct(
    study_uid="2.999.10.20.30",
    modalities=(Code("MR", DCM_OID, "IRM"),),
    regions=(Code("774007", SNOMED_OID, "Tête et cou"),),
    description="IRM tête",
    start="20260110140000+0100",
    stop="20260110143000+0100",
    practice_setting=SETTING,
)
REPORT = Report(
    document_id="2.999.7.1",
    set_id="2.999.7.1",
    version="1",
    patient=Patient(
        ins="284070100499094",
        ins_oid="1.2.250.1.213.1.4.10",
        family="EXEMPLE",
        given="CLAIRE",
        birth_date="19840701",
        sex="F",
        birth_place="01004",
        given_list="CLAIRE MARIE",
    ),
    ipp=Identifier("P000123", "2.999.5.1"),
    requests=(RequestIds(Identifier("ACC-7788", "2.999.5.3"), Identifier("5501", "2.999.5.4")),),
    acts=(ACT,),
    structure=Organization("1999999999", "CABINET Y"),
    author=Person("899700000001", "DURAND", "PAUL"),
    author_organization=Organization("1999999999", "CABINET Y"),
    author_role="G15_10/SM44",
    legal_authenticator=Person("899700000001", "DURAND", "PAUL"),
    effective_time="20260112093000+0100",
    confidentiality="N",
    language="fr-FR",
    title="Compte rendu d'IRM",
    replaces=None,
    facility_type=Code("SA08", "1.2.250.1.71.4.2.4"),
)


def report(
    sim: SimReport | None = None,
    edit: Callable[[str], str] = lambda text: text,
    **message: object,
) -> Report:
    document = edit(build_cda(sim).decode()).encode()
    raw = build_message(sim, SimMessage(**message), document=document)  # type: ignore[arg-type]
    return build_report(read_report_message(raw))


def failure(
    sim: SimReport | None = None,
    edit: Callable[[str], str] = lambda text: text,
    **message: object,
) -> str:
    with pytest.raises(ReportNotInterpretable) as caught:
        report(sim, edit, **message)
    assert caught.value.code == "E005"
    return caught.value.detail


def replacing(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


@pytest.mark.requirement("DB.SO.12")
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
def test_every_value_is_read_whatever_the_level(level: int, kind: str) -> None:
    assert report(SimReport(level=level), kind=kind) == REPORT


@pytest.mark.requirement("DB.SO.12")
def test_each_study_has_the_modality_region_and_times_of_its_own_act() -> None:
    acts = (
        SimAct("2.999.1", ("CT", "PT"), ("774007",), description="A", start="20260101", stop="20260102"),
        SimAct("2.999.2", ("MR",), ("67734004", "63337009"), description="B", start="20260103", stop=""),
    )
    first, second = report(SimReport(acts=acts)).acts
    assert (first.study_uid, second.study_uid) == ("2.999.1", "2.999.2")
    assert [code.value for code in first.modalities] == ["CT", "PT"]
    assert [code.value for code in first.regions] == ["774007"]
    assert [code.value for code in second.modalities] == ["MR"]
    assert [code.value for code in second.regions] == ["67734004", "63337009"]
    assert (first.start, first.stop, second.start, second.stop) == ("20260101", "20260102", "20260103", "")


@pytest.mark.requirement("DB.SO.12")
def test_two_acts_on_one_study_make_one_study() -> None:
    acts = (
        SimAct("2.999.1", ("CT",), ("774007",), description="Tête", start="20260102", stop="20260103"),
        SimAct("2.999.1", ("CT", "PT"), ("67734004",), description="Thorax", start="20260101"),
    )
    (act,) = report(SimReport(acts=acts)).acts
    assert [code.value for code in act.modalities] == ["CT", "PT"]
    assert [code.value for code in act.regions] == ["774007", "67734004"]
    assert (act.description, act.start) == ("Tête + Thorax", "20260101")


@pytest.mark.requirement("DB.SO.12")
def test_every_order_is_kept_with_its_accession_number() -> None:
    orders = (SimOrder(), SimOrder("ACC-2", "2.999.6.3", "5502", "2.999.6.4"))
    assert report(SimReport(orders=orders)).requests == (
        RequestIds(Identifier("ACC-7788", "2.999.5.3"), Identifier("5501", "2.999.5.4")),
        RequestIds(Identifier("ACC-2", "2.999.6.3"), Identifier("5502", "2.999.6.4")),
    )


@pytest.mark.requirement("DB.SO.12")
def test_two_accession_numbers_of_one_order_both_count() -> None:
    second = '<ps3-20:accessionNumber root="2.999.5.3" extension="ACC-2"/></order>'
    found = report(edit=replacing("</order>", second)).requests
    assert [request.accession.value for request in found] == ["ACC-7788", "ACC-2"]
    assert [request.order.value for request in found] == ["5501", "5501"]


def test_a_diagnosis_and_an_empty_order_are_passed_over() -> None:
    diagnosis = (
        '<documentationOf><serviceEvent><code code="Z13.9" codeSystem="2.16.840.1.113883.6.3"/>'
        "</serviceEvent></documentationOf>"
        '<documentationOf><serviceEvent><id nullFlavor="UNK"/></serviceEvent></documentationOf>'
        '<inFulfillmentOf><order><id nullFlavor="NA"/></order></inFulfillmentOf><componentOf>'
    )
    assert report(edit=replacing("<componentOf>", diagnosis)) == REPORT


# --- values that lack ------------------------------------------------------------------------------

ONE_MISSING = [
    (SimReport(acts=()), "StudyInstanceUID (documentationOf/serviceEvent/id)"),
    (SimReport(orders=(SimOrder(accession=""),)), "numéro d'accession"),
    (SimReport(orders=(SimOrder(accession_authority=""),)), "autorité du numéro d'accession"),
    (SimReport(orders=(SimOrder(order=""),)), "numéro de demande"),
    (SimReport(orders=(SimOrder(order_authority=""),)), "autorité du numéro de demande"),
    (SimReport(ins=""), "INS du patient"),
    (SimReport(ins_oid="1.2.250.1.213.1.4.2"), "INS du patient"),
    (SimReport(ipp=""), "IPP (PID-3 de type PI ou patientRole/id)"),
    (SimReport(ipp_authority=""), "autorité de l'IPP"),
    (
        SimReport(structure_id=""),
        "situation d'exercice (legalAuthenticator/representedOrganization ou PRT-8.10)",
    ),
    (SimReport(acts=(SimAct(modalities=()),)), "modalité"),
    (SimReport(acts=(SimAct(regions=()),)), "région anatomique"),
    (SimReport(document_id=""), "identifiant du document (id)"),
    (SimReport(acts=(SimAct(study_uid="2.999.A"),)), "StudyInstanceUID mal formé"),
    (SimReport(acts=(SimAct(study_uid="2." + "9" * 63),)), "StudyInstanceUID mal formé"),
    (SimReport(acts=(SimAct(study_uid="../../etc"),)), "StudyInstanceUID mal formé"),
]


@pytest.mark.requirement("DB.SO.12")
@pytest.mark.parametrize(("sim", "name"), ONE_MISSING)
@pytest.mark.parametrize("level", [1, 3])
def test_a_missing_value_of_table_3_1_is_e005_and_named(sim: SimReport, name: str, level: int) -> None:
    assert failure(attrs.evolve(sim, level=level)) == f"valeurs absentes ou invalides : {name}"


@pytest.mark.requirement("DB.SO.12")
def test_all_missing_values_are_named_at_once() -> None:
    nothing = SimReport(
        acts=(SimAct(modalities=(), regions=()), SimAct(study_uid="2.999.x")),
        orders=(),
        document_id="",
        ins="",
        ipp="",
        structure_id="",
    )
    assert failure(nothing) == (
        "valeurs absentes ou invalides : modalité (examen n° 1) ; région anatomique (examen n° 1) ; "
        "StudyInstanceUID mal formé (examen n° 2) ; "
        "numéro d'accession et son autorité (order/accessionNumber) ; "
        "numéro de demande et son autorité (order/id) ; INS du patient ; "
        "IPP (PID-3 de type PI ou patientRole/id) ; "
        "situation d'exercice (legalAuthenticator/representedOrganization ou PRT-8.10) ; "
        "identifiant du document (id)"
    )


@pytest.mark.requirement("DB.SO.11")
def test_an_ins_that_is_not_qualified_does_not_feed() -> None:
    assert failure(reliability="PROV") == (
        "valeurs absentes ou invalides : INS non qualifiée (PID-32 différent de VALI)"
    )


@pytest.mark.threat("HL7 and MLLP")
def test_a_report_with_absurdly_many_studies_is_refused() -> None:
    acts = tuple(SimAct(study_uid=f"2.999.{rank}") for rank in range(MAX_ITEMS + 1))
    assert failure(SimReport(acts=acts)).endswith(
        f"plus de {MAX_ITEMS} examens ou demandes dans un compte rendu"
    )


def test_the_detail_carries_no_value_of_the_patient() -> None:
    detail = failure(SimReport(orders=(), acts=()))
    assert not any(value in detail for value in ("284070100499094", "EXEMPLE", "P000123", "19840701"))


# --- tolerances ------------------------------------------------------------------------------------


def test_rm_is_read_as_mr() -> None:
    (act,) = report(SimReport(acts=(SimAct(modalities=("RM",)),))).acts
    assert act.modalities == (Code("MR", DCM_OID, "RM"),)


@pytest.mark.parametrize("oid", ["1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9", "1.2.250.1.213.1.4.11"])
def test_every_ins_domain_is_an_ins(oid: str) -> None:
    assert report(SimReport(ins_oid=oid)).patient.ins_oid == oid


def test_ipp_of_the_cda_serves_where_pid_3_has_none() -> None:
    assert report(with_ipp=False).ipp == Identifier("P000123", "2.999.5.1")


def test_an_ipp_without_authority_takes_that_of_the_cda() -> None:
    raw = build_message().replace(
        b"P000123^^^AUT-AFFECTATION&2.999.5.1&ISO^PI", b"P000123^^^AUT-AFFECTATION^PI"
    )
    assert build_report(read_report_message(raw)).ipp == Identifier("P000123", "2.999.5.1")


def test_ipp_of_pid_3_wins_over_another_domain_of_the_cda() -> None:
    raw = build_message().replace(b"P000123^^^AUT-AFFECTATION&2.999.5.1", b"Q9^^^AUT-AFFECTATION&2.999.8")
    assert build_report(read_report_message(raw)).ipp == Identifier("Q9", "2.999.8")


SIGNATORY = (
    '</assignedPerson><representedOrganization><id root="1.2.250.1.71.4.2.2" extension="1999999999"/>'
)


def without_signatory_structure(text: str) -> str:
    start = text.index("<legalAuthenticator>")
    head, tail = text[:start], text[start:]
    return head + tail.replace('extension="1999999999"', 'extension=""', 1)


def test_structure_of_prt_serves_where_the_signatory_has_none() -> None:
    found = report(edit=without_signatory_structure, prt_structure="1222222222").structure
    assert found == Organization("1222222222", "CABINET Y")


def test_structure_of_the_signatory_wins_over_prt() -> None:
    assert report(prt_structure="1222222222").structure.id == "1999999999"


def test_structure_of_the_signatory_must_be_a_national_identifier() -> None:
    start = "<legalAuthenticator>"

    def edit(text: str) -> str:
        head, tail = text.split(start)
        return head + start + tail.replace("1.2.250.1.71.4.2.2", "2.999.3", 1)

    assert "situation d'exercice" in failure(edit=edit, prt_structure="")


NAME = (
    '<family qualifier="BR">EXEMPLE</family><given qualifier="BR">CLAIRE</given><given>CLAIRE MARIE</given>'
)


@pytest.mark.parametrize(
    ("name", "family", "given", "given_list", "used_family", "used_given"),
    [
        (NAME, "EXEMPLE", "CLAIRE", "CLAIRE MARIE", "", ""),
        (
            '<family qualifier="BR">N</family><family qualifier="CL">U</family>'
            '<given qualifier="BR">A</given><given>A B</given><given qualifier="CL">B</given>',
            "N",
            "A",
            "A B",
            "U",
            "B",
        ),
        ("<family>N</family><given>A-M B</given>", "N", "A-M", "A-M B", "", ""),
        ('<family qualifier="SP">S</family><given>A</given>', "S", "A", "A", "S", ""),
        (
            '<family qualifier="SP">S</family><family qualifier="CL">C</family>'
            "<given>A</given><given>B</given>",
            "S",
            "A",
            "A B",
            "C",
            "",
        ),
        ("<family><!-- x -->DU<!-- y -->PONT\n  NOM</family>", "DUPONT NOM", "", "", "", ""),
        ("", "", "", "", "", ""),
    ],
)
def test_names_old_and_new(
    name: str, family: str, given: str, given_list: str, used_family: str, used_given: str
) -> None:
    patient = report(edit=replacing(NAME, name)).patient
    assert (patient.family, patient.given, patient.given_list) == (family, given, given_list)
    assert (patient.used_family, patient.used_given) == (used_family, used_given)


def test_a_document_id_keeps_its_extension() -> None:
    assert report(SimReport(document_extension="7")).document_id == "2.999.7.1^7"


@pytest.mark.requirement("DB.SO.12")
def test_a_replacement_names_what_it_replaces() -> None:
    assert report(SimReport(replaces="2.999.7.0")).replaces == "2.999.7.0"
    # A report that forgot it, in a message that did not.
    raw = build_message(
        SimReport(replaces="2.999.7.0"),
        SimMessage(kind="MDM", action=MessageAction.REPLACE),
        document=build_cda(SimReport()),
    )
    assert build_report(read_report_message(raw)).replaces == "2.999.7.0"


def test_the_act_is_named_by_ccam_where_loinc_says_nothing() -> None:
    loinc = '<code code="24531-6" codeSystem="2.16.840.1.113883.6.1" displayName="IRM tête">'
    ccam = '<translation code="ACQH004" codeSystem="1.2.250.1.213.2.5" displayName="Scanner"/>'
    edit = replacing(loinc, f'<code nullFlavor="NA">{ccam}')
    (act,) = report(edit=edit).acts
    assert act.description == "Scanner"
    assert [code.value for code in act.modalities] == ["MR"]


def test_a_device_that_comes_before_the_doctor_is_not_the_author() -> None:
    device = '<author><assignedAuthor><id root="2.999.9"/></assignedAuthor></author><author>'
    assert report(edit=replacing("<author>", device)).author.id == "899700000001"


def test_a_value_of_absurd_length_is_none() -> None:
    assert failure(SimReport(orders=(SimOrder(accession="A" * 5_000),))).endswith("numéro d'accession")


# --- the same patient ------------------------------------------------------------------------------


def other_pid(old: bytes, new: bytes) -> bytes:
    raw = build_message()
    assert raw.count(old) == 1
    return raw.replace(old, new)


def test_a_message_about_another_patient_is_e001() -> None:
    for raw in (
        other_pid(b"284070100499094^", b"184070100499005^"),
        other_pid(b"P000123^", b"P000124^"),
    ):
        with pytest.raises(PatientMismatch) as caught:
            build_report(read_report_message(raw))
        assert caught.value.code == "E001"


def test_an_ins_given_without_its_key_is_the_same_patient() -> None:
    raw = other_pid(b"284070100499094^", b"2840701004990^")
    assert build_report(read_report_message(raw)) == REPORT


@pytest.mark.parametrize(
    ("ins", "valid"),
    [
        ("284070100499094", True),
        ("279035121518989", True),
        ("284070100499095", False),
        ("2840701004990", False),
        ("28407010049909A", False),
        ("", False),
        ("255082A00112308", None),
    ],
)
def test_the_key_of_an_ins_is_checked_as_a_hint(ins: str, valid: bool | None) -> None:
    if valid is None:
        number = int(ins[:13].replace("2A", "19"))
        ins, valid = f"{ins[:13]}{97 - number % 97:02d}", True
    assert ins_key_valid(ins) is valid
    if ins:
        header = read_header(build_cda(SimReport(ins=ins)))
        assert ("INS with a wrong key" in header.warnings) is not valid
        assert missing_values(header) == []


# --- attacks ---------------------------------------------------------------------------------------


def attack(doctype: str, use: str) -> bytes:
    text = build_cda().decode()
    return text.replace("<ClinicalDocument", doctype + "<ClinicalDocument").replace("EXEMPLE", use).encode()


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.threat("XXE, billion laughs, DTD")
@pytest.mark.parametrize(
    "document",
    [
        attack('<!DOCTYPE c [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
        attack('<!DOCTYPE c [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]>', "X"),
        attack(f'<!DOCTYPE c [<!ENTITY l0 "ha">{LAUGHS}]>', "&l9;"),
        attack('<!DOCTYPE c SYSTEM "http://127.0.0.1:9/cda.dtd">', "X"),
        b'<ClinicalDocument xmlns="urn:hl7-org:v3">'
        + b"<a>" * 5_000
        + b"</a>" * 5_000
        + b"</ClinicalDocument>",
    ],
    ids=["file entity", "parameter entity", "billion laughs", "external DTD", "depth"],
)
def test_hostile_xml_is_refused_at_once(document: bytes) -> None:
    started = time.thread_time()
    with pytest.raises(XmlRefused):
        read_header(document)
    assert time.thread_time() - started < 1
    message = read_report_message(build_message(document=document))
    with pytest.raises(ReportNotInterpretable, match="pas un document CDA lisible"):
        build_report(message)


_BOM = b"\xef\xbb\xbf"
_STYLE = b'<?xml-stylesheet type="text/xsl" href="cda.xsl"?>'


@pytest.mark.parametrize(
    "before",
    [
        b"",
        _BOM,
        b"\r\n  ",
        _BOM + b"\r\n",
        b"\n" + _BOM + b"\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "between",
    [
        b"",
        b"\r\n\r\n",
        _STYLE,
        b"<!-- v1 -->\n" + _STYLE + b"\n<?x y?><!-- <ClinicalDocument> -->\n",
        b" " * 100_000,
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_stands_before_the_root_changes_nothing(before: bytes, between: bytes) -> None:
    plain = build_cda(SimReport(family="D'ÉVÊQUE"))
    declaration, _, rest = plain.partition(b"?>\n")
    assert read_header(before + declaration + b"?>" + between + rest) == read_header(plain)


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "ISO-8859-15", "windows-1252", "UTF-16"])
def test_the_declared_encoding_of_the_document_is_its_own(encoding: str) -> None:
    report = SimReport(family="D'ÉVÊQUE", given="ZOÉ")
    text = build_cda(report).decode().replace('encoding="UTF-8"', f'encoding="{encoding}"')
    assert read_header(text.encode(encoding)).patient == read_header(build_cda(report)).patient


def test_a_byte_order_mark_wins_over_another_declaration() -> None:
    text = build_cda(SimReport(family="D'ÉVÊQUE")).replace(b'encoding="UTF-8"', b'encoding="ISO-8859-1"')
    assert read_header(_BOM + text).patient.family == "D'ÉVÊQUE"


def test_accents_encoded_twice_are_left_as_they_are() -> None:
    """Well formed, identifiers intact: nobody knows what was meant (interfaces.md 1.3)."""
    twice = "MÉDICALE".encode().decode("latin-1")
    header = read_header(build_cda(SimReport(family=twice)))
    assert (header.patient.ins, header.patient.family) == ("284070100499094", twice)


@pytest.mark.parametrize(
    "document",
    [b"", b"\x00", b"<a/>", b"<ClinicalDocument/>", pytest.param(os.urandom(100), id="random bytes")],
)
def test_what_is_no_cda_is_refused(document: bytes) -> None:
    with pytest.raises(XmlRefused):
        read_header(document)


def test_an_empty_cda_lacks_everything_but_is_read() -> None:
    header = read_header(b'\xef\xbb\xbf<ClinicalDocument xmlns="urn:hl7-org:v3"/>')
    assert len(missing_values(header)) == 7


@pytest.mark.parametrize("level", [1, 3])
def test_a_report_of_fifteen_megabytes_is_read_quickly(level: int) -> None:
    document = build_cda(SimReport(level=level, pdf_size=11_000_000))
    started = time.thread_time()
    assert missing_values(read_header(document)) == []
    assert time.thread_time() - started < 3  # about 0.1 s


# --- published samples -----------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.12")
def test_the_published_level_1_report_gives_three_studies() -> None:
    header = read_header(published("CDA/IMG_CR_IMG_2023.11_CDA-R2-Niveau-1.xml"))
    assert missing_values(header) == []
    assert [act.study_uid for act in header.acts] == [
        "1.2.250.1.3.152.235.2.12.187636474",
        "1.2.250.1.3.152.235.2.12.187636475",
        "1.2.250.1.3.152.235.2.12.187636476",
    ]
    assert [[code.value for code in act.regions] for act in header.acts] == [
        ["774007"],
        ["774007"],
        ["67734004"],
    ]
    assert header.requests == (
        RequestIds(
            Identifier("105234751", "1.2.250.1.925.994044785528.27"),
            Identifier("984375862", "1.2.250.1.748.12345678.12"),
        ),
    )
    assert (header.patient.family, header.patient.given) == ("PAT-TROIS", "DOMINIQUE")
    assert header.patient.birth_place == "63220"
    assert header.structure == Organization("101235555", "Centre de radiologie Ambroise")
    assert header.replaces == "90E1C8EC-F951-4B26-A305-A34848818DD6"
    assert header.facility_type == Code("SA08", "1.2.250.1.71.4.2.4", "Cabinet de groupe")


@pytest.mark.requirement("DB.SO.12")
def test_the_oldest_published_report_is_e005() -> None:
    # Region as the code of the act itself, no modality, no organization under the signatory.
    message = read_report_message(published("HL7/patient1.hl7"))
    with pytest.raises(ReportNotInterpretable) as caught:
        build_report(message)
    assert caught.value.detail == (
        "valeurs absentes ou invalides : modalité ; région anatomique ; "
        "situation d'exercice (legalAuthenticator/representedOrganization ou PRT-8.10)"
    )

"""The reports of the simulated RIS: CDA R2 of level 1 and 3 after the skeleton of interfaces.md 2.3.

Written from the format, not from the production reader, so that the two can contradict each other. Every
value has a default that makes a whole, valid report; an empty text leaves the element out, which is how
the incomplete reports of tests and demonstrations are made.
"""

from __future__ import annotations

import base64
from xml.sax.saxutils import escape, quoteattr

import attrs

RPPS = "1.2.250.1.71.4.2.1"
STRUCTURES = "1.2.250.1.71.4.2.2"
DCM = "1.2.840.10008.2.16.4"
LOINC = "2.16.840.1.113883.6.1"
SNOMED = "2.16.840.1.113883.6.96"

#: JDV_ModaliteAcquisition and JDV_RegionAnatomique, the part used by default (interfaces.md 2.1).
MODALITY_TEXTS = {"MR": "IRM", "CT": "Tomodensitométrie", "US": "Échographie", "CR": "Radiographie"}
REGION_TEXTS = {
    "774007": "Tête et cou",
    "67734004": "Thorax",
    "63337009": "Abdomen et pelvis",
    "737561001": "Rachis",
    "53120007": "Membre supérieur",
}


@attrs.frozen
class SimAct:
    """One `serviceEvent`: a study and what describes its act."""

    study_uid: str = "2.999.10.20.30"
    modalities: tuple[str, ...] = ("MR",)
    regions: tuple[str, ...] = ("774007",)
    code: str = "24531-6"
    description: str = "IRM tête"
    start: str = "20260110140000+0100"
    stop: str = "20260110143000+0100"


@attrs.frozen
class SimOrder:
    """One `inFulfillmentOf/order`."""

    accession: str = "ACC-7788"
    accession_authority: str = "2.999.5.3"
    order: str = "5501"
    order_authority: str = "2.999.5.4"


@attrs.frozen
class SimReport:
    """Everything a simulated report says."""

    acts: tuple[SimAct, ...] = (SimAct(),)
    orders: tuple[SimOrder, ...] = (SimOrder(),)
    document_id: str = "2.999.7.1"
    document_extension: str = ""
    set_id: str = "2.999.7.1"
    version: str = "1"
    #: Root of the replaced document's id.
    replaces: str = ""
    ins: str = "284070100499094"
    ins_oid: str = "1.2.250.1.213.1.4.10"
    ipp: str = "P000123"
    ipp_authority: str = "2.999.5.1"
    family: str = "EXEMPLE"
    given: str = "CLAIRE"
    given_list: str = "CLAIRE MARIE"
    used_family: str = ""
    birth_date: str = "19840701"
    sex: str = "F"
    birth_place: str = "01004"
    structure_id: str = "1999999999"
    structure_name: str = "CABINET Y"
    author_rpps: str = "899700000001"
    author_family: str = "DURAND"
    author_given: str = "PAUL"
    author_role: str = "G15_10/SM44"
    facility_type: str = "SA08"
    effective_time: str = "20260112093000+0100"
    confidentiality: str = "N"
    title: str = "Compte rendu d'IRM"
    #: 1: the PDF is the body; 3: sections, with the PDF in one of them.
    level: int = 1
    #: Bytes of the PDF.
    pdf_size: int = 2_000


def build_pdf(size: int = 2_000, text: str = "Compte rendu de demonstration") -> bytes:
    """Return a one-page PDF of exactly `size` bytes (a few hundred at the least)."""
    content = f"BT /F1 18 Tf 72 720 Td ({text}) Tj ET".encode("ascii")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]

    def assemble(padding: int) -> bytes:
        out = bytearray(b"%PDF-1.4\n")
        offsets = []
        for number, body in enumerate(objects, 1):
            offsets.append(len(out))
            out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
        # A comment line between objects is allowed anywhere (ISO 32000 7.2.4).
        out += b"%" + b"x" * padding + b"\n"
        table = len(out)
        out += b"xref\n0 6\n0000000000 65535 f \n"
        out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
        out += b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%010d\n%%%%EOF\n" % table
        return bytes(out)

    return assemble(max(0, size - len(assemble(0))))


def build_cda(report: SimReport | None = None) -> bytes:
    """Return the CDA document of `report`, in UTF-8."""
    report = report or SimReport()
    pdf = base64.b64encode(build_pdf(report.pdf_size)).decode("ascii")
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<ClinicalDocument xmlns="urn:hl7-org:v3" xmlns:ps3-20="urn:dicom-org:ps3-20">',
        '<realmCode code="FR"/><typeId root="2.16.840.1.113883.1.3" extension="POCD_HD000040"/>',
        _templates(report.level),
        _id(report.document_id, report.document_extension),
        f'<code code="18748-4" codeSystem="{LOINC}" displayName="CR d\'imagerie médicale"/>',
        f"<title>{escape(report.title)}</title>",
        _time("effectiveTime", report.effective_time),
        f'<confidentialityCode code="{report.confidentiality}" codeSystem="2.16.840.1.113883.5.25"/>',
        '<languageCode code="fr-FR"/>',
        f'<setId root="{report.set_id}"/>' if report.set_id else "",
        f'<versionNumber value="{report.version}"/>' if report.version else "",
        _record_target(report),
        _author(report),
        _custodian(report),
        _legal_authenticator(report),
        *(_order(order) for order in report.orders),
        *(_act(act, report) for act in report.acts),
        f'<relatedDocument typeCode="RPLC"><parentDocument><id root="{report.replaces}"/>'
        "</parentDocument></relatedDocument>"
        if report.replaces
        else "",
        _encounter(report),
        _body(report, pdf),
        "</ClinicalDocument>",
    ]
    return "\n".join(part for part in parts if part).encode("utf-8")


def _id(root: str, extension: str = "", tag: str = "id") -> str:
    attributes = [f"root={quoteattr(root)}"] if root else []
    attributes += [f"extension={quoteattr(extension)}"] if extension else []
    return f"<{tag} {' '.join(attributes)}/>" if attributes else ""


def _time(tag: str, value: str) -> str:
    return f'<{tag} value="{value}"/>' if value else f'<{tag} nullFlavor="UNK"/>'


def _templates(level: int) -> str:
    oids = ["2.16.840.1.113883.2.8.2.1", "1.2.250.1.213.1.1.1.1"]
    oids += ["1.2.840.10008.9.1"] if level == 3 else ["1.3.6.1.4.1.19376.1.2.20"]
    return "".join(f'<templateId root="{oid}"/>' for oid in oids)


def _record_target(report: SimReport) -> str:
    used = f'<family qualifier="CL">{escape(report.used_family)}</family>' if report.used_family else ""
    county = f"<county>{escape(report.birth_place)}</county>"
    place = f"<birthplace><place><addr>{county}</addr></place></birthplace>"
    return (
        "<recordTarget><patientRole>"
        + (_id(report.ins_oid, report.ins) if report.ins else "")
        + (_id(report.ipp_authority, report.ipp) if report.ipp else "")
        + f'<patient><name><family qualifier="BR">{escape(report.family)}</family>{used}'
        f'<given qualifier="BR">{escape(report.given)}</given>'
        f"<given>{escape(report.given_list)}</given></name>"
        f'<administrativeGenderCode code="{report.sex}" codeSystem="2.16.840.1.113883.5.1"/>'
        f'<birthTime value="{report.birth_date}"/>{place if report.birth_place else ""}'
        "</patient></patientRole></recordTarget>"
    )


def _person(report: SimReport) -> str:
    return (
        f"<assignedPerson><name><family>{escape(report.author_family)}</family>"
        f"<given>{escape(report.author_given)}</given></name></assignedPerson>"
    )


def _organization(report: SimReport, tag: str = "representedOrganization", more: str = "") -> str:
    if not report.structure_id:
        return ""
    name = f"<name>{escape(report.structure_name)}</name>"
    return f"<{tag}>{_id(STRUCTURES, report.structure_id)}{name}{more}</{tag}>"


def _author(report: SimReport) -> str:
    return (
        f"<author>{_time('time', report.effective_time)}<assignedAuthor>{_id(RPPS, report.author_rpps)}"
        f'<code code="{report.author_role}" codeSystem="1.2.250.1.213.1.1.4.5"/>'
        f"{_person(report)}{_organization(report)}</assignedAuthor></author>"
    )


def _custodian(report: SimReport) -> str:
    organization = _organization(report, "representedCustodianOrganization")
    return f"<custodian><assignedCustodian>{organization}</assignedCustodian></custodian>"


def _legal_authenticator(report: SimReport) -> str:
    return (
        f'<legalAuthenticator>{_time("time", report.effective_time)}<signatureCode code="S"/>'
        f"<assignedEntity>{_id(RPPS, report.author_rpps)}{_person(report)}{_organization(report)}"
        "</assignedEntity></legalAuthenticator>"
    )


def _order(order: SimOrder) -> str:
    accession = _id(order.accession_authority, order.accession, "ps3-20:accessionNumber")
    number = _id(order.order_authority, order.order)
    return f"<inFulfillmentOf><order>{number}{accession}</order></inFulfillmentOf>"


def _act(act: SimAct, report: SimReport) -> str:
    translations = "".join(
        _translation(code, DCM, MODALITY_TEXTS.get(code, code), "121139", DCM) for code in act.modalities
    ) + "".join(
        _translation(code, SNOMED, REGION_TEXTS.get(code, code), "39111-0", LOINC) for code in act.regions
    )
    setting = (
        '<standardIndustryClassCode code="AMBULATOIRE" codeSystem="1.2.250.1.213.1.1.4.9" '
        'displayName="Ambulatoire"/>'
    )
    return (
        f"<documentationOf><serviceEvent>{_id(act.study_uid)}"
        f'<code code="{act.code}" codeSystem="{LOINC}" displayName={quoteattr(act.description)}>'
        f"{translations}</code><effectiveTime>{_time('low', act.start)}{_time('high', act.stop)}"
        f'</effectiveTime><performer typeCode="PRF"><assignedEntity>{_id(RPPS, report.author_rpps)}'
        f"{_organization(report, more=setting)}</assignedEntity></performer>"
        "</serviceEvent></documentationOf>"
    )


def _translation(code: str, system: str, text: str, qualifier: str, qualifier_system: str) -> str:
    return (
        f'<translation code="{code}" codeSystem="{system}" displayName={quoteattr(text)}>'
        f'<qualifier><name code="{qualifier}" codeSystem="{qualifier_system}"/></qualifier></translation>'
    )


def _encounter(report: SimReport) -> str:
    facility = (
        f"<location><healthCareFacility>{_id(STRUCTURES, report.structure_id)}"
        f'<code code="{report.facility_type}" codeSystem="1.2.250.1.71.4.2.4"/>'
        "</healthCareFacility></location>"
        if report.facility_type
        else ""
    )
    start = report.acts[0].start if report.acts else report.effective_time
    return (
        "<componentOf><encompassingEncounter><effectiveTime>"
        f"{_time('low', start)}</effectiveTime>{facility}</encompassingEncounter></componentOf>"
    )


def _body(report: SimReport, pdf: str) -> str:
    media = 'mediaType="application/pdf" representation="B64"'
    if report.level == 1:
        return f"<component><nonXMLBody><text {media}>{pdf}</text></nonXMLBody></component>"
    catalogues = "".join(
        f'<entry><act classCode="ACT" moodCode="EVN">{_id(act.study_uid)}'
        f'<code code="113014" codeSystem="{DCM}" displayName="Study"/></act></entry>'
        for act in report.acts
    )
    return (
        "<component><structuredBody>"
        f'<component><section><code code="55111-9" codeSystem="{LOINC}"/><title>Acte</title>'
        "<text><paragraph>Examen sans particularité.</paragraph></text>"
        f'<component><section><code code="121181" codeSystem="{DCM}"/><title>Catalogue d\'objets</title>'
        f"{catalogues}</section></component></section></component>"
        f'<component><section><code code="55107-7" codeSystem="{LOINC}"/><title>Document PDF</title>'
        '<text><renderMultiMedia referencedObject="PDF"/></text><entry>'
        '<observationMedia classCode="OBS" moodCode="EVN" ID="PDF">'
        f"<value {media}>{pdf}</value></observationMedia></entry></section></component>"
        "</structuredBody></component>"
    )

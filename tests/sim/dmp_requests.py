"""DMP requests written from text templates and signed by the xmlsec1 command: no code of the gateway.

Every piece can be edited before or after signing, which is how the tests make one fault at a time.
"""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape

import attrs
import pydicom
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from pydicom.dataset import Dataset, FileMetaDataset

from drimbox.sim.pki import Pair, Pki

STRUCTURE = "499700000001006"
INS = "284070100499094"
PATIENT = f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^NH"
NOW = datetime.now(UTC).replace(microsecond=0)
BASE = "/si-dmp-server/v2/services"
TD21 = "urn:ihe:iti:2007:ProvideAndRegisterDocumentSet-b"
TD31 = "urn:ihe:iti:2007:RegistryStoredQuery"
TD32 = "urn:ihe:iti:2007:RetrieveDocumentSet"
TD33 = "urn:ihe:iti:2010:UpdateDocumentSet"
TD02 = "urn:hl7-org:v3:PRPA_IN201307UV02"
RIM = 'xmlns="urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"'
LCM = 'xmlns:lcm="urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0"'

Edit = Callable[[str], str]


def same(text: str) -> str:
    """Change nothing."""
    return text


def xmlsec1_sign(xml: str, key: Pair, folder: Path, *id_attributes: str) -> str:
    """Fill the digests and the SignatureValue of a template."""
    path = folder / f"{uuid.uuid4().hex}.xml"
    path.write_text(xml, "utf-8")
    ids = [part for name in id_attributes for part in name.split("=")]
    done = subprocess.run(
        ["xmlsec1", "--sign", "--ignore-manifests", "--privkey-pem", str(key.key), *ids, str(path)],
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def certificate_text(pair: Pair) -> str:
    return base64.b64encode(pair.load().public_bytes(serialization.Encoding.DER)).decode()


def dn(name: x509.Name) -> str:
    return name.rfc4514_string().replace(",", ", ")


def make_kos(uid: str, study: str = "2.999.10.20.30", ins: str = INS) -> bytes:
    kos = Dataset()
    kos.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.59"
    kos.SOPInstanceUID = uid
    kos.StudyInstanceUID = study
    kos.PatientID = ins
    kos.InstanceCreationDate, kos.InstanceCreationTime = "20260112", "094500"
    kos.file_meta = FileMetaDataset()
    kos.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    kos.file_meta.MediaStorageSOPClassUID = kos.SOPClassUID
    kos.file_meta.MediaStorageSOPInstanceUID = uid
    out = io.BytesIO()
    kos.save_as(out, enforce_file_format=True)
    return out.getvalue()


def slot(name: str, *values: str) -> str:
    inner = "".join(f"<Value>{escape(value)}</Value>" for value in values)
    return f'<Slot name="{name}"><ValueList>{inner}</ValueList></Slot>'


def code(owner: str, scheme: str, value: str, system: str, text: str = "x") -> str:
    return (
        f'<Classification id="c-{uuid.uuid4().hex}" classificationScheme="urn:uuid:{scheme}" '
        f'classifiedObject="{owner}" nodeRepresentation="{value}">{slot("codingScheme", system)}'
        f'<Name><LocalizedString charset="UTF8" value="{text}" xml:lang="FR"/></Name></Classification>'
    )


def author(owner: str, scheme: str, person: str) -> str:
    return (
        f'<Classification id="c-{uuid.uuid4().hex}" classificationScheme="urn:uuid:{scheme}" '
        f'classifiedObject="{owner}" nodeRepresentation="">{slot("authorPerson", person)}'
        + slot("authorInstitution", f"CABINET Y^^^^^&1.2.250.1.71.4.2.2&ISO^IDNST^^^{STRUCTURE}")
        + "</Classification>"
    )


def external(owner: str, scheme: str, value: str) -> str:
    return (
        f'<ExternalIdentifier id="e-{uuid.uuid4().hex}" identificationScheme="urn:uuid:{scheme}" '
        f'registryObject="{owner}" value="{escape(value)}"><Name>'
        '<LocalizedString charset="UTF8" value="x" xml:lang="FR"/></Name></ExternalIdentifier>'
    )


DOCTOR = "899700000001^DURAND^PAUL^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"
DEVICE = "9^DRIMBox^VENDOR^^^^^^&1.2.250.1.71.4.2.1&ISO^U^^^EI"


def association(kind: str, source: str, target: str, *slots: tuple[str, str]) -> str:
    inner = "".join(slot(*pair) for pair in slots)
    return (
        f'<Association id="{uuid.uuid4()}" associationType="{kind}" sourceObject="{source}" '
        f'targetObject="{target}">{inner}</Association>'
    )


def submission_set(uid: str, patient: str = PATIENT) -> str:
    owner = "SubmissionSet01"
    return (
        f'<RegistryPackage id="{owner}">{slot("submissionTime", "20260112094500")}'
        + '<Name><LocalizedString charset="UTF8" value="title" xml:lang="FR"/></Name>'
        + author(owner, "a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d", DEVICE)
        + code(owner, "aa543740-bdda-424e-8c96-df4873be8500", "07", "1.2.250.1.213.2.2")
        + '<Classification id="node" classificationNode="urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd" '
        + f'classifiedObject="{owner}"/>'
        + external(owner, "6b5aea1a-874d-4603-a4bc-96a0a7b38446", patient)
        + external(owner, "554ac39e-e3fe-47fe-b233-965d2a147832", "2.999.1")
        + external(owner, "96fdda7c-d067-4183-912e-bf5ee74998a8", uid)
        + "</RegistryPackage>"
    )


def entry(owner: str, uid: str, data: bytes, *, signature: bool, patient: str = PATIENT) -> str:
    references = (
        "ACC-7788^^^&2.999.5.3&ISO^urn:ihe:iti:xds:2013:accession",
        "2.999.10.20.30^^^&1.2.3.4.5.6&ISO^urn:ihe:iti:xds:2016:studyInstanceUID",
        "5501^^^&2.999.5.4&ISO^urn:ihe:iti:xds:2013:order",
    )
    info = ("PID-5|DURAND^ANNE^^^^^L", "PID-7|19840701", "PID-8|F")
    n = "f4f85eac-e6cb-4883-b524-f2705394840f", "N", "2.16.840.1.113883.5.25"
    mask = "1.2.250.1.213.1.1.4.13"
    if signature:
        mime, title, comment = "text/xml", "Source", ""
        codes = [
            ("41a5887f-8865-4c09-adf7-e362475b143a", "urn:oid:1.3.6.1.4.1.19376.1.2.1.1.1", "URN"),
            ("f0306f51-975f-434e-a61c-c59651d33983", "E1762", "ASTM"),
            n,
            (n[0], "MASQUE_PS", mask),
            (n[0], "INVISIBLE_PATIENT", mask),
            ("a09d5840-386c-46f2-b5ad-9c3699a4309d", "http://www.w3.org/2000/09/xmldsig#", "URN"),
            ("2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4", "1.2.840.10065.1.12.1.14", "1.2.840.10065.1.12"),
        ]
    else:
        mime, title, comment = "application/dicom", "Reference d'Objets d'un Examen d'Imagerie", "KOS"
        codes = [
            ("41a5887f-8865-4c09-adf7-e362475b143a", "31", "1.2.250.1.213.1.1.4.1"),
            ("f0306f51-975f-434e-a61c-c59651d33983", "IMG-KOS", "1.2.250.1.213.1.1.4.12"),
            n,
            (
                "a09d5840-386c-46f2-b5ad-9c3699a4309d",
                "1.2.840.10008.5.1.4.1.1.88.59",
                "1.2.840.10008.2.6.1",
            ),
            ("2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4", "CT", "1.2.840.10008.2.16.4"),
            ("2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4", "69536005", "2.16.840.1.113883.6.96"),
        ]
    codes += [
        ("f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1", "SA01", "1.2.250.1.71.4.2.4"),
        ("cccf5598-8b07-4b77-a05e-ae952c785ead", "AMBULATOIRE", "1.2.250.1.213.1.1.4.9"),
    ]
    return (
        f'<ExtrinsicObject id="{owner}" mimeType="{mime}" '
        'objectType="urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1">'
        + slot("creationTime", "20260112094500")
        + slot("submissionTime", "20260112094500")
        + slot("languageCode", "art" if signature else "fr-FR")
        + slot("legalAuthenticator", DOCTOR)
        + slot("serviceStartTime", "20260112080000")
        + slot("serviceStopTime", "20260112081500")
        + slot("sourcePatientId", patient)
        + slot("hash", hashlib.sha1(data).hexdigest())
        + slot("size", str(len(data)))
        + ("" if signature else slot("sourcePatientInfo", *info))
        + slot("urn:ihe:iti:xds:2013:referenceIdList", *references)
        + f'<Name><LocalizedString charset="UTF8" value="{title}" xml:lang="FR"/></Name>'
        + f'<Description><LocalizedString charset="UTF8" value="{comment}" xml:lang="FR"/></Description>'
        + author(owner, "93606bcf-9494-43ec-9b4e-a7748d1a838d", DOCTOR if signature else DEVICE)
        + "".join(code(owner, *c) for c in codes)
        + external(owner, "58a6f841-87b3-4a3e-92fd-a8ffeff98427", patient)
        + external(owner, "2e82c1f6-a085-4c72-9da3-8640a32e42ab", uid)
        + "</ExtrinsicObject>"
    )


@attrs.frozen
class HttpRequest:
    """What curl sends."""

    path: str
    content_type: str
    body: bytes


@attrs.frozen
class Maker:
    """Makes requests of one structure with its certificates."""

    pki: Pki
    folder: Path
    signer: Pair
    algorithm: str = "sha256"
    structure: str = STRUCTURE
    patient: str = PATIENT
    #: The time of signing; a simulator in its own process wants the real one.
    clock: Callable[[], datetime] = lambda: NOW

    def _algorithms(self) -> tuple[str, str]:
        if self.algorithm == "sha1":
            return "http://www.w3.org/2000/09/xmldsig#rsa-sha1", "http://www.w3.org/2000/09/xmldsig#sha1"
        return (
            "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
            "http://www.w3.org/2001/04/xmlenc#sha256",
        )

    def vihf(
        self,
        *,
        before: Edit = same,
        after: Edit = same,
        issued: datetime | None = None,
        patient: str | None = None,
    ) -> str:
        """A signed assertion; `before` edits the template, `after` the signed text."""
        identifier = f"_{uuid.uuid4()}"
        method, hashing = self._algorithms()
        instant = (issued or self.clock()).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        exc = "http://www.w3.org/2001/10/xml-exc-c14n#"
        hl7 = 'xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CE"'
        role = f'<Role {hl7} code="10" codeSystem="1.2.250.1.71.1.2.7" displayName="Medecin"/>'
        purpose = (
            f'<PurposeOfUse {hl7} code="normal" codeSystem="1.2.250.1.213.1.1.4.248" '
            'codeSystemName="mode acces VIHF 1.0" displayName="Acces normal"/>'
        )
        attributes = {
            "VIHF_Version": "3.0",
            "Identifiant_Structure": self.structure,
            "Secteur_Activite": "SA07^1.2.250.1.71.4.2.4",
            "Ressource_URN": "urn:dmp",
            "urn:oasis:names:tc:xspa:1.0:subject:subject-id": "PAUL DURAND",
            "urn:oasis:names:tc:xacml:2.0:resource:resource-id": escape(patient or self.patient),
            "urn:oasis:names:tc:xacml:2.0:subject:role": role,
            "urn:oasis:names:tc:xspa:1.0:subject:purposeofuse": purpose,
            "Authentification_Mode": "INDIRECTE",
            "LPS_ID": "1",
            "LPS_Nom": "DRIMbox",
            "LPS_Version": "0.1",
            "LPS_ID_HOMOLOGATION_DMP": "2",
        }
        statements = "".join(
            f'<saml2:Attribute Name="{name}"><saml2:AttributeValue>{value}</saml2:AttributeValue>'
            "</saml2:Attribute>"
            for name, value in attributes.items()
        )
        xml = (
            '<saml2:Assertion xmlns:saml2="urn:oasis:names:tc:SAML:2.0:assertion" '
            f'ID="{identifier}" IssueInstant="{instant}" Version="2.0">'
            '<saml2:Issuer Format="urn:oasis:names:tc:SAML:1.1:nameid-format:X509SubjectName">'
            f"{escape(dn(self.signer.load().subject))}</saml2:Issuer>"
            '<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:SignedInfo>'
            f'<ds:CanonicalizationMethod Algorithm="{exc}"/><ds:SignatureMethod Algorithm="{method}"/>'
            f'<ds:Reference URI="#{identifier}"><ds:Transforms><ds:Transform '
            'Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/>'
            f'<ds:Transform Algorithm="{exc}"/></ds:Transforms><ds:DigestMethod Algorithm="{hashing}"/>'
            "<ds:DigestValue/></ds:Reference></ds:SignedInfo><ds:SignatureValue/><ds:KeyInfo><ds:X509Data>"
            f"<ds:X509Certificate>{certificate_text(self.signer)}</ds:X509Certificate></ds:X509Data>"
            "</ds:KeyInfo></ds:Signature>"
            "<saml2:Subject><saml2:NameID>899700000001</saml2:NameID></saml2:Subject>"
            f'<saml2:AuthnStatement AuthnInstant="{instant}"><saml2:AuthnContext>'
            "<saml2:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:TLSClient"
            "</saml2:AuthnContextClassRef></saml2:AuthnContext></saml2:AuthnStatement>"
            f"<saml2:AttributeStatement>{statements}</saml2:AttributeStatement></saml2:Assertion>"
        )
        signed = xmlsec1_sign(
            before(xml),
            self.signer,
            self.folder,
            "--id-attr:ID=urn:oasis:names:tc:SAML:2.0:assertion:Assertion",
        )
        return after(signed.partition("?>")[2].strip())

    def xades(
        self,
        uid: str,
        submission_uid: str,
        documents: dict[str, bytes],
        *,
        before: Edit = same,
        after: Edit = same,
    ) -> bytes:
        """A signed XAdES 1.1.1 document."""
        method, hashing = self._algorithms()
        digest = hashlib.sha1 if self.algorithm == "sha1" else hashlib.sha256
        certificate = self.signer.load()
        fingerprint = certificate.fingerprint(
            hashes.SHA1() if self.algorithm == "sha1" else hashes.SHA256()
        )

        def reference(uri: str, value: str) -> str:
            return (
                f'<Reference URI="urn:oid:{uri}"><DigestMethod Algorithm="{hashing}"/>'
                f"<DigestValue>{value}</DigestValue></Reference>"
            )

        listed = reference(submission_uid, "AA==") + "".join(
            reference(key, base64.b64encode(digest(data).digest()).decode())
            for key, data in documents.items()
        )
        ds = "http://www.w3.org/2000/09/xmldsig#"
        xades = "http://uri.etsi.org/01903/v1.1.1#"
        xsi = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="urn:x x.xsd"'
        xml = (
            f'<Signature xmlns="{ds}" Id="{uid}"><SignedInfo><CanonicalizationMethod '
            'Algorithm="http://www.w3.org/TR/2001/REC-xml-c14n-20010315#WithComments"/>'
            f'<SignatureMethod Algorithm="{method}"/>'
            f'<Reference URI="#IHEManifest" Type="{ds}Manifest"><DigestMethod Algorithm="{hashing}"/>'
            "<DigestValue/></Reference>"
            f'<Reference URI="#S0-SignedProperties" Type="{xades}SignedProperties">'
            f'<DigestMethod Algorithm="{hashing}"/><DigestValue/></Reference></SignedInfo>'
            "<SignatureValue/><KeyInfo><X509Data>"
            f"<X509Certificate>{certificate_text(self.signer)}</X509Certificate></X509Data></KeyInfo>"
            f'<Object><SignatureProperties><SignatureProperty Id="purposeOfSignature" Target="#{uid}">'
            "1.2.840.10065.1.12.1.14</SignatureProperty></SignatureProperties></Object>"
            f'<Object><Manifest {xsi} Id="IHEManifest">{listed}</Manifest></Object>'
            f'<Object><QualifyingProperties xmlns="{xades}" Target="#{uid}">'
            f'<SignedProperties {xsi} Id="S0-SignedProperties"><SignedSignatureProperties>'
            "<SigningTime>2026-01-12T09:45:00.000+01:00</SigningTime><SigningCertificate><Cert><CertDigest>"
            f'<DigestMethod Algorithm="{hashing}"/>'
            f"<DigestValue>{base64.b64encode(fingerprint).decode()}</DigestValue></CertDigest>"
            f'<IssuerSerial><X509IssuerName xmlns="{ds}">{escape(dn(certificate.issuer))}</X509IssuerName>'
            f'<X509SerialNumber xmlns="{ds}">{certificate.serial_number}</X509SerialNumber></IssuerSerial>'
            "</Cert></SigningCertificate><SignaturePolicyIdentifier><SignaturePolicyImplied/>"
            "</SignaturePolicyIdentifier></SignedSignatureProperties><SignedDataObjectProperties/>"
            "</SignedProperties></QualifyingProperties></Object></Signature>"
        )
        signed = xmlsec1_sign(
            before(xml),
            self.signer,
            self.folder,
            f"--id-attr:Id={ds}:Manifest",
            f"--id-attr:Id={xades}:SignedProperties",
        )
        return after(signed).encode()

    def envelope(
        self,
        service: str,
        action: str,
        body: str,
        vihf: str | None = None,
        *,
        edit: Edit = same,
    ) -> str:
        wsse = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
        wsa = 'xmlns="http://www.w3.org/2005/08/addressing"'
        return edit(
            '<soap:Envelope xmlns:soap="http://www.w3.org/2003/05/soap-envelope"><soap:Header>'
            f"<MessageID {wsa}>urn:uuid:{uuid.uuid4()}</MessageID>"
            f"<To {wsa}>https://dmp.example{BASE}/{service}</To>"
            f'<Action {wsa} soap:mustUnderstand="true">{action}</Action>'
            f'<wsse:Security xmlns:wsse="{wsse}">{vihf or self.vihf()}</wsse:Security></soap:Header>'
            f"<soap:Body>{body}</soap:Body></soap:Envelope>"
        )

    def simple(self, service: str, action: str, body: str, vihf: str | None = None) -> HttpRequest:
        text = self.envelope(service, action, body, vihf)
        content_type = f'application/soap+xml; charset=UTF-8; action="{action}"'
        return HttpRequest(f"{BASE}/{service}", content_type, text.encode())

    def query(self, identifier: str, return_type: str, *slots: tuple[str, str]) -> HttpRequest:
        inner = "".join(slot(*pair) for pair in slots)
        body = (
            f'<query:AdhocQueryRequest {RIM} xmlns:query="urn:oasis:names:tc:ebxml-regrep:xsd:query:3.0">'
            f'<query:ResponseOption returnComposedObjects="true" returnType="{return_type}"/>'
            f'<AdhocQuery id="urn:uuid:{identifier}">{inner}</AdhocQuery></query:AdhocQueryRequest>'
        )
        return self.simple("registry", TD31, body)

    def publication(
        self,
        *,
        kos_uid: str = "2.999.20.1",
        set_uid: str = "2.999.21.1",
        signature_uid: str = "2.999.22.1",
        kos: bytes | None = None,
        sent_kos: bytes | None = None,
        replaces: str | None = None,
        vihf: str | None = None,
        metadata: Edit = same,
        xades_before: Edit = same,
        xades_after: Edit = same,
        envelope: Edit = same,
        content_type: Edit = same,
        mime: Callable[[bytes], bytes] = lambda data: data,
    ) -> HttpRequest:
        """A whole TD2.1; each argument spoils one thing."""
        kos = make_kos(kos_uid, ins=self.patient.partition("^")[0]) if kos is None else kos
        signature = self.xades(
            signature_uid, set_uid, {kos_uid: kos}, before=xades_before, after=xades_after
        )
        original = ("SubmissionSetStatus", "Original")
        member = "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember"
        objects = (
            submission_set(set_uid, self.patient)
            + entry("DocumentKOS", kos_uid, kos, signature=False, patient=self.patient)
            + entry("Signature01", signature_uid, signature, signature=True, patient=self.patient)
            + association(member, "SubmissionSet01", "DocumentKOS", original)
            + association(member, "SubmissionSet01", "Signature01", original)
            + association(
                "urn:ihe:iti:2007:AssociationType:signs", "Signature01", "SubmissionSet01", original
            )
        )
        if replaces is not None:
            rplc = "urn:ihe:iti:2007:AssociationType:RPLC"
            objects += association(rplc, "DocumentKOS", replaces, original)
        include = '<xop:Include xmlns:xop="http://www.w3.org/2004/08/xop/include" href="cid:{}"/>'
        body = (
            f'<xdsb:ProvideAndRegisterDocumentSetRequest {RIM} {LCM} xmlns:xdsb="urn:ihe:iti:xds-b:2007">'
            "<lcm:SubmitObjectsRequest><RegistryObjectList>"
            + metadata(objects)
            + "</RegistryObjectList></lcm:SubmitObjectsRequest>"
            + f'<xdsb:Document id="DocumentKOS">{include.format("0.2")}</xdsb:Document>'
            + f'<xdsb:Document id="Signature01">{include.format("0.3")}</xdsb:Document>'
            + "</xdsb:ProvideAndRegisterDocumentSetRequest>"
        )
        root = self.envelope("repository", TD21, body, vihf, edit=envelope)
        parts = [
            ('application/xop+xml; charset=UTF-8; type="application/soap+xml"', "0.1", root.encode()),
            ("application/octet-stream", "0.3", signature),
            ("application/octet-stream", "0.2", kos if sent_kos is None else sent_kos),
        ]
        data = b"".join(
            f"--Bound\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: binary\r\n"
            f"Content-ID: <{identifier}>\r\n\r\n".encode()
            + content
            + b"\r\n"
            for kind, identifier, content in parts
        )
        header = (
            'multipart/related; boundary="Bound"; type="application/xop+xml"; start="<0.1>"; '
            f'start-info="application/soap+xml"; action="{TD21}"'
        )
        return HttpRequest(f"{BASE}/repository", content_type(header), mime(data + b"--Bound--\r\n"))

    def removal(
        self,
        entry_uuid: str,
        *,
        set_uid: str = "2.999.21.9",
        original: str = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved",
        new: str = "urn:asip:ci-sis:2010:StatusType:Deleted",
    ) -> HttpRequest:
        """TD3.3c."""
        change = association(
            "urn:ihe:iti:2010:AssociationType:UpdateAvailabilityStatus",
            "SubmissionSet01",
            entry_uuid,
            ("OriginalStatus", original),
            ("NewStatus", new),
        )
        body = (
            f"<lcm:SubmitObjectsRequest {RIM} {LCM}><RegistryObjectList>{submission_set(set_uid)}{change}"
            "</RegistryObjectList></lcm:SubmitObjectsRequest>"
        )
        return self.simple("registry", TD33, body)

    def existence(self, ins: str = INS) -> HttpRequest:
        """TD0.2."""
        body = (
            '<PRPA_IN201307UV02 xmlns="urn:hl7-org:v3" '
            'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ITSVersion="XML_1.0">'
            f'<id root="2.999.30.1" extension="{uuid.uuid4()}"/><creationTime value="20260112094500"/>'
            '<interactionId root="2.16.840.1.113883.1.6" extension="PRPA_IN201307UV02"/>'
            '<processingCode code="D"/><processingModeCode code="T"/><acceptAckCode code="AL"/>'
            '<receiver typeCode="RCV"><device classCode="DEV" determinerCode="INSTANCE">'
            '<id root="1.2.250.1.213.4.1.1.1"/><softwareName>DMP</softwareName></device></receiver>'
            '<sender typeCode="SND"><device classCode="DEV" determinerCode="INSTANCE">'
            '<id root="2.999.30"/></device></sender><attentionLine xsi:nil="true"/>'
            '<controlActProcess classCode="CACT" moodCode="EVN"><reasonCode code="TEST_EXST" '
            'codeSystem="1.2.250.1.213.1.1.4.11"/><queryByParameter>'
            f'<queryId root="2.999.30.2" extension="{uuid.uuid4()}"/><statusCode code="new"/>'
            '<parameterList><dataSource xsi:nil="true"/><patientIdentifier>'
            f'<value root="1.2.250.1.213.1.4.10" extension="{ins}"/>'
            "<semanticsText>Patient.id</semanticsText></patientIdentifier></parameterList>"
            "</queryByParameter></controlActProcess></PRPA_IN201307UV02>"
        )
        patient = f"{ins}^^^&1.2.250.1.213.1.4.10&ISO^NH"
        return self.simple("patients", TD02, body, self.vihf(patient=patient))


LATE = timedelta(minutes=10)

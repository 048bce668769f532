"""Closed lists of XDS: object classes, schemes of coded attributes, and the codes we write.

Values of interfaces.md 4.2 to 4.4. Display texts are for people; a reader compares codes.
"""

from __future__ import annotations

from drimbox.model import Code, Visibility

STABLE_DOCUMENT = "urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1"
SUBMISSION_SET_NODE = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"

# --- schemes of the SubmissionSet (ITI TF-3 4.2.3.3) ----------------------------------------------
SET_AUTHOR = "urn:uuid:a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d"
SET_CONTENT_TYPE = "urn:uuid:aa543740-bdda-424e-8c96-df4873be8500"
SET_PATIENT_ID = "urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446"
SET_SOURCE_ID = "urn:uuid:554ac39e-e3fe-47fe-b233-965d2a147832"
SET_UNIQUE_ID = "urn:uuid:96fdda7c-d067-4183-912e-bf5ee74998a8"

# --- schemes of the DocumentEntry (ITI TF-3 4.2.3.2) ----------------------------------------------
AUTHOR = "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d"
CLASS_CODE = "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a"
TYPE_CODE = "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983"
CONFIDENTIALITY = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
FORMAT_CODE = "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d"
FACILITY_TYPE = "urn:uuid:f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1"
PRACTICE_SETTING = "urn:uuid:cccf5598-8b07-4b77-a05e-ae952c785ead"
EVENT_CODE = "urn:uuid:2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4"
ENTRY_PATIENT_ID = "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427"
ENTRY_UNIQUE_ID = "urn:uuid:2e82c1f6-a085-4c72-9da3-8640a32e42ab"

REFERENCE_ID_LIST = "urn:ihe:iti:xds:2013:referenceIdList"
ACCESSION_TYPE = "urn:ihe:iti:xds:2013:accession"
ORDER_TYPE = "urn:ihe:iti:xds:2013:order"
STUDY_TYPE = "urn:ihe:iti:xds:2016:studyInstanceUID"

# --- associations (interfaces.md 4.7) and statuses ------------------------------------------------
HAS_MEMBER = "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember"
SIGNS = "urn:ihe:iti:2007:AssociationType:signs"
REPLACES = "urn:ihe:iti:2007:AssociationType:RPLC"
UPDATE_STATUS = "urn:ihe:iti:2010:AssociationType:UpdateAvailabilityStatus"
APPROVED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"
DEPRECATED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Deprecated"
DELETED = "urn:asip:ci-sis:2010:StatusType:Deleted"

# --- codes of the manifest ------------------------------------------------------------------------
IMAGING = Code("31", "1.2.250.1.213.1.1.4.1", "Imagerie médicale")
IMG_KOS = Code("IMG-KOS", "1.2.250.1.213.1.1.4.12", "Reference d'objets d'un examen d'imagerie")
KOS_FORMAT = Code(
    "1.2.840.10008.5.1.4.1.1.88.59",
    "1.2.840.10008.2.6.1",
    "Document de Références d'objets d'imagerie selon profil IHE RAD XDS-I",
)

# --- codes of the signature document --------------------------------------------------------------
SIGNATURE_CLASS = Code("urn:oid:1.3.6.1.4.1.19376.1.2.1.1.1", "URN", "Digital Signature")
SIGNATURE_TYPE = Code("E1762", "ASTM", "Full Document")
SIGNATURE_FORMAT = Code("http://www.w3.org/2000/09/xmldsig#", "URN", "Default Signature Style")
SIGNATURE_PURPOSE = Code("1.2.840.10065.1.12.1.14", "1.2.840.10065.1.12", "Source")

# --- confidentiality ------------------------------------------------------------------------------
_EXTENSION = "1.2.250.1.213.1.1.4.13"
NORMAL = Code("N", "2.16.840.1.113883.5.25", "Normal")
MASKED = Code("MASQUE_PS", _EXTENSION, "Masqué aux professionnels de santé")
HIDDEN_FROM_PATIENT = Code("INVISIBLE_PATIENT", _EXTENSION, "Non visible par le patient")
HIDDEN_FROM_REPRESENTATIVES = Code(
    "INVISIBLE_REPRESENTANTS_LEGAUX", _EXTENSION, "Non visible par les représentants légaux du patient"
)
#: The signature document is never shown to anybody, whatever the report (interfaces.md 4.4).
SIGNATURE_CONFIDENTIALITY = (NORMAL, MASKED, HIDDEN_FROM_PATIENT)

#: practiceSettingCode is compulsory in XDS, optional in the report: exams are ambulatory by nature.
DEFAULT_PRACTICE_SETTING = Code("AMBULATOIRE", "1.2.250.1.213.1.1.4.9", "Ambulatoire")
FACILITY_SCHEME = "1.2.250.1.71.4.2.4"

_CONTENT_TYPE_SCHEME = "1.2.250.1.213.2.2"
#: PV1-2 to contentTypeCode (interfaces.md 4.2). No source gives the official texts of these codes.
_CONTENT_TYPES = {"I": "03", "O": "07", "E": "07", "R": "19", "N": "97"}
_CONTENT_TYPE_TEXTS = {
    "03": "Hospitalisation",
    "07": "Consultation externe",
    "19": "Soins itératifs",
    "97": "Autre",
}

#: French names of modalities, for those the PACS alone knows; the report's own text wins.
_MODALITIES = {
    "BMD": "Ostéodensitométrie",
    "CR": "Radiographie numérisée",
    "CT": "Scanographe",
    "DX": "Radio numérique",
    "ES": "Endoscopie",
    "IO": "Radiographie intra-orale",
    "IVUS": "Échographie intravasculaire",
    "MG": "Mammographie",
    "MR": "IRM",
    "NM": "Médecine nucléaire",
    "OCT": "Tomographie en cohérence optique",
    "PT": "TEP",
    "PX": "Radiographie panoramique",
    "RF": "Radioscopie",
    "RG": "Radiographie",
    "US": "Échographie",
    "XA": "Angiographie",
    "XC": "Photographie",
}

#: PS3.16 CID 32: values of (0008,0060) that name no way of acquiring images. A structured report or a
#: presentation state in the PACS does not make the exam one of modality SR or PR, and the value set of
#: eventCodeList (JDV_ModaliteAcquisition) holds acquisition modalities only.
_NOT_ACQUISITION = frozenset(
    (
        *("ASMT", "AU", "CTPROTOCOL", "DOC", "FID", "KO", "M3D", "OT", "PLAN", "PR", "REG", "RTDOSE"),
        *("RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SMR", "SR"),
        *("STAIN", "TEXTUREMAP", "XAPROTOCOL"),
    )
)


def is_acquisition(modality: str) -> bool:
    """Say whether a series of this modality holds images that an eventCodeList can announce."""
    return modality not in _NOT_ACQUISITION


def modality_text(modality: str) -> str:
    """Return a text for people for a modality code, the code itself when it is not a common one."""
    return _MODALITIES.get(modality, modality)


def content_type(patient_class: str) -> Code:
    """Return contentTypeCode for the PV1-2 value; `07` for an absent or unknown one."""
    value = _CONTENT_TYPES.get(patient_class.strip().upper(), "07")
    return Code(value, _CONTENT_TYPE_SCHEME, _CONTENT_TYPE_TEXTS[value])


def patient_class(content_type_code: str) -> str:
    """Return the PV1-2 value that gives this contentTypeCode, empty when none does."""
    return next((key for key, value in _CONTENT_TYPES.items() if value == content_type_code), "")


def confidentiality(visibility: Visibility) -> tuple[Code, ...]:
    """Return the confidentialityCodes of the manifest: N always, and one per flag of the report."""
    flags = (
        (visibility.masked_to_professionals, MASKED),
        (visibility.hidden_from_patient, HIDDEN_FROM_PATIENT),
        (visibility.hidden_from_representatives, HIDDEN_FROM_REPRESENTATIVES),
    )
    return (NORMAL, *(code for wanted, code in flags if wanted))

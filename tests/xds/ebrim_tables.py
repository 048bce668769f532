"""The tables of the XDS judge: which attribute each object has, how often, and what it looks like.

From the tables of the national profile (interfaces.md 4.2 to 4.4, 4.7) and the data types of ITI TF-3.
"""

from __future__ import annotations

_ARCS = r"[0-2](?:\.(?:0|[1-9][0-9]*))+"
OID = r"(?=.{1,64}\Z)" + _ARCS
CX = rf"[^^&|~]+\^\^\^&{_ARCS}&ISO\^"
PATIENT = r"[0-9]{13}[0-9]{2}\^\^\^&1\.2\.250\.1\.213\.1\.4\.(?:8|9|10|11)&ISO\^NH"
PROFESSIONAL = r"[^^&|~]+(?:\^[^^&|~]*){2}\^{6}&1\.2\.250\.1\.71\.4\.2\.1&ISO\^D\^\^\^IDNPS"
DEVICE = r"[^^&|~]+(?:\^[^^&|~]*){2}\^{6}&1\.2\.250\.1\.71\.4\.2\.1&ISO\^U\^\^\^EI"
XON = r"[^^&|~]+\^{5}&1\.2\.250\.1\.71\.4\.2\.2&ISO\^IDNST\^\^\^[0-9A-Z]+"
DTM = r"[0-9]{4}(?:[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:[0-9]{2})?)?)?)?)?"
INSTANT = r"[0-9]{14}"

ASSOCIATIONS = "urn:oasis:names:tc:ebxml-regrep:AssociationType:"
HAS_MEMBER, SIGNS = ASSOCIATIONS + "HasMember", "urn:ihe:iti:2007:AssociationType:signs"
REPLACES = "urn:ihe:iti:2007:AssociationType:RPLC"
STATUS = "urn:ihe:iti:2010:AssociationType:UpdateAvailabilityStatus"
ENTRY_UUID = r"urn:uuid:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

#: Slots of each object: pattern of a value, least and most number of values.
SET_SLOTS = {"submissionTime": (INSTANT, 1, 1)}
ENTRY_SLOTS = {
    "creationTime": (INSTANT, 1, 1),
    "submissionTime": (INSTANT, 1, 1),
    "legalAuthenticator": (PROFESSIONAL, 1, 1),
    "serviceStartTime": (DTM, 1, 1),
    "serviceStopTime": (DTM, 0, 1),
    "hash": (r"[0-9a-f]{40}", 1, 1),
    "size": (r"[1-9][0-9]*", 1, 1),
    "urn:ihe:iti:xds:2013:referenceIdList": (
        CX + r"urn:ihe:iti:xds:(?:2013:accession|2013:order|2016:studyInstanceUID)",
        3,
        99,
    ),
}
KOS_SLOTS = {
    **ENTRY_SLOTS,
    "languageCode": (r"fr-FR", 1, 1),
    "sourcePatientId": (CX + "PI", 1, 1),
    "sourcePatientInfo": (
        r"PID-5\|[^^|~&]+\^[^^|~&]*\^{5}L|PID-7\|[0-9]{8}|PID-8\|[MFU]|PID-11\|\^{6}BDL\^\^[0-9AB]{5}",
        3,
        4,
    ),
}
SIGNATURE_SLOTS = {
    **ENTRY_SLOTS,
    "serviceStopTime": (INSTANT, 1, 1),
    "languageCode": ("art", 1, 1),
    "sourcePatientId": (CX + "NH", 1, 1),
}

CONFIDENTIALITY = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
EVENTS = "urn:uuid:2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4"
MASKS = "MASQUE_PS|INVISIBLE_PATIENT|INVISIBLE_REPRESENTANTS_LEGAUX"
SET_AUTHOR = "urn:uuid:a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d"
AUTHOR = "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d"
SET_NODE = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"
#: Codes of each object by scheme: pattern of « code@coding scheme », least and most.
SET_CODES = {
    "urn:uuid:aa543740-bdda-424e-8c96-df4873be8500": (r"(?:03|07|19|97)@1\.2\.250\.1\.213\.2\.2", 1, 1)
}
ENTRY_CODES = {
    "urn:uuid:f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1": (r"SA[0-9]{2}@1\.2\.250\.1\.71\.4\.2\.4", 1, 1),
    "urn:uuid:cccf5598-8b07-4b77-a05e-ae952c785ead": (r"[A-Z_]+@1\.2\.250\.1\.213\.1\.1\.4\.9", 1, 1),
}
KOS_CODES = {
    **ENTRY_CODES,
    "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a": (r"31@1\.2\.250\.1\.213\.1\.1\.4\.1", 1, 1),
    "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983": (r"IMG-KOS@1\.2\.250\.1\.213\.1\.1\.4\.12", 1, 1),
    "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d": (
        r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.88\.59@1\.2\.840\.10008\.2\.6\.1",
        1,
        1,
    ),
    CONFIDENTIALITY: (
        rf"N@2\.16\.840\.1\.113883\.5\.25|(?:{MASKS})@1\.2\.250\.1\.213\.1\.1\.4\.13",
        1,
        4,
    ),
    EVENTS: (r"[A-Z0-9]{1,16}@1\.2\.840\.10008\.2\.16\.4|[0-9]{6,18}@2\.16\.840\.1\.113883\.6\.96", 2, 99),
}
SIGNATURE_CODES = {
    **ENTRY_CODES,
    "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a": (
        r"urn:oid:1\.3\.6\.1\.4\.1\.19376\.1\.2\.1\.1\.1@URN",
        1,
        1,
    ),
    "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983": (r"E1762@ASTM", 1, 1),
    "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d": (
        r"http://www\.w3\.org/2000/09/xmldsig#@URN",
        1,
        1,
    ),
    CONFIDENTIALITY: (
        r"N@2\.16\.840\.1\.113883\.5\.25|(?:MASQUE_PS|INVISIBLE_PATIENT)@1\.2\.250\.1\.213\.1\.1\.4\.13",
        3,
        3,
    ),
    EVENTS: (r"1\.2\.840\.10065\.1\.12\.1\.14@1\.2\.840\.10065\.1\.12", 1, 1),
}
#: External identifiers by scheme: IHE's name, pattern of the value.
SET_IDENTIFIERS = {
    "urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446": ("XDSSubmissionSet.patientId", PATIENT),
    "urn:uuid:554ac39e-e3fe-47fe-b233-965d2a147832": ("XDSSubmissionSet.sourceId", OID),
    "urn:uuid:96fdda7c-d067-4183-912e-bf5ee74998a8": ("XDSSubmissionSet.uniqueId", OID),
}
ENTRY_IDENTIFIERS = {
    "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427": ("XDSDocumentEntry.patientId", PATIENT),
    "urn:uuid:2e82c1f6-a085-4c72-9da3-8640a32e42ab": ("XDSDocumentEntry.uniqueId", OID),
}

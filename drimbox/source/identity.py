"""Is this image the patient's of the KOS? (DB.SO.134, an option of the Source.)

A StudyInstanceUID names a study, not a patient: after a wrong merge or a manual correction in the PACS the
images under it may be somebody else's. So before the first byte leaves, what each instance itself says of
its patient is held against what the report said when the KOS was made:

1. The image carries an INS (an item of Other Patient IDs Sequence in an INS domain, or a PatientID whose
   issuer says it is one): it decides alone. One of its matricules must be the KOS's, and none of the KOS's
   own domain may be another: two NIR are two persons, a NIA beside a NIR is one person twice.
2. Otherwise the local identifier (IPP) decides: PatientID must be the one archived with the KOS, and
   must not come from another authority where both sides name theirs as an OID. Issuers written in words
   (« CH-EXEMPLE ») cannot be compared with an OID and decide nothing.

An image without any identifier is nobody's, and is not delivered. A KOS archived without IPP, whose images
carry no INS, leaves nothing to compare: that is no mismatch.
"""

from __future__ import annotations

from drimbox.dicom.scan import Header
from drimbox.errors import ImageIdentityMismatch
from drimbox.model import INS_OIDS, Identifier, Patient, is_uid

#: How (0010,0021) begins when PatientID is itself an INS (interfaces.md 3.2).
_INS_ISSUER = "ASIP-SANTE-INS"


def check_identity(header: Header, patient: Patient, ipp: Identifier | None) -> None:
    """Let the image pass, or raise `ImageIdentityMismatch` (E1006) (DB.SO.134).

    `header` is what the instance says, `patient` the KOS's, `ipp` the local identifier archived with
    it, its authority empty when unknown; None when none was. The error's text names no identifier.
    """
    found = _ins_of(header)
    if found:
        _check_ins(found, patient)
    elif ipp is not None and ipp.value.strip():
        _check_ipp(header, ipp)


def _ins_of(header: Header) -> list[Identifier]:
    """Return every INS of the image; the domain is empty when only the issuer's words say what it is."""
    found = list(header.ins)
    if header.patient_id is not None:
        authority = header.patient_id_authority or ""
        if authority in INS_OIDS:
            found.append(Identifier(header.patient_id, authority))
        elif not authority and (header.patient_id_issuer or "").startswith(_INS_ISSUER):
            found.append(Identifier(header.patient_id, ""))
    return found


def _check_ins(found: list[Identifier], patient: Patient) -> None:
    same = [each.value == patient.ins for each in found]
    contradicted = any(each.value != patient.ins and each.authority == patient.ins_oid for each in found)
    if contradicted or not any(same):
        raise ImageIdentityMismatch("l'INS porté par une image n'est pas celui du KOS")


def _check_ipp(header: Header, ipp: Identifier) -> None:
    if header.patient_id is None:
        raise ImageIdentityMismatch("une image ne porte aucun identifiant de patient")
    if header.patient_id != ipp.value.strip():
        raise ImageIdentityMismatch("l'IPP porté par une image n'est pas celui du KOS")
    authority = header.patient_id_authority or header.patient_id_issuer or ""
    comparable = _is_oid(authority) and _is_oid(ipp.authority)
    if comparable and authority != ipp.authority:
        raise ImageIdentityMismatch("l'IPP porté par une image vient d'une autre autorité que celui du KOS")


def _is_oid(text: str) -> bool:
    return "." in text and is_uid(text)

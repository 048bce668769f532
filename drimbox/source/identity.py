"""Are these images the patient's? (DB.SO.134 before a delivery, DB.SO.16 before the feed: options.)

A StudyInstanceUID names a study, not a patient: after a wrong merge or a manual correction in the PACS the
images under it may be somebody else's. So what the images (before the first byte leaves), or the PACS in
its answer to C-FIND (`feed_identity`), say of their patient is held against what the report said:

1. An INS is told (an item of Other Patient IDs Sequence in an INS domain, or a PatientID whose issuer
   says it is one): it decides alone. One of the matricules must be the report's, and none of the report's
   own domain may be another: two NIR are two persons, a NIA beside a NIR is one person twice. The 13
   first characters are the matricule; the 2 of its key count when both sides give them.
2. Otherwise the local identifier (IPP) decides: PatientID must be the report's, and must not come from
   another authority where both sides name theirs as an OID. Issuers written in words (« CH-EXEMPLE »)
   cannot be compared with an OID and decide nothing.

An image without any identifier is nobody's, and is not delivered. A KOS archived without IPP, whose images
carry no INS, leaves nothing to compare: that is no mismatch.
"""

from __future__ import annotations

import enum
from typing import Protocol

from drimbox.errors import ImageIdentityMismatch
from drimbox.model import INS_ISSUER, INS_OIDS, Identifier, Patient, is_uid

#: Characters of a matricule without and with its key (interfaces.md 0.1).
_BARE, _WHOLE = 13, 15


class Stated(Protocol):
    """What an image, or a PACS, says of the patient; None for what it does not say."""

    @property
    def patient_id(self) -> str | None: ...
    @property
    def patient_id_issuer(self) -> str | None: ...
    @property
    def patient_id_authority(self) -> str | None: ...
    @property
    def ins(self) -> tuple[Identifier, ...]: ...


class Difference(enum.Enum):
    """Why it is not the patient of the report."""

    INS = enum.auto()
    IPP = enum.auto()
    AUTHORITY = enum.auto()
    #: It may be: no identifier is told.
    NOTHING_TOLD = enum.auto()


_REFUSALS = {
    Difference.INS: "l'INS porté par une image n'est pas celui du KOS",
    Difference.IPP: "l'IPP porté par une image n'est pas celui du KOS",
    Difference.AUTHORITY: "l'IPP porté par une image vient d'une autre autorité que celui du KOS",
    Difference.NOTHING_TOLD: "une image ne porte aucun identifiant de patient",
}


def check_identity(image: Stated, patient: Patient, ipp: Identifier | None) -> None:
    """Let the image pass, or raise `ImageIdentityMismatch` (E1006) (DB.SO.134).

    `image` is what the instance says, `patient` the KOS's, `ipp` the local identifier archived with
    it, its authority empty when unknown; None when none was. The error's text names no identifier.
    """
    found = difference(image, patient, ipp)
    if found is not None:
        raise ImageIdentityMismatch(_REFUSALS[found])


def difference(stated: Stated, patient: Patient, ipp: Identifier | None) -> Difference | None:
    """Say in what `stated` is not `patient`, whose local identifier is `ipp`; None when it is."""
    found = _ins_of(stated)
    if found:
        return _other_ins(found, patient)
    if ipp is None or not ipp.value.strip():
        return None
    return _other_ipp(stated, ipp)


def _ins_of(stated: Stated) -> list[Identifier]:
    """Return every INS that is told; the domain is empty when only the issuer's words say what it is."""
    found = list(stated.ins)
    if stated.patient_id is not None:
        authority = stated.patient_id_authority or ""
        if authority in INS_OIDS:
            found.append(Identifier(stated.patient_id, authority))
        elif not authority and (stated.patient_id_issuer or "").startswith(INS_ISSUER):
            found.append(Identifier(stated.patient_id, ""))
    return found


def _other_ins(found: list[Identifier], patient: Patient) -> Difference | None:
    same = [_same_matricule(each.value, patient.ins) for each in found]
    contradicted = any(
        not ours and each.authority == patient.ins_oid for each, ours in zip(found, same, strict=True)
    )
    return Difference.INS if contradicted or not any(same) else None


def _same_matricule(one: str, other: str) -> bool:
    shortest = min(len(one), len(other))
    if {len(one), len(other)} == {_BARE, _WHOLE}:
        return one[:shortest] == other[:shortest]
    return one == other


def _other_ipp(stated: Stated, ipp: Identifier) -> Difference | None:
    if stated.patient_id is None:
        return Difference.NOTHING_TOLD
    if stated.patient_id != ipp.value.strip():
        return Difference.IPP
    authority = stated.patient_id_authority or stated.patient_id_issuer or ""
    comparable = _is_oid(authority) and _is_oid(ipp.authority)
    return Difference.AUTHORITY if comparable and authority != ipp.authority else None


def _is_oid(text: str) -> bool:
    return "." in text and is_uid(text)

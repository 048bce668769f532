"""An image of another patient is never delivered, whichever identifier tells."""

from __future__ import annotations

import pytest

from drimbox.dicom.scan import Header
from drimbox.errors import ImageIdentityMismatch
from drimbox.model import Identifier, Patient
from drimbox.source.identity import check_identity

NIR, NIA, TEST = "1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9", "1.2.250.1.213.1.4.10"
OURS, OTHER = "275061234567890", "180021234567890"
HOSPITAL, CLINIC = "1.2.250.1.71.4.2.7.1", "1.2.250.1.71.4.2.7.2"
PATIENT = Patient(OURS, NIR, "PAT-TROIS", "DOMINIQUE", "19750612", "F")
IPP = Identifier("IPP-42", HOSPITAL)


def image(
    *ins: tuple[str, str],
    patient_id: str | None = "IPP-42",
    issuer: str | None = None,
    authority: str | None = None,
) -> Header:
    found = tuple(Identifier(value, oid) for value, oid in ins)
    return Header("1.2", "1.3", "1.4", "1.5", patient_id, issuer, authority, found)


GOOD = [
    ("the same INS", image((OURS, NIR)), IPP),
    ("the INS decides alone, whatever the local identifier", image((OURS, NIR), patient_id="X"), IPP),
    ("the INS decides alone, without any local identifier", image((OURS, NIR), patient_id=None), IPP),
    ("the matricule in the domain of tests", image((OURS, TEST)), IPP),
    ("a NIA of before the NIR", image((OTHER, NIA), (OURS, NIR)), IPP),
    ("PatientID is the INS, by its domain", image(patient_id=OURS, authority=NIR), IPP),
    ("PatientID is the INS, by its issuer", image(patient_id=OURS, issuer="ASIP-SANTE-INS-NIR"), IPP),
    ("the matricule without its key", image((OURS[:13], NIR)), IPP),
    ("the same local identifier", image(), IPP),
    ("with blanks in the archive", image(), Identifier(" IPP-42 ", HOSPITAL)),
    ("of the same authority", image(authority=HOSPITAL), IPP),
    ("of an authority written as its issuer", image(issuer=HOSPITAL), IPP),
    ("of an issuer in words", image(issuer="CH-EXEMPLE"), IPP),
    ("of an authority the archive does not know", image(authority=CLINIC), Identifier("IPP-42", "")),
    ("of an authority the archive names in words", image(authority=CLINIC), Identifier("IPP-42", "CH")),
    ("no local identifier archived", image(patient_id="X"), None),
    ("an empty local identifier archived", image(patient_id="X"), Identifier(" ", HOSPITAL)),
]
BAD = [
    ("another INS", image((OTHER, NIR)), IPP),
    ("another INS and no local identifier archived", image((OTHER, NIR)), None),
    ("another key", image((OURS[:13] + "00", NIR)), IPP),
    ("part of the matricule", image((OURS[:12], NIR)), IPP),
    ("another matricule without key", image((OTHER[:13], NIR)), IPP),
    ("another INS in another domain", image((OTHER, NIA)), IPP),
    ("two persons of one domain", image((OURS, NIR), (OTHER, NIR)), IPP),
    ("PatientID is another INS, by its domain", image(patient_id=OTHER, authority=NIR), IPP),
    ("PatientID is another INS, by its issuer", image(patient_id=OTHER, issuer="ASIP-SANTE-INS-NIR"), IPP),
    ("PatientID contradicts the sequence", image((OURS, NIR), patient_id=OTHER, authority=NIR), IPP),
    ("another local identifier", image(patient_id="IPP-43"), IPP),
    ("in another case", image(patient_id="ipp-42"), IPP),
    ("without its leading zero", image(patient_id="42"), Identifier("042", HOSPITAL)),
    ("of another authority", image(authority=CLINIC), IPP),
    ("of another authority as issuer", image(issuer=CLINIC), IPP),
    ("without any identifier", image(patient_id=None), IPP),
]


@pytest.mark.parametrize(("why", "header", "ipp"), GOOD, ids=[row[0] for row in GOOD])
def test_the_patient_of_the_kos_passes(why: str, header: Header, ipp: Identifier | None) -> None:
    check_identity(header, PATIENT, ipp)


@pytest.mark.parametrize(("why", "header", "ipp"), BAD, ids=[row[0] for row in BAD])
def test_another_patient_is_refused_without_naming_anybody(
    why: str, header: Header, ipp: Identifier | None
) -> None:
    with pytest.raises(ImageIdentityMismatch) as caught:
        check_identity(header, PATIENT, ipp)
    assert (caught.value.code, caught.value.status) == ("E1006", 406)
    for secret in (OURS, OTHER, "IPP", "42", "PAT-TROIS"):
        assert secret not in caught.value.detail.replace("l'IPP", "")

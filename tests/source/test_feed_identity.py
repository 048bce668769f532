"""Nothing is published whose patient in the PACS is another than the report's, when a site asks for it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from drimbox.config import Site
from drimbox.errors import PatientMismatch
from drimbox.model import Identifier, Report, StatedPatient
from drimbox.source.feed_identity import check_patient
from drimbox.source.interpretation import interpret
from tests.source.fakes import Pacses, archived, hl7, site, study
from tests.source.test_matching import Stage

NIR, NIA, TEST = "1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9", "1.2.250.1.213.1.4.10"
OURS, OTHER = "284070100499094", "180021234567890"
#: The report's: IPP P000123 of 2.999.5.1, born 1984-07-01.
HOSPITAL, CLINIC = "2.999.5.1", "2.999.5.9"


def told(
    *ins: tuple[str, str],
    patient_id: str | None = "P000123",
    issuer: str | None = None,
    authority: str | None = None,
    birth: str = "19840701",
) -> StatedPatient:
    found = tuple(Identifier(value, oid) for value, oid in ins)
    return StatedPatient(patient_id, issuer, authority, found, birth)


def report(**patient: str) -> Report:
    found = interpret(hl7()).report
    assert found is not None
    return attrs.evolve(found, patient=attrs.evolve(found.patient, **patient))


def checked(options: str, *stated: StatedPatient, **patient: str) -> str:
    """Check with these options; return what is wrong, empty when nothing is."""
    names = {"i": "check_feed_identity", "b": "check_feed_birth_date", "s": "check_feed_strictly"}
    here = site(1, **{names[letter]: True for letter in options})
    try:
        check_patient(here, attrs.evolve(study(), patients=stated), report(**patient))
    except PatientMismatch as error:
        return error.detail
    return ""


@pytest.mark.requirement("DB.SO.16")
@pytest.mark.parametrize(
    "stated",
    [
        pytest.param(told((OURS, TEST), patient_id="X"), id="the INS decides alone"),
        pytest.param(told((OURS, NIR), patient_id=None), id="the matricule counts, not its domain"),
        pytest.param(told((OURS[:13], TEST)), id="matricule without key"),
        pytest.param(told((OTHER, NIA), (OURS, TEST)), id="a NIA of before"),
        pytest.param(told((OURS, "")), id="INS by its issuer's words"),
        pytest.param(told(), id="same IPP"),
        pytest.param(told(authority=HOSPITAL), id="same authority"),
        pytest.param(told(issuer=HOSPITAL), id="authority as issuer"),
        pytest.param(told(issuer="CH-EXEMPLE"), id="issuer in words"),
        pytest.param(told(birth="19000101"), id="the birth date is another check"),
    ],
)
@pytest.mark.parametrize("options", ["i", "is"])
def test_the_patient_of_the_report_passes(stated: StatedPatient, options: str) -> None:
    assert checked(options, stated) == ""


@pytest.mark.requirement("DB.SO.16")
@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        pytest.param(told((OTHER, TEST)), "l'INS", id="another INS, the same IPP"),
        pytest.param(told((OURS, TEST), (OTHER, TEST)), "l'INS", id="two persons"),
        pytest.param(told(patient_id=OTHER, authority=TEST), "l'INS", id="PatientID is another INS"),
        pytest.param(told((OTHER, "")), "l'INS", id="another INS, domain in words"),
        pytest.param(told(patient_id="P000124"), "l'IPP", id="another IPP"),
        pytest.param(told(patient_id="p000123"), "l'IPP", id="another case"),
        pytest.param(told(authority=CLINIC), "autre autorité", id="another authority"),
        pytest.param(told(issuer=CLINIC), "autre autorité", id="another authority as issuer"),
    ],
)
@pytest.mark.parametrize("options", ["i", "is", "ib"])
def test_another_patient_is_a_mismatch_without_naming_anybody(
    stated: StatedPatient, problem: str, options: str
) -> None:
    text = checked(options, stated)
    assert problem in text
    assert "PACS1" in text
    for secret in (OURS, OTHER, "P00012", "1984", "EXEMPLE"):
        assert secret not in text
    assert checked("", stated) == checked("b", stated) == checked("bs", stated) == ""


@pytest.mark.requirement("DB.SO.191")
@pytest.mark.parametrize("birth", ["19840702", "19840107", "1984", "00000000", "19840701^"])
@pytest.mark.parametrize("options", ["b", "bs", "ib"])
def test_another_birth_date_is_a_mismatch(birth: str, options: str) -> None:
    text = checked(options, told((OURS, TEST), birth=birth))
    assert "date de naissance" in text
    assert birth not in text
    assert checked("i", told(birth=birth)) == ""


@pytest.mark.requirement("DB.SO.191")
def test_the_same_birth_date_in_any_writing_passes() -> None:
    for options in ("b", "bs"):
        assert checked(options, told(birth="19840701")) == ""
        assert checked(options, told(birth="1984.07.01")) == ""
        assert checked(options, told(birth="19840701"), birth_date="198407011030+0100") == ""
        # Whose images they are is another check.
        assert checked(options, told((OTHER, TEST), patient_id="X")) == ""


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
def test_silence_is_a_mismatch_only_for_the_strict() -> None:
    nothing = StatedPatient()
    assert checked("ib", nothing) == ""
    assert "aucun identifiant" in checked("is", nothing)
    assert "le PACS ne donne pas la date" in checked("bs", nothing)
    assert "le compte rendu ne donne pas la date" in checked("bs", told(), birth_date="")
    assert checked("b", told(), birth_date="") == ""
    # An INS is never demanded where an IPP is told, nor the reverse.
    assert checked("is", told((OURS, TEST), patient_id=None)) == checked("is", told()) == ""


@pytest.mark.requirement("DB.SO.16")
def test_a_report_without_local_identifier_is_checked_by_the_ins_alone() -> None:
    """As one taken over from another gateway's archive may be."""
    known = attrs.evolve(report(), ipp=None)
    for strictly in (False, True):
        here = site(1, check_feed_identity=True, check_feed_strictly=strictly)
        check_patient(here, attrs.evolve(study(), patients=(told(patient_id="X"),)), known)
        check_patient(here, attrs.evolve(study(), patients=(told((OURS, TEST)),)), known)
        with pytest.raises(PatientMismatch):
            check_patient(here, attrs.evolve(study(), patients=(told((OTHER, TEST)),)), known)
    with pytest.raises(PatientMismatch, match="aucun identifiant"):
        check_patient(here, attrs.evolve(study(), patients=(StatedPatient(),)), known)


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
def test_one_image_of_another_patient_is_enough() -> None:
    good = told((OURS, TEST))
    assert "l'INS" in checked("i", good, good, told((OTHER, TEST)))
    assert "l'IPP" in checked("i", good, told(patient_id="X"))
    assert "date" in checked("b", good, told(birth="19840702"))
    # And one that says nothing is not, unless silence counts.
    assert checked("ib", good, StatedPatient()) == ""
    assert "aucun identifiant" in checked("is", good, StatedPatient())


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
def test_an_archive_that_tells_the_plain_fields_alone_is_checked_too() -> None:
    here = site(1, check_feed_identity=True, check_feed_birth_date=True)
    plain = attrs.evolve(study(), patient_id="P000123", patient_birth_date="19840701")
    check_patient(here, plain, report())
    check_patient(here, attrs.evolve(plain, patient_id="X", ins=OURS), report())
    for wrong in ({"patient_id": "X"}, {"ins": OTHER}, {"patient_birth_date": "19840702"}):
        with pytest.raises(PatientMismatch):
            check_patient(here, attrs.evolve(plain, **wrong), report())


# -- in the feed ----------------------------------------------------------------------------------------

CHECKED: tuple[Site, ...] = (site(1, check_feed_identity=True, check_feed_birth_date=True),)


def stage(stated: StatedPatient, *kos: Any, **options: Any) -> Stage:
    pacses = Pacses(PACS1=attrs.evolve(study(), patients=(stated,)))
    return Stage(pacses, *kos, **{"sites": CHECKED, **options})


@pytest.mark.requirement("DB.SO.16", "DB.SO.191", "DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize(
    "stated", [told((OTHER, TEST)), told(patient_id="X"), told((OURS, TEST), birth="19840702")]
)
def test_a_mismatch_is_told_and_audited_and_changes_nothing(stated: StatedPatient) -> None:
    for kos in ((), (archived(),), (archived(fingerprint=Stage(sites=CHECKED).print_()),)):
        found = stage(stated, *kos)
        found.match()
        assert [each[:2] for each in found.jobs.ended] == [(5, "E001")]
        assert found.jobs.queued == []
        assert found.trail.shown() == [("ITI-41", "E001")]
        ((code, text),) = found.notices.open.values()
        assert code == "E001"
        assert found.archive.kos == list(kos)
        for secret in (OURS, OTHER, "P000123", "EXEMPLE", "1984"):
            assert secret not in text


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
def test_without_the_options_the_pacs_may_say_what_it_likes() -> None:
    found = stage(told((OTHER, TEST), birth="19000101"), sites=(site(1),))
    found.match()
    assert found.jobs.ended == [(5, "queued")]
    good = stage(told((OURS, TEST)))
    good.match()
    assert good.jobs.ended == [(5, "queued")]

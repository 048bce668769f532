"""Values for the tests of the store: a report, a study, a submission, and a clock that is ours."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import attrs

from drimbox.model import (
    Code,
    Identifier,
    Instance,
    MessageAction,
    Organization,
    Patient,
    Person,
    Report,
    RequestIds,
    Series,
    Study,
    StudyAct,
    Visibility,
)
from drimbox.ports import ReportSaid, Submission

START = datetime(2026, 1, 12, 9, 30, 1, 123456, tzinfo=UTC)
INS = "284070100499094"


class TestClock:
    """A `ports.Clock` that stands still until told."""

    __test__ = False

    def __init__(self) -> None:
        self.instant = START

    def now(self) -> datetime:
        return self.instant

    def advance(self, seconds: float) -> datetime:
        self.instant += timedelta(seconds=seconds)
        return self.instant


def report(study_uid: str = "2.25.1", document_id: str = "2.25.900") -> Report:
    return Report(
        document_id=document_id,
        set_id="2.25.901",
        version="1",
        patient=Patient(
            ins=INS,
            ins_oid="1.2.250.1.213.1.4.10",
            family="PAT-TROIS",
            given="DOMINIQUE",
            birth_date="19840711",
            sex="F",
            birth_place="01004",
            given_list="DOMINIQUE MARIE-LOUISE",
        ),
        ipp=Identifier("IPP-77", "2.25.5"),
        requests=(RequestIds(Identifier("ACC-7788", "2.25.53"), Identifier("ORD-1", "2.25.54")),),
        acts=(
            StudyAct(
                study_uid=study_uid,
                modalities=(Code("CT", "1.2.840.10008.2.16.4", "Scanner"),),
                regions=(Code("69536005", "2.16.840.1.113883.6.96", "Tête"),),
                description="Scanner cérébral « sans injection »",
                start="20260112090000+0100",
            ),
        ),
        structure=Organization("1240001451", "Clinique de démonstration"),
        author=Person("899700000001", "PRAT", "Élise"),
        author_organization=Organization("1240001451", "Clinique de démonstration"),
        author_role="G15_10/SM44",
        legal_authenticator=Person("899700000001", "PRAT", "Élise"),
        effective_time="20260112093000+0100",
        confidentiality="N",
        language="fr-FR",
        title="CR d'imagerie",
        replaces=None,
        facility_type=Code("SA01", "1.2.250.1.71.4.2.4", "Établissement public de santé"),
    )


def study(study_uid: str = "2.25.1") -> Study:
    return Study(
        study_uid=study_uid,
        series=(
            Series("2.25.11", "CT", (Instance("2.25.111", "1.2.840.10008.5.1.4.1.1.2", 1),), 1, "Axial"),
        ),
        date="20260112",
        time="090000",
        patient_id="IPP-77",
    )


def submission(sop: str = "2.25.500", study_uid: str = "2.25.1", ins: str | None = None) -> Submission:
    return Submission(
        kos=b"\x00" * 128 + b"DICM" + bytes(range(256)),
        sop_instance_uid=sop,
        submission_uid=f"{sop}.1",
        signature_uid=f"{sop}.2",
        submission_time=START,
        report=report(study_uid),
        visibility=Visibility(hidden_from_patient=True),
        secret_connection=False,
        patient_class="O",
        study=attrs.evolve(study(study_uid), ins=ins),
        structure_id="1240001451",
    )


_DOCUMENTS = itertools.count(1)


def said(*studies: str) -> ReportSaid:
    """What a new report about these studies says; each time another document."""
    return ReportSaid(f"2.25.77.{next(_DOCUMENTS)}", None, MessageAction.NEW, None, studies)

"""A study, a report and a site to make manifests from; published manifests, where they are at hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs

from drimbox.config import Appliance, Certificate, Pacs, Site, Structure, WadoSettings
from drimbox.kos.manifest import build_manifest
from drimbox.model import (
    DCM_OID,
    SNOMED_OID,
    Code,
    Identifier,
    Instance,
    Organization,
    Patient,
    Person,
    Report,
    RequestIds,
    Series,
    Study,
    StudyAct,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "2.25.1001"
CREATED = datetime(2026, 1, 12, 9, 30, 5, tzinfo=timezone(timedelta(hours=1)))

_NO_KEY = Certificate(Path("/none.pem"), Path("/none.key"))
SITE = Site(
    name="nord",
    wado_fqdn="db1.349.mesimagesmedicales.fr",
    viewer_fqdn="vi1.349.mesimagesmedicales.fr",
    pacs=Pacs("pacs", "PACS", "127.0.0.1", 104, ("DRIM1",)),
    wado_certificate=_NO_KEY,
)
STRUCTURE = Structure("1999999999", "CENTRE HOSPITALIER D'ÉVRY", _NO_KEY, _NO_KEY)
PATIENT = Patient(
    ins="284070100499094",
    ins_oid="1.2.250.1.213.1.4.10",
    family="O'NÉIL",
    given="ZOÉ",
    birth_date="19840701",
    sex="F",
    birth_place="75120",
    given_list="ZOÉ ANNE MARIE",
    used_family="D'ÀVRAY",
    used_given="MARIE",
)
ACT = StudyAct(
    study_uid=STUDY,
    modalities=(Code("CT", DCM_OID, "Scanner"),),
    regions=(Code("774007", SNOMED_OID, "Tête et cou"),),
    description="Scanner du crâne",
    start="20260112083000+0100",
    stop="20260112084500+0100",
    practice_setting=Code("AMBULATOIRE", "1.2.250.1.213.1.1.4.9", "Ambulatoire"),
)
REPORT = Report(
    document_id="2.25.5001",
    set_id="2.25.5000",
    version="1",
    patient=PATIENT,
    ipp=Identifier("P000123", "2.25.61"),
    requests=(
        RequestIds(Identifier("ACC-7788", "2.25.53"), Identifier("5501", "2.25.54")),
        RequestIds(Identifier("ACC-7789", "2.25.53"), Identifier("5502", "2.25.54")),
    ),
    acts=(ACT, attrs.evolve(ACT, study_uid="2.25.1002", description="Autre examen")),
    structure=Organization("1999999999", "CH"),
    author=Person("810000000001", "MARTIN", "JEAN"),
    author_organization=Organization("1999999999", "CH"),
    author_role="G15_10/SM44",
    legal_authenticator=Person("810000000001", "MARTIN", "JEAN"),
    effective_time="20260112093000+0100",
    confidentiality="N",
    language="fr-FR",
    title="Compte rendu",
    replaces=None,
    facility_type=Code("SA01", "1.2.250.1.71.4.2.4"),
)


def series(number: int, count: int = 3, sop_class: str = CT, modality: str = "CT", **more: Any) -> Series:
    uid = f"2.25.1001.{number}"
    values: dict[str, Any] = {"number": number, "description": f"Série d'été n° {number}"}
    instances = tuple(Instance(f"{uid}.{index}", sop_class, index) for index in range(1, count + 1))
    return Series(uid, modality, instances, **(values | more))


def study(*all_series: Series, **more: Any) -> Study:
    values: dict[str, Any] = {"date": "20260112", "time": "083000.123", "description": "TDM crâne"}
    return Study(STUDY, all_series or (series(1), series(2, 2)), **(values | more))


def build(**changes: Any) -> bytes:
    """Build a manifest of the samples above; `patient` changes traits, other names replace arguments."""
    report = changes.pop("report", REPORT)
    if "patient" in changes:
        report = attrs.evolve(report, patient=attrs.evolve(report.patient, **changes.pop("patient")))
    arguments: dict[str, Any] = {
        "report": report,
        "study": study(),
        "site": SITE,
        "structure": STRUCTURE,
        "wado": WadoSettings(),
        "appliance": Appliance(state_dir=Path("/none"), system_id="349", manufacturer="ÉDITEUR"),
        "sop_instance_uid": "2.25.9001",
        "series_uid": "2.25.9002",
        "created": CREATED,
    }
    return build_manifest(**(arguments | changes))

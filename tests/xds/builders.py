"""Invented patients, structures and submissions for the tests of `drimbox.xds`."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path

import attrs
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from drimbox.config import (
    Appliance,
    Certificate,
    Config,
    DmpSettings,
    PscSettings,
    Structure,
    TrustSettings,
)
from drimbox.model import (
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
    Visibility,
)
from drimbox.ports import Removal, Submission
from drimbox.xds.sender import Sender

ROOT = Path(__file__).resolve().parents[2]
KOS_UID = "2.25.111"
STUDY_UID = "2.25.222"
INS = "284070100499094"


def samples() -> Path:
    """Folder of the agency's published samples; it may not exist."""
    base = Path(os.environ.get("DRIMBOX_SAMPLES", ROOT.parent / "shared" / "data" / "ans-poc"))
    return base / "ans-poc" if (base / "ans-poc").is_dir() else base


def schemas() -> Path:
    """Folder of the public XML schemas; it may not exist."""
    return Path(os.environ.get("DRIMBOX_SCHEMAS", ROOT.parent / "shared" / "data" / "schemas"))


def make_kos(
    uid: str = KOS_UID, date: str = "20260112", time: str = "104500", zone: str | None = "+0100"
) -> bytes:
    """Part 10 bytes with the attributes that the metadata reads, and some that it does not."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.59"
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = uid
    dataset.InstanceCreationDate = date
    dataset.InstanceCreationTime = time
    if zone is not None:
        dataset.TimezoneOffsetFromUTC = zone
    dataset.PatientID = INS
    dataset.StudyInstanceUID = STUDY_UID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


REPORT = Report(
    document_id="2.999.7.1",
    set_id="2.999.7.1",
    version="1",
    patient=Patient(
        ins=INS,
        ins_oid="1.2.250.1.213.1.4.10",
        family="EXEMPLE",
        given="CLAIRE",
        birth_date="19840701",
        sex="F",
        birth_place="01004",
    ),
    ipp=Identifier("P000123", "2.999.5.1"),
    requests=(
        RequestIds(Identifier("ACC-7788", "2.999.5.3"), Identifier("5501", "2.999.5.4")),
        RequestIds(Identifier("ACC-7789", "2.999.5.3"), Identifier("5502", "2.999.5.4")),
    ),
    acts=(
        StudyAct(
            study_uid=STUDY_UID,
            modalities=(Code("MR", "1.2.250.1.213.1.1.5.618", "IRM"),),
            regions=(Code("774007", "2.16.840.1.113883.6.96", "Tête et cou"),),
            description="IRM tête",
            start="20260110140000+0100",
            stop="20260110143000+0100",
            practice_setting=Code("AMBULATOIRE", "1.2.250.1.213.1.1.4.9", "Ambulatoire"),
        ),
        StudyAct(
            study_uid="2.25.333",
            modalities=(Code("XA", "1.2.840.10008.2.16.4", "Angiographie"),),
            regions=(Code("80891009", "2.16.840.1.113883.6.96", "Cœur"),),
        ),
    ),
    structure=Organization("1999999999", "CABINET Y"),
    author=Person("899700000001", "DURAND", "PAUL"),
    author_organization=Organization("1999999999", "CABINET Y"),
    author_role="G15_10/SM44",
    legal_authenticator=Person("899700000002", "MARTIN", "ANNE"),
    effective_time="20260112093000+0100",
    confidentiality="N",
    language="fr-FR",
    title="Compte rendu d'IRM",
    replaces=None,
    facility_type=Code("SA08", "1.2.250.1.71.4.2.4", "Cabinet de groupe"),
)

STUDY = Study(
    study_uid=STUDY_UID,
    series=(
        Series("2.25.1", "MR", (Instance("2.25.11", "1.2.840.10008.5.1.4.1.1.4"),)),
        Series("2.25.2", "MR", (Instance("2.25.12", "1.2.840.10008.5.1.4.1.1.4"),)),
        Series("2.25.3", "CT", (Instance("2.25.13", "1.2.840.10008.5.1.4.1.1.2"),)),
        Series("2.25.4", "SR", (Instance("2.25.14", "1.2.840.10008.5.1.4.1.1.88.33"),)),
    ),
    date="20260110",
    time="141500.120",
)

SUBMISSION = Submission(
    kos=make_kos(),
    sop_instance_uid=KOS_UID,
    submission_uid="2.25.444",
    signature_uid="2.25.555",
    submission_time=datetime(2026, 1, 12, 9, 46, 1, 25000, tzinfo=UTC),
    report=REPORT,
    visibility=Visibility(),
    secret_connection=False,
    patient_class="O",
    study=STUDY,
    structure_id="1999999999",
)

REMOVAL = Removal(
    sop_instance_uid=KOS_UID,
    submission_uid="2.25.446",
    submission_time=datetime(2026, 1, 13, 9, 46, 1, tzinfo=UTC),
    report=REPORT,
    patient_class="O",
    structure_id="1999999999",
)

APPLIANCE = Appliance(
    state_dir=Path("state"),
    system_id="349",
    name="DRIMbox",
    manufacturer="Éditeur",
    oid="2.999.30",
    serial_number="SN-1",
    dmp_certification="HOMOL-1",
)


def make_structure(signature: Certificate, authentication: Certificate | None = None) -> Structure:
    """The situation d'exercice of the tests."""
    return Structure("1999999999", "CABINET Y", authentication or signature, signature)


def make_sender(structure: Structure, **settings: str) -> Sender:
    """A sender with DMP settings changed by name."""
    dmp = DmpSettings(base_url="https://dmp.invalid", roots=Path("roots.pem"))
    return Sender(APPLIANCE, attrs.evolve(dmp, **settings), structure)


def make_config(base_url: str, roots: Path, structure: Structure, **settings: object) -> Config:
    """A configuration with what the client reads of it."""
    return Config(
        drimbox=APPLIANCE,
        sites=(),
        ris=(),
        structures=(structure,),
        trust=TrustSettings(roots, roots, roots),
        dmp=attrs.evolve(DmpSettings(base_url=base_url, roots=roots), **settings),
        psc=PscSettings("https://psc.invalid", "id", roots),
    )

"""Good inputs of the cross validator, from the simulators and our own producer, and ways to spoil them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
from pydicom import dcmread, dcmwrite

from drimbox.cda.header import build_report
from drimbox.hl7.message import read_report_message
from drimbox.kos.keyimages import cited_by, read_note
from drimbox.ports import Submission
from drimbox.sim.ris import SimMessage, build_message
from drimbox.sim.ris_report import SimAct, SimReport, build_cda
from drimbox.sim.studies import GeneratedStudy, SimPatient, StudyFacts, make_study
from drimbox.sim.study_objects import add_key_objects
from drimbox.xds.metadata import submission_metadata
from tests.kos import samples
from tests.xds.builders import make_sender, make_structure

STUDY = "2.25.1001"
OTHER = "2.25.1002"
IPP = SimReport().ipp
REPORT = SimReport(
    acts=(
        SimAct(STUDY, ("CT",), ("67734004",), description="Scanner du thorax", start="20240312100000+0100"),
        SimAct(OTHER, ("MR",), ("774007",), start="20240312110000+0100"),
    ),
    used_family="D'ÀVRAY",
)
PATIENT = SimPatient(id=IPP, name="EXEMPLE^CLAIRE", birth_date="19840701", ins=REPORT.ins)


@attrs.define
class Inputs:
    """What one run of the validator gets; a spoiler changes it."""

    report: bytes
    kos: list[bytes]
    images: Path
    metadata: bytes
    roots: list[str] = attrs.field(factory=list)

    @property
    def files(self) -> list[Path]:
        """The image files, in their order."""
        return sorted(path for path in self.images.rglob("*") if path.is_file())

    def edit_report(self, old: str, new: str) -> None:
        """Make the report a bare CDA in which `old`, which must be there, is `new`."""
        text = build_cda(REPORT).decode()
        assert old in text
        self.report = text.replace(old, new).encode()

    def edit_metadata(self, old: str, new: str) -> None:
        """Replace every `old`, which must be there, in the metadata."""
        assert old.encode() in self.metadata
        self.metadata = self.metadata.replace(old.encode(), new.encode())

    def edit_kos(self, change: Callable[[Any], None]) -> None:
        """Change the manifest with pydicom."""
        self.kos[0] = edited(self.kos[0], change)

    def edit_image(self, change: Callable[[Any], None], name: str = "CT") -> None:
        """Change the first file whose name begins so."""
        path = next(each for each in self.files if each.name.startswith(name))
        path.write_bytes(edited(path.read_bytes(), change))


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    """Return a DICOM file changed with pydicom."""
    dataset = dcmread(BytesIO(data))
    change(dataset)
    out = BytesIO()
    dcmwrite(out, dataset)
    return out.getvalue()


def make_images(folder: Path) -> GeneratedStudy:
    """Write a study of two series and a key image note that cites one image."""
    study = make_study(
        folder,
        instances=4,
        series=2,
        rows=8,
        columns=8,
        study_uid=STUDY,
        patient=PATIENT,
        facts=StudyFacts(description="TDM thorax"),
        distinct=1,
    )
    return add_key_objects(study, targets=study.instances[:1])


def make_manifest(study: GeneratedStudy, report: SimReport = REPORT) -> bytes:
    """Build the manifest as the gateway does, from the message and what the PACS lists."""
    notes = [
        note
        for path in study.files
        if path.name.startswith("KO") and (note := read_note(path.read_bytes())) is not None
    ]
    return samples.build(
        report=build_report(read_report_message(build_message(report))),
        study=study.as_model(),
        structure=attrs.evolve(samples.STRUCTURE, id=report.structure_id),
        key_images=cited_by(notes, study.as_model()),
    )


def make_metadata(study: GeneratedStudy, kos: bytes) -> bytes:
    """Build the metadata of the manifest as the gateway does."""
    message = read_report_message(build_message(REPORT))
    submission = Submission(
        kos=kos,
        sop_instance_uid="2.25.9001",
        submission_uid="2.25.444",
        signature_uid="2.25.555",
        submission_time=samples.CREATED,
        report=build_report(message),
        visibility=message.visibility,
        secret_connection=False,
        patient_class="O",
        study=study.as_model(),
        structure_id=REPORT.structure_id,
    )
    sender = make_sender(make_structure(samples.STRUCTURE.signature))
    return submission_metadata(sender, submission, b"<Signature/>")


def make_inputs(study: GeneratedStudy, folder: Path) -> Inputs:
    """Return good inputs whose files may be spoilt."""
    images = folder / "images"
    shutil.copytree(study.folder, images)
    kos = make_manifest(study)
    return Inputs(build_message(REPORT, SimMessage()), [kos], images, make_metadata(study, kos))

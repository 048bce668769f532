"""Studies made of nothing: valid DICOM images for tests, the demonstration and the bench.

Theory of operation. A study is described by a handful of arguments and everything else follows from
them: UIDs are name-based UUIDs (PS3.5 B.2) of the study UID or of the seed, pixels come from a seeded
generator. Two calls with the same arguments therefore write the same study, which is what lets a
caller cache it; another `seed` or `study_uid` gives another one.

Slices are cheap on purpose: only `distinct` of them (24 by default) are drawn and encoded, then used
again and again in turn, each time under its own SOP Instance UID, instance number and position. A
receiver cannot tell, a compressor is paid 24 times instead of 1,300, and the bytes on the wire are as
many as those of a real study: the noise is tuned so that a 512 x 512 slice of 16-bit words (12 stored)
weighs about 160 KB in JPEG-LS lossless, and the reference study of 1,300 slices about 200 MB.

Objects that are not images (structured report, key objects, ...) are in `drimbox.sim.study_objects`.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
)

from drimbox.model import Identifier, Instance, Series, StatedPatient, Study, is_uid
from drimbox.sim.slices import BITS_STORED, encoded_slices

#: Namespace of every generated UID; any fixed UUID does.
_NAMESPACE = uuid.UUID("5d6a0d7e-4b0b-5a4e-9c0c-5c2f3f0f7a11")
_IMAGE_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "CR": ComputedRadiographyImageStorage}
_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless)

#: What the bench and the performance requirements call the reference study (DB.SO.100).
REFERENCE_INSTANCES = 1300


@attrs.frozen
class SimPatient:
    """The patient as the PACS knows him: local identifier, and the INS when the PACS stores it."""

    id: str = "IPP0042"
    issuer: str = "CH-EXEMPLE"
    name: str = "PAT-TROIS^DOMINIQUE"
    birth_date: str = "19750612"
    sex: str = "F"
    #: INS matricule put in OtherPatientIDsSequence, with its OID; None leaves the sequence out.
    ins: str | None = None
    ins_oid: str = "1.2.250.1.213.1.4.10"


@attrs.frozen
class StudyFacts:
    """Study-level values that the caller may want to choose."""

    #: DICOM DA and TM.
    date: str = "20240312"
    time: str = "101530"
    accession: str = "ACC0001"
    description: str = "TDM THORAX ABDOMEN PELVIS"
    institution: str = "CH EXEMPLE"
    study_id: str = "1"


@attrs.frozen
class GeneratedInstance:
    """One file written, and its identity."""

    sop_instance_uid: str
    sop_class_uid: str
    number: int
    path: Path


@attrs.frozen
class GeneratedSeries:
    """One series written."""

    series_uid: str
    modality: str
    number: int
    description: str
    instances: tuple[GeneratedInstance, ...]


@attrs.frozen
class GeneratedStudy:
    """What was written, in the order of series and instance numbers."""

    folder: Path
    study_uid: str
    patient: SimPatient
    facts: StudyFacts
    transfer_syntax: str
    series: tuple[GeneratedSeries, ...]

    @property
    def instances(self) -> tuple[GeneratedInstance, ...]:
        """All instances, series by series."""
        return tuple(instance for series in self.series for instance in series.instances)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, series by series."""
        return tuple(instance.path for instance in self.instances)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def as_model(self) -> Study:
        """Return the study as the gateway's own model would have it after a C-FIND."""
        patient = self.patient
        said = StatedPatient(
            patient_id=patient.id or None,
            patient_id_issuer=patient.issuer or None,
            ins=(Identifier(patient.ins, patient.ins_oid),) if patient.ins else (),
            birth_date=patient.birth_date,
        )
        return Study(
            study_uid=self.study_uid,
            series=tuple(
                Series(
                    series_uid=series.series_uid,
                    modality=series.modality,
                    instances=tuple(
                        Instance(i.sop_instance_uid, i.sop_class_uid, i.number) for i in series.instances
                    ),
                    number=series.number,
                    description=series.description,
                )
                for series in self.series
            ),
            date=self.facts.date,
            time=self.facts.time,
            description=self.facts.description,
            patient_id=patient.id,
            patient_id_issuer=patient.issuer,
            patient_birth_date=patient.birth_date,
            ins=patient.ins,
            patients=(said,),
        )


def derived_uid(*names: object) -> str:
    """Return the UID that these names always give: a name-based UUID under 2.25 (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(str(name) for name in names)).int}"


def make_study(
    folder: Path,
    *,
    instances: int = 3,
    rows: int = 64,
    columns: int = 64,
    transfer_syntax: str = ExplicitVRLittleEndian,
    modality: str = "CT",
    series: int = 1,
    study_uid: str | None = None,
    series_uids: Sequence[str] | None = None,
    patient: SimPatient | None = None,
    facts: StudyFacts | None = None,
    seed: int = 0,
    distinct: int = 24,
) -> GeneratedStudy:
    """Write one study of images under `folder` and say what was written.

    `instances` is the number of images of the whole study, spread over `series` series as evenly as
    possible (the first ones get the remainder). `modality` is CT, MR or CR; `transfer_syntax` is
    Explicit or Implicit VR Little Endian, or JPEG-LS Lossless. `series_uids`, when given, names every
    series. `distinct` bounds how many different slices are drawn (see the module's docstring).
    Raises ValueError for an argument outside these.
    """
    if modality not in _IMAGE_CLASSES:
        raise ValueError(f"modality {modality!r} is not one of {sorted(_IMAGE_CLASSES)}")
    if transfer_syntax not in _SYNTAXES:
        raise ValueError(f"transfer syntax {transfer_syntax} is not one of {[str(s) for s in _SYNTAXES]}")
    if instances < 1 or series < 1 or instances < series or rows < 4 or columns < 4 or distinct < 1:
        raise ValueError("at least one instance per series, 4 x 4 pixels and one distinct slice are needed")
    if series_uids is not None and len(series_uids) != series:
        raise ValueError(f"{len(series_uids)} series UIDs given for {series} series")
    patient, facts = patient or SimPatient(), facts or StudyFacts()
    study_uid = study_uid or derived_uid("study", seed, patient.id, facts.accession, modality)
    for uid in (study_uid, *(series_uids or ())):
        if not is_uid(uid):
            raise ValueError(f"not a UID: {uid!r}")
    folder.mkdir(parents=True, exist_ok=True)
    slices = encoded_slices(min(distinct, instances), rows, columns, transfer_syntax, seed)
    written = []
    for index in range(series):
        series_uid = series_uids[index] if series_uids else derived_uid(study_uid, "series", index + 1)
        count = instances // series + (1 if index < instances % series else 0)
        template = _image_template(
            modality, rows, columns, patient, facts, study_uid, series_uid, index + 1
        )
        written.append(_write_series(folder, template, count, slices, transfer_syntax))
    return GeneratedStudy(folder, study_uid, patient, facts, str(transfer_syntax), tuple(written))


def make_reference_study(folder: Path, *, instances: int = REFERENCE_INSTANCES) -> GeneratedStudy:
    """Write the reference study of the performance tests (DB.SO.100): CT 512 x 512, JPEG-LS lossless.

    With the default of 1,300 instances it weighs about 200 MB. A smaller number keeps the same slices
    and so the same weight per image.
    """
    return make_study(
        folder, instances=instances, rows=512, columns=512, transfer_syntax=JPEGLSLossless, distinct=32
    )


def base_dataset(
    patient: SimPatient, facts: StudyFacts, study_uid: str, sop_class: str, modality: str
) -> Dataset:
    """Return the patient, study and equipment modules that every object of a study shares."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.InstanceCreationDate, data.InstanceCreationTime = facts.date, facts.time
    data.SOPClassUID = sop_class
    data.StudyDate, data.StudyTime = facts.date, facts.time
    data.AccessionNumber = facts.accession
    data.Modality = modality
    data.Manufacturer = "DRIMbox"
    data.InstitutionName = facts.institution
    data.ReferringPhysicianName = "MEDECIN^DEMANDEUR"
    data.StationName = "SIM1"
    data.StudyDescription = facts.description
    data.ManufacturerModelName = "Simulateur"
    data.PatientName = patient.name
    data.PatientID = patient.id
    data.IssuerOfPatientID = patient.issuer
    data.PatientBirthDate, data.PatientSex = patient.birth_date, patient.sex
    if patient.ins is not None:
        data.OtherPatientIDsSequence = [_ins_item(patient.ins, patient.ins_oid)]
    data.PatientAge = _age(patient.birth_date, facts.date)
    data.DeviceSerialNumber = "0001"
    data.SoftwareVersions = "1"
    data.StudyInstanceUID = study_uid
    data.StudyID = facts.study_id
    return data


def write_instance(path: Path, data: Dataset, transfer_syntax: str) -> None:
    """Write one Part 10 file: preamble of zeroes, file meta, data set in `transfer_syntax`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax)
    data.file_meta = meta
    data.save_as(path, enforce_file_format=True)


def spread(files: Iterable[Path], folder: Path) -> list[Path]:
    """Hard-link (or copy) files into another folder under the same names: a second store for free."""
    folder.mkdir(parents=True, exist_ok=True)
    links = []
    for file in files:
        link = folder / file.name
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(file)
        except OSError:
            link.write_bytes(file.read_bytes())
        links.append(link)
    return links


def _write_series(
    folder: Path, template: Dataset, count: int, slices: list[bytes], transfer_syntax: str
) -> GeneratedSeries:
    instances = []
    for index in range(count):
        number = index + 1
        template.SOPInstanceUID = derived_uid(template.SeriesInstanceUID, number)
        template.InstanceNumber = number
        if template.Modality != "CR":
            location = round(-0.5 * count + index, 1)
            template.ImagePositionPatient = [-180.0, -180.0, location]
            template.SliceLocation = location
        template.add_new("PixelData", "OB" if transfer_syntax == JPEGLSLossless else "OW", b"")
        element = template["PixelData"]
        element.value = slices[index % len(slices)]
        element.is_undefined_length = transfer_syntax == JPEGLSLossless
        path = folder / f"{template.Modality}{int(template.SeriesNumber):02}_{number:05}.dcm"
        write_instance(path, template, transfer_syntax)
        instances.append(
            GeneratedInstance(str(template.SOPInstanceUID), str(template.SOPClassUID), number, path)
        )
    return GeneratedSeries(
        str(template.SeriesInstanceUID),
        str(template.Modality),
        int(template.SeriesNumber),
        str(template.SeriesDescription),
        tuple(instances),
    )


def _image_template(
    modality: str,
    rows: int,
    columns: int,
    patient: SimPatient,
    facts: StudyFacts,
    study_uid: str,
    series_uid: str,
    number: int,
) -> Dataset:
    data = base_dataset(patient, facts, study_uid, _IMAGE_CLASSES[modality], modality)
    data.ImageType = ["ORIGINAL", "PRIMARY", *{"CT": ["AXIAL"], "MR": ["OTHER"]}.get(modality, [])]
    data.SeriesDate, data.SeriesTime = facts.date, facts.time
    data.AcquisitionDate, data.AcquisitionTime = facts.date, facts.time
    data.ContentDate, data.ContentTime = facts.date, facts.time
    data.SeriesDescription = f"{modality} SERIE {number}"
    data.ProtocolName = "SIMULATION"
    data.SeriesInstanceUID = series_uid
    data.SeriesNumber = number
    data.AcquisitionNumber = 1
    data.PatientOrientation = ["L", "F"] if modality == "CR" else ["L", "P"]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = rows, columns
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, BITS_STORED, BITS_STORED - 1
    data.PixelRepresentation = 0
    data.WindowCenter, data.WindowWidth = ("40", "400") if modality == "CT" else ("1000", "1200")
    {"CT": _add_ct, "MR": _add_mr, "CR": _add_cr}[modality](data)
    return data


def _add_volume(data: Dataset) -> None:
    data.FrameOfReferenceUID = derived_uid(data.StudyInstanceUID, "frame")
    data.PositionReferenceIndicator = ""
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [0.703125, 0.703125]
    data.SliceThickness = "1.0"
    data.PatientPosition = "HFS"
    data.BodyPartExamined = "CHEST"


def _add_ct(data: Dataset) -> None:
    _add_volume(data)
    data.KVP = "120"
    data.DataCollectionDiameter = "500"
    data.ReconstructionDiameter = "360"
    data.GantryDetectorTilt = "0"
    data.TableHeight = "150"
    data.RotationDirection = "CW"
    data.ExposureTime, data.XRayTubeCurrent, data.Exposure = "500", "200", "100"
    data.FilterType = "BODY"
    data.ConvolutionKernel = "STANDARD"
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"


def _add_mr(data: Dataset) -> None:
    _add_volume(data)
    data.ScanningSequence, data.SequenceVariant = "SE", "SK"
    data.ScanOptions = None
    data.MRAcquisitionType = "2D"
    data.RepetitionTime, data.EchoTime, data.EchoTrainLength = "500", "15", "1"
    data.MagneticFieldStrength = "1.5"
    data.SpacingBetweenSlices = "1.0"
    data.FlipAngle = "90"


def _add_cr(data: Dataset) -> None:
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = "PA"
    data.KVP = "110"
    data.PlateID = "1"
    data.ImagerPixelSpacing = [0.2, 0.2]


def _ins_item(ins: str, oid: str) -> Dataset:
    qualifiers = Dataset()
    qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = oid, "ISO"
    item = Dataset()
    item.PatientID = ins
    item.TypeOfPatientID = "TEXT"
    item.IssuerOfPatientIDQualifiersSequence = [qualifiers]
    return item


def _age(birth: str, day: str) -> str:
    born, then = (datetime.date.fromisoformat(value) for value in (birth, day))
    years = then.year - born.year - ((then.month, then.day) < (born.month, born.day))
    return f"{max(years, 0):03}Y"

"""Objects of a study that are not images: report, key objects, presentation state, encapsulated PDF.

A PACS holds them beside the images, a manifest lists them (or filters some of them), and a delivery
must carry them: small data sets, other SOP classes, no pixels. Each function writes one object in a
series of its own and returns the study with that series added; the study given is left as it was.
All four pass `dciodvfy` without error.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
)

from drimbox.sim.studies import (
    GeneratedInstance,
    GeneratedSeries,
    GeneratedStudy,
    base_dataset,
    derived_uid,
    write_instance,
)

#: Titles of key object documents by DCM code (interfaces.md 10, PS3.16 CID 7010 and 7011).
KEY_OBJECT_TITLES = {
    "113000": "Of Interest",
    "113001": "Rejected for Quality Reasons",
    "113030": "Manifest",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}

_PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]>>endobj\n"
    b"trailer<</Root 1 0 R>>\n%%EOF\n"
)


def add_report(
    study: GeneratedStudy, *, text: str = "Examen sans particularité.", series_uid: str | None = None
) -> GeneratedStudy:
    """Add a Basic Text SR of one paragraph."""
    data, number = _start(study, BasicTextSRStorage, "SR", series_uid)
    _document(data, study, "PARTIAL", "UNVERIFIED")
    _container(data, "11528-7", "LN", "Radiology Report", "CONTINUOUS")
    paragraph = Dataset()
    paragraph.RelationshipType, paragraph.ValueType = "CONTAINS", "TEXT"
    paragraph.ConceptNameCodeSequence = [_code("121071", "DCM", "Finding")]
    paragraph.TextValue = text
    data.ContentSequence = [paragraph]
    data.PerformedProcedureCodeSequence = []
    data.ReferencedPerformedProcedureStepSequence = []
    return _finish(study, data, number, "COMPTE RENDU STRUCTURE")


def add_key_objects(
    study: GeneratedStudy,
    *,
    title: str = "113000",
    targets: Sequence[GeneratedInstance] | None = None,
    series_uid: str | None = None,
) -> GeneratedStudy:
    """Add a Key Object Selection: key images (113000) or an IOCM rejection note (113001, 113037...).

    `targets` are the instances it names, all images of the study when absent.
    """
    wanted = {i.sop_instance_uid for i in (study.instances if targets is None else targets)}
    data, number = _start(study, KeyObjectSelectionDocumentStorage, "KO", series_uid)
    data.ContentDate, data.ContentTime = study.facts.date, study.facts.time
    data.ReferencedPerformedProcedureStepSequence = []
    _container(data, title, "DCM", KEY_OBJECT_TITLES[title], "SEPARATE")
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    data.ContentTemplateSequence = [template]
    data.CurrentRequestedProcedureEvidenceSequence = [_evidence(study, wanted)]
    contents = []
    for instance in study.instances:
        if instance.sop_instance_uid in wanted:
            item = Dataset()
            item.RelationshipType, item.ValueType = "CONTAINS", "IMAGE"
            item.ReferencedSOPSequence = [_reference(instance)]
            contents.append(item)
    data.ContentSequence = contents
    return _finish(study, data, number, "IMAGES CLES" if title == "113000" else "NOTE")


def add_presentation_state(study: GeneratedStudy, *, series_uid: str | None = None) -> GeneratedStudy:
    """Add a Grayscale Softcopy Presentation State on the first image of the study."""
    image, images = study.instances[0], study.series[0]
    data, number = _start(study, GrayscaleSoftcopyPresentationStateStorage, "PR", series_uid)
    data.PresentationCreationDate, data.PresentationCreationTime = study.facts.date, study.facts.time
    data.BodyPartExamined = "CHEST"
    data.ContentLabel, data.ContentDescription, data.ContentCreatorName = "ETAT", "", ""
    group = Dataset()
    group.SeriesInstanceUID = images.series_uid
    group.ReferencedImageSequence = [_reference(image)]
    data.ReferencedSeriesSequence = [group]
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [1, 1], [4, 4]
    area.PresentationSizeMode, area.PresentationPixelAspectRatio = "SCALE TO FIT", [1, 1]
    data.DisplayedAreaSelectionSequence = [area]
    window = Dataset()
    window.WindowCenter, window.WindowWidth = "40", "400"
    data.SoftcopyVOILUTSequence = [window]
    data.PresentationLUTShape = "IDENTITY"
    return _finish(study, data, number, "ETAT DE PRESENTATION")


def add_pdf(study: GeneratedStudy, *, series_uid: str | None = None) -> GeneratedStudy:
    """Add an Encapsulated PDF (a dose report, say)."""
    data, number = _start(study, EncapsulatedPDFStorage, "DOC", series_uid)
    data.ConversionType = "WSD"
    data.ContentDate, data.ContentTime = study.facts.date, study.facts.time
    data.AcquisitionDateTime = study.facts.date + study.facts.time
    data.BurnedInAnnotation = "YES"
    data.DocumentTitle = "RAPPORT DE DOSE"
    data.ConceptNameCodeSequence = []
    data.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data.EncapsulatedDocument = _PDF + b"\x00" * (len(_PDF) % 2)
    data.EncapsulatedDocumentLength = len(_PDF)
    return _finish(study, data, number, "DOCUMENT")


def _start(
    study: GeneratedStudy, sop_class: str, modality: str, series_uid: str | None
) -> tuple[Dataset, int]:
    number = max(series.number for series in study.series) + 100
    data = base_dataset(study.patient, study.facts, study.study_uid, sop_class, modality)
    data.SeriesInstanceUID = series_uid or derived_uid(study.study_uid, "object", modality, number)
    data.SOPInstanceUID = derived_uid(data.SeriesInstanceUID, 1)
    data.SeriesNumber, data.InstanceNumber = number, 1
    return data, number


def _finish(study: GeneratedStudy, data: Dataset, number: int, description: str) -> GeneratedStudy:
    data.SeriesDescription = description
    modality = str(data.Modality)
    path = study.folder / f"{modality}{number:03}_00001.dcm"
    write_instance(path, data, ExplicitVRLittleEndian)
    instance = GeneratedInstance(str(data.SOPInstanceUID), str(data.SOPClassUID), 1, path)
    series = GeneratedSeries(str(data.SeriesInstanceUID), modality, number, description, (instance,))
    return attrs.evolve(study, series=(*study.series, series))


def _document(data: Dataset, study: GeneratedStudy, completion: str, verification: str) -> None:
    data.ContentDate, data.ContentTime = study.facts.date, study.facts.time
    data.CompletionFlag, data.VerificationFlag = completion, verification


def _container(data: Dataset, code: str, scheme: str, meaning: str, continuity: str) -> None:
    data.ValueType = "CONTAINER"
    data.ConceptNameCodeSequence = [_code(code, scheme, meaning)]
    data.ContinuityOfContent = continuity


def _evidence(study: GeneratedStudy, wanted: set[str]) -> Dataset:
    evidence = Dataset()
    evidence.StudyInstanceUID = study.study_uid
    groups = []
    for series in study.series:
        references = [_reference(i) for i in series.instances if i.sop_instance_uid in wanted]
        if references:
            group = Dataset()
            group.SeriesInstanceUID = series.series_uid
            group.ReferencedSOPSequence = references
            groups.append(group)
    evidence.ReferencedSeriesSequence = groups
    return evidence


def _reference(instance: GeneratedInstance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item

"""The messages of a random history, written without the gateway's own readers and writers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset as write_elements

from drimbox.model import MessageAction
from drimbox.sim.ris import SimAct, SimMessage, SimOrder, SimReport, build_change, build_message
from tests.histories import operations as ops
from tests.histories.model import study_uid

KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
STRUCTURES = ("1999999999", "1888888888")
#: INS of the patients.
PATIENTS = ("284070100499094", "190017500100125")
#: What MSH-7 counts its minutes from: long before anything comes.
_MORNING = datetime(2026, 1, 10, tzinfo=UTC)


def document_id(document: int) -> str:
    """Return the CDA id of a document."""
    return f"2.999.7.{document + 1}"


def report_message(report: ops.Report, sent: int, number: int) -> bytes:
    """Return the message of a report, sent at second `sent` of the morning; `number` is its control id."""
    action = MessageAction.NEW if report.replaces is None else MessageAction.REPLACE
    flags: dict[str, str | None] = {ops.FLAGS[letter]: "Y" for letter in report.hidden}
    if report.only_visibility:
        flags["MODIF_CONF_CODE"] = "Y"
    if report.flaw == "destdmp":
        flags["DESTDMP"] = "N"
    modalities = () if report.flaw == "incomplete" else ("CT",)
    content = SimReport(
        acts=tuple(
            SimAct(study_uid=study_uid(study), modalities=modalities, description="Scanner")
            for study in report.studies
        ),
        orders=tuple(SimOrder(accession=f"ACC-{name}", order=f"ORD-{name}") for name in report.accessions),
        document_id=document_id(report.document),
        set_id=document_id(report.document),
        replaces="" if report.replaces is None else document_id(report.replaces),
        structure_id=STRUCTURES[report.structure],
        ins=PATIENTS[report.patient],
        ipp=f"P{report.patient}",
        pdf_size=600,
    )
    envelope = SimMessage(
        kind=report.kind,
        action=action,
        control_id=f"M{number}",
        sent_at=_instant(sent),
        flags=flags,
        reliability="PROV" if report.flaw == "ins" else "VALI",
    )
    return build_message(content, envelope)


def withdrawal_message(withdraw: ops.Withdraw, sent: int, number: int) -> bytes:
    """Return the message that unpublishes a report."""
    content = SimReport(
        acts=tuple(SimAct(study_uid=study_uid(study), modalities=("CT",)) for study in withdraw.studies),
        document_id=document_id(withdraw.document),
        set_id=document_id(withdraw.document),
        ipp="P0",
        pdf_size=600,
    )
    envelope = SimMessage(
        kind=withdraw.kind,
        action=MessageAction.DELETE,
        control_id=f"M{number}",
        sent_at=_instant(sent),
    )
    return build_message(content, envelope)


def change_message(change: ops.Change, number: int) -> bytes:
    """Return the OMI^O23 about these studies."""
    return build_change([study_uid(study) for study in change.studies], control_id=f"C{number}")


def key_object(study: str, title: str, uid: str, series: str, cited: Mapping[str, str]) -> Dataset:
    """Return a key object; `cited` tells the series of each instance it cites."""
    root = Dataset()
    root.SOPClassUID, root.SOPInstanceUID, root.Modality = KEY_OBJECT, uid, "KO"
    root.PatientID, root.StudyInstanceUID, root.SeriesInstanceUID = "P0", study, series
    root.ValueType, root.ConceptNameCodeSequence = "CONTAINER", [_code(title)]
    evidence = Dataset()
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = study, []
    for each in sorted(set(cited.values())):
        group = Dataset()
        group.SeriesInstanceUID = each
        group.ReferencedSOPSequence = [_reference(one) for one in sorted(cited) if cited[one] == each]
        evidence.ReferencedSeriesSequence.append(group)
    root.CurrentRequestedProcedureEvidenceSequence = [evidence]
    return root


def encoded(data: Dataset) -> bytes:
    """Return a data set in Explicit VR Little Endian."""
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    write_elements(out, data)
    return bytes(out.getvalue())


def _code(title: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = title, "DCM", "Title"
    return code


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
    return item


def _instant(sent: int) -> str:
    return (_MORNING + timedelta(seconds=sent)).strftime("%Y%m%d%H%M%S+0000")

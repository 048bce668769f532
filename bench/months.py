"""Months of an archive as another DRIMbox exports them, of studies that `bench.finder` holds.

Every manifest and its metadata are made by the gateway's own code, for the address of the gateway that will
load them: a resynchronisation then finds nothing to change, as in a hospital where nothing did.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import attrs

from bench.finder import CT
from bench.ris import message, study_of
from drimbox.config import Config
from drimbox.kos.manifest import build_manifest
from drimbox.model import Instance, Report, Series, Study, Visibility
from drimbox.ports import Submission
from drimbox.source.interpretation import interpret
from drimbox.xdm.names import Month
from drimbox.xdm.pages import Sender as Writer
from drimbox.xdm.reports import ReportLine
from drimbox.xdm.writing import ExportedKos, MonthWriter
from drimbox.xds.metadata import submission_metadata
from drimbox.xds.sender import Sender

MONTH = Month(2026, 1)
_CREATED = datetime(2026, 1, 12, 9, 30, tzinfo=UTC)
#: Of the signature document: an export holds none.
_SIGNATURE = b"<Signature/>"


def write_month(folder: Path, config: Config, numbers: range, *, series: int, instances: int) -> Path:
    """Write the month of these studies, a KOS each, and return its file."""
    folder.mkdir(parents=True)
    read = interpret(message(0))
    assert read.report is not None
    sender = Writer((("CABINET Y", "1999999999"),), "site1", "DRIMbox", "0", "DRIMbox")
    writer = MonthWriter(folder, "", MONTH, sender, limit=None)
    try:
        for number in numbers:
            report = attrs.evolve(
                read.report,
                document_id=f"2.25.{350 * 10**30 + number}",
                acts=tuple(attrs.evolve(act, study_uid=study_of(number)) for act in read.report.acts),
            )
            writer.add(exported(config, report, found(study_of(number), series, instances)))
        return writer.finish()
    finally:
        writer.abandon()


def found(study_uid: str, series: int, instances: int) -> Study:
    """Return a study as the gateway has it from `bench.finder`."""
    return Study(
        study_uid,
        tuple(
            Series(
                f"{study_uid}.{number}",
                "CT",
                tuple(Instance(f"{study_uid}.{number}.{one}", CT, one) for one in range(1, instances + 1)),
                number,
                f"Serie {number}",
            )
            for number in range(1, series + 1)
        ),
        "20260110",
        "140000",
        "IRM tete",
    )


def exported(config: Config, report: Report, study: Study) -> ExportedKos:
    """Return the KOS of a study as it is archived and exported."""
    site, structure = config.sites[0], config.structures[0]
    uid = f"{study.study_uid}.9"
    kos = build_manifest(
        report=report,
        study=study,
        site=site,
        structure=structure,
        wado=config.wado,
        appliance=config.drimbox,
        sop_instance_uid=uid,
        series_uid=f"{uid}.1",
        created=_CREATED,
    )
    submission = Submission(
        kos=kos,
        sop_instance_uid=uid,
        submission_uid=f"{uid}.2",
        signature_uid=f"{uid}.3",
        submission_time=_CREATED,
        report=report,
        visibility=Visibility(),
        secret_connection=False,
        patient_class="O",
        study=study,
        structure_id=structure.id,
    )
    metadata = submission_metadata(Sender(config.drimbox, config.dmp, structure), submission, _SIGNATURE)
    line = ReportLine(report.document_id, report.patient.ins, report.patient.ins_oid)
    return ExportedKos(uid, study.study_uid, kos, metadata, (line,))

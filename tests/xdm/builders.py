"""Manifests with their metadata, archives of every dialect, and hostile ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from drimbox.kos.manifest import build_manifest
from drimbox.model import Report
from drimbox.ports import Submission
from drimbox.xdm import checking
from drimbox.xdm.names import Month
from drimbox.xdm.pages import Sender as XdmSender
from drimbox.xdm.reports import ReportLine
from drimbox.xdm.writing import FAT_LIMIT, ExportedKos, MonthWriter
from drimbox.xds.metadata import submission_metadata
from drimbox.xds.sender import Sender
from tests.source.fakes import config, site, structure
from tests.store import samples

MONTH = Month(2026, 1)
CREATED = datetime(2026, 1, 12, 9, 30, 1, 123456, tzinfo=UTC)
SENDER = XdmSender((("CABINET Y", "1999999999"),), "site1", "DRIMbox", "0.1", "DRIMbox")


@attrs.frozen
class Published:
    """A manifest as this gateway archives it."""

    submission: Submission
    metadata: bytes

    @property
    def uid(self) -> str:
        return self.submission.sop_instance_uid

    def exported(self, *reports: str) -> ExportedKos:
        patient = self.submission.report.patient
        named = reports or (self.submission.report.document_id,)
        lines = tuple(ReportLine(each, patient.ins, patient.ins_oid) for each in named)
        return ExportedKos(
            self.uid, self.submission.study.study_uid, self.submission.kos, self.metadata, lines
        )


def published(
    number: int = 1,
    report: Report | None = None,
    created: datetime = CREATED,
    *,
    of: int | None = None,
    **changes: Any,
) -> Published:
    """Build what publishing study `of`, else `number`, leaves in the archive."""
    study = samples.study(f"2.25.{of or number}")
    said = report or samples.report(study.study_uid, f"2.25.90{number}")
    uid, here, owner = f"2.25.500{number}", config(), structure()
    kos = build_manifest(
        report=said,
        study=study,
        site=site(),
        structure=owner,
        wado=here.wado,
        appliance=here.drimbox,
        sop_instance_uid=uid,
        series_uid=f"{uid}.1",
        created=created,
    )
    made = Submission(
        kos=kos,
        sop_instance_uid=uid,
        submission_uid=f"{uid}.2",
        signature_uid=f"{uid}.3",
        submission_time=created,
        report=said,
        visibility=samples.submission().visibility,
        secret_connection=False,
        patient_class="O",
        study=study,
        structure_id=owner.id,
    )
    made = attrs.evolve(made, **changes)
    return Published(made, submission_metadata(Sender(here.drimbox, here.dmp, owner), made, b"<sig/>"))


def write(folder: Path, *exported: ExportedKos, prefix: str = "", limit: int | None = FAT_LIMIT) -> Path:
    """Write a month."""
    writer = MonthWriter(folder, prefix, MONTH, SENDER, limit=limit)
    try:
        for each in exported:
            writer.add(each)
        return writer.finish()
    finally:
        writer.abandon()


def files(number: int = 1) -> dict[str, bytes]:
    """Return the files of one set."""
    one = published(number)
    with zipfile.ZipFile(_written(one.exported())) as archive:
        return {
            name.rpartition("/")[2].upper(): archive.read(name)
            for name in archive.namelist()
            if "/SS" in name
        }


def taken(one: Published | None = None) -> checking.TakenKos:
    """Return a manifest that was exported and checked."""
    one = one or published()
    with zipfile.ZipFile(_written(one.exported())) as archive:
        held = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/SS" in name}
    (found,) = checking.check_set(held)
    assert isinstance(found, checking.TakenKos), found
    return found


def _written(exported: ExportedKos) -> io.BytesIO:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return io.BytesIO(write(Path(folder), exported).read_bytes())


def zipped(entries: Mapping[str, bytes] | Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """Zip entries as they are named, however odd."""
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pairs:
            archive.writestr(name, data)
    return buffer.getvalue()


def set_entries(
    held: Mapping[str, bytes], top: str = "KA202601/", name: str = "SS000001"
) -> dict[str, bytes]:
    """Return the entries of a zip that holds one set."""
    return {f"{top}IHE_XDM/{name}/{file}": data for file, data in held.items()}

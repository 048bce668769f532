"""Is this submission set what it says? Each manifest of it is taken, or refused with its reason (DB.SO.30).

Held against each other: the file and its metadata (identifier, hash, size), the patient of both and of
CR.TXT, the study. A manifest that contradicts its metadata would be served, replaced or withdrawn for the
wrong patient; what merely lacks is taken with a warning, because a manifest left behind is a dead link.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping

import attrs

from drimbox.kos.reading import Manifest, ManifestRefused, read_manifest
from drimbox.model import INS_OIDS
from drimbox.xdm import entries, metadata, names
from drimbox.xdm.opening import ArchiveRefused, FileRefused, open_zip
from drimbox.xdm.reports import ReportLine, ReportsRefused, read_reports, write_reports
from drimbox.xds import codes

NO_REPORT = "CR.TXT absent : aucun compte rendu ne pourra dépublier ce KOS"
NO_HASH = "empreinte absente de METADATA.XML, intégrité non vérifiée"
OTHER_PATIENT = "lignes de CR.TXT d'un autre INS, ignorées"

_SET = "SS000001"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@attrs.frozen
class TakenKos:
    """One manifest that holds together, and all that is known of it."""

    #: `KOS_1_1.DCM`.
    file: str
    kos: bytes
    manifest: Manifest
    #: SubmitObjectsRequest of this manifest alone.
    metadata: bytes
    submission_set: entries.SubmissionSet
    entry: entries.DocumentEntry
    #: uniqueId of the signature document, empty when there is none.
    signature_uid: str
    reports: tuple[ReportLine, ...]
    warnings: tuple[str, ...] = ()


@attrs.frozen
class RefusedKos:
    """One manifest, or one set (no file), that does not."""

    file: str
    #: French, without patient data.
    reason: str
    #: Empty when not known.
    study_uid: str = ""
    sop_instance_uid: str = ""


def check_set(files: Mapping[str, bytes]) -> list[TakenKos | RefusedKos]:
    """Judge every manifest of a set, given its files by upper-case name; never raises for a bad one."""
    manifests = [name for name in files if names.is_kos(name)]
    if not manifests:
        return [RefusedKos("", "aucun fichier KOS_Y_Z.DCM")]
    try:
        if names.METADATA not in files:
            raise entries.MetadataRefused("METADATA.XML absent")
        objects = entries.parse(files[names.METADATA])
        submitted = entries.read(objects)
        lines = read_reports(files[names.REPORTS]) if names.REPORTS in files else ()
    except (entries.MetadataRefused, ReportsRefused) as refusal:
        return [RefusedKos(name, str(refusal)) for name in manifests]
    return [_check(name, files, submitted, lines) for name in manifests]


def _check(
    name: str, files: Mapping[str, bytes], submitted: entries.Submitted, lines: tuple[ReportLine, ...]
) -> TakenKos | RefusedKos:
    kos = files[name]
    study = sop = ""
    try:
        manifest = read_manifest(kos)
        study, sop = manifest.study_uid, manifest.sop_instance_uid
        found = [entry for entry in submitted.entries if entry.is_kos and entry.unique_id == sop]
        if len(found) != 1:
            raise _Differs("METADATA.XML ne décrit pas ce KOS (uniqueId et SOPInstanceUID différents)")
        text = metadata.of_one(entries.parse(files[names.METADATA]), sop)
        warnings = [*_check_bytes(found[0], kos)]
        _check_patient(found[0], manifest)
        _check_study(found[0], manifest)
        own = tuple(line for line in lines if _same_ins(line.ins, found[0].patient.value))
        if lines and not own:
            raise _Differs("CR.TXT est d'un autre patient que le KOS")
    except (ManifestRefused, entries.MetadataRefused, _Differs) as refusal:
        return RefusedKos(name, str(refusal), study, sop)
    warnings += [OTHER_PATIENT] if len(own) < len(lines) else []
    warnings += [] if own else [NO_REPORT]
    signature = next((entry.unique_id for entry in submitted.entries if not entry.is_kos), "")
    return TakenKos(
        name,
        kos,
        manifest,
        text,
        submitted.submission_set,
        found[0],
        signature,
        own,
        tuple(warnings),
    )


class _Differs(Exception):
    """A manifest and what is said of it are not the same."""


def _check_bytes(entry: entries.DocumentEntry, kos: bytes) -> list[str]:
    digest = hashlib.sha1(kos, usedforsecurity=False).hexdigest()
    if entry.hash not in ("", digest):
        raise _Differs("l'empreinte (hash) du fichier n'est pas celle de METADATA.XML")
    if entry.size not in (None, len(kos)):
        raise _Differs("la taille du fichier n'est pas celle de METADATA.XML")
    return [] if entry.hash else [NO_HASH]


def _check_patient(entry: entries.DocumentEntry, manifest: Manifest) -> None:
    if entry.patient.authority not in INS_OIDS or not entry.patient.value:
        raise _Differs("METADATA.XML sans INS")
    oid = manifest.patient.ins_oid
    if not _same_ins(entry.patient.value, manifest.patient.ins) or oid not in ("", entry.patient.authority):
        raise _Differs("le patient du KOS n'est pas celui de METADATA.XML")


def _same_ins(one: str, other: str) -> bool:
    """Compare two INS; the two last digits are a key that some leave out."""
    return one == other or (min(len(one), len(other)) == 13 and one[:13] == other[:13])


def _check_study(entry: entries.DocumentEntry, manifest: Manifest) -> None:
    named = {each.value for each in entry.references if each.kind == codes.STUDY_TYPE}
    if named and manifest.study_uid not in named:
        raise _Differs("l'examen du KOS n'est pas celui de METADATA.XML")


# --- kept in the store ------------------------------------------------------------------------------


def pack(taken: TakenKos, line: ReportLine | None) -> bytes:
    """Return one manifest and one of its reports as a small archive, the same bytes for the same ones."""
    buffer = io.BytesIO()
    files = {names.METADATA: taken.metadata, names.kos_name(1): taken.kos}
    if line is not None:
        files[names.REPORTS] = write_reports([line])
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(f"{names.HOLDER}/{_SET}/{name}", _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 0
            archive.writestr(info, data)
    return buffer.getvalue()


def is_packed(data: bytes) -> bool:
    """Say whether these bytes are what `pack` makes."""
    return data[:4] == b"PK\x03\x04"


def unpack(data: bytes) -> TakenKos:
    """Read back what `pack` made; its only report, if any, is the first of `reports`.

    Raises `FileRefused` when it cannot be read.
    """
    try:
        with open_zip(io.BytesIO(data), "message") as archive:
            (found,) = check_set(archive.files(_SET))
    except (ArchiveRefused, KeyError, ValueError) as error:
        raise FileRefused("jeu de soumission illisible") from error
    if isinstance(found, RefusedKos):
        raise FileRefused(found.reason)
    return found

"""A whole submission judged: metadata against documents, KOS, signature, VIHF and what is registered.

`check_publication` serves TD2.1, `check_update` TD3.3c. Both only look; the caller registers.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

import attrs
import pydicom
from pydicom.errors import InvalidDicomError

from drimbox.sim.dmp_registry import APPROVED, ARCHIVED, DELETED, DEPRECATED, RPLC, Registry
from drimbox.sim.dmp_rim import RegistryObject, Submitted
from drimbox.sim.dmp_rules import (
    FACILITY,
    KOS_CLASS,
    PATIENT,
    PRACTICE,
    REFERENCES,
    SET_PATIENT,
    SET_UNIQUE,
    UNIQUE,
    check_entry,
    check_package,
    is_signature,
)
from drimbox.sim.dmp_trust import Findings, Trust
from drimbox.sim.dmp_vihf import Vihf
from drimbox.sim.dmp_xades import check_xades

HAS_MEMBER = "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember"
SIGNS = "urn:ihe:iti:2007:AssociationType:signs"
UPDATE = "urn:ihe:iti:2010:AssociationType:UpdateAvailabilityStatus"
STUDY_TYPE = "urn:ihe:iti:xds:2016:studyInstanceUID"


@attrs.frozen
class Judge:
    """What every check needs to know."""

    registry: Registry
    trust: Trust
    algorithms: frozenset[str]
    now: datetime


def check_publication(
    submitted: Submitted, documents: Mapping[str, bytes], vihf: Vihf, judge: Judge, findings: Findings
) -> tuple[str, ...]:
    """Judge a TD2.1 submission; return the entryUUIDs it replaces. `documents` is by symbolic id."""
    check_package(submitted.package, findings)
    for entry in submitted.entries:
        check_entry(entry, findings)
    _check_unique_ids(submitted, judge.registry, documents, findings)
    _check_patient(submitted, vihf, findings)
    ids = {entry.id for entry in submitted.entries}
    for missing in sorted(ids - set(documents)):
        findings.error("XDSMissingDocument", f"{missing} has metadata but no Document", missing)
    for extra in sorted(set(documents) - ids):
        findings.error("XDSMissingDocumentMetadata", f"Document {extra} has no metadata", extra)
    for entry in submitted.entries:
        if entry.id in documents:
            _check_content(entry, documents[entry.id], findings)
    manifests = [entry for entry in submitted.entries if not is_signature(entry)]
    signatures = [entry for entry in submitted.entries if is_signature(entry)]
    if not manifests or len(signatures) != 1:
        findings.metadata("at least one document and exactly one signature are due")
        return ()
    times = {item.slot("submissionTime") for item in (submitted.package, *submitted.entries)}
    if len(times) != 1:
        findings.metadata("submissionTime differs between set and entries")
    for entry in manifests:
        _check_common(entry, signatures[0], findings)
        if entry.id in documents:
            _check_kos(entry, documents[entry.id], findings)
    replaced = _check_associations(submitted, signatures[0], vihf, judge.registry, findings)
    _check_signature(submitted, manifests, signatures[0], documents, vihf, judge, findings)
    return replaced


def check_update(
    submitted: Submitted, vihf: Vihf, registry: Registry, findings: Findings
) -> dict[str, str]:
    """Judge a TD3.3c request; return the new status of each entry it names."""
    check_package(submitted.package, findings)
    _check_unique_ids(submitted, registry, {}, findings)
    _check_patient(submitted, vihf, findings)
    if submitted.entries:
        findings.error("XDSMetadataUpdateOperationError", "a status change carries no ExtrinsicObject")
    changes: dict[str, str] = {}
    for association in submitted.associations:
        if association.get("associationType") != UPDATE:
            findings.error("XDSMetadataUpdateOperationError", "association of another type", association.id)
            continue
        target = association.get("targetObject")
        if association.get("sourceObject") != submitted.package.id:
            findings.metadata("source of the status change is not the submission set", association.id)
        entry = registry.entries.get(target)
        if entry is None:
            findings.error("UnresolvedReferenceException", f"{target} is unknown", association.id)
            continue
        if target in changes:
            findings.error("XDSMetadataUpdateOperationError", f"{target} changed twice", association.id)
        if association.slot("OriginalStatus") != entry.status:
            findings.error("XDSMetadataUpdateError", f"{target} is {entry.status}", association.id)
        if association.slot("NewStatus") not in (DELETED, DEPRECATED, ARCHIVED):
            findings.error("XDSMetadataUpdateOperationError", "NewStatus not allowed", association.id)
        if entry.patient != vihf.patient:
            findings.error("XDSPatientIdDoesNotMatch", f"{target} is another patient's", association.id)
        if entry.structure != vihf.structure:
            findings.error(
                "XDSMetadataUpdateError", f"{target} was published by another structure", association.id
            )
        changes[target] = association.slot("NewStatus")
    if not submitted.associations:
        findings.error("XDSMetadataUpdateOperationError", "no status change in the request")
    return changes


def _check_unique_ids(
    submitted: Submitted, registry: Registry, documents: Mapping[str, bytes], findings: Findings
) -> None:
    uids = [submitted.package.external.get(SET_UNIQUE, "")]
    uids += [entry.external.get(UNIQUE, "") for entry in submitted.entries]
    for uid, count in Counter(uids).items():
        if count > 1:
            findings.error("XDSRepositoryDuplicateUniqueIdInMessage", f"{uid} given {count} times")
    if uids[0] in registry.submissions:
        findings.error("XDSDuplicateUniqueIdInRegistry", f"submission set {uids[0]}", submitted.package.id)
    for entry in submitted.entries:
        known = registry.by_unique_id(entry.external.get(UNIQUE, ""))
        if known is None:
            continue
        findings.error("XDSDuplicateUniqueIdInRegistry", f"document {known.unique_id}", entry.id)
        data = documents.get(entry.id)
        if data is not None and data != known.document:
            findings.error(
                "XDSNonIdenticalHash", f"document {known.unique_id} had another content", entry.id
            )


def _check_patient(submitted: Submitted, vihf: Vihf, findings: Findings) -> None:
    patients = {submitted.package.external.get(SET_PATIENT, "")}
    patients |= {entry.external.get(PATIENT, "") for entry in submitted.entries}
    if patients != {vihf.patient}:
        findings.error("XDSPatientIdDoesNotMatch", "set, entries and VIHF name more than one patient")


def _check_content(entry: RegistryObject, data: bytes, findings: Findings) -> None:
    """Hash and size slots are over the decoded bytes."""
    code = "XDSRepositoryMetadataError"
    wrong = []
    if entry.slot("hash").lower() != hashlib.sha1(data, usedforsecurity=False).hexdigest():
        wrong.append("hash")
    if entry.slot("size") != str(len(data)):
        wrong.append("size")
    for name in wrong:
        text = f"Slot {name} is not that of the document"
        if is_signature(entry):
            # Re-indented samples: the XML signature is no longer the bytes that were hashed.
            findings.trust(code, text, entry.id)
        else:
            findings.error(code, text, entry.id)


def _check_common(kos: RegistryObject, signature: RegistryObject, findings: Findings) -> None:
    """The signature entry repeats facility, practice, authenticator and references of the KOS (4.4)."""
    same = (
        kos.slot("legalAuthenticator") == signature.slot("legalAuthenticator")
        and set(kos.slots.get(REFERENCES, ())) == set(signature.slots.get(REFERENCES, ()))
        and all(
            [c.code for c in kos.classified(scheme)] == [c.code for c in signature.classified(scheme)]
            for scheme in (FACILITY, PRACTICE)
        )
    )
    if not same:
        findings.metadata("signature entry does not repeat the attributes of the KOS entry", signature.id)


def _check_kos(entry: RegistryObject, data: bytes, findings: Findings) -> None:
    def wrong(text: str) -> None:
        findings.error("XDSRepositoryMetadataError", f"KOS: {text}", entry.id)

    try:
        kos = pydicom.dcmread(io.BytesIO(data))
        sop_class, uid = str(kos.SOPClassUID), str(kos.SOPInstanceUID)
        study, patient = str(kos.StudyInstanceUID), str(kos.PatientID)
        syntax = str(kos.file_meta.TransferSyntaxUID)
        created = f"{kos.get('InstanceCreationDate', '')}{str(kos.get('InstanceCreationTime', ''))[:6]}"
        others = [str(item.get("PatientID", "")) for item in kos.get("OtherPatientIDsSequence", [])]
    except (
        InvalidDicomError,
        AttributeError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
    ) as error:
        wrong(f"unreadable: {type(error).__name__}")
        return
    if sop_class != KOS_CLASS:
        wrong(f"SOP class {sop_class}")
    if uid != entry.external.get(UNIQUE):
        wrong("SOPInstanceUID is not the uniqueId")
    if syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
        wrong(f"transfer syntax {syntax}")
    elif syntax == "1.2.840.10008.1.2":
        findings.warn(f"{entry.id}: KOS in Implicit VR Little Endian")
    ins = entry.external.get(PATIENT, "").partition("^")[0]
    if patient != ins and ins not in others:
        wrong("neither PatientID nor OtherPatientIDs is the patientId")
    if len(created) != 14:
        wrong("InstanceCreationDate or Time missing")
    references = entry.slots.get(REFERENCES, ())
    if study not in {r.partition("^")[0] for r in references if r.endswith(STUDY_TYPE)}:
        wrong("StudyInstanceUID is not in referenceIdList")


def _check_associations(
    submitted: Submitted,
    signature: RegistryObject,
    vihf: Vihf,
    registry: Registry,
    findings: Findings,
) -> tuple[str, ...]:
    package = submitted.package.id
    members: list[str] = []
    signed: list[tuple[str, str]] = []
    replaced: list[str] = []
    entries = {entry.id for entry in submitted.entries}
    for association in submitted.associations:
        kind = association.get("associationType")
        source, target = association.get("sourceObject"), association.get("targetObject")
        status = association.slot("SubmissionSetStatus")
        if status != "Original":
            if kind == HAS_MEMBER:
                findings.metadata("HasMember without SubmissionSetStatus Original", association.id)
            else:
                findings.warn(f"{association.id}: SubmissionSetStatus is not Original")
        if kind == HAS_MEMBER:
            if source != package or target not in entries:
                findings.metadata("HasMember between other objects than set and entry", association.id)
            members.append(target)
        elif kind == SIGNS:
            signed.append((source, target))
        elif kind == RPLC:
            if source not in entries or source == signature.id:
                findings.metadata("RPLC does not start from a document of the set", association.id)
            _check_replaced(target, vihf, registry, findings)
            replaced.append(target)
        else:
            findings.metadata(f"association {kind} not expected", association.id)
    if sorted(members) != sorted(entries):
        findings.metadata("HasMember is due once for each entry")
    if signed != [(signature.id, package)]:
        findings.metadata("one signs association from signature to set is due")
    if len(set(replaced)) != len(replaced):
        findings.error("XDSReplaceFailed", "the same entry replaced twice")
    return tuple(replaced)


def _check_replaced(target: str, vihf: Vihf, registry: Registry, findings: Findings) -> None:
    old = registry.entries.get(target)
    if old is None:
        findings.error("UnresolvedReferenceException", f"RPLC target {target} is unknown")
    elif old.patient != vihf.patient:
        findings.error("XDSPatientIdDoesNotMatch", "RPLC target is another patient's")
    elif old.status != APPROVED:
        findings.error("XDSRegistryDeprecatedDocumentError", f"RPLC target {target} is {old.status}")
    elif old.structure != vihf.structure:
        findings.error("XDSReplaceFailed", "RPLC target was published by another structure")


def _check_signature(
    submitted: Submitted,
    manifests: list[RegistryObject],
    signature: RegistryObject,
    documents: Mapping[str, bytes],
    vihf: Vihf,
    judge: Judge,
    findings: Findings,
) -> None:
    if signature.id not in documents:
        return
    signed = check_xades(
        documents[signature.id],
        documents={
            entry.external.get(UNIQUE, ""): documents[entry.id]
            for entry in manifests
            if entry.id in documents
        },
        submission_uid=submitted.package.external.get(SET_UNIQUE, ""),
        structure=vihf.structure,
        trust=judge.trust,
        now=judge.now,
        algorithms=judge.algorithms,
        findings=findings,
    )
    if signed is not None and signed.id != signature.external.get(UNIQUE):
        findings.warn("uniqueId of the signature entry is not Signature/@Id")

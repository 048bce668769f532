"""What the simulated DMP holds: entries, their documents, submission sets; kept in a journal if asked.

Every change is one JSON line, flushed to disk before the change is made in memory; a restart replays the
lines and ignores one that a crash cut short. So a test may kill the simulator at any instant and
still know what the record held.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
from lxml import etree

from drimbox.sim.dmp_rim import RegistryObject, Submitted, read_submission, rim
from drimbox.sim.dmp_rules import PATIENT, SET_PATIENT, SET_UNIQUE, UNIQUE
from drimbox.sim.dmp_trust import Findings
from drimbox.xml import Element, safe_parse

APPROVED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"
DEPRECATED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Deprecated"
DELETED = "urn:asip:ci-sis:2010:StatusType:Deleted"
ARCHIVED = "urn:asip:ci-sis:2010:StatusType:Archived"

RPLC = "urn:ihe:iti:2007:AssociationType:RPLC"
REPOSITORY_UID = "1.2.250.1.213.4.1.1.1"


@attrs.frozen
class Entry:
    """A DocumentEntry with its document."""

    entry_uuid: str
    unique_id: str
    patient: str
    status: str
    mime_type: str
    hash: str
    size: int
    #: Structure that published it.
    structure: str
    submission_uid: str
    document: bytes = attrs.field(repr=False)
    metadata: RegistryObject = attrs.field(repr=False, eq=False)

    def to_xml(self) -> str:
        """Return the ExtrinsicObject as the registry gives it back, ids and status its own."""
        element = safe_parse(etree.tostring(self.metadata.element, with_tail=False))
        symbolic = element.get("id")
        element.set("id", self.entry_uuid)
        element.set("lid", self.entry_uuid)
        element.set("status", self.status)
        for child in element.iter("*"):
            for name in ("classifiedObject", "registryObject"):
                if child.get(name) == symbolic:
                    child.set(name, self.entry_uuid)
        slot = etree.Element(rim("Slot"), {"name": "repositoryUniqueId"})
        values = etree.SubElement(slot, rim("ValueList"))
        etree.SubElement(values, rim("Value")).text = REPOSITORY_UID
        element.insert(0, slot)
        text: str = etree.tostring(element, encoding="unicode")
        return text


@attrs.frozen
class SubmissionRecord:
    """A SubmissionSet the registry took."""

    unique_id: str
    patient: str
    structure: str
    at: datetime
    entries: tuple[str, ...]
    #: Entries it replaced or changed.
    touched: tuple[str, ...]


@attrs.define
class Registry:
    """The record. Mutable; one thread."""

    journal: Path | None = None
    entries: dict[str, Entry] = attrs.field(factory=dict)
    submissions: dict[str, SubmissionRecord] = attrs.field(factory=dict)
    _by_unique: dict[str, str] = attrs.field(factory=dict)

    @classmethod
    def open(cls, journal: Path | None) -> Registry:
        """Return the registry of a journal file, replaying it when it exists."""
        registry = cls(journal)
        if journal is not None and journal.exists():
            for line in journal.read_bytes().splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                registry._apply(event)
        return registry

    def by_unique_id(self, unique_id: str) -> Entry | None:
        """Return the entry of a document, whatever its status."""
        found = self._by_unique.get(unique_id)
        return None if found is None else self.entries[found]

    def submit(
        self,
        request: Element,
        submitted: Submitted,
        documents: Mapping[str, bytes],
        replaced: tuple[str, ...],
        structure: str,
        now: datetime,
    ) -> SubmissionRecord:
        """Register a checked submission; entries named in `replaced` become Deprecated."""
        event = {
            "event": "submission",
            "at": now.isoformat(),
            "structure": structure,
            "request": base64.b64encode(etree.tostring(request)).decode("ascii"),
            "uuids": {entry.id: f"urn:uuid:{uuid.uuid4()}" for entry in submitted.entries},
            "documents": {key: base64.b64encode(data).decode("ascii") for key, data in documents.items()},
            "replaced": list(replaced),
        }
        self._write(event)
        return self._apply(event)

    def change_status(
        self, submitted: Submitted, changes: Mapping[str, str], structure: str, now: datetime
    ) -> SubmissionRecord:
        """Give the entries of `changes` (entryUUID to status) their new status."""
        event = {
            "event": "status",
            "at": now.isoformat(),
            "structure": structure,
            "set": submitted.package.external[SET_UNIQUE],
            "patient": submitted.package.external[SET_PATIENT],
            "changes": dict(changes),
        }
        self._write(event)
        return self._apply(event)

    def _write(self, event: Mapping[str, Any]) -> None:
        if self.journal is None:
            return
        with self.journal.open("ab") as out:
            # A line of its own even after one that a crash cut short.
            if out.tell():
                with self.journal.open("rb") as before:
                    before.seek(-1, os.SEEK_END)
                    if before.read(1) != b"\n":
                        out.write(b"\n")
            out.write(json.dumps(event).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def _apply(self, event: Mapping[str, Any]) -> SubmissionRecord:
        at = datetime.fromisoformat(event["at"])
        if event["event"] == "status":
            for identifier, status in event["changes"].items():
                self.entries[identifier] = attrs.evolve(self.entries[identifier], status=status)
            record = SubmissionRecord(
                event["set"], event["patient"], event["structure"], at, (), tuple(event["changes"])
            )
        else:
            record = self._apply_submission(event, at)
        self.submissions[record.unique_id] = record
        return record

    def _apply_submission(self, event: Mapping[str, Any], at: datetime) -> SubmissionRecord:
        submitted = read_submission(safe_parse(base64.b64decode(event["request"])), Findings())
        assert submitted is not None
        set_uid = submitted.package.external[SET_UNIQUE]
        for item in submitted.entries:
            document = base64.b64decode(event["documents"][item.id])
            entry = Entry(
                entry_uuid=event["uuids"][item.id],
                unique_id=item.external[UNIQUE],
                patient=item.external[PATIENT],
                status=APPROVED,
                mime_type=item.get("mimeType"),
                hash=item.slot("hash"),
                size=int(item.slot("size")),
                structure=event["structure"],
                submission_uid=set_uid,
                document=document,
                metadata=item,
            )
            self.entries[entry.entry_uuid] = entry
            self._by_unique[entry.unique_id] = entry.entry_uuid
        for identifier in event["replaced"]:
            self.entries[identifier] = attrs.evolve(self.entries[identifier], status=DEPRECATED)
        return SubmissionRecord(
            set_uid,
            submitted.package.external[SET_PATIENT],
            event["structure"],
            at,
            tuple(event["uuids"].values()),
            tuple(event["replaced"]),
        )

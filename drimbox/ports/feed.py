"""From a message to the job of a study: the rows of the feed and what the reports say."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Protocol

import attrs

from drimbox.model import MessageAction

#: In the place of the RIS of a message that an archive of another DRIMbox brought (no RIS can be called
#: so), and of the digest of its manifest, of which nobody knows how it would compare.
IMPORTED = "(import)"


@attrs.frozen
class InboxMessage:
    """A message safely stored, waiting to be worked on."""

    id: int
    ris: str
    peer: str
    raw: bytes
    received_at: datetime
    attempts: int


class Purpose(enum.Enum):
    """Why a study is compared, which says how far its job may go."""

    #: Something happened to it: make the record match the PACS.
    MATCH = "match"
    #: A resynchronisation found a difference: publish it, but withdraw nothing because it is absent.
    UPDATE = "update"
    #: A resynchronisation found it absent and its removal was released: ask once more, verify the link.
    WITHDRAW = "withdraw"
    #: The address of the site has changed: what the study holds is what the archive says (DB.SO.31).
    READDRESS = "readdress"


#: Result of a job whose study is absent and which was not to withdraw it.
ABSENT = "absent"


@attrs.frozen
class FeedJob:
    """One study that a report asks to publish: make the record match the PACS."""

    id: int
    message_id: int
    study_uid: str
    ris: str
    attempts: int
    purpose: Purpose = Purpose.MATCH


@attrs.frozen
class ReportSaid:
    """What one message says, for the record of reports."""

    document_id: str
    replaces: str | None
    action: MessageAction
    #: MSH-7; None when it says nothing usable.
    sent_at: datetime | None
    studies: tuple[str, ...]


class Voice(enum.Enum):
    """When no message speaks for a study."""

    #: No report ever cited it.
    UNKNOWN = "unknown"
    #: All that did were taken back.
    NONE_LEFT = "none left"


@attrs.frozen
class Speaker:
    """The message that speaks for a study."""

    message_id: int
    ris: str


class Inbox(Protocol):
    """Where a message is safe (architecture.md rule 4)."""

    async def add(self, *, ris: str, peer: str, control_id: str, raw: bytes) -> int:
        """Commit the message to durable storage and return its number; only then may `AA` be sent."""


def parked_key(queue: str, row_id: int) -> str:
    """Return the key of the notice about a parked row of a queue ("inbox", "feed", "outbox")."""
    return f"file-{queue}-{row_id}"


@attrs.frozen
class ParkedRow:
    """A row of a queue set aside because its work breaks again and again; empty is not known, or not so."""

    #: "inbox", "feed" or "outbox".
    queue: str
    id: int
    #: How it broke, without patient data.
    error: str
    ris: str = ""
    peer: str = ""
    study_uid: str = ""
    sop_instance_uid: str = ""
    structure_id: str = ""
    patient_ins: str = ""
    #: True for the removal of a manifest.
    removal: bool = False
    #: True when it needs nobody any more: another row took its place.
    dropped: bool = False

"""What the administrator must know (DB.SO.21)."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Protocol

import attrs


class Notices(Protocol):
    """What the administrator must know (DB.SO.21)."""

    async def post(self, *, key: str, code: str, text: str) -> None:
        """Show `text` (French, no patient data) until somebody acknowledges it.

        A notice with the same `key` that is still open is not repeated: its count and last instant move.
        """


class OutageNotices(Notices, Protocol):
    """Notices that can be said to be over."""

    async def resolve(self, key: str) -> bool:
        """Close the open notice of this key: what it said is over."""


class Severity(enum.Enum):
    """How much a notice matters to the administrator."""

    INFORMATION = "information"
    #: Something does not go through, or will not for long.
    ATTENTION = "attention"
    #: A service is down, or something is lost unless somebody acts.
    GRAVE = "grave"


@attrs.frozen
class Notice:
    """One notice to the administrator."""

    id: int
    key: str
    code: str
    severity: Severity
    text: str
    count: int
    first_at: datetime
    last_at: datetime
    #: None while it is open.
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None


@attrs.frozen
class Digest:
    """What leaves by one channel at once: notices, and how many more there are."""

    #: The same for the same notices, so that whoever gets it twice can tell.
    id: str
    #: Who speaks: name and registry number of the gateway.
    name: str
    system_id: str
    sent_at: datetime
    notices: tuple[Notice, ...]
    more: int = 0
    #: Only a test of the channel.
    test: bool = False

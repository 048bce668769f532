"""What one look at one link gave: a state, what was seen, and what to do about it (French)."""

from __future__ import annotations

import enum

import attrs


class State(enum.Enum):
    """How a link is."""

    OK = "ok"
    #: It works, and will not for long, or not wholly.
    WARNING = "warning"
    ERROR = "error"
    #: Not tried; the text says why.
    SKIPPED = "skipped"


@attrs.frozen
class Finding:
    """One link that was looked at."""

    #: What was tried: "pacs-echo", "dmp", "disk" ...
    check: str
    #: Of whom: a PACS, a structure, a folder.
    subject: str
    state: State
    text: str
    #: What to do; empty when nothing is to be done.
    mend: str = ""


def good(check: str, subject: str, text: str) -> Finding:
    """Return what is as it should be."""
    return Finding(check, subject, State.OK, text)


def bad(check: str, subject: str, text: str, mend: str) -> Finding:
    """Return what does not work."""
    return Finding(check, subject, State.ERROR, text, mend)


def doubtful(check: str, subject: str, text: str, mend: str) -> Finding:
    """Return what works and should be seen to."""
    return Finding(check, subject, State.WARNING, text, mend)


def untried(check: str, subject: str, text: str, mend: str = "") -> Finding:
    """Return what was not tried."""
    return Finding(check, subject, State.SKIPPED, text, mend)

"""What an operator may ask the audit trail for, by French words: kinds of events, outcomes."""

from __future__ import annotations

#: EventID, and EventTypeCodes of which it has one.
EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reception": ("110107", ("RAD-128", "CARD-7")),
    "publication": ("110106", ("ITI-41",)),
    "depublication": ("110106", ("ITI-57",)),
    "dmp": ("", ("TD0.2", "ITI-18", "ITI-43", "ITI-41", "ITI-57")),
    "images": ("110106", ("RAD-107", "RAD-106")),
    "marche": ("110100", ()),
    "administration": ("110113", ("110132",)),
    "securite": ("110113", ()),
    "audit": ("110101", ()),
}
#: EventOutcomeIndicators of PS3.15 A.5.
OUTCOMES: dict[str, tuple[int, ...]] = {
    "succes": (0,),
    "echec": (4, 8, 12),
    "mineur": (4,),
    "grave": (8,),
    "majeur": (12,),
}

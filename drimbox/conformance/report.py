"""What a validator has to say: findings, each with its gravity, its words, its clause and its place.

A validator reads a file of somebody else's and goes on after a fault, so that one run tells everything.
Two things keep a report readable and small whatever the file: the same finding at a thousand places is
one finding with its first places and a count, and only so many different ones are kept. The counts stay
exact, so that `ok` never depends on what was left out.

The words are French, for the integrator; JSON keys are English. Values of the file go through `shown`
before they enter a text: short, on one line. Access tokens never enter one.
"""

from __future__ import annotations

import enum
from typing import Any

import attrs

from drimbox.redaction import escape_control

#: Different findings kept by a report.
MAX_FINDINGS = 500
#: Places kept by a finding.
MAX_PLACES = 10


class Severity(enum.Enum):
    """How much a finding matters. Only an error makes a file nonconformant."""

    ERROR = "error"
    #: Allowed or survivable, but some peer may stumble over it.
    WARNING = "warning"
    #: Worth knowing.
    INFORMATION = "information"

    @property
    def french(self) -> str:
        """The word shown to a person."""
        return _FRENCH[self]


_FRENCH = {
    Severity.ERROR: "erreur",
    Severity.WARNING: "avertissement",
    Severity.INFORMATION: "information",
}
_ORDER = {severity: rank for rank, severity in enumerate(Severity)}


class PlaceKind(enum.Enum):
    """What a place counts, from 1."""

    LINE = "line"
    PART = "part"
    #: Of a manifest, in its own order.
    SERIES = "series"
    #: Submission set of an XDM archive: the number of its folder.
    SET = "set"

    @property
    def french(self) -> tuple[str, str]:
        """The word shown to a person, singular and plural."""
        return _PLACES[self]


_PLACES = {
    PlaceKind.LINE: ("ligne", "lignes"),
    PlaceKind.PART: ("partie", "parties"),
    PlaceKind.SERIES: ("série", "séries"),
    PlaceKind.SET: ("jeu", "jeux"),
}


@attrs.define
class Finding:
    """One thing to say, wherever it was met."""

    severity: Severity
    text: str
    #: The public clause: requirement of the specification, CI-SIS, PS3.x, RFC.
    clause: str
    kind: PlaceKind | None = None
    #: The first places, in the order met, each once.
    places: list[int] = attrs.field(factory=list)
    #: How many places there are, those not kept included.
    place_count: int = 0
    count: int = 0
    #: Identifier of the broken rule, for scripts; empty where the validator's rules have none.
    rule: str = ""
    _last: int | None = None

    def add_place(self, place: int) -> None:
        """Note where it was met; a validator goes forward, so the same place comes twice in a row."""
        if place == self._last:
            return
        self._last = place
        self.place_count += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(place)

    @property
    def where(self) -> str:
        """The places in French; empty when the finding is about the whole file."""
        if self.kind is None or not self.places:
            return ""
        text = f"{self.kind.french[len(self.places) > 1]} " + ", ".join(map(str, self.places))
        more = self.place_count - len(self.places)
        return text + (f" et {more} autre{'s' if more > 1 else ''}" if more > 0 else "")

    def as_json(self) -> dict[str, Any]:
        """Describe the finding as JSON data."""
        found: dict[str, Any] = {
            "severity": self.severity.value,
            "text": self.text,
            "clause": self.clause,
            "count": self.count,
        }
        if self.rule:
            found["rule"] = self.rule
        if self.kind is not None:
            found[self.kind.value] = list(self.places)
        return found


class Report:
    """Collects findings about one file."""

    def __init__(self, subject: str) -> None:
        """`subject` says what is judged, in French: « requête WADO-RS »."""
        self.subject = subject
        #: What was read, for the person who compares it with what he meant to send.
        self.facts: dict[str, Any] = {}
        #: How many times each severity was found, places counted.
        self.counts: dict[Severity, int] = dict.fromkeys(Severity, 0)
        #: Different findings beyond `MAX_FINDINGS`, counted only.
        self.omitted = 0
        self._findings: dict[tuple[Severity, str, str], Finding] = {}

    def add(
        self, severity: Severity, text: str, clause: str, *, rule: str = "", **place: int | None
    ) -> None:
        """Say something, about the whole file or about one place of it.

        `rule` identifies the broken rule. `place` is at most one of `line`, `part`, `series` or `set`,
        counted from 1; None is the whole file.
        """
        self.counts[severity] += 1
        finding = self._findings.get((severity, text, clause))
        if finding is None:
            if len(self._findings) >= MAX_FINDINGS:
                self.omitted += 1
                return
            finding = self._findings[severity, text, clause] = Finding(severity, text, clause, rule=rule)
        finding.count += 1
        for kind, number in place.items():
            if number is not None:
                finding.kind = PlaceKind(kind)
                finding.add_place(number)

    def error(self, text: str, clause: str, **place: int | None) -> None:
        """Add an error; `place` as in `add`."""
        self.add(Severity.ERROR, text, clause, rule="", **place)

    def warning(self, text: str, clause: str, **place: int | None) -> None:
        """Add a warning; `place` as in `add`."""
        self.add(Severity.WARNING, text, clause, rule="", **place)

    def inform(self, text: str, clause: str, **place: int | None) -> None:
        """Add an information; `place` as in `add`."""
        self.add(Severity.INFORMATION, text, clause, rule="", **place)

    def include(self, other: Report, name: str, **place: int) -> None:
        """Add what another report found, each text headed by `name`; `place` is where, here."""
        kept = dict.fromkeys(Severity, 0)
        for finding in other.findings:
            kept[finding.severity] += finding.count
            for _ in range(finding.count):
                text = f"{name} : {finding.text}"
                self.add(finding.severity, text, finding.clause, rule=finding.rule, **place)
        self.omitted += other.omitted
        for severity, count in other.counts.items():
            self.counts[severity] += count - kept[severity]

    @property
    def ok(self) -> bool:
        """True when there is no error."""
        return self.counts[Severity.ERROR] == 0

    @property
    def findings(self) -> list[Finding]:
        """The findings kept, worst first, then by place; those about the whole file lead."""
        return sorted(
            self._findings.values(),
            key=lambda each: (_ORDER[each.severity], each.places[0] if each.places else 0),
        )

    def as_json(self) -> dict[str, Any]:
        """Describe the report as JSON data."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "errors": self.counts[Severity.ERROR],
            "warnings": self.counts[Severity.WARNING],
            "informations": self.counts[Severity.INFORMATION],
            "facts": self.facts,
            "findings": [finding.as_json() for finding in self.findings],
            "omitted": self.omitted,
        }

    def lines(self, name: str = "") -> list[str]:
        """Return the lines to print for a person; `name` is that of the file."""
        errors, warnings = self.counts[Severity.ERROR], self.counts[Severity.WARNING]
        verdict = "conforme" if self.ok else "non conforme"
        head = f"{name} : " if name else ""
        lines = [
            f"{head}{self.subject} {verdict} "
            f"({_plural(errors, 'erreur')}, {_plural(warnings, 'avertissement')})"
        ]
        for finding in self.findings:
            where = f"{finding.where} : " if finding.where else ""
            lines.append(f"  {finding.severity.french:<14} {where}{finding.text} [{finding.clause}]")
        if self.omitted:
            lines.append(f"  … et {_plural(self.omitted, 'autre constat', 'autres constats')}")
        return [escape_control(line) for line in lines]


def shown(value: str | bytes, longest: int = 80) -> str:
    """Return a value of the file as it may stand in a text: between guillemets, short, on one line."""
    text = value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value
    if len(text) > longest:
        text = text[:longest] + "…"
    return f"« {escape_control(text)} »"


def _plural(number: int, word: str, words: str = "") -> str:
    return f"{number} {word if number < 2 else words or word + 's'}"

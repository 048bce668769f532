"""Rules of a validator as data: each has an identifier, a severity, French words and a clause.

A module that judges declares its rules at its top, in a `RuleBook`, and says `RULE.broken(report, ...)`
where it finds one broken. So the rules can be listed, a script can rely on their identifiers, and a test
can demand a bad input for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from drimbox.conformance.report import Report, Severity


@attrs.frozen
class Rule:
    """One thing that must hold. `text` may hold `{names}`, filled in when it is broken."""

    id: str
    severity: Severity
    text: str
    #: The public clause: requirement of the specification, CI-SIS, IHE, PS3.x, RFC. `{clause}` where it
    #: depends on what is judged.
    clause: str

    def at(self, clause: str) -> Rule:
        """Return the same rule with the clause of the case at hand."""
        return attrs.evolve(self, clause=clause)

    def broken(
        self, report: Report, where: str = "", *, at_set: int | None = None, **values: object
    ) -> None:
        """Say in `report` that the rule is broken; `where` names the object concerned, in French.

        `at_set` is the submission set of an archive. Values that come from the file judged must have
        gone through `shown`.
        """
        text = self.text.format(**values)
        text = f"{where} : {text}" if where else text
        report.add(self.severity, text, self.clause, rule=self.id, set=at_set)


class RuleBook:
    """The rules of one subject; every identifier begins with the subject's name."""

    def __init__(self, subject: str) -> None:
        """`subject` is a word such as `cross.patient`."""
        self._subject = subject
        self._rules: dict[str, Rule] = {}

    def error(self, name: str, text: str, clause: str) -> Rule:
        """Declare a rule whose breach makes the file nonconformant."""
        return self._declare(name, Severity.ERROR, text, clause)

    def warning(self, name: str, text: str, clause: str) -> Rule:
        """Declare a rule over whose breach some peer may stumble."""
        return self._declare(name, Severity.WARNING, text, clause)

    def inform(self, name: str, text: str, clause: str) -> Rule:
        """Declare something that is only worth knowing."""
        return self._declare(name, Severity.INFORMATION, text, clause)

    def __iter__(self) -> Iterator[Rule]:
        """Return the rules in the order of their declaration."""
        return iter(self._rules.values())

    def _declare(self, name: str, severity: Severity, text: str, clause: str) -> Rule:
        rule = Rule(f"{self._subject}.{name}", severity, text, clause)
        if rule.id in self._rules:
            raise ValueError(f"rule {rule.id} is declared twice")
        self._rules[rule.id] = rule
        return rule

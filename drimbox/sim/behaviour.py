"""How a simulated server misbehaves, request by request, on demand.

A `Script` holds a default behaviour and a queue of behaviours for the next requests; an entry may wait
for one transaction only ("TD2.1"), so that the questions asked before it pass unharmed. The server asks
the script once a request and obeys.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs


class Kind(enum.Enum):
    """What happens to a request."""

    NORMAL = "normal"
    #: Answer with the application error `code` (DMP: RegistryError; PSC: OAuth error), nothing registered.
    ERROR = "error"
    #: Request carried out, then answered with the application error `code`: "already there" and the like.
    ERROR_AFTER = "error-after"
    #: SOAP fault with subcode `code`, nothing registered.
    FAULT = "fault"
    #: HTTP `status` with a short text body, nothing registered.
    HTTP = "http"
    #: Request read and thrown away, connection cut.
    CUT_BEFORE = "cut-before"
    #: Request carried out, connection cut without a byte of answer: outcome unknown to the client.
    CUT_AFTER = "cut-after"
    #: Request carried out, connection cut half-way through the answer.
    CUT_ANSWER = "cut-answer"
    #: Request carried out, answer is noise with the right Content-Type.
    GARBAGE = "garbage"
    #: Request carried out, answer never comes (the connection stays open).
    SILENT = "silent"
    #: Request carried out, answer followed by `size` bytes of padding.
    HUGE = "huge"
    #: Request carried out, answer said to be of the media type `code`.
    MEDIA_TYPE = "media-type"
    #: Request thrown away, answered with a redirection (307, or `status` when it is 3xx) to `code`.
    REDIRECT = "redirect"
    #: PSC: every token is inactive.
    INACTIVE = "inactive"
    #: PSC: the answer with the members of the JSON object `code` put over its own; null takes one away.
    CLAIMS = "claims"


@attrs.frozen
class Behaviour:
    """One way to treat a request. `seconds` delays the answer whatever the kind."""

    kind: Kind = Kind.NORMAL
    seconds: float = 0.0
    code: str = ""
    status: int = 500
    size: int = 64 * 1024 * 1024
    #: Only for this transaction ("TD2.1", "introspection"); empty is any.
    transaction: str = ""

    def suits(self, transaction: str) -> bool:
        """Say whether this behaviour is meant for `transaction`."""
        return self.transaction in ("", transaction)


NORMAL = Behaviour()


@attrs.define
class Script:
    """The behaviours to come. Mutable: tests and the control endpoint write to it."""

    default: Behaviour = NORMAL
    queue: list[Behaviour] = attrs.field(factory=list)

    def push(self, behaviour: Behaviour, times: int = 1) -> None:
        """Use `behaviour` for the next `times` requests it suits (at most 10,000)."""
        self.queue.extend([behaviour] * max(0, min(times, 10_000)))

    def reset(self) -> None:
        """Behave well again."""
        self.default = NORMAL
        self.queue.clear()

    def next(self, transaction: str) -> Behaviour:
        """Take the behaviour for a request of `transaction`: first suitable of the queue, else default."""
        for position, behaviour in enumerate(self.queue):
            if behaviour.suits(transaction):
                del self.queue[position]
                return behaviour
        return self.default if self.default.suits(transaction) else NORMAL


def behaviour_from_json(data: Mapping[str, Any]) -> Behaviour:
    """Read a behaviour posted to a control endpoint; raises ValueError naming what is wrong."""
    known = {field.name: field.type for field in attrs.fields(Behaviour)}
    unknown = set(data) - set(known)
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}, known: {', '.join(known)}")
    values = dict(data)
    try:
        values["kind"] = Kind(values.get("kind", "normal"))
    except ValueError:
        kinds = ", ".join(kind.value for kind in Kind)
        raise ValueError(f"unknown kind {data.get('kind')!r}, known: {kinds}, down, up") from None
    for name in ("seconds", "status", "size"):
        value = values.get(name, 0)
        number = isinstance(value, int) or (name == "seconds" and isinstance(value, float))
        if not number or isinstance(value, bool) or not 0 <= value <= 2**31:
            raise ValueError(f"{name}: not a number of use: {value!r}")
    for name in ("code", "transaction"):
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{name}: not a string")
    return Behaviour(**values)

"""What an access token may look like, and what an introspection answer says (RFC 6750, RFC 7662).

Pure functions. A token is opaque here: we never parse it, verify no signature and trust nothing inside
it (threats.md, JOSE); its size and its characters are checked, and Pro Santé Connect is asked. The
answer comes from our own proxy, yet it is read as strictly as anything from outside: an answer that can
be read in two ways is no answer.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from drimbox.errors import IntrospectionUnavailable, TokenInvalid
from drimbox.ports import Introspection

#: Bytes of the longest token ever sent on (threats.md, JOSE).
MAX_TOKEN = 8 * 1024

#: RFC 6750 2.1, b64token.
_TOKEN = re.compile(r"[0-9A-Za-z._~+/-]+=*", re.ASCII)
#: National identifiers of persons and structures; `/` and `.` occur in those of employees.
_IDENTIFIER = re.compile(r"[0-9A-Za-z][0-9A-Za-z/._-]{0,63}", re.ASCII)


def check_token(token: str) -> None:
    """Raise `TokenInvalid` for what cannot be an access token; the text never repeats it."""
    if len(token) > MAX_TOKEN:
        raise TokenInvalid("jeton trop long")
    if _TOKEN.fullmatch(token) is None:
        raise TokenInvalid("jeton mal formé")


def read_introspection(body: bytes, now: float) -> Introspection:
    """Read the body of a 200 answer at the Unix time `now`.

    Raises `TokenInvalid` when the token is not active or has expired, `IntrospectionUnavailable` when
    the answer cannot be understood: not JSON, no object, a member twice, `active` that is no boolean.
    """
    try:
        answer = json.loads(body, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise IntrospectionUnavailable("réponse illisible") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("active"), bool):
        raise IntrospectionUnavailable("réponse illisible")
    if not answer["active"]:
        raise TokenInvalid("jeton inconnu, expiré ou révoqué")
    expires_at = _expiry(answer.get("exp"))
    if expires_at is not None and expires_at <= now:
        raise TokenInvalid("jeton expiré")
    return Introspection(
        professional=_professional(answer),
        structure=_identifier(answer.get("SubjectOrganizationID")),
        expires_at=expires_at,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def _refuse(_constant: str) -> Any:
    raise ValueError("NaN or Infinity")


def _expiry(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise IntrospectionUnavailable("réponse illisible")
    return int(value)


def _professional(answer: dict[str, Any]) -> str | None:
    """Return the national identifier, from the first claim that holds one (interfaces.md 7.3, 7.4)."""
    found = _identifier(answer.get("SubjectNameID")) or _identifier(answer.get("preferred_username"))
    if found is not None:
        return found
    subject = answer.get("sub")
    # `f:<id of the federation>:<national identifier>`; a bare `sub` is an id of the provider's own.
    if isinstance(subject, str) and subject.startswith("f:"):
        return _identifier(subject.rpartition(":")[2])
    return None


def _identifier(value: object) -> str | None:
    return value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None else None

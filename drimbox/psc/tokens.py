"""What an access token may look like, and what an introspection answer says (RFC 6750, RFC 7662).

Pure functions. A token is opaque here: we never parse it, verify no signature and trust nothing inside
it (threats.md, JOSE); its size and its characters are checked, and Pro Santé Connect is asked. The
answer comes from our own proxy, yet it is read as strictly as anything from outside: an answer that can
be read in two ways is no answer.

`active` alone is not enough. Keycloak, on which Pro Santé Connect runs, says it of refresh and identity
tokens and of those of a service account too, behind which no professional stands: DB.SO.32 asks for the
user, and the audit trail for the identifier (requirements.md 3.8.3).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import Any

import attrs

from drimbox.errors import IntrospectionUnavailable, TokenInvalid
from drimbox.ports import Introspection

#: Bytes of the longest token ever sent on (threats.md, JOSE).
MAX_TOKEN = 8 * 1024

#: RFC 6750 2.1, b64token.
_TOKEN = re.compile(r"[0-9A-Za-z._~+/-]+=*", re.ASCII)
#: National identifiers of persons begin with the digit of their kind (`8` RPPS, `0` ADELI, `3` FINESS ...);
#: `/` and `.` occur in those of employees.
_PERSON = re.compile(r"[0-9][0-9A-Za-z/._-]{1,63}", re.ASCII)
_STRUCTURE = re.compile(r"[0-9A-Za-z][0-9A-Za-z/._-]{0,63}", re.ASCII)


@attrs.frozen
class TokenRules:
    """What an active token must be besides, to open anything."""

    #: Accepted values of `aud`; empty leaves it unchecked (the published answer carries none).
    audience: Collection[str] = ()
    #: Seconds by which the clock of the issuer may differ from ours.
    clock_skew: float = 0.0
    #: Refuse a token behind which no professional is named.
    require_professional: bool = True


def check_token(token: str) -> None:
    """Raise `TokenInvalid` for what cannot be an access token; the text never repeats it."""
    if len(token) > MAX_TOKEN:
        raise TokenInvalid("jeton trop long")
    if _TOKEN.fullmatch(token) is None:
        raise TokenInvalid("jeton mal formé")


def read_introspection(body: bytes, now: float, rules: TokenRules = TokenRules()) -> Introspection:
    """Read the body of a 200 answer at the Unix time `now`.

    Raises `TokenInvalid` when the token is not active, not yet or no longer valid, of another kind or for
    another audience, or nobody's; `IntrospectionUnavailable` when the answer cannot be understood: not
    JSON, no object, a member twice, `active` that is no boolean, a time that is no number.
    """
    try:
        answer = json.loads(body, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise IntrospectionUnavailable("réponse illisible") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("active"), bool):
        raise IntrospectionUnavailable("réponse illisible")
    if not answer["active"]:
        raise TokenInvalid("jeton inconnu, expiré ou révoqué")
    expires_at, not_before = _time(answer.get("exp")), _time(answer.get("nbf"))
    if expires_at is not None and expires_at + rules.clock_skew <= now:
        raise TokenInvalid("jeton expiré")
    if not_before is not None and not_before - rules.clock_skew > now:
        raise TokenInvalid("jeton pas encore valable")
    _check_kind(answer)
    if rules.audience:
        _check_audience(answer.get("aud"), rules.audience)
    professional = _professional(answer)
    if professional is None and rules.require_professional:
        raise TokenInvalid("jeton sans professionnel identifié")
    return Introspection(
        professional=professional,
        structure=_identifier(answer.get("SubjectOrganizationID"), _STRUCTURE),
        expires_at=expires_at,
    )


def _check_kind(answer: dict[str, Any]) -> None:
    """Refuse what is said to be no bearer access token (`typ` of Keycloak, `token_type` of RFC 7662)."""
    for claim in ("typ", "token_type"):
        kind = answer.get(claim)
        if kind is not None and (not isinstance(kind, str) or kind.lower() != "bearer"):
            raise TokenInvalid("ce n'est pas un jeton d'accès")


def _check_audience(value: object, accepted: Collection[str]) -> None:
    """Refuse a token for others: `aud` is a string or a list of strings (RFC 7662 2.2, RFC 7519 4.1.3)."""
    audience = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if not any(isinstance(each, str) and each in accepted for each in audience):
        raise TokenInvalid("jeton émis pour d'autres destinataires")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def _refuse(_constant: str) -> Any:
    raise ValueError("NaN or Infinity")


def _time(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise IntrospectionUnavailable("réponse illisible")
    return int(value)


def _professional(answer: dict[str, Any]) -> str | None:
    """Return the national identifier, from the first claim that holds one (interfaces.md 7.3, 7.4)."""
    found = _identifier(answer.get("SubjectNameID"), _PERSON) or _identifier(
        answer.get("preferred_username"), _PERSON
    )
    if found is not None:
        return found
    subject = answer.get("sub")
    # `f:<id of the federation>:<national identifier>`; a bare `sub` is an id of the provider's own.
    if isinstance(subject, str) and subject.startswith("f:"):
        return _identifier(subject.rpartition(":")[2], _PERSON)
    return None


def _identifier(value: object, form: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and form.fullmatch(value) is not None else None

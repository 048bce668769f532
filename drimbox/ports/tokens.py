"""Who is behind an access token (DB.SO.32)."""

from __future__ import annotations

from typing import Protocol

import attrs


@attrs.frozen
class Introspection:
    """Who is behind an access token: the answer of the e-Santé proxy (interfaces.md 7.4)."""

    #: National identifier (`8` + RPPS), None when the answer carries none.
    professional: str | None
    #: Structure identifier, None when the answer carries none.
    structure: str | None
    #: Unix time of expiry, None when not said.
    expires_at: int | None


class Introspector(Protocol):
    """Checks access tokens (DB.SO.32)."""

    async def introspect(self, token: str, consumer: str) -> Introspection:
        """Return who is behind a token that `consumer` (subject of its certificate) has presented.

        Raises `TokenInvalid`, `IntrospectionUnavailable` or `IntrospectionTimeout`.
        """

"""What the channels share: how a failure is said, and how a secret is read."""

from __future__ import annotations

from pathlib import Path

_MAX_SECRET = 4096


class NotDelivered(Exception):
    """A digest could not be delivered; the text (French) holds no secret and no patient data."""


def read_secret(path: Path) -> str:
    """Return the one line of a secret file, read anew each time: it may be renewed without a restart.

    Raises `NotDelivered`. Blocks: call it off the reactor thread.
    """
    try:
        with path.open(encoding="utf-8") as file:
            secret = file.read(_MAX_SECRET + 1).strip()
    except (OSError, UnicodeDecodeError):
        raise NotDelivered(f"{path} : lecture impossible") from None
    if not secret or len(secret) > _MAX_SECRET or any(character < " " for character in secret):
        raise NotDelivered(f"{path} : une seule ligne attendue, avec le secret")
    return secret

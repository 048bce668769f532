"""What the channels share: how a failure is said, and how a secret is read."""

from __future__ import annotations

from pathlib import Path

from drimbox import secretfile


class NotDelivered(Exception):
    """A digest could not be delivered; the text (French) holds no secret and no patient data."""


def read_secret(path: Path) -> str:
    """Return the one line of a secret file, read anew each time: it may be renewed without a restart.

    Raises `NotDelivered`. Blocks: call it off the reactor thread.
    """
    try:
        return secretfile.read_secret(path)
    except secretfile.SecretUnusable as error:
        raise NotDelivered(str(error)) from None

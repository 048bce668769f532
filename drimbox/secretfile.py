"""Reading a secret from its file: the one line it holds, and nothing of it in any message."""

from __future__ import annotations

from pathlib import Path

#: Characters of the longest secret.
MAX_SECRET = 4096


class SecretUnusable(Exception):
    """The file of a secret cannot be used; the text (French) names the file and never holds the secret."""


def read_secret(path: Path, *, blanks: bool = False) -> str:
    """Return the one line of a file, UTF-8; `blanks` keeps those around it, which a password may have.

    Raises `SecretUnusable`. Blocks: call it off the reactor thread once the gateway runs.
    """
    try:
        with path.open(encoding="utf-8") as file:
            secret = file.read(MAX_SECRET + 1).rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise SecretUnusable(f"{path} : lecture impossible") from None
    if not blanks:
        secret = secret.strip()
    if not secret or len(secret) > MAX_SECRET or any(character < " " for character in secret):
        raise SecretUnusable(f"{path} : une seule ligne attendue, avec le secret")
    return secret

"""Encryption of a backup with age (X25519), for whoever holds the other half of the key.

The gateway only ever has the public half: a thief of the machine, or of the backups, reads none of them.
The format is that of the `age` program, which opens them without us.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyrage

from drimbox.backup.container import BackupUnusable

#: How an age file begins.
MAGIC = b"age-encryption.org/v1\n"
_MOST = 64 * 1024


def recipient(text: str) -> pyrage.x25519.Recipient:
    """Read a public key (`age1…`). Raises `BackupUnusable`."""
    try:
        return pyrage.x25519.Recipient.from_str(text.strip())
    except pyrage.RecipientError:
        raise BackupUnusable("clé publique illisible : elle commence par « age1 »") from None


def new_identity() -> tuple[str, str]:
    """Make a pair: the secret to keep elsewhere, and the public key to configure here."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def is_sealed(path: Path) -> bool:
    """Say whether a file is encrypted. Raises `OSError`."""
    with path.open("rb") as source:
        return source.read(len(MAGIC)) == MAGIC


def seal(source: Path, target: Path, recipients: Sequence[pyrage.x25519.Recipient]) -> None:
    """Encrypt a file. Raises `OSError`."""
    pyrage.encrypt_file(str(source), str(target), list(recipients))


def unseal(source: Path, target: Path, identity_file: Path) -> None:
    """Decrypt a file with the secret keys of `identity_file`. Raises `BackupUnusable`, `OSError`."""
    with identity_file.open("r", encoding="utf-8", errors="replace") as keys:
        lines = keys.read(_MOST).splitlines()
    try:
        identities = [pyrage.x25519.Identity.from_str(line.strip()) for line in lines if _is_key(line)]
    except pyrage.IdentityError:
        identities = []
    if not identities:
        raise BackupUnusable(f"{identity_file} ne contient pas de clé secrète age")
    try:
        pyrage.decrypt_file(str(source), str(target), identities)
    except pyrage.DecryptError:
        raise BackupUnusable("la sauvegarde est chiffrée pour une autre clé, ou endommagée") from None


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")

"""The accounts of the administration: one line each, `name role scrypt$n$r$p$salt$hash`, never a password.

A file of its own, readable by the service alone. What a line costs to try is bounded by what we write: a
file that asks for more memory is refused.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import attrs

from drimbox.systemerrors import system_reason

#: RFC 7914 parameters of new hashes: about 32 MiB and 100 ms each.
_N, _R, _P = 2**15, 8, 1
_MEMORY = 64 * 1024 * 1024
_SALT, _HASH = 16, 32
#: Characters of a password, bytes of the file, and accounts in it.
MIN_PASSWORD, MAX_PASSWORD = 12, 256
MAX_FILE, MAX_ACCOUNTS = 64 * 1024, 200
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_LINE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._@-]{0,63}) (operator|auditor) "
    r"scrypt\$([0-9]{1,7})\$([0-9]{1,2})\$([0-9]{1,2})\$([A-Za-z0-9+/=]{1,64})\$([A-Za-z0-9+/=]{1,128})",
    re.ASCII,
)


class AccountsUnusable(Exception):
    """The file cannot be used; the text (French) says why."""


class Role(enum.Enum):
    """What an account may do: everything, or look only."""

    OPERATOR = "operator"
    AUDITOR = "auditor"


@attrs.frozen
class Account:
    """One account; `key` is the scrypt hash of its password."""

    name: str
    role: Role
    n: int = attrs.field(repr=False)
    r: int = attrs.field(repr=False)
    p: int = attrs.field(repr=False)
    salt: bytes = attrs.field(repr=False)
    key: bytes = attrs.field(repr=False)

    def accepts(self, password: str) -> bool:
        """Say whether this is the password. Takes about 100 ms: not on the reactor thread."""
        made = _derive(password, self.salt, self.n, self.r, self.p, len(self.key))
        return hmac.compare_digest(made, self.key)

    def line(self) -> str:
        """Write the account as the file holds it."""
        salt, key = (base64.b64encode(each).decode("ascii") for each in (self.salt, self.key))
        return f"{self.name} {self.role.value} scrypt${self.n}${self.r}${self.p}${salt}${key}"


def make_account(name: str, role: Role, password: str) -> Account:
    """Make an account. Raises `ValueError` (French) for a name or password that is none."""
    if not NAME.fullmatch(name):
        raise ValueError("nom : lettres, chiffres, . _ @ -, 64 au plus")
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ValueError(f"mot de passe : de {MIN_PASSWORD} à {MAX_PASSWORD} caractères")
    salt = secrets.token_bytes(_SALT)
    return Account(name, role, _N, _R, _P, salt, _derive(password, salt, _N, _R, _P, _HASH))


#: Tried in place of an account that does not exist, so that it takes as long.
NOBODY = Account("", Role.AUDITOR, _N, _R, _P, b"\0" * _SALT, b"\0" * _HASH)


def read_accounts(path: Path) -> dict[str, Account]:
    """Return the accounts of a file, by name. Blocks. Raises `AccountsUnusable`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise AccountsUnusable(f"{path} : lecture impossible ({system_reason(error)})") from None
    if len(data) > MAX_FILE:
        raise AccountsUnusable(f"{path} : plus de {MAX_FILE} octets")
    found: dict[str, Account] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        account = _read(line.strip())
        if account is None or account.name in found or len(found) >= MAX_ACCOUNTS:
            raise AccountsUnusable(f"{path} : ligne {number} illisible, répétée ou de trop")
        found[account.name] = account
    return found


def write_accounts(path: Path, accounts: Iterable[Account]) -> None:
    """Write the file, whole or not at all, as private as the one it replaces. Raises `OSError`."""
    text = "".join(f"{each.line()}\n" for each in accounts)
    owner = path.stat() if path.exists() else None
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        if owner is not None:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fchmod(descriptor, owner.st_mode & 0o640)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


def _read(line: str) -> Account | None:
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    name, role, n, r, p, salt, key = found.groups()
    numbers = int(n), int(r), int(p)
    try:
        account = Account(name, Role(role), *numbers, base64.b64decode(salt), base64.b64decode(key))
    except ValueError:
        return None
    power = numbers[0] > 1 and numbers[0] & (numbers[0] - 1) == 0
    cheap = 128 * numbers[0] * numbers[1] <= _MEMORY // 2 and 1 <= numbers[2] <= 4 and numbers[1] >= 1
    return account if power and cheap and len(account.salt) >= 8 and len(account.key) >= 16 else None


def _derive(password: str, salt: bytes, n: int, r: int, p: int, length: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY, dklen=length)

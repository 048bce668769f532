"""Who calls the admin listener, and what they may do.

Without accounts the listener asks nobody, and belongs on the loop. With them, every request comes over a
connection with the certificate of an account (`clients.py`), or carries HTTP Basic credentials (over TLS,
where it leaves the machine), except the two that say only whether we live. There is no cookie, and no
challenge that would have a browser keep credentials. Failures are limited by address, audited, and cost the
same whether the account exists or not; whoever then shows an account is forgiven the failures of that one,
not those of others. How many hashes are computed at once is bounded. A password found good is known again
for a while, as long as its line is the same.

Roles: an operator may do everything; an auditor what `routes.py` says. Whoever tries more is audited too,
as often a minute as failures are counted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

import attrs
from cryptography import x509
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from drimbox.accounts import MAX_PASSWORD, NOBODY, Account, AccountsUnusable, Role, read_accounts
from drimbox.config import CertifiedAccount
from drimbox.ports import InThread
from drimbox.web.clients import account_of, subject_of
from drimbox.web.routes import OPEN, allowed

#: Who called, for the audit trail; follows the work that a request began.
CALLER: ContextVar[str] = ContextVar("caller", default="admin")
#: What the request at hand has written into the audit trail before doing it: actions and their subjects.
ACTS: ContextVar[list[tuple[str, str]] | None] = ContextVar("acts", default=None)
#: Failures of one address within so many seconds after which it waits, and addresses remembered.
MAX_FAILURES, WINDOW, MAX_ADDRESSES = 5, 60.0, 1000
#: Hashes computed at once, requests that may wait for one, and seconds a good password is known again.
_AT_ONCE, _MAX_WAITING, _KNOWN, _MAX_KNOWN = 2, 16, 300.0, 200


class Note(Protocol):
    """Writes an administrator's act in the audit trail, or with `why` that it was not done (French)."""

    def __call__(self, action: str, subject: str, why: str = "", /) -> Awaitable[None]: ...


class AccessDenied(Exception):
    """The request is not answered: `status` 401, 403, 429 or 503, and why (French).

    `asked` is the route that a role may not call.
    """

    def __init__(self, status: int, detail: str, asked: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.asked = asked


@attrs.frozen
class Caller:
    """Whoever calls."""

    name: str
    role: Role

    def require(self, method: str, template: str) -> None:
        """Raise `AccessDenied` 403 unless this route is the caller's to call."""
        if not allowed(self.role, method, template):
            why = f"le rôle {self.role.value} ne permet pas cette action"
            raise AccessDenied(403, why, f"{method} {template}")


#: The listener on the loop asks nobody.
LOCAL = Caller("admin", Role.OPERATOR)


class Access:
    """Says who is behind a request.

    `note` writes refusals in the audit trail: the action, and of whom; `why`, when it was not done at all.
    """

    def __init__(
        self,
        accounts: Path | None,
        clock: IReactorTime,
        in_thread: InThread,
        note: Note,
        clients: Sequence[CertifiedAccount] = (),
    ) -> None:
        self._path = accounts
        self._clients = tuple(clients)
        self._clock = clock
        self._in_thread = in_thread
        self._note = note
        #: When each address failed of late, and as whom.
        self._failures: OrderedDict[str, list[tuple[float, str]]] = OrderedDict()
        #: When each account tried what it may not.
        self._overreached: OrderedDict[str, list[tuple[float, str]]] = OrderedDict()
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[float, Account]] = OrderedDict()
        self._hashing = DeferredSemaphore(_AT_ONCE)

    @property
    def asks(self) -> bool:
        """Say whether callers have to say who they are."""
        return self._path is not None or bool(self._clients)

    async def caller(
        self,
        path: str,
        authorization: bytes | None,
        address: str,
        certificate: x509.Certificate | None = None,
    ) -> Caller:
        """Return who calls `path` from `address`; `certificate` was verified. Raises `AccessDenied`."""
        if not self.asks:
            return LOCAL
        known = account_of(self._clients, certificate) if certificate is not None else None
        if known is not None:
            return Caller(*known)
        if path in OPEN:
            return Caller("", Role.AUDITOR)
        if authorization is not None and self._path is not None:
            return await self._by_password(self._path, authorization, address)
        if certificate is None:
            raise AccessDenied(401, self._expected)
        self._slow_down(address)
        await self._refused(f"certificat « {subject_of(certificate)} »", address)
        raise AccessDenied(401, "aucun compte n'est donné à ce certificat ([[admin.client]])")

    async def forbidden(self, caller: Caller, asked: str, address: str) -> None:
        """Write down that an account has tried a route that its role may not call."""
        if len(self._recent(self._overreached, caller.name)) < MAX_FAILURES:
            self._remember(self._overreached, caller.name, asked)
            await self._note("Action d'administration refusée", f"{asked} depuis {address}")

    async def undone(self, why: str) -> None:
        """Write down that nothing has come of what the request at hand was to do."""
        for action, subject in ACTS.get() or ():
            await self._note(action, subject, why)

    @property
    def _expected(self) -> str:
        """What a caller without credentials is told."""
        ways = ["compte et mot de passe (--credentials)"] if self._path is not None else []
        ways += ["certificat client (--certificate)"] if self._clients else []
        return f"il est attendu : {' ou '.join(ways)}"

    async def _by_password(self, path: Path, authorization: bytes, address: str) -> Caller:
        self._slow_down(address)
        name, password = _credentials(authorization)
        try:
            accounts = await self._in_thread(lambda: read_accounts(path))
        except AccountsUnusable as error:
            raise AccessDenied(503, str(error)) from None
        account = accounts.get(name)
        if not await self._verified(account, name, password):
            shown = name if name.isprintable() and len(name) <= 64 else "illisible"
            await self._refused(f"compte {shown}", address, name)
            raise AccessDenied(401, "compte ou mot de passe inconnus")
        assert account is not None
        self._forgive(address, account.name)
        return Caller(account.name, account.role)

    async def _verified(self, account: Account | None, name: str, password: str) -> bool:
        mark = hmac.digest(self._key, f"{name}\0{password}".encode(), hashlib.sha256)
        known = self._known.get(mark)
        if known is not None and known[1] == account and self._clock.seconds() < known[0]:
            return True
        if len(self._hashing.waiting) >= _MAX_WAITING:
            raise AccessDenied(503, "trop de connexions à la fois")
        await self._hashing.acquire()
        try:
            good = await self._in_thread(lambda: (account or NOBODY).accepts(password))
        finally:
            self._hashing.release()
        if not good or account is None:
            return False
        self._known[mark] = (self._clock.seconds() + _KNOWN, account)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return True

    def _slow_down(self, address: str) -> None:
        """Raise `AccessDenied` 429 for an address that has failed too often of late."""
        if len(self._recent(self._failures, address)) >= MAX_FAILURES:
            raise AccessDenied(429, f"trop d'échecs depuis cette adresse : attendre {WINDOW:.0f} s")

    async def _refused(self, who: str, address: str, name: str = "") -> None:
        self._remember(self._failures, address, name)
        await self._note("Connexion d'administration refusée", f"{who} depuis {address}")

    def _forgive(self, address: str, name: str) -> None:
        """Forget what an account failed before it showed its password."""
        left = [each for each in self._failures.pop(address, []) if each[1] != name]
        if left:
            self._failures[address] = left

    def _recent(self, kept: OrderedDict[str, list[tuple[float, str]]], key: str) -> list[tuple[float, str]]:
        since = self._clock.seconds() - WINDOW
        return [each for each in kept.get(key, ()) if each[0] > since]

    def _remember(self, kept: OrderedDict[str, list[tuple[float, str]]], key: str, what: str) -> None:
        recent = self._recent(kept, key)
        kept.pop(key, None)
        kept[key] = [*recent, (self._clock.seconds(), what)]
        while len(kept) > MAX_ADDRESSES:
            kept.popitem(last=False)


def _credentials(authorization: bytes) -> tuple[str, str]:
    """Read HTTP Basic (RFC 7617). Raises `AccessDenied`."""
    scheme, _, rest = authorization.partition(b" ")
    try:
        if scheme.lower() != b"basic" or len(rest) > 8 * MAX_PASSWORD:
            raise ValueError
        name, colon, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        raise AccessDenied(401, "en-tête Authorization illisible") from None
    if not colon:
        raise AccessDenied(401, "en-tête Authorization illisible")
    return name, password

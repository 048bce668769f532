"""A mail relay on Twisted's SMTP server: STARTTLS, TLS, authentication, and the ways a relay goes wrong."""

from __future__ import annotations

import enum
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.mail.imap4 import LOGINCredentials, PLAINCredentials
from twisted.mail.smtp import (
    ESMTP,
    IMessage,
    IMessageDelivery,
    SMTPBadRcpt,
    SMTPBadSender,
    SMTPServerError,
    User,
)
from zope.interface import implementer

from drimbox.sim.listening import ServerContext, SessionServer
from drimbox.sim.pki import Pair


class Relay(enum.Enum):
    """How a relay treats its clients."""

    NORMAL = "normal"
    #: Accepts the connection and never says a word.
    SILENT = "silent"
    #: Refuses the mail after it was sent.
    REFUSE = "refuse"
    #: Cuts the connection in the middle of the mail.
    CUT = "cut"
    #: Takes the mail and cuts the connection instead of saying so.
    CUT_ANSWER = "cut answer"
    #: Refuses whoever sends.
    REFUSE_SENDER = "refuse sender"
    #: Refuses the first recipient alone.
    REFUSE_ONE = "refuse one"
    #: Never ends its greeting.
    FLOOD = "flood"
    #: Does not offer STARTTLS.
    NO_STARTTLS = "no starttls"
    #: Says more in clear behind its answer to STARTTLS, as somebody on the way might.
    INJECT = "inject"
    #: Takes the mail and does not part when told QUIT.
    CLINGING = "clinging"


class SmtpRelay(SessionServer):
    """One relay. With `users` it demands authentication; `tls` speaks TLS from the first byte."""

    def __init__(
        self,
        reactor: Any,
        pair: Pair,
        *,
        users: dict[str, str] | None = None,
        tls: bool = False,
        port: int = 0,
    ) -> None:
        super().__init__(reactor, port)
        self.context = ServerContext(pair)
        self.users = users or {}
        self.implicit = tls
        self.behaviour = Relay.NORMAL
        #: Mails taken, as they came.
        self.messages: list[str] = []
        #: Who authenticated, and whether the connection was encrypted then.
        self.logins: list[tuple[str, bool]] = []
        #: Commands said by clients, in their order.
        self.verbs: list[str] = []

    def up(self) -> None:
        """Listen (again)."""
        self.listen(lambda: _Session(self), self.context if self.implicit else None)


class _Session(ESMTP):
    """One client."""

    transport: Any

    def __init__(self, relay: SmtpRelay) -> None:
        challengers: dict[bytes, Any] = {}
        if relay.users:
            challengers = {b"LOGIN": LOGINCredentials, b"PLAIN": PLAINCredentials}
        plain = relay.behaviour is Relay.NO_STARTTLS or relay.implicit
        super().__init__(challengers, None if plain else relay.context)  # type: ignore[no-untyped-call]
        self.relay = relay
        self.host = b"relay.example"
        self.timeout = 60
        if relay.users:
            checker = InMemoryUsernamePasswordDatabaseDontUse()
            for user, password in relay.users.items():
                checker.addUser(user.encode(), password.encode())
            self.portal: Any = Portal(_Realm(self), [checker])
        else:
            self.delivery = _Delivery(self)

    def connectionMade(self) -> None:
        self.relay.connections.add(self)
        if self.relay.behaviour is Relay.SILENT:
            return
        if self.relay.behaviour is Relay.FLOOD:
            self._flood()
            return
        super().connectionMade()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        self.relay.connections.discard(self)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def state_COMMAND(self, line: bytes) -> Any:
        self.relay.verbs.append(line.split(b" ")[0].decode("ascii", "replace").upper())
        if self.relay.behaviour is Relay.CLINGING and self.relay.verbs[-1] == "QUIT":
            return None
        return super().state_COMMAND(line)  # type: ignore[no-untyped-call]

    def ext_STARTTLS(self, rest: bytes) -> None:
        if self.relay.behaviour is Relay.INJECT:
            self.transport.write(b"220 go ahead\r\n250 in clear\r\n")
            return
        super().ext_STARTTLS(rest)  # type: ignore[no-untyped-call]

    def _flood(self) -> None:
        if self in self.relay.connections:
            self.transport.write(b"220-and more\r\n" * 5000)
            self.relay._reactor.callLater(0.01, self._flood)


@implementer(IRealm)
class _Realm:
    def __init__(self, session: _Session) -> None:
        self._session = session

    def requestAvatar(self, avatar: Any, mind: Any, *interfaces: Any) -> Any:
        user = avatar.decode() if isinstance(avatar, bytes) else str(avatar)
        encrypted = bool(self._session.startedTLS) or self._session.relay.implicit
        self._session.relay.logins.append((user, encrypted))
        return IMessageDelivery, _Delivery(self._session), lambda: None


@implementer(IMessageDelivery)
class _Delivery:
    def __init__(self, session: _Session) -> None:
        self._session = session
        self._first = True

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
        return b"Received: by a simulated relay"

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        if self._session.relay.behaviour is Relay.REFUSE_SENDER:
            raise SMTPBadSender(origin)
        return origin

    def validateTo(self, user: User) -> Any:
        first, self._first = self._first, False
        if first and self._session.relay.behaviour is Relay.REFUSE_ONE:
            raise SMTPBadRcpt(user)
        return lambda: _Mail(self._session, first)


@implementer(IMessage)
class _Mail:
    """One mail for one recipient; only that of the first one is kept."""

    def __init__(self, session: _Session, first: bool) -> None:
        self._session = session
        self._kept = first or session.relay.behaviour is Relay.REFUSE_ONE
        self._lines: list[str] = []

    def lineReceived(self, line: bytes) -> None:
        self._lines.append(line.decode("utf-8", "replace"))
        if self._session.relay.behaviour is Relay.CUT and len(self._lines) > 3:
            self._session.transport.abortConnection()

    def eomReceived(self) -> Deferred[None]:
        relay = self._session.relay
        if relay.behaviour is Relay.REFUSE:
            return fail(SMTPServerError(554, b"DUPONT is not welcome\nnor anybody"))
        if self._kept and relay.behaviour is not Relay.CUT:
            relay.messages.append("\n".join(self._lines) + "\n")
        if relay.behaviour is Relay.CUT_ANSWER:
            self._session.transport.abortConnection()
        return succeed(None)

    def connectionLost(self) -> None:
        self._lines.clear()

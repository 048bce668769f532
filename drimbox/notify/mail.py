"""Notices by e-mail: one message over SMTP with STARTTLS or TLS (RFC 5321, 3207, 4954; DB.SO.21).

Twisted's own ESMTP client carries it. What is added: the relay's certificate is verified as everywhere
(`trust.contexts`), a connection that is lost half-way is a failure at once, one limit of time holds for
all of it, and a relay without end of answer is cut. Nothing a relay says of us is logged with what we
said: that would be the password.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall
from twisted.mail.smtp import ESMTPSender, ESMTPSenderFactory, SMTPClientError, TLSError
from twisted.python.failure import Failure

from drimbox.config import MailSettings
from drimbox.notify.channel import read_secret
from drimbox.notify.digest import subject, text
from drimbox.notify.timed import TimedChannel
from drimbox.ports import Digest, InThread
from drimbox.redaction import escape_control
from drimbox.trust.outgoing import client_policy

#: Bytes a relay may answer to one mail.
MAX_ANSWERS = 256 * 1024
#: Seconds left for RSET and QUIT once the mail is taken.
_PARTING = 1.0


def build_message(settings: MailSettings, digest: Digest) -> bytes:
    """Return a digest as a mail, lines ended by LF as Twisted's client wants them."""
    message = EmailMessage()
    message["Subject"] = subject(digest)
    message["From"] = settings.sender
    message["To"] = ", ".join(settings.recipients)
    message["Date"] = format_datetime(digest.sent_at)
    message["Message-ID"] = f"<{digest.id}.{digest.system_id}@{settings.sender.rpartition('@')[2]}>"
    # RFC 3834: no holiday message in answer.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text(digest), cte="quoted-printable")
    return message.as_bytes()


class MailChannel(TimedChannel):
    """Sends digests by mail."""

    name = "mail"

    def __init__(self, settings: MailSettings, reactor: Any, in_thread: InThread) -> None:
        super().__init__(settings.host, settings.severity, settings.timeout, reactor, in_thread)
        self._settings = settings

    async def _send(self, digest: Digest) -> str:
        accepted, _ = await self._converse(Factory, build_message(self._settings, digest))
        refused = len(self._settings.recipients) - accepted
        return f"{refused} destinataire(s) refusé(s) par {self._settings.host}" if refused else ""

    async def _converse(self, make: Callable[..., Factory], message: bytes) -> tuple[int, list[Any]]:
        """Hold a conversation with the relay; return how many recipients it took, and what it said of each.

        `make` makes the factory of the conversation.
        """
        settings = self._settings
        password = b""
        if settings.password_file is not None:
            path = settings.password_file
            password = (await self._in_thread(lambda: read_secret(path))).encode()
        secure = settings.security != "none"
        creator = await self._in_thread(self._creator) if secure else None
        endpoint: Any = HostnameEndpoint(
            self._reactor, settings.host.encode("ascii"), settings.port, timeout=settings.timeout
        )
        starttls = settings.security == "starttls"
        if secure and not starttls:
            assert creator is not None
            endpoint = wrapClientTLS(creator, endpoint)
        finished: Deferred[tuple[int, list[Any]]] = Deferred()
        factory: Any = make(
            (settings.user or "").encode(),
            password,
            settings.sender,
            list(settings.recipients),
            io.BytesIO(message),
            finished,
            retries=0,
            timeout=settings.timeout,
            contextFactory=creator if starttls else None,
            requireAuthentication=settings.user is not None,
            requireTransportSecurity=starttls,
        )
        protocol = await endpoint.connect(factory)
        try:
            return await finished
        finally:
            # Whatever happened, nothing is left open; after a success there is a moment for QUIT.
            protocol.setTimeout(None)
            if factory.sendFinished:
                protocol.part(self._reactor)
            else:
                factory.sendFinished = True
                protocol.transport.abortConnection()

    def _creator(self) -> Any:
        host = self._settings.host.encode("ascii")
        return client_policy(self._settings.roots, None).creatorForNetloc(host, self._settings.port)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TLSError):
            return "STARTTLS refusé"
        if isinstance(error, SMTPClientError):
            words = error.resp if isinstance(error.resp, bytes) else str(error.resp).encode()
            first = escape_control(words.split(b"\n")[0].decode("utf-8", "replace"))[:200]
            return f"refusé ({error.code}) : {first}" if error.code >= 400 else f"échec : {first}"
        return super()._reason(error)


class Sender(ESMTPSender):
    """One conversation with a relay."""

    #: Keep no copy of what is said: the password is part of it.
    debug = False
    heard = 0
    transport: Any
    _lost = False
    _parting: IDelayedCall | None = None

    def part(self, reactor: Any) -> None:
        """Leave the relay `_PARTING` seconds to end the conversation, then cut it."""
        if not self._lost:
            self._parting = reactor.callLater(_PARTING, self.transport.abortConnection)

    def dataReceived(self, data: bytes) -> None:
        self.heard += len(data)
        if self.heard > MAX_ANSWERS:
            self.transport.abortConnection()
            return
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def sendError(self, exc: Exception) -> None:
        if self.factory.sendFinished:
            # The mail was taken, or given up: what is said at parting changes nothing.
            self.transport.abortConnection()
            return
        super().sendError(exc)  # type: ignore[no-untyped-call]

    def esmtpState_starttls(self, code: int, resp: bytes) -> None:
        if self._buffer:
            # Said before the handshake, it would be taken for said after it.
            self.esmtpTLSFailed(code, resp)  # type: ignore[no-untyped-call]
            return
        super().esmtpState_starttls(code, resp)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._lost = True
        if self._parting is not None and self._parting.active():
            self._parting.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self.factory.lost(reason)


class Factory(ESMTPSenderFactory):
    """Makes the conversation of one mail."""

    protocol = Sender
    noisy = False

    def lost(self, reason: Failure) -> None:
        """The connection is gone: a failure, unless the mail had been taken."""
        if not self.sendFinished:
            self.sendFinished = True
            self.result.errback(reason)

"""A trial of the mail relay that sends nothing: as far as the recipients, then RSET (RFC 5321 4.1.1.5).

Everything a digest needs is tried on the way (certificate, password, sender, each recipient), by the very
conversation that would carry it; only DATA is not said.
"""

from __future__ import annotations

import enum
from typing import Any

from twisted.mail.smtp import SUCCESS

from drimbox.notify.mail import Factory, MailChannel, Sender
from drimbox.redaction import escape_control


class Stage(enum.Enum):
    """How far a conversation came."""

    #: Reading our own files.
    FILES = enum.auto()
    #: Connecting, greeting, EHLO, STARTTLS.
    GREETING = enum.auto()
    LOGIN = enum.auto()
    SENDER = enum.auto()
    RECIPIENTS = enum.auto()


class MailTrial(MailChannel):
    """Tries one relay, once."""

    _asking: _Asking | None = None

    @property
    def stage(self) -> Stage:
        """How far it came."""
        return self._asking.stage if self._asking is not None else Stage.FILES

    async def try_link(self) -> list[str]:
        """Ask for everything but to take a mail; return the recipients refused, with the relay's words.

        Raises `NotDelivered` for whatever would refuse every mail; `stage` says then where it ended.
        """
        return await self._in_time(self._ask())

    async def _ask(self) -> list[str]:
        _, answers = await self._converse(self._make, b"")
        return [_refusal(address, code, words) for address, code, words in answers if code not in SUCCESS]

    def _make(self, *arguments: Any, **options: Any) -> _Asking:
        self._asking = _Asking(*arguments, **options)  # type: ignore[no-untyped-call]
        return self._asking


def _refusal(address: bytes, code: int, words: bytes) -> str:
    said = escape_control(words.split(b"\n")[0].decode("utf-8", "replace"))[:200]
    return f"{address.decode('ascii', 'replace')} ({code} {said})"


class _Asker(Sender):
    """Says everything but DATA."""

    factory: Any

    def authenticate(self, code: int, resp: bytes, items: dict[bytes, bytes]) -> None:
        self.factory.stage = Stage.LOGIN
        super().authenticate(code, resp, items)  # type: ignore[no-untyped-call]

    def smtpState_from(self, code: int, resp: bytes) -> None:
        if self._from is None and not self.done:
            self.factory.stage = Stage.SENDER
        super().smtpState_from(code, resp)  # type: ignore[no-untyped-call]

    def smtpState_to(self, code: int, resp: bytes) -> None:
        self.factory.stage = Stage.RECIPIENTS
        super().smtpState_to(code, resp)  # type: ignore[no-untyped-call]

    def smtpState_toOrData(self, code: int, resp: bytes) -> None:
        if self.lastAddress is not None and len(self.toAddressesResult) + 1 == self.factory.nEmails:
            # The last recipient was answered for: RSET in place of DATA, then QUIT.
            self.toAddressesResult.append((self.lastAddress, code, resp))
            self.smtpState_msgSent(250, b"")  # type: ignore[no-untyped-call]
            return
        super().smtpState_toOrData(code, resp)  # type: ignore[no-untyped-call]


class _Asking(Factory):
    protocol = _Asker
    stage = Stage.GREETING

"""Asks OCSP responders about the certificates of peers, after the handshake, before a request is served.

    certificate --> answer kept? --> address: configured, or of the certificate and allowed --> POST -->
    verified

A handshake cannot wait for the network, a request can (DB.SO.111). Whom the authority says to be revoked,
or does not know, is refused. Where no answer of worth comes, `hard` refuses and `soft` lets in; soft is
written into the audit trail, once for each certificate and silence; the administrator is told of both.

The same is asked, at the same time, about each authority between the peer and the root for whom a responder
is known: of the others revocation lists tell, which most authorities have (RFC 5280 leaves both free).

Answers are kept until they end, and no longer than configured; that no answer came is kept for a moment, so
that a responder that is down does not cost every request its time-out. Many requests of one peer ask once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.iweb import IAgent

from drimbox import metrics
from drimbox.config import TrustSettings
from drimbox.errors import PeerNotTrusted
from drimbox.ports import OutageNotices
from drimbox.trust.inquiry import Inquiry, NoAnswer, Revoked
from drimbox.trust.ocsp import Answer, Standing

#: Seconds for which it is kept that no answer came.
SILENCE = 30.0
#: Certificates remembered.
MAX_KEPT = 2048
#: Certificates of one chain that are asked about; of a longer chain nobody says that it stands.
MAX_ASKED = 4


@attrs.frozen
class _Matter:
    """A certificate to be asked about, with those above it."""

    chain: list[x509.Certificate]
    authority: bool = False

    @property
    def what(self) -> str:
        """What it is, in French."""
        return "certificat d'une autorité du client" if self.authority else "certificat client"

    @property
    def notice(self) -> str:
        """Key of the notice that no answer comes."""
        return "ocsp-authority" if self.authority else "ocsp"


@attrs.frozen
class _Kept:
    """An answer, or why there is none; until when, by the clock that never jumps and by the calendar."""

    standing: Standing | None
    #: Empty for an answer.
    reason: str
    deadline: float
    until: datetime


class Responders:
    """Says of each peer whether its authority still stands by its certificate.

    `revoked` tells of a certificate whether a current revocation list has it; `noted` writes into the audit
    trail. `agent` follows no redirection.
    """

    log = Logger()

    def __init__(
        self,
        settings: TrustSettings,
        agent: IAgent,
        clock: IReactorTime,
        now: Callable[[], datetime],
        notices: OutageNotices,
        *,
        revoked: Revoked,
        noted: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._now = now
        self._notices = notices
        self._inquiry = Inquiry(settings, agent, clock, now, revoked)
        self._noted = noted
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._waiting: dict[bytes, list[Deferred[_Kept]]] = {}

    async def check(self, chain: list[x509.Certificate]) -> None:
        """Refuse the peer of a verified chain, leaf first, by raising `PeerNotTrusted` (E1101)."""
        matters = [_Matter(chain)]
        for place, each in enumerate(chain[1:-1], 1):
            if self._inquiry.url(each, authority=True) is not None:
                matters.append(_Matter(chain[place:], authority=True))
        asked = [Deferred.fromCoroutine(self._found(each)) for each in matters[:MAX_ASKED]]
        answers = list(zip(matters, await gatherResults(asked), strict=False))
        answers += [(each, self._silence("chaîne trop longue")) for each in matters[MAX_ASKED:]]
        for matter, found in answers:
            if found.standing not in (Standing.GOOD, None):
                raise PeerNotTrusted(f"{matter.what} {found.standing.value} (OCSP)")
        silent = [(matter, found) for matter, found in answers if found.standing is None]
        if silent and self._settings.ocsp == "hard":
            matter, found = silent[0]
            raise PeerNotTrusted(f"révocation non vérifiable (OCSP) du {matter.what} : {found.reason}")
        if silent:
            metrics.OCSP_UNCHECKED.inc()

    async def _found(self, matter: _Matter) -> _Kept:
        key = matter.chain[0].fingerprint(hashes.SHA256())
        kept = self._kept.get(key)
        revoked = kept is not None and kept.standing is Standing.REVOKED
        if kept is not None and self._clock.seconds() < kept.deadline and self._now() < kept.until:
            return kept
        waiting = self._waiting.get(key)
        if waiting is not None:
            mine: Deferred[_Kept] = Deferred()
            waiting.append(mine)
            return await mine
        self._waiting[key] = []
        found = self._silence("question interrompue")
        try:
            found = await self._ask(matter)
            if revoked and found.standing is None:
                # Silence takes no revocation back.
                found = attrs.evolve(found, standing=Standing.REVOKED)
        finally:
            self._keep(key, found)
            for each in self._waiting.pop(key):
                each.callback(found)
        answer = None if found.reason else found.standing
        metrics.OCSP_ANSWERS.labels(answer.name.lower() if answer is not None else "none").inc()
        await self._tell(matter, found)
        return found

    async def _ask(self, matter: _Matter) -> _Kept:
        try:
            return self._lasting(await self._inquiry.ask(matter.chain, authority=matter.authority))
        except NoAnswer as error:
            return self._silence(str(error))

    def _lasting(self, answer: Answer) -> _Kept:
        life = min(self._settings.ocsp_cache_time, (answer.until - self._now()).total_seconds())
        return _Kept(answer.standing, "", self._clock.seconds() + life, answer.until)

    def _silence(self, reason: str) -> _Kept:
        end = self._now() + timedelta(seconds=SILENCE)
        return _Kept(None, reason, self._clock.seconds() + SILENCE, end)

    def _keep(self, key: bytes, found: _Kept) -> None:
        self._kept[key] = found
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    async def _tell(self, matter: _Matter, found: _Kept) -> None:
        if not found.reason:
            await self._notices.resolve(matter.notice)
            return
        subject = matter.chain[0].subject.rfc4514_string()
        self.log.warn("no OCSP answer about {subject}: {reason}", subject=subject, reason=found.reason)
        soft = self._settings.ocsp == "soft"
        outcome = "les certificats sont admis sans vérification" if soft else "les certificats sont refusés"
        text = f"OCSP : pas de réponse valable ({found.reason}) ; {outcome}"
        await self._notices.post(key=matter.notice, code="REVOCATION", text=text)
        if soft and found.standing is None:
            await self._noted("Certificat admis sans vérification OCSP", f"{subject} : {found.reason}")

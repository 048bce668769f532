"""The OCSP responders, asked about certificates of our own: those that the Consumers' authorities issued.

We know no Consumer's certificate beforehand; ours come from the same authorities, and an answer about them
proves the same way. It also tells whether one of ours was revoked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from cryptography import x509
from OpenSSL import crypto
from twisted.internet.defer import Deferred, gatherResults

from drimbox.config import Config
from drimbox.doctor.findings import Finding, bad, doubtful, good, untried
from drimbox.keypairs import CertificateUnusable, read_pair
from drimbox.ports import Clock, InThread
from drimbox.secretfile import SecretUnusable
from drimbox.trust.certificates import read_certificates, verify_chain
from drimbox.trust.inquiry import Inquiry, NoAnswer
from drimbox.trust.ocsp import Standing, responder_urls
from drimbox.trust.outgoing import client_policy
from drimbox.trust.tlskeeper import own_pairs
from drimbox.trust.ways import Ways


@attrs.frozen
class _Own:
    """A certificate of ours, and the chain that the authorities of the Consumers make of it."""

    label: str
    chain: Sequence[x509.Certificate]


class Answers:
    """Tries the responders."""

    def __init__(self, config: Config, reactor: Any, clock: Clock, in_thread: InThread) -> None:
        self._config = config
        self._reactor = reactor
        self._clock = clock
        self._in_thread = in_thread

    async def ocsp(self) -> list[Finding]:
        """Ask about each of our certificates for which there is somebody to ask."""
        try:
            inquiry = await self._in_thread(self._inquiry)
            ours = await self._in_thread(self._ours)
        except (CertificateUnusable, SecretUnusable) as error:
            return [bad("ocsp", "répondeurs", str(error), "vérifier trust.consumer_roots et [proxy]")]
        asked = [Deferred.fromCoroutine(self._one(inquiry, each)) for each in ours]
        found = [each for each in await gatherResults(asked) if each is not None]
        if not found:
            text = "aucun certificat à nous, d'une autorité des Consommateurs, ne dit à qui demander"
            found.append(untried("ocsp", "répondeurs", text))
        return found

    async def _one(self, inquiry: Inquiry, own: _Own) -> Finding | None:
        """Ask about one certificate; None where there is nobody to ask."""
        url = inquiry.url(own.chain[0])
        if url is None:
            named = responder_urls(own.chain[0])
            if not named:
                return None
            mend = "l'ajouter à trust.ocsp_hosts s'il est celui de l'autorité, ou écrire trust.ocsp_url"
            return doubtful("ocsp", own.label, f"répondeur {named[0]} absent de trust.ocsp_hosts", mend)
        try:
            answer = await inquiry.ask(own.chain)
        except NoAnswer as error:
            hard = self._config.trust.ocsp == "hard"
            cost = "refusés" if hard else "admis sans vérification"
            mend = (
                f"vérifier trust.ocsp_url, le pare-feu, le proxy ; d'ici là les Consommateurs sont {cost}"
            )
            return bad("ocsp", own.label, str(error), mend)
        until = f"{answer.until:%d/%m/%Y %H:%M} UTC"
        if answer.standing is Standing.REVOKED:
            mend = "le remplacer : nos correspondants vont le refuser, ou le refusent déjà"
            return bad("ocsp", own.label, f"{url} : notre certificat est révoqué", mend)
        if answer.standing is Standing.UNKNOWN:
            mend = "vérifier que ce répondeur est celui de l'autorité de ce certificat (trust.ocsp_url)"
            return doubtful("ocsp", own.label, f"{url} répond, et ne connaît pas ce certificat", mend)
        return good("ocsp", own.label, f"{url} : valable, réponse vérifiée (jusqu'au {until})")

    def _inquiry(self) -> Inquiry:
        ways = Ways(self._reactor, self._config.proxy)
        agent = ways.agent("ocsp", client_policy(None, None), self._config.trust.ocsp_timeout)
        return Inquiry(self._config.trust, agent, self._reactor, self._clock.now, lambda certificate: False)

    def _ours(self) -> list[_Own]:
        """Return our certificates that the authorities of the Consumers issued, each once."""
        roots = read_certificates(self._config.trust.consumer_roots)
        found: dict[x509.Certificate, _Own] = {}
        for label, files in own_pairs(self._config):
            try:
                first, *others = read_pair(files, check_key=False).chain
                chain = verify_chain(first, others, roots, self._clock.now())
            except (CertificateUnusable, crypto.X509StoreContextError):
                # What is wrong with it is said where the certificates are looked at.
                continue
            found.setdefault(first, _Own(label, chain))
        return list(found.values())

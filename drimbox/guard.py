"""Builds what decides trust, and keeps it fresh: TLS doors, revocation lists, whitelist.

Started before any door opens, in this order: revocation lists, because the whitelist's signer is looked up
in them; the whitelist; then the contexts of the doors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit import messages
from drimbox.config import Config, Hl7TlsSettings
from drimbox.errors import PeerNotTrusted, TooManyRequests
from drimbox.keypairs import read_crls
from drimbox.limits import Why
from drimbox.periodic import Periodic, random_fraction
from drimbox.ports import AuditTrail, Clock, InThread, OutageNotices
from drimbox.trust.certificates import read_certificates
from drimbox.trust.contexts import ServerContexts, server_context_factory
from drimbox.trust.download import over_https
from drimbox.trust.listener import ListenerContext
from drimbox.trust.listkeeper import KEPT, ListKeeper
from drimbox.trust.outgoing import client_policy
from drimbox.trust.refusals import Refusals
from drimbox.trust.responder import Responders
from drimbox.trust.revocation import FOLDER, RevocationKeeper
from drimbox.trust.tlskeeper import TlsKeeper
from drimbox.trust.ways import Ways
from drimbox.trust.whitelist import WhitelistHolder
from drimbox.trust.xades import MAX_BYTES

#: Seconds between two looks: whether a list is due, whether a file has changed; and of the expiries.
_LOOK, _FILES, _DAY = 300.0, 30.0, 86400.0
#: The doors whose refusals are all audited.
WADO, ADMIN = "wado", "admin"
_HL7 = "hl7"
#: Refusals of a certificate that are audited at every door.
_NODES = frozenset({Why.REVOKED, Why.UNCHECKED})
_FAILED = _NODES | {Why.HANDSHAKE, Why.ISSUER, Why.USAGE, Why.GARBAGE, Why.UNFINISHED}


class Guard:
    """Everything about whom we trust and who we are. `note` writes an administrative act in the audit."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        clock: Clock,
        notices: OutageNotices,
        defer: InThread,
        note: Callable[[str, str], Awaitable[None]],
        audit: AuditTrail,
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._clock = clock
        self._notices = notices
        self._defer = defer
        self._note = note
        self._audit = audit
        #: Handshakes that failed (E1101) and connections refused at the WADO-RS door (E1003).
        self.refusals = Refusals(self._refused, reactor)
        self._strangers = Refusals(self._stranger, reactor)
        #: Connections refused at the other doors, where they are no matter of the audit trail.
        self._elsewhere = Refusals(self._logged, reactor)
        #: Certificates refused at these other doors, which are.
        self._nodes = Refusals(self._alerted, reactor)
        #: Peers let in without a current revocation list.
        self._unchecked = Refusals(self._admitted, reactor)
        self._state = config.drimbox.state_dir
        self._ways = Ways(reactor, config.proxy)
        self.revocation = self._make_revocation()
        #: The lists of the authorities of the RIS, None where there are none.
        self.hl7_revocation = self._make_hl7_revocation()
        self.whitelist = WhitelistHolder(
            config.trust,
            config.sites,
            clock.now,
            kept=self._state / KEPT,
            crl_of=self.revocation.current,
        )
        self.lists = self._make_lists()
        #: Asks whether a peer is not revoked, None where nobody is asked (OCSP).
        self._responders = self._make_responders() if config.trust.ocsp != "off" else None
        self.contexts: ServerContexts
        #: TLS of the HL7 door, None where it speaks in clear.
        self.hl7: ListenerContext | None = None
        self.admin: ListenerContext | None = None
        self.tls: TlsKeeper

    def turned_away(self, door: str, address: str, why: Why, name: str = "") -> None:
        """Take note of a connection refused at one of our doors ("wado", "admin", "hl7", "dicom")."""
        metrics.CONNECTIONS_REFUSED.labels(door, why.name.lower()).inc()
        if door == WADO:
            self.refusals.refused(address, name, why)
        elif door == ADMIN:
            self._strangers.refused(address, "", why)
        else:
            self._elsewhere.refused(address, door, why)
            if why in _NODES:
                self._nodes.refused(address, door, why)

    async def stands(self, chain: list[x509.Certificate]) -> None:
        """Ask again, before a request is served, what a long connection has outlived.

        Raises `PeerNotTrusted` when a certificate of the verified chain of a peer, leaf first, has ended or
        is in a revocation list held by now; then OCSP responders are asked, where configured.
        """
        now = self._clock.now()
        if not all(_lasts(each, now) for each in chain):
            raise PeerNotTrusted("certificat client expiré depuis l'ouverture de la connexion")
        if any(map(self.revocation.revokes, chain)):
            raise PeerNotTrusted("certificat client révoqué depuis l'ouverture de la connexion")
        if self._responders is not None:
            await self._responders.check(chain)

    @property
    def keepers(self) -> list[RevocationKeeper]:
        """Who holds the revocation lists, of Consumers and of RIS."""
        return [each for each in (self.revocation, self.hl7_revocation) if each is not None]

    def stop(self) -> None:
        """Write what was counted of refusals."""
        for each in (self.refusals, self._strangers, self._elsewhere, self._nodes, self._unchecked):
            each.stop()

    async def start(self) -> None:
        """Read and fetch what must be there before a door opens.

        Raises `WhitelistRefused` and `CertificateUnusable`.
        """
        for keeper in self.keepers:
            await keeper.start()
        await self.lists.start()
        self.contexts = server_context_factory(
            self._config,
            crls=self.revocation.crls,
            told=lambda address, name, why: self.turned_away(WADO, address, why, name),
            unchecked=lambda address: self._unchecked.refused(address, WADO, Why.UNCHECKED),
        )
        self.tls = TlsKeeper(
            self._config,
            self.contexts,
            self.whitelist,
            self._notices,
            crls=lambda: self.revocation.crls,
            now=self._clock.now,
            in_thread=self._defer,
            noted=self._note,
        )
        self.admin = self._make_admin()
        if self.admin is not None:
            own = self._config.admin.client_crls
            self.tls.watch([*self.admin.files, *([own] if own else [])], self.admin.reload)
        if self._config.hl7.tls is not None:
            lists = self.hl7_revocation
            self.hl7 = ListenerContext(
                self._config.hl7.tls,
                self._config.trust.ciphers,
                crls=lambda: lists.crls if lists is not None else (),
                unchecked=lambda address: self._unchecked.refused(address, _HL7, Why.UNCHECKED),
            )
            self.tls.watch(self.hl7.files, self.hl7.reload)

    def periodics(self) -> list[Periodic]:
        """Return the work done again and again, once started."""
        lists = Periodic("admin-crls", self._look_at_own_lists, _LOOK, self._reactor, first=0.0)
        return [
            *([lists] if self._config.admin.client_crls is not None else []),
            Periodic("whitelist", self.lists.refresh_if_due, _LOOK, self._reactor, first=_LOOK),
            Periodic("revocation", self._look_at_lists, _LOOK, self._reactor, first=_LOOK),
            Periodic("tls-files", self.tls.look, _FILES, self._reactor, first=_FILES),
            Periodic("expiries", self.tls.check_expiries, _DAY, self._reactor, first=_FILES),
        ]

    # -- own ---------------------------------------------------------------------------------------

    def _make_revocation(self) -> RevocationKeeper:
        trust = self._config.trust
        return self._keeper(trust.crl_urls, trust.crl_policy, self._authorities, self._state / FOLDER)

    def _make_hl7_revocation(self) -> RevocationKeeper | None:
        tls = self._config.hl7.tls
        if tls is None or tls.client_roots is None or not tls.crl_urls:
            return None
        # Its own authorities, its own folder: no list of a hospital takes the place of one of IGC-Santé.
        roots, folder = tls.client_roots, self._state / f"{FOLDER}-{_HL7}"
        return self._keeper(tls.crl_urls, tls.crl_policy, lambda: read_certificates(roots), folder, "hl7-")

    def _keeper(
        self,
        urls: Sequence[str],
        policy: str,
        authorities: Callable[[], Sequence[x509.Certificate]],
        folder: Path,
        name: str = "",
    ) -> RevocationKeeper:
        trust = self._config.trust
        limits: Any = {"timeout": trust.crl_timeout, "limit": trust.crl_max_bytes}
        return RevocationKeeper(
            {url: over_https(self._ways, "crl", url, None, **limits) for url in urls},
            authorities,
            self._notices,
            now=self._clock.now,
            in_thread=self._defer,
            folder=folder,
            period=trust.crl_period,
            hard=policy == "hard",
            changed=self._crls_changed,
            name=name,
        )

    def _make_lists(self) -> ListKeeper:
        trust = self._config.trust
        fetch = None
        if trust.whitelist_url is not None:
            fetch = over_https(
                self._ways,
                "whitelist",
                trust.whitelist_url,
                trust.whitelist_url_roots,
                timeout=trust.whitelist_timeout,
                limit=MAX_BYTES,
            )
        return ListKeeper(
            trust,
            self.whitelist,
            self._notices,
            fetch=fetch,
            now=self._clock.now,
            in_thread=self._defer,
            folder=self._state,
            random=random_fraction,
        )

    def _make_admin(self) -> ListenerContext | None:
        """Return the TLS of the admin door; who may administer has nothing to do with IGC-Santé."""
        admin = self._config.admin
        if admin.certificate is None:
            return None
        asked = "optional" if admin.client_roots is not None else "none"
        lists = admin.client_crls
        return ListenerContext(
            Hl7TlsSettings(admin.certificate, asked, admin.client_roots),
            self._config.trust.ciphers,
            crls=lambda: read_crls(lists) if lists is not None else (),
            required=lists is not None,
            told=lambda address, why: self.turned_away(ADMIN, address, why),
        )

    async def _look_at_own_lists(self) -> None:
        """Tell the administrator, who may be shut out by it, that a revocation list has run out."""
        if self.admin is None or not self.admin.run_out(self._clock.now()):
            await self._notices.resolve("admin-crl")
            return
        text = (
            f"Liste de révocation périmée ({self._config.admin.client_crls}) : les certificats "
            "d'administration de cette autorité sont refusés"
        )
        await self._notices.post(key="admin-crl", code="REVOCATION", text=text)

    def _make_responders(self) -> Responders:
        trust = self._config.trust
        agent = self._ways.agent("ocsp", client_policy(None, None), trust.ocsp_timeout)
        return Responders(
            trust,
            agent,
            self._reactor,
            self._clock.now,
            self._notices,
            revoked=self.revocation.revokes,
            noted=self._note,
        )

    def _authorities(self) -> list[x509.Certificate]:
        trust = self._config.trust
        return [*read_certificates(trust.consumer_roots), *read_certificates(trust.whitelist_roots)]

    async def _refused(self, address: str, name: str, why: Why, count: int) -> None:
        times = f" ({count} fois)" if count > 1 else ""
        error = (PeerNotTrusted if why in _FAILED else TooManyRequests)(f"{why.value}{times}")
        await self._audit.record(
            messages.images_served(
                study_uid="",
                caller_address=address,
                source_name=name or self._config.sites[0].wado_fqdn,
                kos=None,
                error=error,
            )
        )

    async def _stranger(self, address: str, _name: str, why: Why, count: int) -> None:
        await self._alert(
            address, "administration", f"Connexion d'administration refusée : {why.value}", count
        )

    async def _alerted(self, address: str, door: str, why: Why, count: int) -> None:
        await self._alert(address, door, why.value, count)

    async def _alert(self, address: str, subject: str, description: str, count: int) -> None:
        """Record that a peer was not let in (PS3.15 A.5.3.11, Node Authentication)."""
        times = f" ({count} fois)" if count > 1 else ""
        await self._audit.record(
            messages.security_alert(
                kind=messages.Alert.NODE_AUTHENTICATION,
                name=self._config.drimbox.name,
                source_name=self._config.sites[0].wado_fqdn,
                subject=subject,
                description=f"{description}{times}",
                peer_address=address,
            )
        )

    async def _logged(self, address: str, door: str, why: Why, count: int) -> None:
        self.log.warn(
            "connections refused at the {door} door: {count} from {address} ({why})",
            door=door,
            count=count,
            address=address,
            why=why.name,
        )

    async def _admitted(self, address: str, door: str, _why: Why, count: int) -> None:
        times = f" ({count} fois)" if count > 1 else ""
        await self._note("Certificat admis sans liste de révocation à jour", f"{door} : {address}{times}")

    async def _look_at_lists(self) -> None:
        """Fetch what is due; cut whom a RIS's certificate no longer speaks for."""
        for keeper in self.keepers:
            await keeper.refresh_if_due()
        self._drop()

    async def _crls_changed(self) -> None:
        if hasattr(self, "tls"):
            await self.tls.reload()
            self._drop()

    def _drop(self) -> None:
        """Cut the RIS whose certificate has ended, or is in a revocation list by now."""
        if self.hl7 is None:
            return
        now, lists = self._clock.now(), self.hl7_revocation

        def holds(certificate: x509.Certificate) -> bool:
            return _lasts(certificate, now) and not (lists is not None and lists.revokes(certificate))

        for address in self.hl7.drop(holds):
            self.turned_away(_HL7, address, Why.REVOKED)


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    return now <= certificate.not_valid_after_utc

"""What is fetched and verified: the whitelist, the revocation lists, the list of the probes.

Each is fetched anew and verified as the gateway does, and nothing is put in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.defer import Deferred, gatherResults

from drimbox.config import Config
from drimbox.configfile.paths import EXPIRY_NOTICE
from drimbox.doctor.findings import Finding, bad, doubtful, good
from drimbox.ports import Clock, InThread
from drimbox.secretfile import SecretUnusable
from drimbox.trust.certificates import CertificateUnusable, read_certificates, read_leaf
from drimbox.trust.download import Fetch, FetchFailed, over_https
from drimbox.trust.revocation import CrlRefused, verified_crl
from drimbox.trust.ways import Ways
from drimbox.trust.whitelist import Whitelist, WhitelistHolder, WhitelistRefused
from drimbox.trust.xades import MAX_BYTES
from drimbox.web.probes import MAX_BYTES as MAX_PROBES
from drimbox.web.probes import ListRefused, read_file, read_list

#: A list that nobody has made anew for so long is doubtful: boxes join DRIM-M every week.
_OLD = timedelta(days=60)
_REFRESH = "récupérer la liste : drimbox whitelist refresh"
_PROBES_TIMEOUT = 30.0


class Lists:
    """Looks at the lists; `holder` has the whitelist in force."""

    def __init__(
        self, config: Config, holder: WhitelistHolder, reactor: Any, clock: Clock, in_thread: InThread
    ) -> None:
        self._config = config
        self._holder = holder
        self._reactor = reactor
        self._clock = clock
        self._in_thread = in_thread

    async def whitelist(self) -> list[Finding]:
        """Look at the list in force, at our place in it, and at the one that is published."""
        current = self._holder.current
        if current is None:
            reasons = " ; ".join(self._holder.reasons) or "aucune"
            found = [
                bad(
                    "whitelist",
                    "liste en vigueur",
                    reasons,
                    "toute demande d'images est refusée ; " + _REFRESH,
                )
            ]
        else:
            found = [self._in_force(current), *self._ours()]
        return [*found, *await self._published()]

    def _in_force(self, current: Whitelist) -> Finding:
        subject, now = "liste en vigueur", self._clock.now()
        end = current.signer.not_valid_after_utc
        if end - now < EXPIRY_NOTICE:
            return doubtful(
                "whitelist",
                subject,
                f"certificat de son signataire valable jusqu'au {end:%d/%m/%Y}",
                _REFRESH,
            )
        made = _aware(current.generated)
        if made is None:
            return good("whitelist", subject, f"{len(current.domains)} entrées")
        seen = f"{len(current.domains)} entrées, générée le {made:%d/%m/%Y}"
        if now - made > _OLD:
            return doubtful("whitelist", subject, seen, _REFRESH)
        return good("whitelist", subject, seen)

    def _ours(self) -> list[Finding]:
        return [
            bad(
                "whitelist",
                site.name,
                "notre certificat n'est pas dans la liste : aucun échange d'images",
                "faire inscrire ce site par l'ANS, ou donner le certificat inscrit (DB.CS.164)",
            )
            for site in self._holder.unlisted
        ]

    async def _published(self) -> list[Finding]:
        trust, subject = self._config.trust, "liste publiée"
        if trust.whitelist_url is None:
            return []
        try:
            data = await self._get(
                "whitelist",
                trust.whitelist_url,
                trust.whitelist_url_roots,
                trust.whitelist_timeout,
                MAX_BYTES,
            )
        except (FetchFailed, CertificateUnusable, SecretUnusable) as error:
            mend = "vérifier trust.whitelist_url, le pare-feu ou le proxy, trust.whitelist_url_roots"
            return [bad("whitelist", subject, f"non récupérée : {error}", mend)]
        try:
            fresh = await self._in_thread(lambda: self._holder.verify(data))
        except WhitelistRefused as error:
            mend = "prévenir l'ANS ; la liste en vigueur continue de servir"
            return [bad("whitelist", subject, "refusée : " + " ; ".join(error.reasons), mend)]
        if self._holder.is_older(fresh):
            mend = "prévenir l'ANS : une liste ancienne est publiée"
            return [doubtful("whitelist", subject, "plus ancienne que celle en vigueur", mend)]
        if not self._holder.has(fresh):
            return [doubtful("whitelist", subject, "plus récente que celle en vigueur", _REFRESH)]
        return [good("whitelist", subject, "la même que celle en vigueur")]

    async def crls(self) -> list[Finding]:
        """Fetch every revocation list and verify it; see whether ours are in one, and whose is missing."""
        return [*await self._consumers(), *await self._ris()]

    async def _ris(self) -> list[Finding]:
        """Look at the lists of the authorities of the RIS (MLLP over TLS)."""
        tls = self._config.hl7.tls
        if tls is None or tls.client_roots is None:
            return []
        asked = [Deferred.fromCoroutine(self._crl(url, tls.client_roots)) for url in tls.crl_urls]
        return [finding for finding, _ in await gatherResults(asked)]

    async def _consumers(self) -> list[Finding]:
        urls = self._config.trust.crl_urls
        if not urls:
            return []
        fetched = await gatherResults([Deferred.fromCoroutine(self._crl(url)) for url in urls])
        held = [crl for _, crl in fetched if crl is not None]
        found = [finding for finding, _ in fetched]
        found += await self._in_thread(lambda: self._revoked(held))
        if len(held) == len(urls):
            found += await self._in_thread(lambda: self._uncovered(held))
        return found

    async def _crl(
        self, url: str, roots: Path | None = None
    ) -> tuple[Finding, x509.CertificateRevocationList | None]:
        """Fetch one revocation list; return it too, if one of our authorities, or of `roots`, signed it."""
        trust, now = self._config.trust, self._clock.now()
        where, who = ("trust", "consumer_roots") if roots is None else ("hl7.tls", "client_roots")
        mend = f"vérifier l'adresse dans {where}.crl_urls, le pare-feu ou le proxy"
        try:
            data = await self._get("crl", url, None, trust.crl_timeout, trust.crl_max_bytes)
            crl = await self._in_thread(lambda: verified_crl(data, self._authorities(roots), now))
        except (FetchFailed, CertificateUnusable, SecretUnusable) as error:
            return bad("crl", url, f"non récupérée : {error}", mend), None
        except CrlRefused as error:
            mend = f"vérifier que c'est la liste d'une autorité de {who}"
            return bad("crl", url, str(error), mend), None
        end = crl.next_update_utc
        assert end is not None
        until = f"{end:%d/%m/%Y %H:%M} UTC"
        if end <= now:
            return bad("crl", url, f"périmée depuis le {until}", "prévenir l'autorité"), crl
        return good("crl", url, f"{len(crl)} certificats révoqués, valable jusqu'au {until}"), crl

    def _revoked(self, held: Sequence[x509.CertificateRevocationList]) -> list[Finding]:
        """Look for certificates of ours in the lists."""
        return [
            bad(
                "crl",
                label,
                "notre certificat est révoqué",
                "le remplacer : nos correspondants vont le refuser, ou le refusent déjà",
            )
            for label, leaf in self._leaves()
            if any(
                crl.issuer == leaf.issuer
                and crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
                for crl in held
            )
        ]

    def _uncovered(self, held: Sequence[x509.CertificateRevocationList]) -> list[Finding]:
        """Look for an authority of ours without a list: the Consumers' certificates come from the same."""
        covered = {crl.issuer for crl in held}
        known = {each.subject for each in self._authorities()}
        missing = {leaf.issuer for _, leaf in self._leaves()} & known - covered
        hard = self._config.trust.crl_policy == "hard"
        cost = "est refusé (crl_policy)" if hard else "n'est pas vérifié"
        return [
            (bad if hard else doubtful)(
                "crl",
                issuer.rfc4514_string(),
                f"aucune liste de cette autorité : tout Consommateur qui en vient {cost}",
                "ajouter l'adresse de sa liste à trust.crl_urls",
            )
            for issuer in sorted(missing, key=lambda each: each.rfc4514_string())
        ]

    def _leaves(self) -> list[tuple[str, x509.Certificate]]:
        """Return the certificates of our WADO doors; one that cannot be read is told of elsewhere."""
        found = []
        for site in self._config.sites:
            with suppress(CertificateUnusable):
                found.append((f"{site.name} WADO", read_leaf(site.wado_certificate)))
        return found

    async def _get(self, kind: str, url: str, roots: Path | None, timeout: float, limit: int) -> bytes:
        def make() -> Fetch:
            ways = Ways(self._reactor, self._config.proxy)
            return over_https(ways, kind, url, roots, timeout=timeout, limit=limit)

        return await (await self._in_thread(make))()

    def _authorities(self, roots: Path | None = None) -> Sequence[x509.Certificate]:
        if roots is not None:
            return read_certificates(roots)
        trust = self._config.trust
        return [*read_certificates(trust.consumer_roots), *read_certificates(trust.whitelist_roots)]

    async def probes(self) -> list[Finding]:
        """Get the list of the addresses that may ask for our health, and read it as the gateway does."""
        health = self._config.health
        url, roots, file = health.addresses_url, health.addresses_url_roots, health.addresses_file
        if file is not None:
            subject, mend = str(file), "vérifier health.addresses_file, et que le service peut le lire"
        elif url is not None:
            subject, mend = url, "vérifier health.addresses_url, le pare-feu ou le proxy"
        else:
            return []
        try:
            if file is not None:
                data = await self._in_thread(lambda: read_file(file))
            else:
                assert url is not None
                data = await self._get("probes", url, roots, _PROBES_TIMEOUT, MAX_PROBES)
            allowed = await self._in_thread(lambda: read_list(data, health.regions))
        except (FetchFailed, CertificateUnusable, SecretUnusable) as error:
            return [bad("probes", subject, f"non récupérée : {error}", mend)]
        except ListRefused as error:
            more = "vérifier ce qui est publié à cette adresse, et health.regions"
            return [bad("probes", subject, f"inutilisable : {error}", more)]
        return [good("probes", subject, f"{len(allowed)} adresse(s) admise(s)")]


def _aware(instant: datetime | None) -> datetime | None:
    return instant if instant is None or instant.tzinfo is not None else instant.replace(tzinfo=UTC)

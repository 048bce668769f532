"""Revocation lists of the authorities we trust: fetched, verified, kept on disk, given to the handshakes.

    address --bytes--> signed by an authority of ours, not older than the one held --> disk --> TLS contexts

A handshake cannot wait for the network: OpenSSL looks into lists that are there (DB.SO.111). What to do
when there is none that is current is the operator's choice: `hard` refuses the peer, `soft` lets it in and
says so. Lists may come over plain HTTP (requirements.md 5.5), where anybody on the way can give us another
one of the same authorities. So one that nobody of ours signed is thrown away, and so is one that does not
tell of every revocation (a delta list, one for some reasons only), in which OpenSSL would not look; a list
in force gives way neither to an older one nor to one of another authority or scope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from twisted.logger import Logger

from drimbox import metrics
from drimbox.ports import OutageNotices
from drimbox.trust.certificates import CertificateUnusable, parse_crl
from drimbox.trust.download import Fetch, FetchFailed
from drimbox.trust.listkeeper import write_whole

#: Folder of the lists in the state folder.
FOLDER = "crl"
#: Seconds between two tries of an address that gives nothing.
RETRY = 600.0
#: What a clock of an authority may be ahead of ours.
_AHEAD = timedelta(minutes=5)
#: Answers of `revokes` remembered.
_MAX_ANSWERS = 4096
#: Critical extensions of a list that we, and OpenSSL, understand.
_UNDERSTOOD = (x509.AuthorityKeyIdentifier, x509.CRLNumber, x509.IssuingDistributionPoint)


class CrlRefused(Exception):
    """The bytes are no list of ours; the text (French) says why."""


def verified_crl(
    data: bytes, authorities: Sequence[x509.Certificate], now: datetime
) -> x509.CertificateRevocationList:
    """Read a list and verify that one of `authorities` signed it. Raises `CrlRefused`."""
    try:
        crl = parse_crl(data)
        dates = (crl.last_update_utc, crl.next_update_utc)
    except ValueError as error:
        raise CrlRefused("liste de révocation illisible") from error
    if dates[1] is None:
        raise CrlRefused("liste sans date de mise à jour suivante")
    if dates[0] > now + _AHEAD:
        raise CrlRefused("liste datée du futur")
    _check_scope(crl)
    if not any(_signed(crl, each) for each in authorities if each.subject == crl.issuer):
        raise CrlRefused("liste signée par aucune de nos autorités")
    return crl


def _check_scope(crl: x509.CertificateRevocationList) -> None:
    """Refuse a list that leaves revocations out (RFC 5280 5.2.4, 5.2.5). Raises `CrlRefused`."""
    try:
        extensions = list(crl.extensions)
    except (ValueError, x509.DuplicateExtension) as error:
        raise CrlRefused("liste de révocation illisible") from error
    for each in extensions:
        if isinstance(each.value, x509.DeltaCRLIndicator):
            raise CrlRefused("liste partielle (delta), sans les révocations plus anciennes")
        if each.critical and not isinstance(each.value, _UNDERSTOOD):
            raise CrlRefused(f"liste avec une extension critique inconnue ({each.oid.dotted_string})")
        if isinstance(each.value, x509.IssuingDistributionPoint):
            part = each.value
            if part.indirect_crl or part.only_some_reasons or part.only_contains_attribute_certs:
                raise CrlRefused(
                    "liste partielle : d'une autre autorité, ou pour certains motifs seulement"
                )


def _scope(crl: x509.CertificateRevocationList) -> tuple[bytes, bytes]:
    """Return whose certificates a list is about, and which of them: DER."""
    try:
        part = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value.public_bytes()
    except x509.ExtensionNotFound:
        part = b""
    return crl.issuer.public_bytes(), part


def _signed(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return False
    try:
        return _may_sign(authority) and crl.is_signature_valid(key)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False


def _may_sign(authority: x509.Certificate) -> bool:
    """Say whether a certificate is for signing lists (RFC 5280 4.2.1.3), as far as it says."""
    try:
        return authority.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


@attrs.define
class _Held:
    """The list of one address."""

    crl: x509.CertificateRevocationList | None = None
    next_try: datetime | None = None
    #: Why the last fetch brought nothing, in French; empty when it did.
    problem: str = ""


class RevocationKeeper:
    """Holds the list of each configured address.

    `authorities` returns who may sign them, read anew each time; `changed` is awaited whenever a list came
    that was not there; `period` is in seconds, the longest time between two fetches. `name` tells the
    notices and gauges of one keeper from those of another.
    """

    log = Logger()

    def __init__(
        self,
        fetches: Mapping[str, Fetch],
        authorities: Callable[[], Sequence[x509.Certificate]],
        notices: OutageNotices,
        *,
        now: Callable[[], datetime],
        in_thread: Callable[[Callable[[], object]], Awaitable[object]],
        folder: Path,
        period: float,
        hard: bool,
        changed: Callable[[], Awaitable[None]],
        name: str = "",
    ) -> None:
        self._name = name
        self._fetches = dict(fetches)
        self._authorities = authorities
        self._notices = notices
        self._now = now
        self._in_thread = in_thread
        self._folder = folder
        self._period = timedelta(seconds=period)
        self._hard = hard
        self._changed = changed
        self._held = {url: _Held() for url in fetches}
        self._busy = False
        #: Of a certificate's issuer and number, whether a list has it.
        self._answers: dict[tuple[x509.Name, int], bool] = {}

    @property
    def crls(self) -> tuple[x509.CertificateRevocationList, ...]:
        """Every list held, the newest of each address, current or not: OpenSSL judges the dates."""
        return tuple(held.crl for held in self._held.values() if held.crl is not None)

    def current(self, issuer: x509.Name) -> x509.CertificateRevocationList | None:
        """Return the current list of an authority, None when we hold none."""
        return next((crl for crl in self.crls if crl.issuer == issuer and self._is_current(crl)), None)

    def revokes(self, certificate: x509.Certificate) -> bool:
        """Say whether a list of its authority, current or not, has a certificate.

        Called for every request, of lists that may be long: answers are remembered until a list changes.
        """
        key = (certificate.issuer, certificate.serial_number)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            answer = self._answers[key] = any(
                crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
                for crl in self.crls
                if crl.issuer == certificate.issuer
            )
        return answer

    def facts(self) -> list[dict[str, str | bool | int | None]]:
        """Return what is shown of each address."""
        return [
            {
                "url": url,
                "issuer": held.crl.issuer.rfc4514_string() if held.crl is not None else None,
                "updated": held.crl.last_update_utc.isoformat() if held.crl is not None else None,
                "next_update": _next(held.crl).isoformat() if held.crl is not None else None,
                "revoked": len(held.crl) if held.crl is not None else 0,
                "current": held.crl is not None and self._is_current(held.crl),
                "problem": held.problem or None,
            }
            for url, held in self._held.items()
        ]

    async def start(self) -> None:
        """Read what is on disk; fetch what is missing or out of date before the doors open."""
        for url, held in self._held.items():
            held.crl = await self._read(url)
        if any(held.crl is None or not self._is_current(held.crl) for held in self._held.values()):
            await self.refresh_if_due()

    async def refresh_if_due(self) -> None:
        """Fetch each list whose time has come: in good time before the one held runs out."""
        await self._refresh(lambda held: held.next_try is None or self._now() >= held.next_try)

    async def refresh(self) -> None:
        """Fetch every list now."""
        await self._refresh(lambda held: True)

    async def _refresh(self, due: Callable[[_Held], bool]) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            fresh = [await self._one(url, held) for url, held in self._held.items() if due(held)]
        finally:
            self._busy = False
        if any(fresh):
            await self._changed()

    async def _one(self, url: str, held: _Held) -> bool:
        """Fetch one list; return whether it is another than the one held."""
        now = self._now()
        try:
            data = await self._fetches[url]()
            crl = await self._in_thread(lambda: verified_crl(data, self._authorities(), now))
            assert isinstance(crl, x509.CertificateRevocationList)
            if held.crl is not None and crl.last_update_utc < held.crl.last_update_utc:
                raise CrlRefused("liste plus ancienne que celle que nous avons")
            if held.crl is not None and self._is_current(held.crl) and _scope(crl) != _scope(held.crl):
                raise CrlRefused("liste d'une autre autorité, ou d'une autre portée, que celle en vigueur")
            same = held.crl is not None and crl.last_update_utc == held.crl.last_update_utc
            if not same:
                await self._in_thread(lambda: self._write(url, data))
        except (FetchFailed, CrlRefused, CertificateUnusable, OSError) as error:
            held.problem = str(error)
            held.next_try = now + timedelta(seconds=RETRY)
            self.log.warn("revocation list of {url}: {problem}", url=url, problem=held.problem)
            await self._tell(url, held)
            return False
        held.crl, held.problem = crl, ""
        self._answers.clear()
        held.next_try = min(now + self._period, now + (_next(crl) - now) / 2)
        await self._tell(url, held)
        return not same

    async def _tell(self, url: str, held: _Held) -> None:
        """Tell the administrator of a list that is not current, or will not be for long."""
        number = list(self._held).index(url) + 1
        current = held.crl is not None and self._is_current(held.crl)
        metrics.CRL_CURRENT.labels(f"{self._name}{number}").set(int(current))
        key = f"crl-{self._name}{number}"
        if not held.problem:
            await self._notices.resolve(key)
            return
        text = f"Liste de révocation {url} : {held.problem}"
        if not current:
            text += (
                " ; aucune liste à jour, les certificats de cette autorité sont refusés"
                if self._hard
                else " ; aucune liste à jour, la révocation n'est pas vérifiée"
            )
        if not current or _next(held.crl) - self._now() < self._period:
            await self._notices.post(key=key, code="REVOCATION", text=text)

    # -- disk --------------------------------------------------------------------------------------

    def _path(self, url: str) -> Path:
        return self._folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.crl"

    def _write(self, url: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._path(url), data)

    async def _read(self, url: str) -> x509.CertificateRevocationList | None:
        def work() -> x509.CertificateRevocationList | None:
            try:
                return verified_crl(self._path(url).read_bytes(), self._authorities(), self._now())
            except (OSError, CrlRefused, CertificateUnusable):
                return None

        found = await self._in_thread(work)
        assert found is None or isinstance(found, x509.CertificateRevocationList)
        return found

    def _is_current(self, crl: x509.CertificateRevocationList) -> bool:
        return crl.last_update_utc <= self._now() + _AHEAD and self._now() < _next(crl)


def _next(crl: x509.CertificateRevocationList | None) -> datetime:
    """Return the date by which a verified list is replaced."""
    assert crl is not None
    following = crl.next_update_utc
    assert following is not None
    return following

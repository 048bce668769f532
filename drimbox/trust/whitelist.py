"""The national whitelist: who may exchange images (DB.SO.154, DB.CS.148, DB.CS.151, DB.CS.164).

The list is a signed XML file that we keep byte for byte as published. `verify` turns it into a
`Whitelist` or says everything that is wrong with it:

    bytes -> xades.verify_enveloped -> chain to configured roots, dates, revocation
          -> CN and OU of the signer, what its key is for -> domains read from the verified bytes

A peer is in the list when one and the same entry has the CN **and** the OU of its certificate, both
compared after parsing (`names.py`). `WhitelistHolder` keeps the one in force: a bad file never replaces
a good list, and a gateway whose own certificate is not in it serves nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from lxml import etree
from OpenSSL import crypto

from drimbox.config import Site, TrustSettings
from drimbox.errors import PeerNotListed
from drimbox.systemerrors import system_reason
from drimbox.trust.certificates import CertificateUnusable, read_certificates, read_leaf, verify_chain
from drimbox.trust.names import (
    Identity,
    NameUnreadable,
    identity,
    identity_of,
    identity_of_text,
)
from drimbox.trust.xades import MAX_BYTES, SignatureRefused, Signed, verify_enveloped
from drimbox.xml import Element, XmlRefused, safe_parse

_ROOT = "ListeBlancheDRIM-M"
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class WhitelistRefused(Exception):
    """The list cannot be used; `reasons` says why, in French, one sentence for each fault found."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(" ; ".join(reasons))
        self.reasons = tuple(reasons)


@attrs.frozen
class Domain:
    """One entry of the list; only its DN counts (interfaces.md 8.1)."""

    identifier: str
    db: str
    vi: str
    name: str
    dn: str
    #: CN and OU of `dn`; None when they cannot be read without doubt, and then it lists nobody.
    identity: Identity | None


@attrs.frozen
class Whitelist:
    """A list whose signature and signer have been verified."""

    #: DateDeGeneration, None when it is not a date.
    generated: datetime | None
    domains: tuple[Domain, ...]
    signer: x509.Certificate
    _identities: frozenset[Identity] = attrs.field(repr=False)

    def lists(self, cn: str, ou: str) -> bool:
        """Say whether one entry has this CN and this OU."""
        return identity(cn, ou) in self._identities

    def lists_certificate(self, certificate: x509.Certificate) -> bool:
        """Say whether one entry has the CN and the OU of this certificate."""
        found = identity_of(certificate)
        return found is not None and found in self._identities


def verify(
    data: bytes,
    roots: Path,
    cn: str,
    ou: str,
    now: datetime,
    crl: x509.CertificateRevocationList | None = None,
) -> Whitelist:
    """Verify a list at the instant `now` and read it.

    `roots` is the PEM file of the authorities of the signer, `cn` and `ou` what its certificate must
    say; `crl` the revocation list of its issuer, None for none yet. Raises `WhitelistRefused`.
    """
    try:
        trusted = read_certificates(roots)
    except CertificateUnusable as error:
        raise WhitelistRefused([str(error)]) from error
    found = examine(data, trusted, identity(cn, ou), now, crl)
    if found.whitelist is None:
        raise WhitelistRefused(found.reasons)
    return found.whitelist


@attrs.frozen
class Examined:
    """What was found out about a list."""

    #: Every fault, in French; empty for a good list.
    reasons: tuple[str, ...]
    #: Who signed it, once the signature itself has been verified; trusted only when there is no reason.
    signer: x509.Certificate | None = None
    #: None when there is a reason not to use it.
    whitelist: Whitelist | None = None


def examine(
    data: bytes,
    trusted: Sequence[x509.Certificate],
    wanted: Identity,
    now: datetime,
    crl: x509.CertificateRevocationList | None = None,
) -> Examined:
    """Verify a list against authorities and the CN and OU its signer must have. Never raises."""
    try:
        signed = verify_enveloped(data)
    except SignatureRefused as error:
        return Examined((str(error),))
    try:
        reasons = tuple(_signer_faults(signed, trusted, wanted, now, crl))
    except ValueError:
        # cryptography reads lazily: a certificate may turn out to be malformed at any of its fields.
        reasons = ("certificat du signataire illisible",)
        return Examined(reasons)
    if reasons:
        return Examined(reasons, signed.signer)
    try:
        return Examined((), signed.signer, _read(signed))
    except WhitelistRefused as error:
        return Examined(error.reasons, signed.signer)


def _signer_faults(
    signed: Signed,
    trusted: Sequence[x509.Certificate],
    wanted: Identity,
    now: datetime,
    crl: x509.CertificateRevocationList | None,
) -> Iterator[str]:
    """Yield every reason not to trust the signer (interfaces.md 8.3)."""
    signer = signed.signer
    if identity_of(signer) != wanted:
        yield "le CN et l'OU du signataire ne sont pas ceux de la liste blanche"
    if not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:
        yield "certificat du signataire hors de ses dates de validité"
    if not _may_sign(signer):
        yield "le certificat du signataire n'est pas fait pour signer"
    try:
        chain = verify_chain(signer, signed.others, trusted, now, () if crl is None else (crl,))
    except crypto.X509StoreContextError as error:
        yield f"certificat du signataire refusé : {error}"
    else:
        # A root is trusted because it is configured, not because of its own signature.
        if any(not isinstance(link.signature_hash_algorithm, _HASHES) for link in chain[:-1]):
            yield "empreinte trop faible dans la chaîne du signataire"


def _may_sign(certificate: x509.Certificate) -> bool:
    """Say whether key usage, where it says something, allows signatures, and that it is no authority."""
    try:
        extensions = certificate.extensions
    except ValueError:
        return False
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.digital_signature or usage.content_commitment


# --- reading --------------------------------------------------------------------------------------


def _read(signed: Signed) -> Whitelist:
    """Read the domains from the verified bytes. Raises `WhitelistRefused`."""
    try:
        root = safe_parse(signed.content, max_bytes=MAX_BYTES)
    except XmlRefused as error:
        raise WhitelistRefused(["liste illisible"]) from error
    listings = _named(root, "ListeDomaines")
    if _local(root) != _ROOT or len(listings) != 1:
        raise WhitelistRefused(["le document signé n'est pas une liste blanche"])
    domains = tuple(_domain(node) for node in _named(listings[0], "Domaine"))
    identities = frozenset(domain.identity for domain in domains if domain.identity is not None)
    if not identities:
        raise WhitelistRefused(["la liste ne contient aucun domaine lisible"])
    return Whitelist(_instant(_text(root, "DateDeGeneration")), domains, signed.signer, identities)


def _domain(node: Element) -> Domain:
    dn = _text(node, "DNCertificatOperateur")
    try:
        found = identity_of_text(dn)
    except NameUnreadable:
        # One bad entry lists nobody; it does not shut out all the others.
        found = None
    return Domain(
        _text(node, "Identifiant"),
        _text(node, "db"),
        _text(node, "vi"),
        _text(node, "Denomination"),
        dn,
        found,
    )


def _text(node: Element, name: str) -> str:
    """Return the text of the only child called `name`; empty when absent, repeated or not plain text."""
    found = _named(node, name)
    return (found[0].text or "").strip() if len(found) == 1 and not len(found[0]) else ""


def _named(node: Element, name: str) -> list[Element]:
    # By local name: the namespace has already changed once (interfaces.md 8.1).
    return [child for child in node if _local(child) == name]


def _local(node: Element) -> str:
    return str(etree.QName(node.tag).localname) if isinstance(node.tag, str) else ""


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


# --- the one in force -----------------------------------------------------------------------------


class WhitelistHolder:
    """Keeps the whitelist in force, and answers from it.

    Files are small and local: `start` and `load` read them at once. `now` gives the present instant,
    with its time zone. `kept` is the list fetched last, beside the one of the configuration: the newer good
    one of the two counts.
    """

    def __init__(
        self,
        settings: TrustSettings,
        sites: Sequence[Site],
        now: Callable[[], datetime],
        *,
        kept: Path | None = None,
        crl_of: Callable[[x509.Name], x509.CertificateRevocationList | None] = lambda issuer: None,
    ) -> None:
        """`crl_of` returns the current revocation list of an authority, None when there is none."""
        self._settings = settings
        self._crl_of = crl_of
        self.sites = tuple(sites)
        self._now = now
        self._kept = kept
        self._listed: frozenset[str] = frozenset()
        #: Our own certificate of each site, as last read.
        self._leaves: dict[str, x509.Certificate] = {}
        #: The list in force, None while there has never been a good one.
        self.current: Whitelist | None = None
        #: Why the last `load` failed; empty when it did not.
        self.reasons: tuple[str, ...] = ()

    def start(self) -> None:
        """Load the list from disk; without a good one refuse to start, unless told otherwise.

        Raises `WhitelistRefused` unless `start_without_whitelist`; then every peer is refused until a
        good list is loaded (decisions.md).
        """
        try:
            self.load()
        except WhitelistRefused:
            if not self._settings.start_without_whitelist:
                raise

    def load(self) -> Whitelist:
        """Verify what is on disk and put the newest good list in force.

        Raises `WhitelistRefused`; then the list in force stays what it was, and `reasons` says why.
        """
        reasons: list[str] = []
        good: list[Whitelist] = []
        for path in (self._kept, self._settings.whitelist):
            if path is None or (path is self._kept and not path.exists()):
                continue
            try:
                good.append(self.verify(_file(path)))
            except WhitelistRefused as error:
                reasons += error.reasons
        if not good:
            self.reasons = tuple(reasons)
            raise WhitelistRefused(reasons)
        self.reasons = ()
        best = max(good, key=_age_order)
        self.install(best)
        return best

    def verify(self, data: bytes) -> Whitelist:
        """Verify a list as the configuration says, without putting it in force.

        Its signer is looked up in the revocation list of its issuer, when we have a current one: a list of
        the day must not be lost with the authority's server (DB.CS.151). Raises `WhitelistRefused`. May be
        called from any thread.
        """
        settings = self._settings
        roots, cn, ou = settings.whitelist_roots, settings.whitelist_cn, settings.whitelist_ou
        found = verify(data, roots, cn, ou, self._now())
        crl = self._crl_of(found.signer.issuer)
        return found if crl is None else verify(data, roots, cn, ou, self._now(), crl)

    def install(self, fresh: Whitelist) -> None:
        """Put a verified list in force; look for our own certificates in it (DB.CS.164)."""
        self.current = fresh
        self._listed = frozenset(site.name for site in self.sites if self._is_listed(site, fresh))

    def _is_listed(self, site: Site, whitelist: Whitelist) -> bool:
        # A file that cannot be read today leaves the doors as they were (`tlskeeper`): with the certificate
        # known before.
        with contextlib.suppress(CertificateUnusable):
            self._leaves[site.name] = read_leaf(site.wado_certificate)
        leaf = self._leaves.get(site.name)
        return leaf is not None and whitelist.lists_certificate(leaf)

    def is_older(self, fresh: Whitelist) -> bool:
        """Say whether a list was made before the one in force."""
        return self.current is not None and _age_order(fresh) < _age_order(self.current)

    def has(self, fresh: Whitelist) -> bool:
        """Say whether the list in force says the same."""
        current = self.current
        return current is not None and (fresh.generated, fresh.domains) == (
            current.generated,
            current.domains,
        )

    def read_configured(self) -> bytes:
        """Return the bytes of the configured file. Raises `WhitelistRefused`."""
        return _file(self._settings.whitelist)

    def lists(self, certificate: x509.Certificate) -> bool:
        """Say whether the list in force has the holder of this certificate."""
        return self.current is not None and self.current.lists_certificate(certificate)

    def check(self, certificate: x509.Certificate) -> None:
        """Raise `PeerNotListed` (E1102) unless the list in force has this peer (DB.SO.154)."""
        if not self.lists(certificate):
            raise PeerNotListed("le CN et l'OU du certificat présenté ne sont pas dans la liste")

    def serves(self, site: Site) -> bool:
        """Say whether this site may exchange images: its own certificate is in the list (DB.CS.164)."""
        return site.name in self._listed

    @property
    def unlisted(self) -> tuple[Site, ...]:
        """Our sites that the list in force does not have, for the administrator's notice."""
        return tuple(site for site in self.sites if site.name not in self._listed)


def _age_order(whitelist: Whitelist) -> datetime:
    """Return what lists are ordered by; one without a date is the oldest."""
    generated = whitelist.generated
    if generated is None:
        return datetime.min.replace(tzinfo=UTC)
    return generated if generated.tzinfo is not None else generated.replace(tzinfo=UTC)


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WhitelistRefused([f"{path} : lecture impossible ({system_reason(error)})"]) from error

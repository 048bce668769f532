"""A test PKI shaped like IGC-Santé, so that every certificate rule can be broken on purpose.

One root (`ACR-EL`) signs one intermediate (`ACI-EL-ORG`), which signs every organisation certificate:
SSL_SERV (one per WADO FQDN), ORG_AUTH_CLI and ORG_SIGN (one pair per structure), the whitelist signer,
the DMP and the Pro Santé Connect servers. A market authority signs the viewer certificates. Names carry
`O`, `ST` and `C` with accents and parentheses, as real ones do, because that is what breaks naive DN
comparisons. Private keys never leave the folder and are readable by their owner alone.

Everything is made at set-up; nothing here is secret or fit for production.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

WHITELIST_CN = "Liste Blanche DRIM-M PROD"
WHITELIST_OU = "318751275100020"
DEFAULT_SITES = ("db1.349.example",)
DEFAULT_STRUCTURES: Mapping[str, str] = {"499700000001006": "CABINET D'IMAGERIE DE L'ÉTÉ"}

_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_MAIL = (ExtendedKeyUsageOID.EMAIL_PROTECTION,)


@attrs.frozen
class Pair:
    """A certificate file (leaf first, then its intermediates) and its key file, both PEM."""

    certificate: Path
    key: Path

    def load(self) -> x509.Certificate:
        """Return the leaf certificate."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    def chain(self) -> list[x509.Certificate]:
        """Return every certificate of the file, leaf first."""
        return x509.load_pem_x509_certificates(self.certificate.read_bytes())

    def private_key(self) -> PrivateKey:
        """Return the private key."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
        return key

    def rsa_key(self) -> rsa.RSAPrivateKey:
        """Return the private key of a pair that signs XML: RSA, as every ORG certificate is."""
        key = self.private_key()
        assert isinstance(key, rsa.RSAPrivateKey)
        return key


@attrs.frozen
class StructurePairs:
    """The two certificates of a situation d'exercice (interfaces.md 4.6)."""

    id: str
    name: str
    #: ORG_AUTH_CLI, for mutual TLS towards the DMP.
    authentication: Pair
    #: ORG_SIGN, for the VIHF and the XAdES document.
    signature: Pair


def organisation_name(
    common_name: str,
    *,
    unit: str,
    organisation: str = "CABINET D'IMAGERIE DE L'ÉTÉ",
    department: str = "Hérault (34)",
) -> x509.Name:
    """Return a subject in the order IGC-Santé writes it: C, ST, O, OU, CN."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, department),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path`, mode 0600 from its first byte."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, 0o600)
        out.write(data)


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def _new_key(*, curve: bool) -> PrivateKey:
    if curve:
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _usage(*, ca: bool, non_repudiation: bool = False, encipher: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=non_repudiation,
        key_encipherment=encipher,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


@attrs.frozen
class Authority:
    """A certification authority held in memory: it issues certificates and lists the revoked ones."""

    certificate: x509.Certificate
    key: PrivateKey
    #: Certificates between this authority (included) and the root (excluded), for chain files.
    chain: tuple[x509.Certificate, ...] = ()
    crl_url: str = ""

    @classmethod
    def create(
        cls,
        name: x509.Name,
        *,
        parent: Authority | None = None,
        crl_url: str = "",
        expired: bool = False,
    ) -> Authority:
        """Make a root (no parent) or an intermediate."""
        key = _new_key(curve=False)
        start = datetime.now(UTC) - timedelta(days=3650)
        end = datetime.now(UTC) + (timedelta(days=-1) if expired else timedelta(days=3650))
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(parent.certificate.subject if parent else name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0 if parent else None), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if parent is not None:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.key.public_key()), critical=False
            )
        certificate = builder.sign(parent.key if parent else key, hashes.SHA256())
        return cls(
            certificate=certificate,
            key=key,
            chain=(certificate, *parent.chain) if parent else (),
            crl_url=crl_url,
        )

    def issue(
        self,
        subject: x509.Name,
        *,
        usages: Sequence[x509.ObjectIdentifier],
        dns: Iterable[str] = (),
        addresses: Iterable[str] = (),
        non_repudiation: bool = False,
        curve: bool = False,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> tuple[x509.Certificate, PrivateKey]:
        """Issue an end-entity certificate with a new key; validity defaults to yesterday + 3 years."""
        key = _new_key(curve=curve)
        now = datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - timedelta(days=1))
            .not_valid_after(not_after or now + timedelta(days=1095))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                _usage(ca=False, non_repudiation=non_repudiation, encipher=not curve), critical=True
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if self.crl_url:
            point = x509.DistributionPoint([x509.UniformResourceIdentifier(self.crl_url)], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def crl(self, revoked: Iterable[int] = (), *, expired: bool = False) -> x509.CertificateRevocationList:
        """Return the list of revoked serial numbers, good for a week (or out of date since yesterday)."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - timedelta(days=8 if expired else 1))
            .next_update(now + timedelta(days=-1 if expired else 7))
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        for serial in revoked:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(now - timedelta(hours=1))
                .build()
            )
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256())


@attrs.frozen
class Pki:
    """The files of a test PKI, and the means to issue more certificates, good or bad."""

    folder: Path
    #: Roots a verifier configures: ACR-EL and ACI-EL-ORG in one PEM file.
    roots: Path
    root: Path
    intermediate: Path
    #: CRLs of root and intermediate in one PEM file; the intermediate's alone in DER, as published.
    crls: Path
    crl_der: Path
    market_root: Path
    #: SSL_SERV pairs by FQDN.
    sites: Mapping[str, Pair]
    #: Market pairs by viewer FQDN.
    viewers: Mapping[str, Pair]
    structures: Mapping[str, StructurePairs]
    dmp: Pair
    psc: Pair
    whitelist_signer: Pair
    root_authority: Authority = attrs.field(repr=False)
    org_authority: Authority = attrs.field(repr=False)
    market_authority: Authority = attrs.field(repr=False)
    _stranger: list[Authority] = attrs.field(factory=list, repr=False)

    def stranger(self) -> Authority:
        """Return an intermediate with the very names of ours under a root nobody configured."""
        if not self._stranger:
            root = Authority.create(self.root_authority.certificate.subject)
            self._stranger.append(Authority.create(self.org_authority.certificate.subject, parent=root))
        return self._stranger[0]

    def write(
        self, name: str, issued: tuple[x509.Certificate, PrivateKey], authority: Authority | None = None
    ) -> Pair:
        """Write a pair as `<name>.pem` (with its chain) and `<name>.key`."""
        certificate, key = issued
        chain = (authority or self.org_authority).chain
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.certificate.write_bytes(_pem(certificate, *chain))
        write_private(pair.key, _key_pem(key))
        return pair

    def issue_ssl_serv(
        self,
        fqdn: str,
        *,
        name: str | None = None,
        unit: str = "300000000000001",
        organisation: str = "CABINET D'IMAGERIE DE L'ÉTÉ",
        expired: bool = False,
        not_yet: bool = False,
        stranger: bool = False,
        usages: Sequence[x509.ObjectIdentifier] = (*_SERVER, *_CLIENT),
    ) -> Pair:
        """Issue an SSL_SERV certificate; options make it expired, not yet valid, or of a wrong CA."""
        authority = self.stranger() if stranger else self.org_authority
        begin, end = _dates(expired=expired, not_yet=not_yet)
        issued = authority.issue(
            organisation_name(fqdn, unit=unit, organisation=organisation),
            usages=usages,
            dns=[fqdn],
            not_before=begin,
            not_after=end,
        )
        return self.write(name or fqdn, issued, authority)

    def issue_org(
        self,
        structure: str,
        kind: str,
        *,
        organisation: str = "CABINET D'IMAGERIE DE L'ÉTÉ",
        common_name: str = "DRIMbox",
        name: str | None = None,
        expired: bool = False,
        stranger: bool = False,
    ) -> Pair:
        """Issue an ORG_AUTH_CLI (`kind` "auth") or ORG_SIGN ("sign") certificate, OU = `structure`."""
        authority = self.stranger() if stranger else self.org_authority
        begin, end = _dates(expired=expired, not_yet=False)
        issued = authority.issue(
            organisation_name(common_name, unit=structure, organisation=organisation),
            usages=_CLIENT if kind == "auth" else _MAIL,
            non_repudiation=kind == "sign",
            not_before=begin,
            not_after=end,
        )
        return self.write(name or f"org-{kind}-{structure}", issued, authority)

    def issue_whitelist_signer(
        self,
        name: str,
        *,
        common_name: str = WHITELIST_CN,
        unit: str = WHITELIST_OU,
        expired: bool = False,
        stranger: bool = False,
    ) -> Pair:
        """Issue a certificate to sign whitelists with (interfaces.md 8.3)."""
        authority = self.stranger() if stranger else self.org_authority
        begin, end = _dates(expired=expired, not_yet=False)
        issued = authority.issue(
            organisation_name(
                common_name,
                unit=unit,
                organisation="AGENCE DU NUMERIQUE EN SANTE",
                department="Paris (75)",
            ),
            usages=_MAIL,
            non_repudiation=True,
            not_before=begin,
            not_after=end,
        )
        return self.write(name, issued, authority)

    def revoke(self, *pairs: Pair, expired: bool = False) -> None:
        """Rewrite the CRL files so that they hold exactly `pairs`; `expired` makes them out of date."""
        serials = [pair.load().serial_number for pair in pairs]
        org = self.org_authority.crl(serials, expired=expired)
        root = self.root_authority.crl(expired=expired)
        pem = serialization.Encoding.PEM
        self.crls.write_bytes(org.public_bytes(pem) + root.public_bytes(pem))
        self.crl_der.write_bytes(org.public_bytes(serialization.Encoding.DER))


def _dates(*, expired: bool, not_yet: bool) -> tuple[datetime | None, datetime | None]:
    now = datetime.now(UTC)
    if expired:
        return now - timedelta(days=400), now - timedelta(days=1)
    if not_yet:
        return now + timedelta(days=1), now + timedelta(days=400)
    return None, None


def _authority_name(common_name: str, organisation: str = "SIMULATEUR IGC-SANTÉ") -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "0002 187512751"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def make_pki(
    folder: Path,
    *,
    sites: Iterable[str] = DEFAULT_SITES,
    viewers: Iterable[str] = (),
    structures: Mapping[str, str] = DEFAULT_STRUCTURES,
    dmp_host: str = "dmp.example",
    psc_host: str = "psc.example",
    unit: str = "300000000000001",
    whitelist_cn: str = WHITELIST_CN,
    whitelist_ou: str = WHITELIST_OU,
) -> Pki:
    """Make a whole PKI in `folder` (created, mode 0700) and return where everything is.

    `sites` are WADO FQDNs, `viewers` viewer FQDNs, `structures` maps Struct_IdNat to a name. Server
    certificates of DMP and PSC also carry `localhost` and 127.0.0.1, so that a stock client finds them
    on loopback. Costs about 0.1 s for each RSA key: six, plus one a site and two a structure.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = Authority.create(_authority_name("SIMULATEUR AC RACINE IGC-SANTE ELEMENTAIRE"))
    org = Authority.create(
        _authority_name("SIMULATEUR AC IGC-SANTE ELEMENTAIRE ORGANISATIONS"),
        parent=root,
        crl_url="http://igc-sante.example/CRL/ACI-EL-ORG.crl",
    )
    market = Authority.create(_authority_name("Autorité de marché (simulateur)", "Autorité de marché"))
    paths = {
        "roots": _pem(root.certificate, org.certificate),
        "acr-el": _pem(root.certificate),
        "aci-el-org": _pem(org.certificate),
        "market-root": _pem(market.certificate),
    }
    for name, data in paths.items():
        (folder / f"{name}.pem").write_bytes(data)
    pki = Pki(
        folder=folder,
        roots=folder / "roots.pem",
        root=folder / "acr-el.pem",
        intermediate=folder / "aci-el-org.pem",
        crls=folder / "crls.pem",
        crl_der=folder / "ACI-EL-ORG.crl",
        market_root=folder / "market-root.pem",
        sites={},
        viewers={},
        structures={},
        dmp=Pair(folder / "dmp.pem", folder / "dmp.key"),
        psc=Pair(folder / "psc.pem", folder / "psc.key"),
        whitelist_signer=Pair(folder / "whitelist-signer.pem", folder / "whitelist-signer.key"),
        root_authority=root,
        org_authority=org,
        market_authority=market,
    )
    for name, host in (("dmp", dmp_host), ("psc", psc_host)):
        subject = organisation_name(
            host, unit=WHITELIST_OU, organisation="SIMULATEUR", department="Paris (75)"
        )
        pki.write(
            name,
            org.issue(
                subject, usages=_SERVER, dns=[host, "localhost"], addresses=["127.0.0.1"], curve=True
            ),
        )
    pki.issue_whitelist_signer("whitelist-signer", common_name=whitelist_cn, unit=whitelist_ou)
    site_pairs = {fqdn: pki.issue_ssl_serv(fqdn, unit=unit) for fqdn in sites}
    viewer_pairs = {
        fqdn: pki.write(
            fqdn,
            market.issue(organisation_name(fqdn, unit=unit), usages=_SERVER, dns=[fqdn], curve=True),
            market,
        )
        for fqdn in viewers
    }
    structure_pairs = {
        identifier: StructurePairs(
            identifier,
            name,
            pki.issue_org(identifier, "auth", organisation=name),
            pki.issue_org(identifier, "sign", organisation=name),
        )
        for identifier, name in structures.items()
    }
    pki.revoke()
    return attrs.evolve(pki, sites=site_pairs, viewers=viewer_pairs, structures=structure_pairs)

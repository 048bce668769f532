"""A small certificate authority for these tests, and the files a configuration names."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from cryptography.x509.oid import NameOID

from drimbox.config import Certificate, Pacs, Site, TrustSettings

NOW = datetime.now(UTC)
BOTH = (Eku.SERVER_AUTH, Eku.CLIENT_AUTH)


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """One RSA key by name: making them is the slow part."""
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name(cn: str, ou: str | None = None, *more: tuple) -> x509.Name:
    parts = [(NameOID.COUNTRY_NAME, "FR"), (NameOID.ORGANIZATION_NAME, "CABINET DE L'ÉTÉ (75)")]
    if ou is not None:
        parts.append((NameOID.ORGANIZATIONAL_UNIT_NAME, ou))
    return x509.Name([x509.NameAttribute(*part) for part in [*parts, (NameOID.COMMON_NAME, cn), *more]])


@attrs.frozen
class Issued:
    """A certificate, its key, and the certificates of its issuers, nearest first."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    def pem(self) -> bytes:
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (self.certificate, *self.chain))

    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, folder: Path, stem: str) -> Certificate:
        certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
        certificate.write_bytes(self.pem())
        key.write_bytes(self.key_pem())
        return Certificate(certificate, key)


def issue(
    subject: x509.Name,
    *,
    by: Issued | None = None,
    key=None,
    ca: bool = False,
    eku: tuple = (),
    dns: tuple[str, ...] = (),
    ips: tuple[str, ...] = (),
    start: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=30),
    key_usage: x509.KeyUsage | None = None,
    hash_algorithm=None,
) -> Issued:
    """Make one certificate; self-signed without `by`."""
    key = key or ec_key(subject.rfc4514_string())
    issuer = by.certificate.subject if by else subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    names = [x509.DNSName(value) for value in dns]
    names += [x509.IPAddress(ipaddress.ip_address(value)) for value in ips]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signer = by.key if by else key
    chain = (by.certificate, *by.chain) if by and by.chain else ((by.certificate,) if by else ())
    certificate = builder.sign(signer, hash_algorithm or hashes.SHA256())
    # The root is not sent: chain holds intermediates only.
    return Issued(certificate, key, tuple(c for c in chain if c.issuer != c.subject))


def crl(issuer: Issued, *revoked: x509.Certificate) -> x509.CertificateRevocationList:
    """A current revocation list of `issuer`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW - timedelta(hours=1))
        .next_update(NOW + timedelta(days=1))
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(NOW - timedelta(hours=2)).build())
    return builder.sign(issuer.key, hashes.SHA256())


@attrs.frozen
class World:
    """Two sites, their certificates, and every kind of client certificate."""

    folder: Path
    sites: tuple[Site, ...]
    trust: TrustSettings
    root: Issued
    intermediate: Issued
    market: Issued
    clients: dict[str, Issued]

    def client(self, which: str) -> Certificate:
        return Certificate(self.folder / f"client-{which}.pem", self.folder / f"client-{which}.key")

    @property
    def market_roots(self) -> Path:
        return self.folder / "market.pem"


def make_world(folder: Path) -> World:
    root = issue(name("ACR-EL TEST"), ca=True)
    intermediate = issue(name("ACI-EL-ORG TEST"), by=root, ca=True)
    market = issue(name("MARKET"), ca=True)
    other = issue(name("OTHER"), ca=True)
    (folder / "roots.pem").write_bytes(root.pem())
    (folder / "market.pem").write_bytes(market.pem())
    clients = {
        "good": issue(name("db9.350.example", "3500"), by=intermediate, eku=BOTH, dns=("db9.350.example",)),
        "expired": issue(
            name("expired", "1"),
            by=intermediate,
            eku=BOTH,
            start=NOW - timedelta(9),
            end=NOW - timedelta(1),
        ),
        "future": issue(name("future", "1"), by=intermediate, eku=BOTH, start=NOW + timedelta(1)),
        "wrong-ca": issue(name("wrong-ca", "1"), by=other, eku=BOTH),
        "market": issue(name("market", "1"), by=market, eku=BOTH),
        "server-only": issue(name("server-only", "1"), by=intermediate, eku=(Eku.SERVER_AUTH,)),
        "mail-only": issue(name("mail-only", "1"), by=intermediate, eku=(Eku.EMAIL_PROTECTION,)),
        "self-signed": issue(name("self-signed", "1"), eku=BOTH),
    }
    for which, issued in clients.items():
        issued.write(folder, f"client-{which}")
    sites = tuple(
        Site(
            name=f"site{index}",
            wado_fqdn=f"db{index}.349.example",
            viewer_fqdn=f"vi{index}.349.example",
            pacs=Pacs(f"pacs{index}", "PACS", "127.0.0.1", 104, ("POOL1",)),
            wado_certificate=issue(
                name(f"db{index}.349.example", "3490"),
                by=intermediate,
                eku=BOTH,
                dns=(f"db{index}.349.example",),
            ).write(folder, f"db{index}"),
            viewer_certificate=issue(
                name(f"vi{index}.349.example"),
                by=market,
                eku=(Eku.SERVER_AUTH,),
                dns=(f"vi{index}.349.example",),
            ).write(folder, f"vi{index}"),
        )
        for index in (1, 2)
    )
    trust = TrustSettings(
        consumer_roots=folder / "roots.pem",
        whitelist=folder / "whitelist.xml",
        whitelist_roots=folder / "whitelist-roots.pem",
    )
    return World(folder, sites, trust, root, intermediate, market, clients)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("trust"))

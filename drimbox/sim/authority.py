"""Certification authorities held in memory: they issue certificates, good or bad, and revocation lists.

The parts of the test PKI of `drimbox.sim.pki` that know X.509 and no file layout.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


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


def key_pem(key: PrivateKey) -> bytes:
    """Return the key as PEM, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates as one PEM text."""
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


def authority_name(common_name: str, organisation: str = "SIMULATEUR IGC-SANTÉ") -> x509.Name:
    """Return the subject of an authority."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "0002 187512751"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )

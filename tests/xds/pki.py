"""A small certificate authority made on the spot: DMP server, ORG_AUTH_CLI and ORG_SIGN pairs."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drimbox.config import Certificate


def name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A DN written from the country down, as IGC-Santé does."""
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@attrs.frozen
class Authority:
    """A root with its folder; issues leaf certificates."""

    folder: Path
    common_name: str = "TEST AC ORGANISATIONS"
    key: rsa.RSAPrivateKey = attrs.field(
        factory=lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )

    @property
    def subject(self) -> x509.Name:
        """DN of the root."""
        return name(
            (NameOID.COUNTRY_NAME, "FR"),
            (NameOID.ORGANIZATION_NAME, "ASIP-SANTE"),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, "0002 187512751"),
            (NameOID.COMMON_NAME, self.common_name),
        )

    def roots(self) -> Path:
        """Write and return the PEM file of the root."""
        path = self.folder / f"{self.common_name.replace(' ', '-')}.pem"
        if not path.exists():
            certificate = self._certificate(
                self.subject, self.key.public_key(), ca=True, sans=[], usage=None
            )
            path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(
        self, label: str, *, server: bool = False, sans: tuple[str, ...] = (), signing: bool = False
    ) -> Certificate:
        """Issue a leaf; `sans` are names or addresses, `signing` makes it a signature certificate."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = name(
            (NameOID.COUNTRY_NAME, "FR"),
            (NameOID.STATE_OR_PROVINCE_NAME, "Paris (75)"),
            (NameOID.ORGANIZATION_NAME, "CABINET Y"),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, "1999999999"),
            (NameOID.COMMON_NAME, label),
        )
        usage = (
            None
            if signing
            else (ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH)
        )
        certificate = self._certificate(subject, key.public_key(), ca=False, sans=list(sans), usage=usage)
        cert_path, key_path = self.folder / f"{label}.pem", self.folder / f"{label}.key"
        cert_path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM) + self.roots().read_bytes()
        )
        key_path.write_bytes(_pem(key))
        return Certificate(cert_path, key_path)

    def _certificate(
        self,
        subject: x509.Name,
        public: rsa.RSAPublicKey,
        *,
        ca: bool,
        sans: list[str],
        usage: x509.ObjectIdentifier | None,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=ca,
                    crl_sign=ca,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        names: list[x509.GeneralName] = [_general_name(san) for san in sans]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _general_name(value: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(value))
    except ValueError:
        return x509.DNSName(value)

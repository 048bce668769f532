"""Which certificates the simulated DMP believes, and what it does with distrust.

`Trust` holds the roots and CRLs; `Findings` gathers what is wrong with one request. A finding is fatal,
a warning, or a matter of trust (signature, certificate, freshness, digest of re-indented XML): the
lenient mode, meant for the published samples whose signatures no longer verify, turns trust into
warnings and nothing else.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import attrs
from cryptography import x509
from OpenSSL import crypto

from drimbox.sim.dmp_soap import RegistryError


@attrs.define
class Findings:
    """What is wrong with one request."""

    lenient: bool = False
    errors: list[RegistryError] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)

    def error(self, code: str, text: str, location: str = "") -> None:
        """Refuse the request."""
        self.errors.append(RegistryError(code, text, location))

    def metadata(self, text: str, location: str = "") -> None:
        """Refuse the request for its metadata."""
        self.error("XDSRegistryMetadataError", text, location)

    def trust(self, code: str, text: str, location: str = "") -> None:
        """Refuse the request, or only warn in lenient mode."""
        if self.lenient:
            self.warnings.append(f"{code}: {text}")
        else:
            self.error(code, text, location)

    def warn(self, text: str) -> None:
        """Let it pass, but say so."""
        self.warnings.append(text)


@attrs.frozen
class Trust:
    """Roots, intermediates and CRLs of the organisations that may publish."""

    authorities: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] = ()

    @classmethod
    def load(cls, roots: Path, crls: Path | None = None) -> Trust:
        """Read PEM files; the CRL file may hold several lists."""
        lists: list[x509.CertificateRevocationList] = []
        if crls is not None:
            mark = b"-----BEGIN X509 CRL-----"
            for piece in crls.read_bytes().split(mark)[1:]:
                lists.append(x509.load_pem_x509_crl(mark + piece))
        return cls(tuple(x509.load_pem_x509_certificates(roots.read_bytes())), tuple(lists))

    def problem_with(self, certificate: x509.Certificate, now: datetime) -> str | None:
        """Return why `certificate` is not to be believed at `now`, or None."""
        store = crypto.X509Store()
        for authority in self.authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
        for crl in self.crls:
            store.add_crl(crl)
        if self.crls:
            flags = crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
            store.set_flags(flags)
        store.set_time(now)
        context = crypto.X509StoreContext(store, crypto.X509.from_cryptography(certificate))
        try:
            context.verify_certificate()
        except crypto.X509StoreContextError as error:
            return str(error)
        return None


def unit_of(certificate: x509.Certificate) -> str:
    """Return the OU that names a structure, empty when there is none."""
    units = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(units[0].value) if units else ""


def may_sign(certificate: x509.Certificate) -> bool:
    """Say whether this is a signature certificate (ORG_SIGN), not an authentication one."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.content_commitment


_SHORT = {
    "CN": x509.NameOID.COMMON_NAME,
    "OU": x509.NameOID.ORGANIZATIONAL_UNIT_NAME,
    "O": x509.NameOID.ORGANIZATION_NAME,
    "ST": x509.NameOID.STATE_OR_PROVINCE_NAME,
    "S": x509.NameOID.STATE_OR_PROVINCE_NAME,
    "L": x509.NameOID.LOCALITY_NAME,
    "C": x509.NameOID.COUNTRY_NAME,
}


def names_subject(text: str, name: x509.Name) -> bool:
    """Say whether `text`, a DN in either order and with or without blanks, means `name`."""
    wanted = [(attribute.oid, str(attribute.value)) for attribute in name]
    found = []
    for rdn in _split_dn(text):
        key, equal, value = rdn.partition("=")
        oid = _SHORT.get(key.strip().upper())
        if not equal or oid is None:
            return False
        found.append((oid, value.strip()))
    return found in (wanted, wanted[::-1])


def _split_dn(text: str) -> list[str]:
    pieces, current, escaped = [], "", False
    for character in text:
        if escaped or character not in ",\\":
            current += character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            pieces.append(current)
            current = ""
    return [*pieces, current]

"""Reading PEM files and building the stores that certificates are verified against.

What a store trusts is what its PEM file holds: roots end a chain, intermediates help to build one but
are no anchors by themselves (no partial chains). Revocation lists are an argument everywhere already:
given some, OpenSSL checks the leaf against them during the handshake and in the whitelist alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL, crypto

from drimbox.config import Certificate

#: Largest PEM file we read; the bundle of a system holds about 250 KB.
MAX_PEM = 4 * 1024 * 1024


class CertificateUnusable(Exception):
    """A configured certificate or key cannot be used; the text (French) says which file and why."""


def read_file(path: Path) -> bytes:
    """Return the bytes of a configured PEM file. Raises `CertificateUnusable`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM + 1)
    except OSError as error:
        raise CertificateUnusable(f"{path} : lecture impossible ({error.strerror})") from error
    if len(data) > MAX_PEM:
        raise CertificateUnusable(f"{path} : plus de {MAX_PEM} octets")
    return data


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return every certificate of a PEM file, in its order; at least one.

    Raises `CertificateUnusable`.
    """
    data = read_file(path)
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise CertificateUnusable(f"{path} : aucun certificat PEM lisible") from error
    if not certificates:
        raise CertificateUnusable(f"{path} : aucun certificat PEM lisible")
    return certificates


def read_authorities(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM or DER file, or of every such file of a folder; at least one.

    What is in a folder and is no certificate is passed over. Raises `CertificateUnusable`.
    """
    if not path.is_dir():
        return _certificates(path)
    found: list[x509.Certificate] = []
    for file in sorted(each for each in path.iterdir() if each.is_file()):
        try:
            found += _certificates(file)
        except CertificateUnusable:
            continue
    if not found:
        raise CertificateUnusable(f"{path} : aucun certificat lisible dans ce dossier")
    return found


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(read_file(path))]
    except ValueError:
        return read_certificates(path)


def read_crl(path: Path) -> x509.CertificateRevocationList:
    """Return a revocation list, PEM or DER. Raises `CertificateUnusable`."""
    try:
        return parse_crl(read_file(path))
    except ValueError as error:
        raise CertificateUnusable(f"{path} : liste de révocation illisible") from error


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list, PEM or DER. Raises `ValueError`."""
    if data.lstrip()[:10] == b"-----BEGIN":
        return x509.load_pem_x509_crl(data)
    return x509.load_der_x509_crl(data)


def read_leaf(pair: Certificate) -> x509.Certificate:
    """Return the first certificate of a pair: its own. Raises `CertificateUnusable`."""
    return read_certificates(pair.certificate)[0]


def use_pair(context: SSL.Context, pair: Certificate) -> x509.Certificate:
    """Make `context` present this certificate with its chain, and prove it with its key; return the first.

    Raises `CertificateUnusable` when a file is missing, unreadable, or the key is not the certificate's.
    """
    chain = read_certificates(pair.certificate)
    try:
        key = serialization.load_pem_private_key(read_file(pair.key), None)
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise ValueError("neither RSA nor EC")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateUnusable(f"{pair.key} : clé privée PEM illisible ou chiffrée") from error
    try:
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as error:
        raise CertificateUnusable(f"{pair.certificate} : ne va pas avec la clé {pair.key}") from error
    return chain[0]


def fill_store(
    store: crypto.X509Store,
    trusted: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList] = (),
    *,
    required: bool = False,
) -> None:
    """Put trusted certificates into an OpenSSL store, and revocation lists if there are any.

    With lists, or when they are `required`, the leaf must be covered by a current one of its issuer: no
    list, no entry. Intermediates too, as soon as there is a list of every root trusted, and of the issuer
    of everybody else trusted.
    """
    for certificate in trusted:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    for crl in crls:
        store.add_crl(crl)
    if crls or required:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
        # Of a root its own list, of an intermediate that of its issuer.
        covered = {crl.issuer for crl in crls}
        if trusted and all(each.issuer in covered for each in trusted):
            store.set_flags(crypto.X509StoreFlags.CRL_CHECK_ALL)


def verify_chain(
    leaf: x509.Certificate,
    untrusted: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    now: datetime,
    crls: Sequence[x509.CertificateRevocationList] = (),
) -> list[x509.Certificate]:
    """Build and verify the chain of `leaf` at the instant `now`; return it, leaf first, root last.

    No purpose is asked for: the whitelist signer has `emailProtection` alone (interfaces.md 8.3), so
    what a certificate may be used for is the caller's question. `untrusted` only helps to find issuers.
    Raises `crypto.X509StoreContextError`, whose text is OpenSSL's.
    """
    store = crypto.X509Store()
    fill_store(store, trusted, crls)
    # OpenSSL reads the tuple as UTC.
    store.set_time(now.astimezone(UTC))
    context = crypto.X509StoreContext(
        store,
        crypto.X509.from_cryptography(leaf),
        [crypto.X509.from_cryptography(certificate) for certificate in untrusted],
    )
    return [certificate.to_cryptography() for certificate in context.get_verified_chain()]

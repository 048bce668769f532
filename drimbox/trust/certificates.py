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
from OpenSSL import SSL, crypto

from drimbox.config import Certificate
from drimbox.keypairs import CertificateUnusable, read_bytes, read_leaf, read_pair, read_pem_certificates

__all__ = [
    "CertificateUnusable",
    "fill_store",
    "parse_crl",
    "read_authorities",
    "read_certificates",
    "read_crl",
    "read_leaf",
    "use_pair",
    "verify_chain",
]


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return every certificate of a PEM file, in its order; at least one.

    Raises `CertificateUnusable`.
    """
    return read_pem_certificates(path)


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
        return [x509.load_der_x509_certificate(read_bytes(path))]
    except ValueError:
        return read_certificates(path)


def read_crl(path: Path) -> x509.CertificateRevocationList:
    """Return a revocation list, PEM or DER. Raises `CertificateUnusable`."""
    try:
        return parse_crl(read_bytes(path))
    except ValueError as error:
        raise CertificateUnusable(f"{path} : liste de révocation illisible") from error


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list, PEM or DER. Raises `ValueError`."""
    if data.lstrip()[:10] == b"-----BEGIN":
        return x509.load_pem_x509_crl(data)
    return x509.load_der_x509_crl(data)


def use_pair(context: SSL.Context, files: Certificate) -> x509.Certificate:
    """Make `context` present this certificate with its chain, and prove it with its key; return the first.

    Raises `CertificateUnusable` when a file is missing, unreadable, or the key is not the certificate's.
    """
    pair = read_pair(files)
    if not pair.fits:
        raise CertificateUnusable(f"{files.certificate} : ne va pas avec la clé {files.key}")
    try:
        context.use_certificate(pair.chain[0])
        for certificate in pair.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(pair.key)
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as error:
        raise CertificateUnusable(f"{files.files[0]} : certificat ou clé refusés par OpenSSL") from error
    return pair.chain[0]


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

"""Reading a certificate with its chain and its private key: two PEM files, or one PKCS#12 file.

IGC-Santé delivers PKCS#12 (`.p12`, `.pfx`). What OpenSSL's own and legacy providers can open is taken: AES,
3DES, RC2-40 and RC4 alike (docs/exploitation-confiance.md). In such a file the order means nothing: the
certificate of the key comes first here, then its issuers in their order; roots, which a peer has or does
not trust, and certificates of others stay out.

Keys are never shown, and only leaf certificates are remembered: deriving the key of a PKCS#12 file costs
tens of milliseconds, which whoever asks on the reactor thread when a certificate ends must not wait for.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)

from drimbox.config import Certificate
from drimbox.secretfile import SecretUnusable, read_secret
from drimbox.systemerrors import system_reason

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
#: Bytes of the largest file read.
MAX_FILE = 4 * 1024 * 1024
#: Leaf certificates remembered; a configuration names a handful.
_MAX_LEAVES = 256
_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_LEAVES: dict[Certificate, tuple[tuple[int, ...], x509.Certificate]] = {}


class CertificateUnusable(Exception):
    """A certificate or key cannot be used; the text (French) says which file and why."""


@attrs.frozen(eq=False)
class KeyPair:
    """What proves who we are."""

    #: Its own certificate and those of its issuers. From PEM files: in their order.
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = attrs.field(repr=False)

    @property
    def fits(self) -> bool:
        """Say whether the key is that of the first certificate."""
        return _public(self.chain[0]) == _spki(self.key)


def read_pair(files: Certificate, *, check_key: bool = True) -> KeyPair:
    """Read a pair; whether they fit is for the caller to ask (`KeyPair.fits`), from PKCS#12 they do.

    Without `check_key` an RSA key in PEM is not proved to be sound, which takes 30 ms. Raises
    `CertificateUnusable`.
    """
    stamp = _stamp(files)
    pair = _read_pkcs12(files) if files.pkcs12 is not None else _read_pem(files, check_key)
    _remember(files, stamp, pair.chain[0])
    return pair


def read_leaf(files: Certificate) -> x509.Certificate:
    """Return the certificate of a pair; no key is read where it stands apart.

    Raises `CertificateUnusable`.
    """
    stamp = _stamp(files)
    held = _LEAVES.get(files)
    if held is not None and stamp is not None and held[0] == stamp:
        return held[1]
    if files.pkcs12 is not None:
        return read_pair(files).chain[0]
    leaf = read_pem_certificates(_named(files.certificate))[0]
    _remember(files, stamp, leaf)
    return leaf


def read_pem_certificates(path: Path) -> list[x509.Certificate]:
    """Return every certificate of a PEM file, in its order; at least one. Raises `CertificateUnusable`."""
    try:
        certificates = x509.load_pem_x509_certificates(read_bytes(path))
    except ValueError as error:
        raise CertificateUnusable(f"{path} : aucun certificat PEM lisible") from error
    if not certificates:
        raise CertificateUnusable(f"{path} : aucun certificat PEM lisible")
    return certificates


def read_crls(path: Path) -> list[x509.CertificateRevocationList]:
    """Return the revocation lists of a file: one in DER, or some in PEM. Raises `CertificateUnusable`."""
    data = read_bytes(path)
    try:
        if b"-----BEGIN X509 CRL-----" not in data:
            return [x509.load_der_x509_crl(data)]
        return [x509.load_pem_x509_crl(text) for text in _PEM_CRL.findall(data)]
    except ValueError as error:
        raise CertificateUnusable(f"{path} : liste de révocation illisible") from error


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a configured file. Raises `CertificateUnusable`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise CertificateUnusable(f"{path} : lecture impossible ({system_reason(error)})") from error
    if len(data) > MAX_FILE:
        raise CertificateUnusable(f"{path} : plus de {MAX_FILE} octets")
    return data


def open_pkcs12(data: bytes, password: str | None, path: Path) -> KeyPair:
    """Open the bytes of a PKCS#12 file; `path` names it in messages. Raises `CertificateUnusable`."""
    secret = password.encode("utf-8") if password is not None else None
    try:
        bundle = pkcs12.load_pkcs12(data, secret)
    except UnsupportedAlgorithm as error:
        raise CertificateUnusable(f"{path} : chiffrement PKCS#12 non pris en charge") from error
    except (ValueError, TypeError) as error:
        # OpenSSL does not tell one from the other.
        raise CertificateUnusable(f"{path} : PKCS#12 illisible, ou mot de passe erroné") from error
    key = bundle.key
    if key is None:
        raise CertificateUnusable(f"{path} : aucune clé privée dans ce PKCS#12")
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CertificateUnusable(f"{path} : la clé privée n'est ni RSA ni à courbe elliptique")
    found = [each.certificate for each in (bundle.cert, *bundle.additional_certs) if each is not None]
    leaf = next((each for each in found if _public(each) == _spki(key)), None)
    if leaf is None:
        raise CertificateUnusable(f"{path} : aucun certificat de la clé privée dans ce PKCS#12")
    return KeyPair(_ordered(leaf, found), key)


def stamp_of(*paths: Path) -> tuple[int, ...]:
    """Return what changes when one of these files is written or replaced; raises `OSError`."""
    found = [path.stat() for path in paths]
    return tuple(n for status in found for n in (status.st_mtime_ns, status.st_size, status.st_ino))


# -- own -------------------------------------------------------------------------------------------


def _read_pkcs12(files: Certificate) -> KeyPair:
    path = _named(files.pkcs12)
    return open_pkcs12(read_bytes(path), _password(files), path)


def _read_pem(files: Certificate, check_key: bool) -> KeyPair:
    chain, path = read_pem_certificates(_named(files.certificate)), _named(files.key)
    password = _password(files)
    secret = password.encode("utf-8") if password is not None else None
    try:
        key = load_pem_private_key(read_bytes(path), secret, unsafe_skip_rsa_key_validation=not check_key)
    except TypeError as error:
        why = "chiffrée, password_file attendu" if secret is None else "non chiffrée, retirer password_file"
        raise CertificateUnusable(f"{path} : clé privée {why}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        why = " ou mot de passe erroné" if secret is not None else ""
        raise CertificateUnusable(f"{path} : clé privée PEM illisible{why}") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CertificateUnusable(f"{path} : la clé privée n'est ni RSA ni à courbe elliptique")
    return KeyPair(tuple(chain), key)


def _password(files: Certificate) -> str | None:
    if files.password_file is None:
        return None
    try:
        return read_secret(files.password_file, blanks=True)
    except SecretUnusable as error:
        raise CertificateUnusable(str(error)) from error


def _named(path: Path | None) -> Path:
    """Return a path that the checks of the configuration have made sure of."""
    if path is None:
        raise CertificateUnusable("couple incomplet : certificate et key, ou pkcs12")
    return path


def _ordered(leaf: x509.Certificate, found: list[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    chain, left = [leaf], [each for each in found if each != leaf and each.issuer != each.subject]
    while True:
        issuer = next((each for each in left if each.subject == chain[-1].issuer), None)
        if issuer is None:
            return tuple(chain)
        left.remove(issuer)
        chain.append(issuer)


def _public(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _stamp(files: Certificate) -> tuple[int, ...] | None:
    try:
        return stamp_of(*files.files)
    except OSError:
        return None


def _remember(files: Certificate, stamp: tuple[int, ...] | None, leaf: x509.Certificate) -> None:
    # The stamp was taken before the files were read: one replaced in between is read again.
    if stamp is None:
        return
    if len(_LEAVES) >= _MAX_LEAVES:
        _LEAVES.clear()
    _LEAVES[files] = (stamp, leaf)

"""Who sends to the DMP: the gateway, its settings, and the structure that answers for the document.

Also loads the structure's ORG signature pair. The pair is read again when its files change, so that a
renewed certificate is used without a restart; between two changes it is kept. OpenSSL's own check of an
RSA key (primality, 30 ms) is replaced by one signature verified with the certificate (1 ms): it proves
all that matters here, that key and certificate belong together and work, without holding the reactor.
"""

from __future__ import annotations

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from drimbox.config import Appliance, Certificate, DmpSettings, Structure
from drimbox.errors import PublicationError
from drimbox.keypairs import CertificateUnusable, read_pair, stamp_of
from drimbox.model import Organization

_PROOF = b"drimbox"


@attrs.frozen
class Sender:
    """Everything of the configuration that the messages to the DMP carry."""

    appliance: Appliance
    settings: DmpSettings
    structure: Structure

    @property
    def institution(self) -> Organization:
        """The situation d'exercice as an organization (authorInstitution)."""
        return Organization(self.structure.id, self.structure.name)


@attrs.frozen(eq=False)
class SigningPair:
    """An ORG signature certificate and its RSA key, never shown."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey = attrs.field(repr=False)
    key_pem: bytes = attrs.field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """The leaf alone, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The leaf alone, DER."""
        return self.certificate.public_bytes(Encoding.DER)


def distinguished_name(name: x509.Name) -> str:
    """Write a DN from the most specific part to the country, `CN=…, OU=…, O=…, C=FR` (samples)."""
    return ", ".join(rdn.rfc4514_string() for rdn in reversed(name.rdns))


def load_pair(files: Certificate) -> SigningPair:
    """Read a pair. The certificate is the one of the file that matches the key, whatever the order.

    Raises `PublicationError` (E007) when a file cannot be read, the key is not RSA (XAdES and VIHF of
    the DMP are RSA, and PKCS#1 v1.5 alone gives the same signature twice) or matches no certificate.
    """
    try:
        pair = read_pair(files, check_key=False)
    except CertificateUnusable as error:
        raise PublicationError("certificat ou clé de signature illisible") from error
    key = pair.key
    if not isinstance(key, rsa.RSAPrivateKey):
        raise PublicationError("clé de signature : RSA attendu")
    try:
        proof = key.sign(_PROOF, padding.PKCS1v15(), hashes.SHA256())
    except ValueError as error:
        raise PublicationError("clé de signature inutilisable") from error
    for certificate in pair.chain:
        if _verifies(certificate, proof):
            key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            return SigningPair(certificate, key, key_pem)
    raise PublicationError("la clé de signature ne correspond à aucun certificat du fichier")


def _verifies(certificate: x509.Certificate, proof: bytes) -> bool:
    public = certificate.public_key()
    if not isinstance(public, rsa.RSAPublicKey):
        return False
    try:
        public.verify(proof, _PROOF, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


class SigningPairs:
    """The pairs already read, by file; bounded by the number of configured structures."""

    def __init__(self) -> None:
        self._held: dict[Certificate, tuple[tuple[int, ...], SigningPair]] = {}

    def fresh(self, files: Certificate) -> bool:
        """Say whether `get` has nothing to read. Raises `PublicationError`."""
        held = self._held.get(files)
        return held is not None and held[0] == _stamp(files)

    def get(self, files: Certificate) -> SigningPair:
        """Return the pair, read again when a file changed. Errors as `load_pair`."""
        stamp = _stamp(files)
        held = self._held.get(files)
        if held is None or held[0] != stamp:
            held = self._held[files] = (stamp, load_pair(files))
        return held[1]


def _stamp(files: Certificate) -> tuple[int, ...]:
    try:
        return stamp_of(*files.files)
    except OSError as error:
        raise PublicationError("certificat ou clé de signature illisible") from error

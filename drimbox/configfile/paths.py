"""What the paths of the configuration lead to: certificates and keys, roots, secrets, folders.

Reads the named files, and only reads them. No key or secret is kept, and none appears in a message.
`now` is given by the caller.
"""

from __future__ import annotations

import errno
import os
import stat
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from drimbox.accounts import AccountsUnusable, read_accounts
from drimbox.configfile.report import Report, Tree, cannot_read, sites
from drimbox.configfile.trust import pairs
from drimbox.keypairs import CertificateUnusable, open_pkcs12, read_crls
from drimbox.secretfile import SecretUnusable, read_secret
from drimbox.trust.names import key_of, key_of_text

MAX_PEM_BYTES = 1024 * 1024
MAX_SECRET_BYTES = 4096

#: Warn this long before a certificate ends: renewing one of IGC-Santé takes days.
EXPIRY_NOTICE = timedelta(days=30)
SMALLEST_RSA_BITS = 2048


def check(tree: Tree, report: Report, now: datetime) -> None:
    """Report every path of `tree` that does not lead to what it should; `now` has a time zone."""
    files = _Files(report, now)
    _folders(tree, report)
    for where, pair, name in pairs(tree):
        files.pair(pair, where, name)
    for path, site in sites(tree):
        native = site.get("native") or {}
        files.roots(native.get("roots"), f"{path}.native.roots")
        files.secret(native.get("password_file"), f"{path}.native.password_file")
    for section, key in (
        ("trust", "consumer_issuer_certificates"),
        ("trust", "whitelist_roots"),
        ("dmp", "roots"),
        ("psc", "roots"),
    ):
        files.roots(tree.get(section, {}).get(key), f"{section}.{key}")
    files.roots(tree.get("health", {}).get("addresses_url_roots"), "health.addresses_url_roots")
    consumers = _consumers(tree, report, files)
    _administrators(tree, report, files, consumers)
    files.roots((tree.get("hl7", {}).get("tls") or {}).get("client_roots"), "hl7.tls.client_roots")
    files.roots((tree.get("audit", {}).get("atna") or {}).get("roots"), "audit.atna.roots")
    _whitelist(tree, report)
    files.secret(tree.get("store", {}).get("password_file"), "store.password_file")
    files.secret(tree.get("psc", {}).get("client_secret_file"), "psc.client_secret_file")
    files.accounts(tree.get("admin", {}).get("accounts"), "admin.accounts")
    files.secret((tree.get("proxy") or {}).get("password_file"), "proxy.password_file")
    notifications = tree.get("notifications", {})
    for channel, key in (("mail", "password_file"), ("webhook", "token_file")):
        settings = notifications.get(channel) or {}
        files.roots(settings.get("roots"), f"notifications.{channel}.roots")
        files.secret(settings.get(key), f"notifications.{channel}.{key}")


def _folders(tree: Tree, report: Report) -> None:
    state: Path | None = tree.get("drimbox", {}).get("state_dir")
    if state is not None:
        # os.path, because Path.exists raises when a folder above may not be searched.
        if os.path.exists(state) and not os.path.isdir(state):
            report.error("drimbox.state_dir", f"{state} n'est pas un dossier", "donner un dossier")
        elif not os.path.exists(state):
            report.warn(
                "drimbox.state_dir", f"{state} n'existe pas", "le créer, à l'utilisateur du service"
            )
        elif os.stat(state).st_mode & stat.S_IRWXO:
            report.warn(
                "drimbox.state_dir",
                f"{state}, qui contient des données de santé, est ouvert à tous sur cette machine",
                f"chmod o= {state}",
            )
    log: Path | None = tree.get("log", {}).get("file")
    if log is not None and os.path.isdir(log):
        report.error("log.file", f"{log} est un dossier et non un fichier", "ajouter le nom du fichier")
    elif log is not None and not os.path.isdir(log.parent):
        report.error("log.file", f"le dossier {log.parent} n'existe pas", "créer ce dossier")


def _consumers(tree: Tree, report: Report, files: _Files) -> list[x509.Certificate]:
    """Check the authorities of Consumers and return them; a name that none has is probably misspelt."""
    trust = tree.get("trust", {})
    roots = files.roots(trust.get("consumer_roots"), "trust.consumer_roots")
    known = {key_of(each.subject): each.subject.rfc4514_string() for each in roots}
    for name in trust.get("consumer_issuers", ()):
        if roots and key_of_text(name) not in known:
            report.warn(
                "trust.consumer_issuers",
                f"« {name} » n'est le nom d'aucune autorité de consumer_roots",
                "vérifier ce nom ; noms présents : " + " ; ".join(known.values()),
            )
    return roots


def _administrators(tree: Tree, report: Report, files: _Files, consumers: list[x509.Certificate]) -> None:
    """Check the authorities of the administrators' certificates, which are none of the Consumers'."""
    admin = tree.get("admin", {})
    roots = files.roots(admin.get("client_roots"), "admin.client_roots")
    if {_mark(each) for each in roots} & {_mark(each) for each in consumers}:
        report.error(
            "admin.client_roots",
            "contient une autorité de trust.consumer_roots : un consommateur d'images pourrait administrer",
            "n'y mettre que l'autorité de l'établissement qui émet les certificats d'administration",
        )
    files.crls(admin.get("client_crls"), "admin.client_crls")


def _whitelist(tree: Tree, report: Report) -> None:
    trust = tree.get("trust", {})
    path: Path | None = trust.get("whitelist")
    if path is None:
        return
    try:
        reason = "" if _read(path, 1) else "fichier vide"
    except OSError as error:
        reason = cannot_read(error)
    if not reason:
        return
    mend = "la télécharger sur https://github.com/ansforge/DRIM-M_liste-blanche, sans la modifier"
    problem = f"{path} : {reason}"
    if trust.get("start_without_whitelist"):
        report.warn("trust.whitelist", problem + " ; toute demande d'images sera refusée", mend)
    else:
        report.error("trust.whitelist", problem, mend)


def _read(path: Path, most: int) -> bytes:
    """Return at most `most + 1` bytes of a regular file. Raises `OSError`.

    Anything else than a regular file is refused before it is opened: a FIFO would never answer.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EISDIR if os.path.isdir(path) else errno.EINVAL, "")
    with path.open("rb") as source:
        return source.read(most + 1)


class _Files:
    """Reads the files of one configuration; a file named twice is reported for each place it is named."""

    def __init__(self, report: Report, now: datetime) -> None:
        self._report = report
        self._now = now

    def pair(self, pair: Tree, where: str, name: str | None) -> None:
        """Check a certificate (with its chain) and its key; `name` is the DNS name it must be for."""
        password_file = pair.get("password_file")
        self.secret(password_file, f"{where}.password_file")
        if pair.get("pkcs12") is not None:
            place = f"{where}.pkcs12"
            certificates = self._pkcs12(pair["pkcs12"], place, password_file)
        else:
            place = f"{where}.certificate"
            certificates = self._certificates(pair.get("certificate"), place)
            key = self._key(pair.get("key"), f"{where}.key", password_file)
            if certificates and key is not None and key != _public(certificates[0]):
                self._report.error(
                    f"{where}.key",
                    f"{pair['key']} n'est pas la clé du premier certificat de {pair['certificate']}",
                    "donner la clé de ce certificat ; dans le fichier, il vient avant sa chaîne",
                )
        if not certificates:
            return
        self._dates(certificates, place)
        if name is not None and not _is_for(certificates[0], name):
            self._report.warn(place, f"n'est pas émis pour « {name} »", "donner le certificat de ce nom")

    def roots(self, path: Path | None, where: str) -> list[x509.Certificate]:
        """Check a file of trusted authorities; return them."""
        certificates = self._certificates(path, where)
        if certificates:
            self._dates(certificates, where)
        return certificates

    def crls(self, path: Path | None, where: str) -> None:
        """Check a file of revocation lists: one that has run out refuses everybody."""
        if path is None:
            return
        try:
            ends = [crl.next_update_utc for crl in read_crls(path)]
        except CertificateUnusable as error:
            self._report.error(where, str(error), "donner la liste de révocation, en PEM ou en DER")
            return
        if any(end is not None and end < self._now for end in ends):
            problem = f"{path} est périmée : les certificats de cette autorité seront refusés"
            self._report.warn(where, problem, "la remplacer par la liste à jour")

    def secret(self, path: Path | None, where: str) -> None:
        """Check a file that holds one line of secret."""
        if path is None:
            return
        data = self._data(
            path, where, MAX_SECRET_BYTES, "donner le chemin du fichier qui contient le secret"
        )
        if data is None:
            return
        if not data.strip():
            self._report.error(where, f"{path} est vide", "y écrire le secret, sur une ligne")
        elif len(data.strip().splitlines()) > 1:
            self._report.error(where, f"{path} compte plusieurs lignes", "n'y laisser que le secret")
        self._private(path, where)

    def accounts(self, path: Path | None, where: str) -> None:
        """Check a file of accounts."""
        if path is None:
            return
        try:
            found = read_accounts(path)
        except AccountsUnusable as error:
            self._report.error(where, str(error), "l'écrire par « drimbox accounts add »")
            return
        if not found:
            self._report.warn(where, f"{path} ne contient aucun compte", "drimbox accounts add")
        self._private(path, where)

    def _data(self, path: Path, where: str, most: int, mend: str) -> bytes | None:
        try:
            data = _read(path, most)
        except OSError as error:
            self._report.error(where, f"{path} : {cannot_read(error)}", mend)
            return None
        if len(data) > most:
            self._report.error(where, f"{path} dépasse {most} octets", mend)
            return None
        return data

    def _certificates(self, path: Path | None, where: str) -> list[x509.Certificate]:
        if path is None:
            return []
        mend = "donner un fichier PEM qui contient -----BEGIN CERTIFICATE-----"
        data = self._data(path, where, MAX_PEM_BYTES, mend)
        if data is None:
            return []
        try:
            return x509.load_pem_x509_certificates(data)
        except ValueError:
            what = "DER et non en PEM" if data[:1] == b"\x30" else ""
            problem = (
                f"{path} est en {what}" if what else f"{path} ne contient pas de certificat PEM lisible"
            )
            if what:
                mend = f"le convertir : openssl x509 -inform DER -in {path.name} -out {path.stem}.pem"
            self._report.error(where, problem, mend)
        return []

    def _pkcs12(self, path: Path, where: str, password_file: Path | None) -> list[x509.Certificate]:
        """Return the certificates of a PKCS#12 file, that of its key first."""
        mend = "donner le fichier .p12 ou .pfx, et celui de son mot de passe dans password_file"
        data = self._data(path, where, MAX_PEM_BYTES, mend)
        if data is None:
            return []
        self._private(path, where)
        try:
            pair = open_pkcs12(data, _password(password_file), path)
        except CertificateUnusable as error:
            self._report.error(where, str(error), mend)
            return []
        self._strength(pair.key, where)
        return list(pair.chain)

    def _key(self, path: Path | None, where: str, password_file: Path | None) -> bytes | None:
        """Return the public half of a private key."""
        if path is None:
            return None
        mend = "donner la clé privée du certificat, en PEM"
        data = self._data(path, where, MAX_PEM_BYTES, mend)
        if data is None:
            return None
        self._private(path, where)
        password = _password(password_file)
        try:
            key = load_pem_private_key(data, password.encode("utf-8") if password is not None else None)
        except TypeError:
            problem = "est protégée par un mot de passe"
            mend = (
                "donner le fichier de ce mot de passe dans password_file, ou la déchiffrer : "
                f"openssl pkey -in {path.name} -out {path.stem}-claire.key"
            )
            if password is not None:
                problem, mend = "n'est pas protégée par un mot de passe", "retirer password_file"
            self._report.error(where, f"{path} {problem}", mend)
            return None
        except (ValueError, UnsupportedAlgorithm):
            wrong = ", ou le mot de passe n'est pas le sien" if password is not None else ""
            self._report.error(where, f"{path} ne contient pas de clé privée PEM lisible{wrong}", mend)
            return None
        self._strength(key, where)
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _strength(self, key: object, where: str) -> None:
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size < SMALLEST_RSA_BITS:
            self._report.error(
                where, f"clé RSA de {key.key_size} bits", "demander une clé de 2048 bits ou plus"
            )

    def _private(self, path: Path, where: str) -> None:
        try:
            mode = path.stat().st_mode
        except OSError:
            return
        if mode & stat.S_IRWXO:
            self._report.warn(
                where, f"{path} est lisible par tous les utilisateurs de la machine", f"chmod o= {path}"
            )

    def _dates(self, certificates: list[x509.Certificate], where: str) -> None:
        for position, certificate in enumerate(certificates):
            which = "certificat" if position == 0 else f"certificat no {position + 1} du fichier"
            end = certificate.not_valid_after_utc
            if end < self._now:
                self._report.warn(where, f"{which} expiré le {end:%d/%m/%Y}", "le renouveler")
            elif certificate.not_valid_before_utc > self._now:
                start = certificate.not_valid_before_utc
                self._report.warn(
                    where, f"{which} valable seulement à partir du {start:%d/%m/%Y}", "vérifier l'horloge"
                )
            elif end - self._now < EXPIRY_NOTICE:
                self._report.warn(
                    where, f"{which} : expire le {end:%d/%m/%Y}", "demander son renouvellement"
                )


def _password(path: Path | None) -> str | None:
    """Return a password; what is wrong with its file has been reported."""
    try:
        return read_secret(path, blanks=True) if path is not None else None
    except SecretUnusable:
        return None


def _public(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _mark(authority: x509.Certificate) -> tuple[bytes, bytes | None]:
    """Return what stays the same when an authority renews its certificate."""
    return authority.subject.public_bytes(), _public(authority)


def _is_for(certificate: x509.Certificate, name: str) -> bool:
    """Say whether the certificate names `name` (RFC 6125): a DNS subjectAltName, wildcard on one label."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return False
    names = [value.lower() for value in extension.value.get_values_for_type(x509.DNSName)]
    return name in names or "*." + name.partition(".")[2] in names

"""Names that a standard gives a form to: X.500, AE titles, UIDs, databases, TLS suites."""

from __future__ import annotations

import re

from drimbox.configfile.rules.values import Rejected, Rule, show, string
from drimbox.model import is_ae_title, is_uid

_AEAD_SUITE = re.compile(
    r"(?:ECDHE-ECDSA|ECDHE-RSA|DHE-RSA)-"
    r"(?:AES(?:128|256)-(?:GCM-SHA(?:256|384)|CCM)|CHACHA20-POLY1305)",
    re.ASCII,
)


def distinguished_name() -> Rule:
    """A distinguished name as RFC 4514 writes it; types by short name (CN, OU, O, ST, L, C) or number."""
    mend = "écrire un nom de la forme « CN=AC EXEMPLE,O=EXEMPLE,C=FR »"

    def read(value: object) -> str:
        words = string(value, mend)
        # It takes longer to import than all rules together, for a key that few files have.
        from drimbox.trust.names import NameUnreadable, parse_name

        try:
            parse_name(words)
        except NameUnreadable:
            raise Rejected(f"{show(value)} n'est pas un nom X.500", mend) from None
        return words

    return Rule("nom X.500 (RFC 4514)", read)


def ae_title() -> Rule:
    """A DICOM AE title (PS3.5 6.2), without the blanks that do not count."""
    mend = "écrire 1 à 16 caractères ASCII, sans barre oblique inverse ni blanc au bord"

    def read(value: object) -> str:
        words = string(value, mend)
        if not is_ae_title(words) or words != words.strip():
            raise Rejected(f"{show(value)} n'est pas un AE title", mend)
        return words

    return Rule("AE title (1 à 16 caractères)", read)


def uid(longest: int = 64) -> Rule:
    """A UID or OID (PS3.5 9.1) of at most `longest` characters."""
    mend = f"écrire des chiffres séparés par des points, {longest} caractères au plus"

    def read(value: object) -> str:
        words = string(value, mend)
        if not is_uid(words):
            raise Rejected(f"{show(value)} n'est pas un UID", mend)
        if len(words) > longest:
            raise Rejected(f"{show(value)} dépasse {longest} caractères", mend)
        return words

    return Rule(f"UID ({longest} caractères au plus)", read)


def store_url() -> Rule:
    """A SQLAlchemy URL of a database we know, without a password in it."""
    mend = "écrire « sqlite:////chemin/absolu.db » ou « postgresql+psycopg://utilisateur@hote/base »"

    def read(value: object) -> str:
        words = string(value, mend)
        scheme = words.partition("://")[0]
        authority = words.partition("://")[2].partition("/")[0]
        if ":" in authority.rpartition("@")[0] or re.search(r"[?&]password=", words, re.IGNORECASE):
            raise Rejected(
                "contient un mot de passe",
                "l'écrire dans un fichier, le nommer dans [store] password_file, et le retirer d'ici",
            )
        if scheme not in ("sqlite", "postgresql+psycopg") or "://" not in words:
            raise Rejected(f"{show(value)} n'est pas une base connue", mend)
        if scheme == "sqlite" and not words.startswith("sqlite:////"):
            raise Rejected(f"{show(value)} ne mène pas à un fichier par un chemin absolu", mend)
        return words

    return Rule("URL SQLAlchemy, sans mot de passe", read)


def aead_suites() -> Rule:
    """OpenSSL names of TLS 1.2 suites with forward secrecy and authenticated encryption only."""

    def read(value: object) -> str:
        words = string(value, "écrire des noms de suites OpenSSL séparés par « : »")
        for suite in words.split(":"):
            if _AEAD_SUITE.fullmatch(suite) is None:
                raise Rejected(
                    f"{show(suite)} n'est pas une suite ECDHE ou DHE à chiffrement authentifié",
                    "retirer cette suite, ou retirer la ligne pour garder les suites par défaut",
                )
        return words

    return Rule("suites TLS 1.2 séparées par « : »", read)

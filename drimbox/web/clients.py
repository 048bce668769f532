"""The accounts that client certificates stand for at the admin listener (`[[admin.client]]`).

The handshake has verified the chain, the dates and the revocation; here is only whose certificate it is.
Names are compared as X.509 does, and an ambiguous one is nobody's: a subject with two CN, or one that
entries of different accounts name.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from drimbox.accounts import Role
from drimbox.config import CertifiedAccount
from drimbox.trust.names import identity, key_of


def account_of(
    clients: Sequence[CertifiedAccount], certificate: x509.Certificate
) -> tuple[str, Role] | None:
    """Return the account of a verified certificate and its role, None when it has none."""
    found = {(each.account, Role(each.role)) for each in clients if _is_of(each, certificate)}
    return found.pop() if len(found) == 1 else None


def subject_of(certificate: x509.Certificate) -> str:
    """Return the subject as it is written down."""
    try:
        return certificate.subject.rfc4514_string()
    except ValueError:
        return "illisible"


def _is_of(client: CertifiedAccount, certificate: x509.Certificate) -> bool:
    wanted = [("CN", client.cn), ("OU", client.ou)]
    named = all(
        value is None or _only(certificate, kind) == identity(value, "").cn for kind, value in wanted
    )
    marked = client.fingerprint is None or _same(client.fingerprint, certificate)
    return named and marked and not (client.cn is None and client.fingerprint is None)


def _only(certificate: x509.Certificate, kind: str) -> str | None:
    """Return the one value of a kind in the subject, for comparison; None without any, or with two."""
    try:
        values = [value for each, value in key_of(certificate.subject) if each == kind]
    except ValueError:
        return None
    return values[0] if len(values) == 1 and values[0] else None


def _same(fingerprint: str, certificate: x509.Certificate) -> bool:
    return fingerprint.replace(":", "").lower() == certificate.fingerprint(hashes.SHA256()).hex()

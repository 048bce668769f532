"""Whose account a client certificate is: names compared as X.509 does, nobody's when in doubt."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drimbox.accounts import Role
from drimbox.config import CertifiedAccount
from drimbox.web.clients import account_of, subject_of
from tests.operator_files import NOW

pytestmark = pytest.mark.requirement("DB.CS.06")
KEY = ec.generate_private_key(ec.SECP256R1())
OPERATOR, AUDITOR = ("anne", Role.OPERATOR), ("aude", Role.AUDITOR)


def certificate(*names: tuple[x509.ObjectIdentifier, str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(*each) for each in names])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW)
    return builder.sign(KEY, hashes.SHA256())


CN, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME
ANNE = certificate((OU, "DSI"), (CN, "Anne  DURAND"))
MARK = ANNE.fingerprint(hashes.SHA256()).hex()


def of(*clients: CertifiedAccount, shown: x509.Certificate = ANNE) -> tuple[str, Role] | None:
    return account_of(clients, shown)


def anne(**names: str) -> CertifiedAccount:
    return CertifiedAccount("anne", "operator", **names)


def aude(**names: str) -> CertifiedAccount:
    return CertifiedAccount("aude", "auditor", **names)


@pytest.mark.parametrize(
    "names",
    [
        {"cn": "Anne Durand"},
        {"cn": "anne durand", "ou": "dsi"},
        {"fingerprint": MARK},
        {"fingerprint": ":".join(MARK[at : at + 2] for at in range(0, 64, 2)).upper()},
        {"cn": "ANNE DURAND", "ou": "DSI", "fingerprint": MARK},
    ],
)
def test_all_that_is_named_must_be_so(names: dict[str, str]) -> None:
    assert of(anne(**names)) == OPERATOR
    for key in names:
        assert of(anne(**{**names, key: "0" * 64})) is None


def test_nothing_named_is_nobody() -> None:
    assert of(anne()) is None
    assert of(anne(ou="DSI")) is None
    assert of() is None


@pytest.mark.threat("a client certificate at the administration that is not an administrator's")
def test_two_names_of_a_kind_are_nobodys() -> None:
    two = certificate((CN, "Anne Durand"), (CN, "Paul Petit"), (OU, "DSI"))
    assert of(anne(cn="Anne Durand"), shown=two) is None
    units = certificate((CN, "Anne Durand"), (OU, "DSI"), (OU, "Audit"))
    assert of(anne(cn="Anne Durand"), shown=units) == OPERATOR
    assert of(anne(cn="Anne Durand", ou="DSI"), shown=units) is None


def test_a_value_that_looks_like_a_name_is_only_a_value() -> None:
    forged = certificate((CN, "Anne Durand,OU=DSI"))
    assert of(anne(cn="Anne Durand", ou="DSI"), shown=forged) is None


def test_entries_of_different_accounts_for_one_certificate_are_nobodys() -> None:
    assert of(anne(cn="Anne Durand"), aude(fingerprint=MARK)) is None
    assert of(anne(cn="Anne Durand"), CertifiedAccount("anne", "auditor", fingerprint=MARK)) is None
    assert of(anne(cn="Anne Durand"), anne(fingerprint=MARK)) == OPERATOR
    assert of(aude(cn="Paul Petit"), anne(fingerprint=MARK)) == OPERATOR


def test_the_subject_is_written_for_the_trail() -> None:
    assert subject_of(ANNE) == "CN=Anne  DURAND,OU=DSI"

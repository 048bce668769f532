"""`[admin]` with client certificates: what check-config says before anybody is shut out, or let in."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from drimbox.config import CertifiedAccount
from drimbox.configfile import check, load
from drimbox.sim.authority import Authority, authority_name, pem
from tests.operator_files import good_config

pytestmark = pytest.mark.requirement("DB.CS.06")
AUTHORITY = Authority.create(authority_name("AC ADMINISTRATION", "CHU"))
CLIENT = '\n[[admin.client]]\naccount = "anne"\nrole = "operator"\n'
TLS = 'certificate = { certificate = "db1.pem", key = "db1.key" }\n'
ROOTS = 'client_roots = "administration.pem"\n'


def made(folder: Path, keys: str, clients: str = CLIENT + 'cn = "Anne Durand"\n') -> Path:
    (folder / "administration.pem").write_bytes(pem(AUTHORITY.certificate))
    return good_config(folder, extra=f"\n[admin]\n{keys}{clients}")


def said(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    errors, warnings = check(path)
    return {each.path: each.problem for each in errors}, {each.path: each.problem for each in warnings}


def test_certificates_stand_for_accounts_beyond_the_loop(tmp_path: Path) -> None:
    path = made(tmp_path, 'host = "10.0.0.5"\n' + TLS + ROOTS)
    assert said(path) == ({}, {})
    admin = load(path).admin
    assert admin.client_roots == tmp_path / "administration.pem"
    assert admin.clients == (CertifiedAccount("anne", "operator", cn="Anne Durand"),)


@pytest.mark.threat("a client certificate at the administration that is not an administrator's")
@pytest.mark.parametrize(
    ("keys", "clients", "where", "words"),
    [
        (ROOTS, None, "admin.client_roots", "qu'en TLS"),
        (TLS, None, "admin.client_roots", "sans autorité"),
        (TLS + ROOTS, "", "admin.client_roots", "aucun certificat client n'a de compte"),
        (TLS + ROOTS, CLIENT, "admin.client[0]", "ni cn ni fingerprint"),
        (TLS + ROOTS, CLIENT + 'ou = "DSI"\n', "admin.client[0]", "ni cn ni fingerprint"),
        (TLS + ROOTS, CLIENT + 'fingerprint = "A1:B2"\n', "admin.client[0].fingerprint", "empreinte"),
        (TLS + ROOTS, CLIENT.replace("operator", "root") + 'cn = "a"\n', "admin.client[0].role", "root"),
        (TLS + 'client_roots = "roots.pem"\n', None, "admin.client_roots", "trust.consumer_roots"),
        (TLS + 'client_roots = "absent.pem"\n', None, "admin.client_roots", "introuvable"),
        (TLS + ROOTS + 'client_crls = "absent.crl"\n', None, "admin.client_crls", "lecture impossible"),
        (TLS + ROOTS + 'client_crls = "db1.pem"\n', None, "admin.client_crls", "illisible"),
    ],
)
def test_what_would_shut_out_or_let_in_is_an_error(
    tmp_path: Path, keys: str, clients: str | None, where: str, words: str
) -> None:
    given = clients if clients is not None else CLIENT + 'cn = "Anne Durand"\n'
    errors, _ = said(made(tmp_path, keys, given))
    assert words in errors[where]


def test_a_list_that_ran_out_or_serves_nobody_is_told(tmp_path: Path) -> None:
    crl = tmp_path / "administration.crl"
    path = made(tmp_path, TLS + ROOTS + 'client_crls = "administration.crl"\n')
    for encoding in (Encoding.PEM, Encoding.DER):
        crl.write_bytes(AUTHORITY.crl().public_bytes(encoding))
        assert said(path) == ({}, {})
        crl.write_bytes(AUTHORITY.crl(expired=True).public_bytes(encoding))
        errors, warnings = said(path)
        assert errors == {}
        assert "périmée" in warnings["admin.client_crls"]
    crl.write_bytes(AUTHORITY.crl().public_bytes(Encoding.PEM))
    _, warnings = said(made(tmp_path, TLS + 'client_crls = "administration.crl"\n', ""))
    assert "sans client_roots" in warnings["admin.client_crls"]

"""`drimbox whitelist verify`: what is said of any file, whoever signed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from drimbox.cli import cli
from drimbox.sim.pki import WHITELIST_CN, WHITELIST_OU, Pki, make_pki
from drimbox.sim.whitelist import ListedDomain, bad_whitelists, make_whitelist
from drimbox.trust.certificates import read_certificates
from tests.trust.conftest import NOW

pytestmark = pytest.mark.requirement("DB.CS.151")
SITE = "db1.349.mesimagesmedicales.fr"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"), sites=[SITE], viewers=[], structures={})


@pytest.fixture
def domains(pki: Pki) -> list[ListedDomain]:
    return [ListedDomain.for_certificate("349", pki.sites[SITE])]


def verify(path: Path, roots: Path, *more: str) -> tuple[int, dict[str, Any]]:
    arguments = ["whitelist", "verify", str(path), "--roots", str(roots), *more]
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, json.loads(result.stdout)


NAMED = ("--cn", WHITELIST_CN, "--ou", WHITELIST_OU)


def test_a_good_list_is_shown_with_its_signer_and_its_entries(
    pki: Pki, domains: list[ListedDomain], tmp_path: Path
) -> None:
    path = tmp_path / "list.xml"
    path.write_bytes(make_whitelist(domains, pki.whitelist_signer, generated=NOW))
    code, found = verify(path, pki.roots, *NAMED)
    assert code == 0
    assert found["valid"] is True
    assert found["reasons"] == []
    assert f"CN={WHITELIST_CN}" in found["signer"]["subject"]
    assert found["generated"].startswith(f"{NOW:%Y-%m-%dT%H:%M}")
    (domain,) = found["domains"]
    assert (domain["id"], domain["usable"]) == ("349", True)
    assert f"CN={SITE}" in domain["dn"]


def test_every_bad_list_is_refused_with_its_reason_and_lists_nobody(
    pki: Pki, domains: list[ListedDomain], tmp_path: Path
) -> None:
    path = tmp_path / "list.xml"
    for fault, data in bad_whitelists(pki, domains).items():
        path.write_bytes(data)
        code, found = verify(path, pki.roots, *NAMED)
        assert code == 1, fault
        assert found["valid"] is False, fault
        assert found["reasons"], fault
        assert found["domains"] == [], fault


def test_who_signed_is_said_even_when_it_is_the_wrong_one(
    pki: Pki, domains: list[ListedDomain], tmp_path: Path
) -> None:
    path = tmp_path / "list.xml"
    path.write_bytes(make_whitelist(domains, pki.whitelist_signer))
    code, found = verify(path, pki.roots, "--cn", "Un autre", "--ou", WHITELIST_OU)
    assert code == 1
    assert f"CN={WHITELIST_CN}" in found["signer"]["subject"]
    assert any("CN et l'OU" in reason for reason in found["reasons"])


def test_authorities_may_be_a_folder_of_pem_and_der_files(
    pki: Pki, domains: list[ListedDomain], tmp_path: Path
) -> None:
    folder = tmp_path / "roots"
    folder.mkdir()
    for number, certificate in enumerate(read_certificates(pki.roots)):
        kind = serialization.Encoding.DER if number % 2 else serialization.Encoding.PEM
        (folder / f"{number}.cer").write_bytes(certificate.public_bytes(kind))
    (folder / "LISEZMOI.txt").write_text("rien d'utile")
    path = tmp_path / "list.xml"
    path.write_bytes(make_whitelist(domains, pki.whitelist_signer))
    assert verify(path, folder, *NAMED)[0] == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    result = CliRunner().invoke(cli, ["whitelist", "verify", str(path), "--roots", str(empty)])
    assert result.exit_code == 1
    assert "aucun certificat lisible" in result.output


def test_a_revoked_signer_is_refused(pki: Pki, domains: list[ListedDomain], tmp_path: Path) -> None:
    path = tmp_path / "list.xml"
    path.write_bytes(make_whitelist(domains, pki.whitelist_signer))
    for crl in (pki.crl_der, pki.crls):
        assert verify(path, pki.roots, *NAMED, "--crl", str(crl))[0] == 0
    pki.revoke(pki.whitelist_signer)
    try:
        code, found = verify(path, pki.roots, *NAMED, "--crl", str(pki.crl_der))
    finally:
        pki.revoke()
    assert code == 1
    assert any("revoked" in reason for reason in found["reasons"])


def test_what_cannot_be_read_is_said_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "list.xml"
    path.write_bytes(b"<a/>")
    for roots, crl in ((path, None), (path, path)):
        more = ["--crl", str(crl)] if crl is not None else []
        arguments = ["whitelist", "verify", str(path), "--roots", str(roots), *more]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert str(path) in result.output

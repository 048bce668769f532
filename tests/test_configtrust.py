"""Trust in the configuration: pairs in PEM or PKCS#12, who may read the secrets, whom OCSP asks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from drimbox.config import Certificate
from drimbox.configfile import check, load
from tests.operator_files import good_config, write_private

pytestmark = pytest.mark.requirement("DB.SO.90")
DB1 = "site[0].wado_certificate"


def said(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    errors, warnings = check(path)
    return {each.path: each.problem for each in errors}, {each.path: each.problem for each in warnings}


def pkcs12(folder: Path, stem: str, password: str = "secret") -> None:
    command = ["openssl", "pkcs12", "-export", "-in", f"{stem}.pem", "-inkey", f"{stem}.key"]
    command += ["-passout", f"pass:{password}", "-out", f"{stem}.p12"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    (folder / f"{stem}.p12").chmod(0o600)
    write_private(folder / f"{stem}.password", b"secret\n")


def configured(folder: Path, pair: str) -> Path:
    return good_config(folder, wado_certificate=pair)


@pytest.mark.peer("openssl")
def test_a_pkcs12_pair_is_checked_like_pem(tmp_path: Path) -> None:
    path = configured(tmp_path, '{ pkcs12 = "db1.p12", password_file = "db1.password" }')
    pkcs12(tmp_path, "db1")
    assert said(path) == ({}, {})
    expected = Certificate(pkcs12=tmp_path / "db1.p12", password_file=tmp_path / "db1.password")
    assert load(path).sites[0].wado_certificate == expected
    # A certificate for another name, and files that everybody may read.
    pkcs12(tmp_path, "auth")
    (tmp_path / "auth.p12").replace(tmp_path / "db1.p12")
    (tmp_path / "db1.p12").chmod(0o644)
    (tmp_path / "db1.password").chmod(0o644)
    errors, warnings = said(path)
    assert not errors
    assert set(warnings) == {f"{DB1}.pkcs12", f"{DB1}.password_file"}
    assert len([each for each in check(path)[1] if each.path == f"{DB1}.pkcs12"]) == 2


@pytest.mark.peer("openssl")
def test_a_pkcs12_that_does_not_open_is_an_error_without_its_password(tmp_path: Path) -> None:
    path = configured(tmp_path, '{ pkcs12 = "db1.p12", password_file = "db1.password" }')
    pkcs12(tmp_path, "db1", password="another")
    errors, _ = said(path)
    assert "mot de passe erroné" in errors[f"{DB1}.pkcs12"]
    assert "secret" not in str(errors)
    (tmp_path / "db1.password").unlink()
    assert "introuvable" in said(path)[0][f"{DB1}.password_file"]
    (tmp_path / "db1.p12").unlink()
    assert "introuvable" in said(path)[0][f"{DB1}.pkcs12"]


@pytest.mark.parametrize(
    ("pair", "where", "words"),
    [
        ("{ }", DB1, "ni certificat ni clé"),
        ('{ password_file = "secret" }', DB1, "ni certificat ni clé"),
        ('{ certificate = "db1.pem" }', f"{DB1}.key", "absente"),
        ('{ key = "db1.key" }', f"{DB1}.certificate", "absente"),
        ('{ pkcs12 = "db1.p12", key = "db1.key" }', f"{DB1}.pkcs12", "deux formes"),
        ('{ pkcs12 = "db1.p12", password = "x" }', f"{DB1}.password", "inconnue"),
        ('{ pkcs12 = 3 }', f"{DB1}.pkcs12", "n'est pas un texte"),
    ],
)  # fmt: skip
def test_half_a_pair_or_two_at_once_is_said(tmp_path: Path, pair: str, where: str, words: str) -> None:
    path = configured(tmp_path, pair)
    assert words in {each.path: each.problem for each in check(path, files=False)[0]}[where]


@pytest.mark.peer("openssl")
def test_a_pem_key_with_a_password(tmp_path: Path) -> None:
    pair = '{ certificate = "db1.pem", key = "locked.key", password_file = "db1.password" }'
    path = configured(tmp_path, pair)
    write_private(tmp_path / "db1.password", b"secret\n")
    command = ["openssl", "pkey", "-in", "db1.key", "-aes256", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", "locked.key"], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "locked.key").chmod(0o600)
    assert said(path) == ({}, {})
    write_private(tmp_path / "db1.password", b"wrong\n")
    assert "mot de passe" in said(path)[0][f"{DB1}.key"]
    path.write_text(path.read_text().replace(', password_file = "db1.password"', ""))
    assert "protégée" in said(path)[0][f"{DB1}.key"]
    path.write_text(path.read_text().replace("locked.key", 'db1.key", password_file = "db1.password'))
    assert "n'est pas protégée" in said(path)[0][f"{DB1}.key"]


@pytest.mark.requirement("DB.SO.03")
@pytest.mark.parametrize(
    ("keys", "error", "warning"),
    [
        ("", "", ""),
        ('client_certificates = "required"', "sans autorité", ""),
        ('client_certificates = "optional"\nclient_roots = "roots.pem"', "", ""),
        ('client_roots = "roots.pem"', "", "aucun certificat client"),
    ],
)
def test_certificates_of_ris_are_verified_against_somebody(
    tmp_path: Path, keys: str, error: str, warning: str
) -> None:
    path = good_config(tmp_path)
    pair = 'certificate = { certificate = "db1.pem", key = "db1.key" }'
    section = f"\n[hl7.tls]\n{pair}\n{keys}\n"
    path.write_text(path.read_text("utf-8") + section, "utf-8")
    errors, warnings = said(path)
    assert error in errors.pop("hl7.tls.client_roots", "") if error else not errors
    assert warning in warnings.get("hl7.tls.client_certificates", "") if warning else not warnings
    if not error:
        assert load(path).hl7.tls is not None


@pytest.mark.requirement("DB.SO.04")
@pytest.mark.parametrize(
    ("tls", "names", "error", "warned"),
    [
        ("", ("",), False, ()),
        ("", ('["ris.hopital"]',), True, ()),
        ("none", ('["ris.hopital"]',), True, ()),
        ("optional", ("", ""), False, ()),
        ("required", ('["ris.hopital"]', '["ris2.hopital", "RIS 2"]'), False, ()),
        ("required", ('["ris.hopital"]', "", "[]"), False, (2, 3)),
    ],
)
def test_a_ris_is_held_to_a_certificate_only_where_one_is_asked_for(
    tmp_path: Path, tls: str, names: tuple[str, ...], error: bool, warned: tuple[int, ...]
) -> None:
    path = good_config(tmp_path)
    section = ""
    if tls:
        section = '\n[hl7.tls]\ncertificate = { certificate = "db1.pem", key = "db1.key" }\n'
        section += f'client_certificates = "{tls}"\n'
        section += 'client_roots = "roots.pem"\n' if tls != "none" else ""
    for at, each in enumerate(names, 1):
        section += f'\n[[ris]]\nname = "held{at}"\nsending_application = "HELD{at}"\n'
        section += f"certificate_names = {each}\n" if each else ""
    text = path.read_text("utf-8")
    before = text.index("[[ris]]")
    after = text.index("\n[", before + 2)
    path.write_text(text[:before] + text[after + 1 :] + section, "utf-8")
    errors, warnings = said(path)
    found = [key for key in errors if key.startswith("ris[")]
    assert found == (["ris[0].certificate_names"] if error else [])
    assert [key for key in warnings if "certificate_names" in key] == [
        f"ris[{at - 1}].certificate_names" for at in warned
    ]


@pytest.mark.requirement("DB.SO.111")
@pytest.mark.parametrize("asked", ["none", "optional"])
def test_lists_of_certificates_nobody_asks_for_are_told(tmp_path: Path, asked: str) -> None:
    path = good_config(tmp_path)
    section = '\n[hl7.tls]\ncertificate = { certificate = "db1.pem", key = "db1.key" }\n'
    section += f'client_certificates = "{asked}"\ncrl_urls = ["http://crl.hopital/ac.crl"]\n'
    section += 'client_roots = "roots.pem"\ncrl_policy = "soft"\n' if asked != "none" else ""
    path.write_text(path.read_text("utf-8") + section, "utf-8")
    errors, warnings = said(path)
    assert not errors
    assert ("ne servent pas" in warnings.get("hl7.tls.crl_urls", "")) is (asked == "none")
    tls = load(path).hl7.tls
    assert tls is not None
    assert tls.crl_policy == ("hard" if asked == "none" else "soft")


@pytest.mark.requirement("DB.SO.111")
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('ocsp = "hard"', "sans répondeur"),
        ('ocsp = "soft"', "sans répondeur"),
        ('ocsp = "hard"\nocsp_hosts = ["ocsp.exemple.fr:8080"]', ""),
        ('ocsp = "soft"\nocsp_url = "http://ocsp.exemple.fr/"', ""),
        ('ocsp = "soft"\nocsp_authorities_url = "http://ocsp.exemple.fr/"', "sans répondeur"),
        ('ocsp = "off"', ""),
    ],
)
def test_a_question_needs_somebody_to_answer_it(tmp_path: Path, keys: str, words: str) -> None:
    path = good_config(tmp_path)
    text = path.read_text("utf-8")
    assert "[trust]\n" in text
    path.write_text(text.replace("[trust]\n", f"[trust]\n{keys}\n"), "utf-8")
    errors = said(path)[0]
    if words:
        assert words in errors["trust.ocsp"]
    else:
        assert not errors

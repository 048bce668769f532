"""Key pairs as `openssl pkcs12` makes them, old and new, whole and broken; and PEM beside them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from drimbox import keypairs
from drimbox.config import Certificate
from drimbox.keypairs import CertificateUnusable, read_leaf, read_pair
from tests.trust.conftest import BOTH, Issued, issue, name, rsa_key

pytestmark = [pytest.mark.requirement("DB.SO.90"), pytest.mark.peer("openssl")]

#: What `openssl pkcs12 -export` of 3.x writes when told so; "legacy" is what 1.x and Windows wrote.
CIPHERS = {
    "today's own (AES-256, PBKDF2)": [],
    "legacy (RC2-40, 3DES, SHA-1)": ["-legacy"],
    "3DES": ["-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1"],
    "RC4": ["-legacy", "-keypbe", "PBE-SHA1-RC4-128", "-certpbe", "PBE-SHA1-RC4-128"],
    "AES-128, MAC SHA-512": ["-keypbe", "aes-128-cbc", "-certpbe", "aes-128-cbc", "-macalg", "sha512"],
    "no encryption": ["-keypbe", "NONE", "-certpbe", "NONE"],
    "no MAC": ["-nomac"],
}
PASSWORD = "mot de passé "


@pytest.fixture(scope="module")
def issued() -> Issued:
    root = issue(name("RACINE"), ca=True)
    middle = issue(name("INTERMEDIAIRE"), by=root, ca=True)
    low = issue(name("ORGANISATIONS"), by=middle, ca=True)
    return issue(name("db1.349.example", "3490"), by=low, eku=BOTH, key=rsa_key("p12"))


@pytest.fixture(scope="module")
def root() -> Issued:
    return issue(name("RACINE"), ca=True)


class Folder:
    """Makes files with openssl."""

    def __init__(self, path: Path, issued: Issued) -> None:
        self.path = path
        self.pem = issued.write(path, "pair")
        (path / "password").write_text(PASSWORD + "\n", "utf-8")

    def openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.path, check=True, capture_output=True, timeout=60)

    def pkcs12(self, *options: str, password: str = PASSWORD, others: bytes = b"") -> Certificate:
        (self.path / "others.pem").write_bytes(others)
        more = ["-certfile", "others.pem"] if others else []
        self.openssl(
            "pkcs12", "-export", "-in", "pair.pem", "-inkey", "pair.key", *more, *options,
            "-passout", f"pass:{password}", "-out", "pair.p12",
        )  # fmt: skip
        return Certificate(pkcs12=self.path / "pair.p12", password_file=self.path / "password")


@pytest.fixture
def folder(tmp_path: Path, issued: Issued) -> Folder:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not there")
    return Folder(tmp_path, issued)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_openssl_writes_is_read(folder: Folder, issued: Issued, cipher: str) -> None:
    pair = read_pair(folder.pkcs12(*CIPHERS[cipher]))
    assert pair.chain == (issued.certificate, *issued.chain)
    assert pair.fits
    assert pair.key.private_numbers() == issued.key.private_numbers()  # type: ignore[union-attr]
    assert "PRIVATE" not in repr(pair)
    assert "private" not in repr(pair).lower()


def test_the_order_and_the_company_of_certificates_mean_nothing(
    folder: Folder, issued: Issued, root: Issued
) -> None:
    stranger = issue(name("STRANGER"), ca=True)
    other = issue(name("other"), by=stranger)
    mixed = [other, *reversed([Issued(each, issued.key) for each in issued.chain]), root, stranger]
    # `pair.pem` alone would bring the chain in its order.
    (folder.path / "pair.pem").write_bytes(issued.certificate.public_bytes(serialization.Encoding.PEM))
    files = folder.pkcs12(others=b"".join(Issued(each.certificate, each.key).pem() for each in mixed))
    assert read_pair(files).chain == (issued.certificate, *issued.chain)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("password", "mot de passe erroné"),
        ("no password", "mot de passe erroné"),
        ("password file missing", "password: lecture impossible"),
        ("password file empty", "une seule ligne"),
        ("missing", "lecture impossible"),
        ("garbage", "illisible"),
        ("cut", "illisible"),
        ("PEM", "illisible"),
        ("no key", "aucune clé privée"),
        ("no certificate", "aucun certificat"),
        ("huge", "plus de"),
    ],
)
def test_what_cannot_be_used_is_said_and_no_secret_with_it(folder: Folder, fault: str, words: str) -> None:
    options = {"no key": ["-nokeys"], "no certificate": ["-nocerts"]}.get(fault, [])
    files = folder.pkcs12(*options)
    p12, secret = folder.path / "pair.p12", folder.path / "password"
    match fault:
        case "password":
            secret.write_text("autre\n")
        case "no password":
            files = Certificate(pkcs12=p12)
        case "password file missing":
            secret.unlink()
        case "password file empty":
            secret.write_text("\n")
        case "missing":
            p12.unlink()
        case "garbage":
            p12.write_bytes(b"\x30\x82garbage" * 100)
        case "cut":
            p12.write_bytes(p12.read_bytes()[:-200])
        case "PEM":
            p12.write_bytes((folder.path / "pair.pem").read_bytes())
        case "huge":
            p12.write_bytes(bytes(keypairs.MAX_FILE + 1))
    with pytest.raises(CertificateUnusable) as caught:
        read_pair(files)
    assert words.replace("password:", str(secret) + " :") in str(caught.value)
    assert PASSWORD.strip() not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_pem_key_may_have_a_password_too(folder: Folder, issued: Issued) -> None:
    folder.openssl(
        "pkey", "-in", "pair.key", "-aes256", "-passout", f"pass:{PASSWORD}", "-out", "locked.key"
    )
    locked = Certificate(folder.path / "pair.pem", folder.path / "locked.key")
    with pytest.raises(CertificateUnusable, match="password_file attendu"):
        read_pair(locked)
    opened = Certificate(locked.certificate, locked.key, password_file=folder.path / "password")
    assert read_pair(opened).fits
    clear = Certificate(
        locked.certificate, folder.path / "pair.key", password_file=folder.path / "password"
    )
    with pytest.raises(CertificateUnusable, match="retirer password_file"):
        read_pair(clear)
    (folder.path / "password").write_text("autre")
    with pytest.raises(CertificateUnusable, match="mot de passe erroné"):
        read_pair(opened)


def test_a_leaf_is_read_once_until_a_file_changes(
    folder: Folder, issued: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = keypairs.open_pkcs12
    monkeypatch.setattr(keypairs, "open_pkcs12", lambda *a: opened.append(a[2]) or real(*a))
    files = folder.pkcs12()
    assert read_leaf(files) == read_leaf(files) == issued.certificate
    assert len(opened) == 1
    renewed = issue(name("renewed"))
    folder.pem = renewed.write(folder.path, "pair")
    assert read_leaf(folder.pkcs12()) == renewed.certificate
    assert len(opened) == 2
    # Another password is another reason to look.
    (folder.path / "password").write_text("autre!\n")
    with pytest.raises(CertificateUnusable):
        read_leaf(files)


def test_a_key_of_another_certificate_does_not_fit(folder: Folder) -> None:
    other = issue(name("other")).write(folder.path, "other")
    assert not read_pair(Certificate(folder.pem.certificate, other.key)).fits
    with pytest.raises(CertificateUnusable, match="couple incomplet"):
        read_pair(Certificate())

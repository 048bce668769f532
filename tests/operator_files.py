"""A working configuration on disk, with certificates made on the spot: what an operator's machine holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

CONFIGS = Path(__file__).parent / "configs"
EXAMPLE = Path(__file__).parent.parent / "etc" / "drimbox.toml"
NOW = datetime.now(UTC)


@cache
def pair(*names: str, start: int = -1, end: int = 365) -> tuple[bytes, bytes]:
    """Make a self-signed certificate and its key, both PEM; `start` and `end` in days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0] if names else "essai")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=start))
        .not_valid_after(NOW + timedelta(days=end))
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(value) for value in names]), critical=False
        )
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)


def good_config(folder: Path, *, extra: str = "", **replaced: str) -> Path:
    """Write `configs/good.toml` and every file it names; `replaced` maps a line's key to its new value.

    The keys of `replaced` are written `section__key` only where the bare key is ambiguous.
    """
    text = (CONFIGS / "good.toml").read_text(encoding="utf-8")
    for old, new in replaced.items():
        lines = [line for line in text.splitlines() if line.startswith(f"{old} = ")]
        assert len(lines) == 1, (old, lines)
        text = text.replace(lines[0], f"{old} = {new}")
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    for name, host in (("auth", ""), ("sign", ""), ("db1", "db1.349.mesimagesmedicales.fr")):
        certificate, key = pair(*([host] if host else [f"essai-{name}"]))
        (folder / f"{name}.pem").write_bytes(certificate)
        write_private(folder / f"{name}.key", key)
    (folder / "roots.pem").write_bytes(pair("racine")[0])
    (folder / "whitelist.xml").write_text("<liste/>")
    write_private(folder / "secret", b"un-secret\n")
    path = folder / "drimbox.toml"
    path.write_text(text + extra, encoding="utf-8")
    return path

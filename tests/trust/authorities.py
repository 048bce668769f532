"""Chains made by the openssl command: authorities, and certificates with the extensions asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

from drimbox.config import Certificate

CLIENT = "extendedKeyUsage=serverAuth,clientAuth"


class OpensslAuthority:
    """A certificate authority of openssl in a folder; its files are named after it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        subject: str = "",
        by: OpensslAuthority | None = None,
        more: str = "",
    ) -> None:
        """`more` are lines of its openssl extension file."""
        self.folder, self.name, self.by = folder, name, by
        subject = subject or f"/C=FR/O=ASIP-SANTÉ/CN={name}"
        extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign"
        extensions += f"\n{more}"
        self.certificate = self._sign(by or self, name, subject, extensions)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.name}.key"

    def issue(self, name: str, extensions: str = CLIENT, *, subject: str = "") -> Certificate:
        """Issue a leaf with these extensions (lines of an openssl extension file)."""
        subject = subject or f"/C=FR/O=CABINET/OU=3500/CN={name}"
        leaf = self._sign(self, name, subject, extensions)
        chain, authority = [], self
        while authority.by is not None:
            chain.append(authority.path.read_bytes())
            authority = authority.by
        (self.folder / f"{name}-chain.pem").write_bytes(b"".join([leaf.read_bytes(), *chain]))
        return Certificate(self.folder / f"{name}-chain.pem", self.folder / f"{name}.key")

    def _sign(self, by: OpensslAuthority, name: str, subject: str, extensions: str) -> Path:
        made = self.folder / f"{name}.pem"
        (self.folder / f"{name}.ext").write_text(extensions + "\n", "utf-8")
        self._run(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-utf8",
            "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        signer = ["-CA", f"{by.name}.pem", "-CAkey", f"{by.name}.key"]
        if by.name == name:
            signer = ["-signkey", f"{name}.key"]
        self._run(
            "x509", "-req", "-in", f"{name}.csr", *signer, "-days", "30", "-extfile", f"{name}.ext",
            "-out", f"{name}.pem",
        )  # fmt: skip
        return made

    def _run(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60
        )

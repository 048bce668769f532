"""Independent judges of what we sign: the `xmlsec1` program, and digests recomputed here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

DS = "http://www.w3.org/2000/09/xmldsig#"


def need_xmlsec1() -> None:
    """Skip when the `xmlsec1` command is not installed."""
    if shutil.which("xmlsec1") is None:
        pytest.skip("the xmlsec1 command is not installed")


def xmlsec1(document: bytes, folder: Path, roots: Path, *options: str) -> tuple[bool, str]:
    """Let `xmlsec1 --verify` judge; return its verdict and its words."""
    path = folder / "signed.xml"
    path.write_bytes(document)
    command = ["xmlsec1", "--verify", "--trusted-pem", str(roots), *options, str(path)]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    return done.returncode == 0, done.stderr.decode()

"""The second opinion on an XML signature: the `xmlsec1` program (Debian: xmlsec1), where it is installed.

It is given the certificate that the document names and no root: the mathematics are its business, trust
is nobody's here. Of the document it may use nothing but what stands in it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

#: It gets this long, seconds.
TIMEOUT = 30.0
_IDS = (
    "Id:http://www.w3.org/2000/09/xmldsig#:Manifest",
    "Id:http://uri.etsi.org/01903/v1.1.1#:SignedProperties",
    "Id:http://uri.etsi.org/01903/v1.3.2#:SignedProperties",
    "ID:urn:oasis:names:tc:SAML:2.0:assertion:Assertion",
)


def xmlsec1_verifies(document: bytes, certificate: bytes) -> bool | None:
    """Let `xmlsec1` verify the first signature of a document with a certificate (DER).

    None when it is not installed or does not answer. Digests of a Manifest are not its business: it would
    fetch what they refer to.
    """
    program = shutil.which("xmlsec1")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "signed.xml").write_bytes(document)
        (folder / "certificate.der").write_bytes(certificate)
        command = [program, "--verify", "--ignore-manifests", "--enabled-reference-uris", "same-doc"]
        # Without KeyInfo the key is the one given, whatever the document says of keys.
        command += ["--enabled-key-data", "key-name", "--pubkey-cert-der", str(folder / "certificate.der")]
        for identifier in _IDS:
            attribute, _, element = identifier.partition(":")
            command += [f"--id-attr:{attribute}", element]
        try:
            # No shell, and every argument is ours.
            done = subprocess.run(  # noqa: S603
                [*command, str(folder / "signed.xml")], capture_output=True, timeout=TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    return done.returncode == 0

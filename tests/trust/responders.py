"""`openssl ocsp` as a real responder, for an authority of the openssl command."""

from __future__ import annotations

import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from drimbox.sim.stand import free_port


class OpensslResponder:
    """A process that answers from an index of certificates; stop it."""

    def __init__(self, folder: Path, ca: Path, signer: tuple[Path, Path], *options: str) -> None:
        """`ca` is the PEM file of the authority, `signer` certificate and key of who answers."""
        self.folder, self.ca, self.signer, self.options = folder, ca, signer, options
        self.index = folder / "index.txt"
        self.index.touch()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def knows(self, certificate: x509.Certificate, *, revoked: bool = False) -> None:
        """Write a certificate into the index; it is read when the responder starts."""
        end = f"{datetime.now(UTC) + timedelta(days=9):%y%m%d%H%M%SZ}"
        when = f"{datetime.now(UTC) - timedelta(days=1):%y%m%d%H%M%SZ}" if revoked else ""
        serial = f"{certificate.serial_number:X}"
        serial = serial.zfill(len(serial) + len(serial) % 2)
        with self.index.open("a", encoding="utf-8") as index:
            index.write(f"{'R' if revoked else 'V'}\t{end}\t{when}\t{serial}\tunknown\t/CN=x\n")

    def start(self) -> None:
        """Start it; returns once it listens."""
        certificate, key = self.signer
        command = [
            "openssl",
            "ocsp",
            "-index",
            str(self.index),
            "-port",
            str(self.port),
            "-CA",
            str(self.ca),
        ]
        command += ["-rsigner", str(certificate), "-rkey", str(key), *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            # A connection would keep its only place until it says something.
            with socket.socket() as probe:
                try:
                    probe.bind(("0.0.0.0", self.port))
                except OSError:
                    return
            time.sleep(0.05)
        raise AssertionError("openssl ocsp does not listen")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

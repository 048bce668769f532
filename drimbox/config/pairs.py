"""A certificate with its key, wherever one is named."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class Certificate:
    """A certificate with its chain and its private key: two PEM files, or one PKCS#12 file."""

    certificate: Path | None = None
    key: Path | None = None
    pkcs12: Path | None = None
    #: File that holds the password of the PKCS#12 file, or of the PEM key, one line; None when it has none.
    password_file: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the pair is made of."""
        named = (self.certificate, self.key, self.pkcs12, self.password_file)
        return tuple(path for path in named if path is not None)

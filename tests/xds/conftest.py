"""Certificates of the tests, made once: the DMP's server, ORG_AUTH_CLI, ORG_SIGN, and a stranger's."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from drimbox.config import Certificate, Structure
from drimbox.xds.sender import SigningPair, load_pair
from tests.xds.builders import make_structure
from tests.xds.pki import Authority


@attrs.frozen
class Pki:
    """Every certificate the tests of this folder need."""

    roots: Path
    server: Certificate
    authentication: Certificate
    signature: Certificate
    stranger: Certificate
    stranger_roots: Path


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("xds-pki")
    authority = Authority(folder)
    other = Authority(folder, "AC INCONNUE")
    return Pki(
        roots=authority.roots(),
        server=authority.issue("dmp", server=True, sans=("127.0.0.1", "localhost")),
        authentication=authority.issue("org-auth"),
        signature=authority.issue("org-sign", signing=True),
        stranger=other.issue("stranger", server=True, sans=("127.0.0.1",)),
        stranger_roots=other.roots(),
    )


@pytest.fixture(scope="session")
def structure(pki: Pki) -> Structure:
    return make_structure(pki.signature, pki.authentication)


@pytest.fixture(scope="session")
def pair(pki: Pki) -> SigningPair:
    return load_pair(pki.signature)

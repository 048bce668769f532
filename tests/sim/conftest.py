"""One test PKI for all simulator tests: making RSA keys is the slow part."""

from __future__ import annotations

from pathlib import Path

import pytest

from drimbox.sim.pki import Pki, make_pki

STRUCTURE = "499700000001006"


@pytest.fixture(scope="session")
def sim_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder: Path = tmp_path_factory.mktemp("sim") / "pki"
    return make_pki(folder, sites=("db1.349.example",), viewers=("vi1.349.example",))

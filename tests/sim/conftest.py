"""One test PKI for all simulator tests: making RSA keys is the slow part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drimbox.sim.pki import Pki, make_pki

STRUCTURE = "499700000001006"


@pytest.fixture(scope="session")
def sim_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder: Path = tmp_path_factory.mktemp("sim") / "pki"
    return make_pki(folder, sites=("db1.349.example",), viewers=("vi1.349.example",))


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of published samples, or a skip."""
    given = os.environ.get("DRIMBOX_SAMPLES")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("published samples are not here (DRIMBOX_SAMPLES)")
    return folder

"""One test PKI for all simulator tests: making RSA keys is the slow part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drimbox.sim.dmp_service import DmpService
from drimbox.sim.dmp_trust import Trust
from drimbox.sim.pki import Pki, make_pki
from tests.sim.dmp_requests import STRUCTURE, Maker


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


@pytest.fixture
def maker(sim_pki: Pki, tmp_path: Path) -> Maker:
    return Maker(sim_pki, tmp_path, sim_pki.structures[STRUCTURE].signature)


@pytest.fixture
def service(sim_pki: Pki) -> DmpService:
    return DmpService(Trust.load(sim_pki.roots, sim_pki.crls))

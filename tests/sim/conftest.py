"""One test PKI for all simulator tests: making RSA keys is the slow part."""

from __future__ import annotations

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


@pytest.fixture
def maker(sim_pki: Pki, tmp_path: Path) -> Maker:
    return Maker(sim_pki, tmp_path, sim_pki.structures[STRUCTURE].signature)


@pytest.fixture
def service(sim_pki: Pki) -> DmpService:
    return DmpService(Trust.load(sim_pki.roots, sim_pki.crls))

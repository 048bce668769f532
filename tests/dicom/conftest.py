"""Small studies and a gateway's DICOM side on a free port, for the tests of the network layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from drimbox.dicom import retrieval
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.studies import GeneratedStudy, SimPatient, make_study
from tests.dicom.box import Box, apart


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    """Six small CT images in two series of four and two, of a patient whose INS the PACS knows."""
    return make_study(
        tmp_path_factory.mktemp("study"),
        instances=6,
        series=2,
        rows=16,
        columns=16,
        patient=SimPatient(ins="275061234567890"),
    )


@pytest.fixture(scope="session")
def other_study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    """Five small CT images of another patient, in one series."""
    patient = SimPatient(id="IPP0099", name="AUTRE^ALIX", birth_date="19810203")
    return make_study(
        tmp_path_factory.mktemp("other"), instances=5, rows=16, columns=16, patient=patient, seed=7
    )


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PACS gets less time to answer a C-CANCEL than in life."""
    monkeypatch.setattr(retrieval, "_CANCEL_GRACE", 0.6)


@pytest.fixture
def box() -> Iterator[Box]:
    """The DICOM side of a gateway with two titles; listening."""
    made = Box()
    made.listen()
    yield made
    pytest_twisted.blockon(apart(made.close()))


@pytest.fixture
def pacs(box: Box, study: GeneratedStudy, other_study: GeneratedStudy) -> Iterator[SimulatedPacs]:
    """A simulated PACS with both studies that `box` talks to."""
    with SimulatedPacs("PACS", destinations=box.destinations) as simulated:
        simulated.load(study)
        simulated.load(other_study)
        box.attach(simulated.port)
        yield simulated
        # The peer may be waiting for the gateway's answer while it is stopped.


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder for a peer program."""
    return tmp_path / "peer"

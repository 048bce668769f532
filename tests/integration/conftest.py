"""One gateway process for the delivery tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.studies import SimPatient, make_study
from tests.integration.hospital import JPEG_LS, Hospital, Served
from tests.integration.waiting import wait


@pytest.fixture(scope="session")
def running_hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """Two sites with simulated PACS around one gateway."""
    hospital = Hospital(tmp_path_factory.mktemp("hospital"), wado={"max_deliveries": "8"})
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture
def hospital(running_hospital: Hospital) -> Iterator[Hospital]:
    """The same, both PACS well behaved, nothing running and every AE title free."""
    for pacs in running_hospital.pacs:
        pacs.behaviour = Behaviour()
    running_hospital.stand.psc.script.reset()
    wait(running_hospital.idle())
    yield running_hospital
    for pacs in running_hospital.pacs:
        pacs.behaviour = Behaviour()


@pytest.fixture(scope="session")
def scanner(running_hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A published CT of six JPEG-LS images in two series, in the first PACS."""
    folder = tmp_path_factory.mktemp("scanner")
    study = make_study(
        folder, instances=6, series=2, rows=256, columns=256, transfer_syntax=JPEG_LS, seed=11
    )
    served: Served = wait(running_hospital.publish(study))
    return served


@pytest.fixture(scope="session")
def other(running_hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A published CT of another patient, in the second PACS."""
    study = make_study(
        tmp_path_factory.mktemp("other"),
        instances=4,
        patient=SimPatient(id="IPP0077", name="AUTRE^PATIENT"),
        seed=12,
    )
    served: Served = wait(running_hospital.publish(study, 1))
    return served

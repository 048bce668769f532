"""The feed against real PACS: DCMTK's dcmqrscp, which tells no SOP class in C-FIND, and Orthanc."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import Dcmqrscp, Orthanc, Peer, free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress
from tests.integration.feed_stand import (
    POOL,
    FeedStand,
    Studies,
    held_instances,
    kos_dataset,
    kos_instances,
)

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
#: A frozen PACS is given up soon.
QUICK = {"query_timeout": "1"}


@pytest.mark.requirement("DB.SO.14", "DB.SO.13", "DB.SO.15", "DB.SO.18")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dcmqrscp", marks=pytest.mark.peer("dcmqrscp")),
        pytest.param("orthanc", marks=pytest.mark.peer("Orthanc")),
    ],
)
@pytest_twisted.inlineCallbacks
def test_a_report_is_published_and_follows_a_real_pacs(name: str, tmp_path: Path) -> object:
    port = free_port()
    destinations = dict.fromkeys(POOL, (LOOPBACK, port))
    peer: Peer
    # dcmqrscp proposes the syntax it is told to and converts nothing: it must hold what it proposes.
    syntax = JPEGLSLossless if name == "dcmqrscp" else ExplicitVRLittleEndian
    if name == "dcmqrscp":
        peer = Dcmqrscp(tmp_path / "peer", "PACS", move_destinations=destinations)
    else:
        peer = Orthanc(tmp_path / "peer", "PACS", modalities=destinations, clients=["DRIMBOX"])
    yield deferToThread(peer.start)
    stand = FeedStand(
        tmp_path / "stand", [PacsAddress("PACS", peer.port, POOL, settings=QUICK)], dicom_port=port
    )

    async def body() -> None:
        studies = Studies(tmp_path / "studies")
        study = studies.new(instances=5, series=2, transfer_syntax=syntax)
        await deferToThread(peer.load, study.files)
        await stand.up()
        await stand.report(study)
        first = await stand.published_one(study)
        assert kos_instances(first) == held_instances(study)
        (evidence,) = kos_dataset(first).CurrentRequestedProcedureEvidenceSequence
        classes = {
            str(one.ReferencedSOPClassUID)
            for series in evidence.ReferencedSeriesSequence
            for one in series.ReferencedSOPSequence
        }
        assert classes == {CT_IMAGE}
        await stand.report(study)
        await stand.idle()
        assert [entry.unique_id for entry in stand.kos(study, None)] == [first.unique_id]
        more = studies.new(instances=7, series=2, study_uid=study.study_uid, transfer_syntax=syntax)
        await deferToThread(peer.load, more.files)
        await stand.report(study)
        await stand.idle()
        (second,) = stand.kos(study)
        assert kos_instances(second) == held_instances(more)
        await stand.report("2.25.909090")
        await stand.notice_about("2.25.909090", "E004")
        # The PACS goes away and comes back with a study that somebody reported meanwhile.
        late = studies.new(instances=1, transfer_syntax=syntax)
        await deferToThread(peer.load, late.files)
        peer.pause()
        await stand.report(late)
        await stand.notice_about("PACS1", "E003")
        peer.resume()
        await stand.published_one(late, seconds=60.0)

    try:
        yield Deferred.fromCoroutine(body())
    finally:
        yield Deferred.fromCoroutine(stand.stop())
        yield deferToThread(peer.stop)

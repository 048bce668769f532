"""A native archive that is absent, dies, stalls, lies or loses images: nothing false is called whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.consumer import FetchResult
from drimbox.sim.peers import PeerMissing
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message
from drimbox.sim.studies import make_study
from tests.integration.archive_relay import CutAfter, Refuse, Stall, honest, is_file, unheeding
from tests.integration.hospital import EXPLICIT_LE, JPEG_LS, Served, data_set, digests, received
from tests.integration.native_hospital import NativeHospital
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.peer("Orthanc")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeHospital]:
    try:
        hospital = NativeHospital(tmp_path_factory.mktemp("faults"), relayed=True, patience="0.5")
    except PeerMissing as missing:
        pytest.skip(str(missing))
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture
def native(running: NativeHospital) -> Iterator[NativeHospital]:
    wait(running.idle())
    yield running
    running.relay.behaviour, running.relay.before = honest, unheeding


@pytest.fixture(scope="module")
def served(running: NativeHospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A published CT of twelve images of 128 KiB."""
    folder = tmp_path_factory.mktemp("served")
    how = {"instances": 12, "rows": 256, "columns": 256, "transfer_syntax": EXPLICIT_LE, "seed": 5}
    result: Served = wait(running.hold(folder, **how))
    return result


class Faulty:
    """Counts the files asked for; from the one numbered `first` on, `fault` is done to them."""

    def __init__(self, fault: Any, first: int = 1) -> None:
        self.fault = fault
        self.first = first
        self.files = 0

    def __call__(self, path: str, body: bytes) -> bytes:
        if not is_file(path):
            return body
        self.files += 1
        if self.files < self.first:
            return body
        if isinstance(self.fault, Exception):
            raise self.fault
        result: bytes = self.fault(body)
        return result


def refused(result: FetchResult, status: int, code: str) -> None:
    """Nothing was sent but the status."""
    assert result.status == status, (result.status, result.error)
    assert result.problem is not None
    assert result.problem["code"] == code
    assert result.parts == ()


def cut(result: FetchResult) -> None:
    """It began, and nobody can take it for the whole."""
    assert result.status == 200
    assert not result.complete


async def audited_failure(native: NativeHospital, number: int) -> str:
    """Wait for the audit record of a failed image request after `number`; return its outcome's words."""
    query = "select payload from audit where id > ? and outcome <> 0 and payload like '%RAD-107%'"
    ((payload,),) = await until(lambda: native.database(query, number), what="an audit record")
    return str(json.loads(payload)["event"]["outcome_description"])


GARBAGE = b"<html>Internal error</html>" * 1000


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Refuse("500"), 502, "E1004"),
        (Refuse("401"), 502, "E1004"),
        (CutAfter(0), 502, "E1004"),
        (Stall(0, 5), 504, "E1005"),
        (lambda body: GARBAGE, 502, "E1004"),
        (lambda body: b"", 502, "E1004"),
        (lambda body: body[:100], 502, "E1004"),
    ],
    ids=["500", "401", "reset", "silent", "garbage", "nothing", "stub"],
)
@pytest_twisted.ensureDeferred
async def test_what_fails_at_once_is_a_status(
    native: NativeHospital, served: Served, fault: Any, status: int, code: str
) -> None:
    native.relay.behaviour = Faulty(fault)
    audited = native.audited()
    refused(await native.fetch(served), status, code)
    assert code in await audited_failure(native, audited)
    await native.idle()
    assert (await native.fetch(served)).complete


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize(
    "fault",
    [Refuse("500"), CutAfter(60_000), CutAfter(131_000), Stall(60_000, 5), lambda body: GARBAGE],
    ids=["500", "cut", "cut near its end", "stalled", "garbage"],
)
@pytest_twisted.ensureDeferred
async def test_what_fails_later_cuts_the_answer(native: NativeHospital, served: Served, fault: Any) -> None:
    native.relay.behaviour = Faulty(fault, first=7)
    audited = native.audited()
    result = await native.fetch(served)
    cut(result)
    assert "E1" in await audited_failure(native, audited)
    whole = digests(served.study)
    assert received(result).items() <= whole.items()
    await native.idle()
    again = await native.fetch(served)
    assert again.complete
    assert received(again) == whole


@pytest.mark.threat("images of another patient")
@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("how", ["other study", "other series", "sibling"])
@pytest_twisted.ensureDeferred
async def test_bytes_of_something_else_never_leave(
    native: NativeHospital, served: Served, tmp_path: Path, how: str
) -> None:
    size = {"instances": 2, "rows": 256, "columns": 256, "transfer_syntax": EXPLICIT_LE, "seed": 6}
    if how == "other study":
        foreign = make_study(tmp_path, study_uid="2.25.77001", **size).instances[0].path.read_bytes()
    elif how == "other series":
        foreign = make_study(tmp_path, study_uid=served.uid, **size).instances[0].path.read_bytes()
    else:
        foreign = served.study.instances[0].path.read_bytes()
    native.relay.behaviour = Faulty(lambda body: foreign, first=4)
    result = await native.fetch(served)
    assert not result.complete
    for part in result.parts:
        assert part.content is not None
        assert how == "sibling" or data_set(foreign)[-1000:] not in part.content
    whole = digests(served.study)
    assert received(result).items() <= whole.items()
    assert len(received(result)) < len(whole)


@pytest.mark.requirement("DB.SO.27", "DB.SO.190")
@pytest_twisted.ensureDeferred
async def test_an_instance_removed_meanwhile_cuts_the_answer_and_the_kos_follows(
    native: NativeHospital, tmp_path: Path
) -> None:
    served = await native.hold(
        tmp_path, instances=12, rows=256, columns=256, transfer_syntax=EXPLICIT_LE, study_uid="2.25.77002"
    )
    removed: list[str] = []

    def remove(path: str) -> None:
        if is_file(path) and not removed:
            # Listed already, not yet asked for; those that come meanwhile wait.
            listed: Any = native.orthanc.rest("POST", "/tools/find", query)
            later = [each for each in listed if f"/instances/{each}/file" not in native.relay.paths]
            tags: Any = native.orthanc.rest("GET", f"/instances/{later[-1]}/simplified-tags")
            native.orthanc.rest("DELETE", f"/instances/{later[-1]}")
            removed.append(tags["SOPInstanceUID"])

    query = {"Level": "Instance", "Query": {"StudyInstanceUID": served.uid}}
    native.relay.before = remove
    result = await native.fetch(served)
    assert not result.complete
    kos = await native.replaced(served.kos)
    result = await native.fetch(served, kos=kos)
    assert result.complete, (result.status, result.problem, result.error)
    assert set(received(result)) == set(digests(served.study)) - set(removed)


@pytest_twisted.ensureDeferred
async def test_orthanc_killed_half_way_and_started_again(native: NativeHospital, served: Served) -> None:
    def kill(body: bytes) -> bytes:
        native.orthanc.kill()
        raise CutAfter(1000)

    faulty = Faulty(kill, first=6)
    native.relay.behaviour = faulty
    result = await native.fetch(served)
    assert not result.complete
    native.relay.behaviour = honest
    refused(await native.fetch(served), 502, "E1004")
    await native.restart_orthanc()
    again = await native.fetch(served)
    assert again.complete, (again.status, again.problem, again.error)
    assert received(again) == digests(served.study)


@pytest.mark.requirement("DB.SO.14", "DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_a_report_waits_for_an_archive_that_is_away(native: NativeHospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=2, transfer_syntax=JPEG_LS, study_uid="2.25.77003")
    await native.store(study)
    await deferToThread(native.orthanc.kill)
    report = SimReport(
        acts=(SimAct(study_uid=study.study_uid, modalities=("CT",)),), document_id="2.25.77004"
    )
    before = set(native.stand.published())
    assert (await native.stand.send(build_message(report, SimMessage(control_id="AWAY")))).code == "AA"

    async def told(key: str) -> bool:
        return any(each["code"] == "E003" and key in each["text"] for each in await native.notices())

    await until(lambda: told("injoignable"), what="a notice that the archive is away")
    await until(lambda: told("changements inconnus"), what="a notice that changes are not known")
    assert set(native.stand.published()) == before
    await native.restart_orthanc()
    await until(lambda: set(native.stand.published()) - before, what="the KOS")

    async def over() -> bool:
        return not (await told("injoignable") or await told("changements inconnus"))

    await until(over, what="the end of the notices")


@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_a_slow_client_is_served_whole_through_the_spool(
    native: NativeHospital, tmp_path: Path
) -> None:
    """10 MB at 2 MB/s with pauses of half a second at most put on the archive."""
    served = await native.hold(
        tmp_path, instances=20, rows=512, columns=512, transfer_syntax=EXPLICIT_LE, study_uid="2.25.77005"
    )
    asked = Deferred.fromCoroutine(native.fetch(served, bytes_per_second=2_000_000.0))
    files = [len(each.path.read_bytes()) for each in served.study.instances]
    await until(lambda: sum(map(is_file, native.relay.paths)) >= len(files), what="all files read")
    result = await asked
    assert result.complete, (result.status, result.problem, result.error)
    assert received(result) == digests(served.study)
    assert result.t_total > 3


@pytest.mark.parametrize("after", [0, 300_000], ids=["at once", "half way"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_leaves_nothing_behind(
    native: NativeHospital, served: Served, after: int
) -> None:
    for _ in range(5):
        native.relay.behaviour = Faulty(Stall(1000, 1), first=5)
        result = await native.fetch(served, disconnect_after=after)
        # What the one before still had on its way may use the fault up: then it is a refusal.
        assert result.status != 200 or not result.complete
    await native.idle()
    result = await native.fetch(served)
    assert result.complete

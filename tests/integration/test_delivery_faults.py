"""A PACS that fails half-way, a client that leaves: the answer is cut, never closed, nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from drimbox.kos.reading import read_manifest
from drimbox.sim.consumer import FetchResult
from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, Served, behave, digests, received
from tests.integration.waiting import until


def cut(result: FetchResult) -> None:
    """Check that nobody can take this answer for complete."""
    assert result.status == 200
    assert not result.complete
    assert result.error.startswith("connection lost"), result.error


@pytest.mark.requirement("DB.SO.32", "DB.SO.47")
@pytest.mark.parametrize("stop", ["close", "abort", "inside", "release", "silent"])
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_stops_half_way_cuts_the_answer(
    hospital: Hospital, scanner: Served, stop: str
) -> None:
    hospital.pacs[0].behaviour = behave(stop_after=1, stop=stop)
    before = hospital.audited()
    result = await hospital.fetch(scanner)
    cut(result)
    assert received(result).items() <= digests(scanner.study).items()
    record = await hospital.audit_after(before)
    assert record.outcome != 0
    assert record.description.startswith(("E1004", "E1005", "E1104"))
    assert "interrompue" in record.description
    hospital.pacs[0].behaviour = behave()
    assert (await hospital.fetch(scanner)).complete


@pytest.mark.parametrize("also_the_move", [False, True])
@pytest.mark.peer("curl")
@pytest_twisted.ensureDeferred
async def test_curl_knows_that_the_answer_was_cut(
    hospital: Hospital, scanner: Served, also_the_move: bool
) -> None:
    hospital.pacs[0].behaviour = behave(stop_after=2, stop="close", stop_move=also_the_move)
    code, status, body = await hospital.curl(scanner)
    assert status == "200"
    assert code in (18, 56)
    boundary = body.split(b"\r\n")[0]
    assert boundary + b"--" not in body


@pytest.mark.peer("curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
@pytest_twisted.ensureDeferred
async def test_an_http_1_0_client_is_not_deceived_either(
    hospital: Hospital, scanner: Served, version: str
) -> None:
    # Without chunks, the end of the connection is the end of the body: TLS must say that it was cut.
    code, status, body = await hospital.curl(scanner, version)
    assert (code, status) == (0, "200")
    assert body.endswith(b"--\r\n")
    hospital.pacs[0].behaviour = behave(stop_after=2, stop="close")
    code, status, body = await hospital.curl(scanner, version)
    assert code in (18, 56)


@pytest.mark.parametrize("final", ["never", "garbage"])
@pytest_twisted.ensureDeferred
async def test_without_a_final_response_nothing_is_complete(
    hospital: Hospital, scanner: Served, final: str
) -> None:
    hospital.pacs[0].behaviour = behave(final=final)
    cut(await hospital.fetch(scanner))


@pytest.mark.requirement("DB.SO.190")
@pytest_twisted.ensureDeferred
async def test_an_instance_that_the_pacs_no_longer_has_is_never_passed_over(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(skip=(1,))
    cut(await hospital.fetch(scanner))
    wanted = f"Examen {scanner.uid} : le KOS et le PACS"
    assert any(notice["text"].startswith(wanted) for notice in await hospital.notices())


@pytest.mark.parametrize(
    "values", [{"fail": (1,)}, {"fail": (1,), "claim_completed": 3, "claim_failed": 0}]
)
@pytest_twisted.ensureDeferred
async def test_a_failed_sub_operation_is_not_a_complete_answer(
    hospital: Hospital, scanner: Served, values: dict[str, Any]
) -> None:
    hospital.pacs[0].behaviour = behave(**values)
    cut(await hospital.fetch(scanner))


@pytest.mark.requirement("DB.SO.190")
@pytest_twisted.ensureDeferred
async def test_an_instance_newer_than_the_kos_is_delivered_and_the_kos_replaced(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=4, seed=41)
    hospital.pacs[0].load(list(study.files[:3]))
    served = await hospital.publish(study, load=False)
    hospital.pacs[0].load(study.files[3])
    result = await hospital.fetch(served)
    assert result.complete
    assert received(result) == digests(study)

    async def said() -> bool:
        return any(study.study_uid in notice["text"] for notice in await hospital.notices())

    await until(said, what="the notice")  # nobody's answer waits for it
    # The record is brought in line with the PACS, from the report that is already known.
    await until(lambda: served.kos not in hospital.stand.published(), what="the KOS replaced")
    newest = hospital.stand.published()[-1]
    entry = hospital.stand.dmp.service.registry.by_unique_id(newest)
    assert entry is not None
    listed = {
        one.sop_instance_uid for each in read_manifest(entry.document).series for one in each.instances
    }
    assert listed == {one.sop_instance_uid for one in study.instances}


@pytest.mark.requirement("DB.SO.190", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_study_gone_from_the_pacs_is_410(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=2, seed=42)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(skip=(0, 1))
    result = await hospital.fetch(served)
    assert result.status == 502  # still known to the PACS by C-FIND, yet nothing came
    for instance in study.instances:
        hospital.pacs[0].index.remove(instance.sop_instance_uid)
    hospital.pacs[0].behaviour = behave()
    result = await hospital.fetch(served)
    assert result.status == 410
    assert result.problem is not None
    assert result.problem["code"] == "E1002"


@pytest.mark.parametrize("stubborn", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_stops_the_pacs_and_frees_the_title(
    hospital: Hospital, scanner: Served, stubborn: bool
) -> None:
    pacs = hospital.pacs[0]
    pacs.behaviour = behave(pause=0.3, ignore_cancel=stubborn)
    before, cancels = hospital.audited(), len(pacs.seen("cancel"))
    result = await hospital.fetch(scanner, disconnect_after=1000)
    assert not result.complete
    await until(lambda: len(pacs.seen("cancel")) > cancels, what="C-CANCEL at the PACS")
    record = await hospital.audit_after(before)
    assert "fermée par la DRIMbox consommatrice" in record.description
    pacs.behaviour = behave()
    assert received(await hospital.fetch(scanner, 1)) == digests(scanner.study, 1)
    await hospital.idle()


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_at_once_leaves_nothing(hospital: Hospital, scanner: Served) -> None:
    hospital.pacs[0].behaviour = behave(move_delay=0.3)
    result = await hospital.fetch(scanner, disconnect_after=0)
    assert not result.complete
    await hospital.idle()
    assert await hospital.metric("drimbox_window_bytes") == 0


@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_late_images_of_an_abandoned_move_reach_nobody(
    hospital: Hospital, other: Served, tmp_path: Path
) -> None:
    """Two titles only: the next request gets the quarantined one's turn, never its images."""
    pacs = hospital.pacs[1]
    pacs.behaviour = behave(pause=0.4, ignore_cancel=True, survive_abort=True)
    for _ in range(2):
        await hospital.fetch(other, disconnect_after=500)
    study = make_study(tmp_path, instances=3, seed=43)
    served = await hospital.publish(study, 1)
    pacs.behaviour = behave()
    asked: list[Any] = []
    for _ in range(20):
        result = await hospital.fetch(served)
        asked.append(result.status)
        if result.status != 503:
            assert received(result) == digests(study)
            break
    assert asked[-1] == 200
    await hospital.idle()


@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_names_somebody_else_s_move_is_refused(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(originator="wrong")
    result = await hospital.fetch(scanner)
    assert result.status == 502
    assert not result.parts


@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_an_association_from_an_unknown_ae_title_is_refused(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(store_calling="SOMEBODY")
    result = await hospital.fetch(scanner)
    assert result.status == 502


@pytest_twisted.ensureDeferred
async def test_one_that_fails_does_not_disturb_the_others(
    hospital: Hospital, scanner: Served, other: Served
) -> None:
    hospital.pacs[0].behaviour = behave(stop_after=1, stop="inside", pause=0.2)
    hospital.pacs[1].behaviour = behave(pause=0.2)
    failing = Deferred.fromCoroutine(hospital.fetch(scanner))
    good: Any = await hospital.fetch(other)
    assert good.complete
    assert received(good) == digests(other.study)
    failed: Any = await failing
    cut(attrs.evolve(failed))

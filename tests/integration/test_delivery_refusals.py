"""Every refusal over real sockets: its status, its code, its words, and its record in the audit trail."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from drimbox.sim.behaviour import Behaviour as ServerBehaviour
from drimbox.sim.behaviour import Kind
from drimbox.sim.consumer import FetchResult
from drimbox.sim.stand import STRANGER
from tests.integration.hospital import ACCEPT, ANY, Hospital, Served, behave
from tests.integration.waiting import pause, until


async def refused(
    hospital: Hospital, result: FetchResult, before: int, status: int, code: str
) -> dict[str, Any]:
    """Check a refusal and its audit record; return the problem document."""
    assert result.status == status, result
    assert result.problem is not None
    assert result.problem["code"] == code
    assert result.header("content-type") == "application/problem+json"
    assert result.complete, result.error
    record = await hospital.audit_after(before)
    assert record.outcome != 0
    assert record.description.startswith(code)
    return result.problem


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_no_token_is_401(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    result = await hospital.fetch(scanner, token=None)
    problem = await refused(hospital, result, before, 401, "E1104")
    assert "eton" in problem["title"]
    assert (result.header("www-authenticate") or "").startswith("Bearer")


@pytest.mark.requirement("DB.SO.32", "DB.SO.47")
@pytest.mark.parametrize("token", ["inconnu", "a" * 9000])
@pytest_twisted.ensureDeferred
async def test_a_bad_token_is_403(hospital: Hospital, scanner: Served, token: str) -> None:
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(scanner, token=token), before, 403, "E1104")


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_an_expired_token_is_403(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    token = hospital.stand.psc.mint(life=-5)
    await refused(hospital, await hospital.fetch(scanner, token=token), before, 403, "E1104")


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_introspection_down_is_502(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    token = hospital.stand.token()
    await hospital.stand.psc.down()
    try:
        await refused(hospital, await hospital.fetch(scanner, token=token), before, 502, "E1104")
    finally:
        hospital.stand.psc.up()


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_introspection_slow_is_504(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    hospital.stand.psc.script.default = ServerBehaviour(Kind.SILENT)
    try:
        await refused(hospital, await hospital.fetch(scanner), before, 504, "E1104")
    finally:
        hospital.stand.psc.script.default = ServerBehaviour()


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_an_unknown_study_is_404_e1001(hospital: Hospital, scanner: Served) -> None:
    unknown = attrs.evolve(scanner, study=attrs.evolve(scanner.study, study_uid="2.25.404"))
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(unknown), before, 404, "E1001")


@pytest.mark.requirement("DB.SO.38", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_the_kos_of_another_study_is_404_e1103(
    hospital: Hospital, scanner: Served, other: Served
) -> None:
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(scanner, kos=other.kos), before, 404, "E1103")


@pytest.mark.requirement("DB.SO.38")
@pytest_twisted.ensureDeferred
async def test_no_kos_header_is_400(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(scanner, kos=None), before, 400, "E1104")


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_depublished_kos_is_410_e1002(hospital: Hospital, scanner: Served) -> None:
    database = hospital.folder / "stand" / "state" / "drimbox.db"

    def mark(state: str) -> None:
        with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
            query = "update kos set state = ? where sop_instance_uid = ?"
            connection.execute(query, (state, scanner.kos))

    state = str(hospital.database("select state from kos where sop_instance_uid = ?", scanner.kos)[0][0])
    mark("depublished")
    try:
        before = hospital.audited()
        await refused(hospital, await hospital.fetch(scanner), before, 410, "E1002")
    finally:
        mark(state)


@pytest.mark.requirement("DB.SO.154", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_consumer_outside_the_whitelist_is_401_e1102(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    result = await hospital.fetch(scanner, certificate=hospital.stand.consumer(STRANGER))
    await refused(hospital, result, before, 401, "E1102")


@pytest.mark.requirement("DB.SO.111", "DB.SO.90")
@pytest_twisted.ensureDeferred
async def test_without_a_certificate_there_is_no_handshake(hospital: Hospital, scanner: Served) -> None:
    result = await hospital.fetch(scanner, certificate=None)
    assert result.status is None
    assert "connection lost" in result.error


@pytest.mark.requirement("DB.SO.90")
@pytest.mark.threat("client certificate bypassed by SNI")
@pytest_twisted.ensureDeferred
async def test_the_viewer_s_name_serves_no_images(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    viewer = "vi1.349.mesimagesmedicales.fr"
    result = await hospital.fetch(
        scanner, site=viewer, certificate=None, roots=None, host_header=hospital.stand.sites[0]
    )
    await refused(hospital, result, before, 403, "E1101")


@pytest.mark.requirement("DB.SO.173")
@pytest.mark.threat("client certificate bypassed by SNI")
@pytest_twisted.ensureDeferred
async def test_the_host_of_another_site_is_421(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    result = await hospital.fetch(scanner, host_header=hospital.stand.sites[1])
    await refused(hospital, result, before, 421, "E1104")


@pytest.mark.parametrize("host", ["10.53.0.72:8002", "inconnu.example"])
@pytest_twisted.ensureDeferred
async def test_a_host_that_is_nobody_s_is_tolerated(hospital: Hospital, scanner: Served, host: str) -> None:
    assert (await hospital.fetch(scanner, host_header=host)).complete


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_no_acceptable_syntax_is_406_and_says_what_there_is(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(propose="stored")
    before = hospital.audited()
    result = await hospital.fetch(scanner, accept=(ACCEPT.format("1.2.840.10008.1.2.4.50"),))
    problem = await refused(hospital, result, before, 406, "E1104")
    assert "JPEG-LS Lossless (1.2.840.10008.1.2.4.80)" in problem["detail"]


@pytest_twisted.ensureDeferred
async def test_syntaxes_that_may_not_be_shared_are_406_without_asking_the_pacs(
    hospital: Hospital, scanner: Served
) -> None:
    moves = len(hospital.pacs[0].seen("move"))
    before = hospital.audited()
    result = await hospital.fetch(scanner, accept=(ACCEPT.format("1.2.840.10008.1.2"),))
    await refused(hospital, result, before, 406, "E1104")
    assert len(hospital.pacs[0].seen("move")) == moves


@pytest.mark.requirement("DB.SO.35", "DB.SO.85", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_when_every_title_is_taken_the_next_is_503_e1003(hospital: Hospital, other: Served) -> None:
    hospital.pacs[1].behaviour = behave(pause=1.0)
    moves = len(hospital.pacs[1].seen("move"))
    running = [Deferred.fromCoroutine(hospital.fetch(other)) for _ in range(2)]
    await until(lambda: len(hospital.pacs[1].seen("move")) == moves + 2, what="both titles taken")
    before = hospital.audited()
    result = await hospital.fetch(other)
    await refused(hospital, result, before, 503, "E1003")
    assert int(result.header("retry-after") or 0) >= 1
    for each in running:
        answered: Any = await each
        assert answered.complete


@pytest.mark.requirement("DB.SO.35")
@pytest_twisted.ensureDeferred
async def test_a_request_waits_its_turn_for_a_title(hospital: Hospital, other: Served) -> None:
    hospital.pacs[1].behaviour = behave(pause=0.15)
    asked = [Deferred.fromCoroutine(hospital.fetch(other)) for _ in range(3)]
    results: list[Any] = [await each for each in asked]
    assert all(result.complete for result in results)


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_is_down_is_502_e1004(hospital: Hospital, scanner: Served) -> None:
    hospital.pacs[0].behaviour = behave(down=True)
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(scanner), before, 502, "E1004")
    assert any(notice["code"] == "E1004" for notice in await hospital.notices())


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize("how", ["abort", "close", "garbage"])
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_breaks_the_request_off_is_502(
    hospital: Hospital, scanner: Served, how: str
) -> None:
    hospital.pacs[0].behaviour = behave(move=how)
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(scanner), before, 502, "E1004")


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_says_nothing_is_504_e1005(hospital: Hospital, scanner: Served) -> None:
    hospital.pacs[0].behaviour = behave(move="silent")
    before = hospital.audited()
    result = await hospital.fetch(scanner)
    await refused(hospital, result, before, 504, "E1005")
    assert 3.0 <= result.t_total < 15


@pytest.mark.parametrize("status", [0xA801, 0xA702, 0xC000, 0x0124])
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_refuses_the_move_is_502(
    hospital: Hospital, scanner: Served, status: int
) -> None:
    hospital.pacs[0].behaviour = behave(move_status=status)
    before = hospital.audited()
    await refused(hospital, await hospital.fetch(scanner), before, 502, "E1004")


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_the_instance_level_is_415_e1105(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    instance = scanner.study.series[0].instances[0].sop_instance_uid
    await refused(hospital, await hospital.fetch(scanner, instance=instance), before, 415, "E1105")


@pytest.mark.parametrize(
    "tail", ["", "/metadata", "/series/{0}/rendered", "/series/{0}/instances/1.2/frames/1"]
)
@pytest_twisted.ensureDeferred
async def test_what_is_not_a_series_is_404(hospital: Hospital, scanner: Served, tail: str) -> None:
    path = f"/dicom-web-rs/studies/{scanner.uid}" + tail.format(scanner.series())
    request = hospital.request(scanner, "Connection: close", first=f"GET {path} HTTP/1.1")
    answer = await hospital.raw(request)
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"code": "E1104"' in answer


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE"])
@pytest_twisted.ensureDeferred
async def test_other_methods_are_405(hospital: Hospital, scanner: Served, method: str) -> None:
    first = f"{method} {scanner.path()} HTTP/1.1"
    answer = await hospital.raw(hospital.request(scanner, "Connection: close", first=first))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405")
    assert b"Allow: GET" in head
    assert (body == b"") is (method == "HEAD")


@pytest_twisted.ensureDeferred
async def test_no_answer_carries_what_the_peer_wrote(hospital: Hospital, scanner: Served) -> None:
    first = "GET /dicom-web-rs/studies/<script>/series/1.2 HTTP/1.1"
    answer = await hospital.raw(hospital.request(scanner, "Connection: close", first=first))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"script" not in answer


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_more_requests_than_configured_are_503_e1003(hospital: Hospital, scanner: Served) -> None:
    # Eight at once: four run, four wait for a title; the ninth is over the limit.
    hospital.pacs[0].behaviour = behave(pause=0.8)
    asked = [Deferred.fromCoroutine(hospital.fetch(scanner)) for _ in range(8)]

    async def eight() -> bool:
        return await hospital.metric("drimbox_deliveries_running") == 8

    await until(eight)
    result = await hospital.fetch(scanner, accept=(ANY,))
    assert result.status == 503
    assert result.problem is not None
    assert result.problem["code"] == "E1003"
    statuses = sorted([(await each).status for each in asked])  # type: ignore[attr-defined]
    assert statuses[:4] == [200] * 4
    assert set(statuses) <= {200, 503}
    await pause(0)


@pytest.mark.requirement("DB.SO.103")
@pytest.mark.parametrize("method", ["OPTIONS", "OPTION"])
@pytest_twisted.ensureDeferred
async def test_the_wado_ping_needs_no_token_and_no_pacs(
    hospital: Hospital, scanner: Served, method: str
) -> None:
    hospital.pacs[0].behaviour = behave(down=True)
    result = await hospital.fetch(scanner, method=method, token=None)
    assert result.status == 200
    assert result.header("content-type") == "application/vnd.sun.wadl+xml"
    assert result.header("allow") == "GET, OPTIONS"


@pytest.mark.requirement("DB.SO.103", "DB.SO.154")
@pytest_twisted.ensureDeferred
async def test_the_wado_ping_is_for_listed_peers(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    stranger = hospital.stand.consumer(STRANGER)
    result = await hospital.fetch(scanner, method="OPTIONS", certificate=stranger)
    await refused(hospital, result, before, 401, "E1102")

"""Pro Santé Connect and its proxy misbehave in every way: nothing but a good answer opens (DB.SO.32)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import pytest_twisted

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.stand import OTHER_CONSUMER
from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, Served, served_whole
from tests.integration.waiting import wait

pytestmark = pytest.mark.requirement("DB.SO.32")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway that says all it can, accepts its own audience only, and remembers answers."""
    more = {
        "log": {"level": '"debug"'},
        "psc": {"timeout": "5", "audience": '["drimbox"]', "cache_time": "60", "retries": "1"},
    }
    hospital = Hospital(tmp_path_factory.mktemp("strict"), more=more, sites=1)
    try:
        wait(hospital.start())
        hospital.stand.psc.service.audience = ("account", "drimbox")
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module")
def served(strict: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    study = make_study(tmp_path_factory.mktemp("study"), instances=2, rows=32, columns=32, seed=31)
    found: Served = wait(strict.publish(study))
    return found


@pytest.fixture
def hospital(strict: Hospital) -> Iterator[Hospital]:
    strict.stand.psc.script.reset()
    wait(strict.idle())
    yield strict
    strict.stand.psc.script.reset()


def claims(**changes: object) -> Behaviour:
    return Behaviour(Kind.CLAIMS, code=json.dumps(changes))


FAULTS = {
    "500": (Behaviour(Kind.HTTP, status=500), 403),
    "503": (Behaviour(Kind.HTTP, status=503), 403),
    "our own secret refused": (Behaviour(Kind.HTTP, status=401), 403),
    "garbage": (Behaviour(Kind.GARBAGE), 502),
    "huge": (Behaviour(Kind.HUGE, size=1024 * 1024), 502),
    "a page": (Behaviour(Kind.MEDIA_TYPE, code="text/html"), 502),
    "redirect": (Behaviour(Kind.REDIRECT, code="https://localhost:1/"), 403),
    "cut before": (Behaviour(Kind.CUT_BEFORE), 502),
    "cut after": (Behaviour(Kind.CUT_AFTER), 502),
    "cut half-way": (Behaviour(Kind.CUT_ANSWER), 502),
    "active as text": (claims(active="true"), 502),
    "active as number": (claims(active=1), 502),
    "active missing": (claims(active=None), 502),
    "expired": (claims(exp=int(time.time()) - 60), 403),
    "not yet": (claims(nbf=int(time.time()) + 86400), 403),
    "another audience": (claims(aud=["account", "others"]), 403),
    "no audience": (claims(aud=None), 403),
    "nobody": (claims(preferred_username=None, sub="550d"), 403),
    "a service": (claims(preferred_username="service-account-x", sub="550d"), 403),
    "a refresh token": (claims(typ="Refresh"), 403),
}


@pytest.mark.threat("tokens: oversize, odd, logged, of others")
@pytest.mark.parametrize("fault", FAULTS)
@pytest_twisted.ensureDeferred
async def test_nothing_but_a_good_answer_opens(hospital: Hospital, served: Served, fault: str) -> None:
    behaviour, status = FAULTS[fault]
    hospital.stand.psc.script.default = behaviour
    before = hospital.audited()
    result = await hospital.fetch(served)
    assert (result.status, (result.problem or {}).get("code")) == (status, "E1104"), result
    record = await hospital.audit_after(before)
    assert record.outcome != 0
    assert "INCONNU" in record.payload


@pytest_twisted.ensureDeferred
async def test_a_slow_proxy_is_waited_for_and_no_longer_than_agreed(
    hospital: Hospital, served: Served
) -> None:
    hospital.stand.psc.script.push(Behaviour(seconds=1.0))
    assert served_whole(await hospital.fetch(served))
    hospital.stand.psc.script.push(Behaviour(seconds=60.0))
    assert (await hospital.fetch(served)).status == 504


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_ANSWER, Kind.HTTP])
@pytest_twisted.ensureDeferred
async def test_one_failure_is_asked_away(hospital: Hospital, served: Served, kind: Kind) -> None:
    hospital.stand.psc.script.push(Behaviour(kind))
    before = hospital.audited()
    assert served_whole(await hospital.fetch(served))
    record = await hospital.audit_after(before)
    assert record.outcome == 0
    assert "899700000001" in record.payload


@pytest_twisted.ensureDeferred
async def test_an_answer_counts_again_for_the_same_consumer_only(
    hospital: Hospital, served: Served
) -> None:
    token = hospital.stand.token()
    before = hospital.audited()
    assert served_whole(await hospital.fetch(served, token=token))
    # Written once the answer has ended: the next record is not to be taken for this one.
    await hospital.audit_after(before)
    hospital.stand.psc.service.revoke(token)
    before = hospital.audited()
    assert served_whole(await hospital.fetch(served, token=token))
    assert "899700000001" in (await hospital.audit_after(before)).payload
    other = hospital.stand.consumer(OTHER_CONSUMER)
    assert (await hospital.fetch(served, token=token, certificate=other)).status == 403


@pytest.mark.threat("log and audit injection, flooding")
@pytest_twisted.ensureDeferred
async def test_the_token_is_in_no_log_and_no_store_whatever_happens(
    hospital: Hospital, served: Served
) -> None:
    used = []
    for behaviour in (Behaviour(), *(behaviour for behaviour, _ in FAULTS.values())):
        hospital.stand.psc.script.default = behaviour
        used.append(hospital.stand.token())
        await hospital.fetch(served, token=used[-1])
    hospital.stand.psc.script.reset()
    await hospital.stand.stop_gateway()
    log = hospital.stand.log.read_bytes()
    assert b"token introspection" in log
    state = hospital.folder / "stand" / "state"
    kept = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    for token in used:
        assert token.encode() not in log
        assert token.encode() not in kept
    await hospital.stand.start_gateway()

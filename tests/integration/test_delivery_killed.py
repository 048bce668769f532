"""`kill -9` during a delivery: the audit trail has its record, once, whatever else happens.

A gateway process of its own, a real SIGKILL, and the command that verifies the trail.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.consumer import FetchResult
from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, Served, behave, digests, received
from tests.integration.operator import drimbox
from tests.integration.waiting import pause, until, wait

pytestmark = pytest.mark.requirement("DB.SO.46", "DB.SO.47")

INTERRUPTED = re.compile(
    r"E1104 - Livraison interrompue par un arrêt brutal, étendue inconnue : "
    r"commencée \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ par le nœud main, constatée \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
)
#: Seconds of a PACS that nobody waits for: the delivery is killed before.
NEVER = 60.0


@attrs.define
class World:
    hospital: Hospital
    served: Served

    def open(self) -> int:
        """Count the deliveries whose end is still to be recorded."""
        return int(self.hospital.database("SELECT count(*) FROM open_record")[0][0])

    def records(self, after: int) -> list[dict[str, Any]]:
        """Return the audit records of image requests that followed a number."""
        query = "SELECT payload FROM audit WHERE id > ? AND payload LIKE '%RAD-107%' ORDER BY id"
        return [json.loads(row[0])["event"] for row in self.hospital.database(query, after)]

    def failed(self) -> int:
        """Count the requests in error of the statistics."""
        (row,) = self.hospital.database(
            "SELECT coalesce(sum(amount), 0) FROM statistic WHERE stat = 'STF08'"
        )
        return int(row[0])

    def ask(self, **options: Any) -> Deferred[FetchResult]:
        return Deferred.fromCoroutine(self.hospital.fetch(self.served, timeout=2 * NEVER, **options))

    async def kill(self, asked: Deferred[FetchResult]) -> FetchResult:
        """Kill the gateway; return what its client has got."""
        await self.hospital.stand.kill_gateway()
        result: Any = await asked
        assert not result.complete
        return result  # type: ignore[no-any-return]

    async def streaming(self, **behaviour: Any) -> Deferred[FetchResult]:
        """Ask, and wait until who asked has an image; without more the PACS never ends."""
        self.hospital.pacs[0].behaviour = behave(**(behaviour or {"final": "never"}))
        parts: list[object] = []
        asked = self.ask(on_part=lambda number, part: parts.append(part))
        await until(lambda: parts, what="an image at the client")
        return asked

    def ask_and_leave(self) -> None:
        """Leave once the first bytes of an answer have come."""
        with self.hospital.connect() as connection:
            connection.sendall(self.hospital.request(self.served))
            answer = b""
            while b"DICM" not in answer:
                piece = connection.recv(4096)
                assert piece, answer
                answer += piece

    async def check(self, number: int, failed: int) -> None:
        """One record of an interrupted delivery followed `number`, as requirements.md 3.8.3 has it."""
        assert self.open() == 0
        (event,) = self.records(number)
        assert INTERRUPTED.fullmatch(event["outcome_description"]), event["outcome_description"]
        assert (event["event_id"], event["action"], event["outcome"]) == ("110106", "R", 8)
        assert event["event_type"] == ["RAD-107", "IHE Transactions", "WADO-RS Retrieve"]
        assert event["study_uid"] == self.served.uid
        source, destination = event["participants"]
        stand = self.hospital.stand
        professional = next(iter(stand.psc.service.professionals.values())).id
        assert (source["role"], source["alternative_user_id"]) == ("110153", str(professional))
        assert (source["network_type"], source["network_id"]) == ("2", "127.0.0.1")
        assert (destination["role"], destination["network_id"]) == ("110152", stand.sites[0])
        (row,) = self.hospital.database("SELECT structure_id, patient_ins FROM kos")
        assert destination["user_id"].startswith(f"{row[0]}/")
        assert event["patient_ins"] == row[1]
        (document,) = event["objects"]
        assert (document["id"], document["type"], document["role"]) == (self.served.uid, "2", "3")
        assert (document["id_type"], document["life_cycle"]) == ("110180", "10")
        assert document["details"] == [["Repository Unique ID", "1.2.250.1.999.349.1"]]
        assert self.failed() == failed + 1
        done = await drimbox(stand.config, "audit", "verify")
        assert (done.returncode, "Chaîne intacte" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = {"first_image_timeout": str(2 * NEVER), "gap_timeout": str(2 * NEVER)}
    hospital = Hospital(
        tmp_path_factory.mktemp("killed"), sites=1, settings=settings, more={"psc": {"timeout": "60"}}
    )
    try:
        wait(hospital.start())
        study = make_study(tmp_path_factory.mktemp("study"), instances=6, rows=256, columns=256, seed=77)
        yield World(hospital, wait(hospital.publish(study)))
    finally:
        wait(hospital.stop())


@pytest.fixture(autouse=True)
def well_behaved(world: World) -> Iterator[None]:
    """Whatever a test did, its gateway runs and its peers behave for the next one."""
    yield
    world.hospital.pacs[0].behaviour = behave()
    if not world.hospital.stand.running:
        wait(world.hospital.stand.start_gateway())


@pytest.mark.threat("a delivery that leaves no audit record because the process dies")
@pytest_twisted.ensureDeferred
async def test_killed_while_images_stream(world: World) -> None:
    number, failed = world.hospital.audited(), world.failed()
    asked = await world.streaming()
    assert world.open() == 1
    assert world.records(number) == []
    result = await world.kill(asked)
    # Images of a patient have left the house.
    assert result.status == 200
    assert result.parts
    await world.hospital.stand.start_gateway()
    await world.check(number, failed)
    found = await drimbox(
        world.hospital.stand.config,
        *("audit", "search", "--study", world.served.uid, "--event", "images", "--outcome", "grave"),
    )
    assert found.stdout.count("étendue inconnue") == 1, found.stdout


@pytest_twisted.ensureDeferred
async def test_killed_before_the_first_byte(world: World) -> None:
    """Whether a byte had left nobody can tell afterwards: it is said all the same."""
    number, failed = world.hospital.audited(), world.failed()
    world.hospital.pacs[0].behaviour = behave(move_delay=NEVER)
    asked = world.ask()
    await until(world.open, what="the delivery on record")
    result = await world.kill(asked)
    assert result.status is None
    await world.hospital.stand.start_gateway()
    await world.check(number, failed)


@pytest_twisted.ensureDeferred
async def test_killed_before_it_is_known_who_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can have left: the record is not there yet, and it comes before the first byte."""
    number, stand = world.hospital.audited(), world.hospital.stand
    moves = len(world.hospital.pacs[0].seen("move"))
    asking: list[Any] = []
    monkeypatch.setattr(stand.psc, "answer", lambda *request: asking.append(request))
    asked = world.ask()
    await until(lambda: asking, what="a token being verified")
    assert world.open() == 0
    assert (await world.kill(asked)).status is None
    monkeypatch.undo()
    await stand.start_gateway()
    assert world.records(number) == []
    assert len(world.hospital.pacs[0].seen("move")) == moves


@pytest.mark.threat("a delivery that leaves no audit record because the process dies")
@pytest_twisted.ensureDeferred
async def test_killed_again_while_it_starts(world: World) -> None:
    number, failed = world.hospital.audited(), world.failed()
    await world.kill(await world.streaming())
    chance = random.Random(46)
    for _ in range(3):
        # At any moment: before it looks, while it records, after it.
        world.hospital.stand.spawn_gateway()
        await pause(chance.uniform(0.5, 3.0))
        await world.hospital.stand.kill_gateway()
    await world.hospital.stand.start_gateway()
    await world.check(number, failed)


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_ends_leaves_its_own_record_alone(world: World) -> None:
    hospital, number, failed = world.hospital, world.hospital.audited(), world.failed()
    asked = await world.streaming(pause=0.5)
    result: Any = await asked
    assert result.complete
    assert received(result) == digests(world.served.study)
    await until(lambda: world.records(number), what="its record")
    assert world.open() == 0
    # The client leaves in the middle of the next one.
    hospital.pacs[0].behaviour = behave(final="never")
    await deferToThread(world.ask_and_leave)
    await until(lambda: len(world.records(number)) > 1, what="the record of the one that was left")
    assert world.open() == 0
    first, second = world.records(number)
    assert first["outcome"] == 0
    assert (second["outcome"], "interrompue" in second["outcome_description"]) == (8, True)
    assert "arrêt brutal" not in second["outcome_description"]
    assert world.failed() == failed + 1


@pytest_twisted.ensureDeferred
async def test_what_is_refused_leaves_nothing_open(world: World) -> None:
    hospital, number = world.hospital, world.hospital.audited()
    statuses = []
    for options in ({"token": "no-token-of-theirs"}, {"kos": "2.25.404"}):
        statuses.append((await hospital.fetch(world.served, **options)).status)
    hospital.pacs[0].behaviour = behave(move_status=0xA801)
    statuses.append((await hospital.fetch(world.served)).status)
    assert statuses == [403, 404, 502]
    await until(lambda: len(world.records(number)) == 3, what="their records")
    assert world.open() == 0
    assert all(each["outcome"] for each in world.records(number))

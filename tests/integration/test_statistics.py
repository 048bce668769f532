"""Every statistic of the specification, by the path that makes it, as `drimbox statistics` shows it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.model import MessageAction
from drimbox.sim.behaviour import Kind
from drimbox.sim.consumer import FetchResult, accept_headers
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress, _section, _text
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.integration.feed_stand import POOL, FeedStand, Studies, after
from tests.integration.operator import drimbox
from tests.integration.waiting import until, wait

EXPLICIT_LE = "1.2.840.10008.1.2.1"
#: (statistic, kind of structure, its number, site, detail) -> value.
Values = Counter[tuple[str, str, str, str, str]]
pytestmark = pytest.mark.requirement("DB.SO.87")


class StatStand(FeedStand):
    """A gateway whose one site has one structure and a reference study."""

    reference = ""

    def _site(self, number: int, pacs: PacsAddress) -> list[str]:
        reference = _section("[site.speedtest]", {"study": _text(self.reference)})
        return [*super()._site(number, pacs), *reference]


@attrs.define
class World:
    """The stand, its PACS, and what an operator is told."""

    stand: StatStand
    pacs: SimulatedPacs
    studies: Studies

    async def shown(self) -> dict[str, Any]:
        """Return what `drimbox statistics show --json` says."""
        done = await drimbox(self.stand.config, "statistics", "show", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    async def values(self) -> Values:
        """Return the values of this month."""
        keys = ("stat", "structure_kind", "structure", "site", "part")
        rows = (await self.shown())["values"]
        return Counter({tuple(row[key] for key in keys): row["value"] for row in rows})

    async def fetch(self, study: GeneratedStudy, kos: str, **options: Any) -> FetchResult:
        options.setdefault("accept", accept_headers())
        return await self.stand.fetch(study.study_uid, study.series[0].series_uid, kos, **options)

    async def publish(self, **options: Any) -> tuple[GeneratedStudy, str, int]:
        """Publish a new study; return it with its KOS and the number of its report."""
        study = self.studies.new(self.pacs, **options)
        number = await self.stand.report(study)
        return study, (await self.stand.published_one(study)).unique_id, number


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("statistics")
    reference = make_study(folder / "reference", instances=5, rows=8, columns=8, seed=900)
    pacs = SimulatedPacs("PACS-A")
    pacs.start()
    pacs.load(reference)
    settings = {"first_image_timeout": "3", "gap_timeout": "3", "query_timeout": "3", "patience": "1"}
    address = PacsAddress("PACS-A", pacs.port, POOL, settings=settings)
    stand = StatStand(folder, [address], sites=[{"structures": '["1999999999"]'}])
    stand.reference = reference.study_uid
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    try:
        yield World(stand, pacs, Studies(folder / "studies"))
    finally:
        wait(stand.stop())
        pacs.stop()


# -- what makes each of them ---------------------------------------------------------------------------


async def sent(world: World) -> None:
    await world.publish()


async def updated(world: World) -> None:
    study = world.studies.new(instances=3)
    world.pacs.load(list(study.files[:2]))
    await world.stand.report(study)
    await world.stand.published_one(study)
    world.pacs.load(study.files[2])
    await world.stand.report(study)
    await world.stand.idle()


async def withdrawn(world: World) -> None:
    study, _, number = await world.publish()
    document = {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}"}
    await world.stand.report(study, report=document, action=MessageAction.DELETE)
    await world.stand.idle()


async def in_no_pacs(world: World) -> None:
    await world.stand.report("2.25.4711")
    await world.stand.idle()


async def without_record(world: World) -> None:
    study = world.studies.new(world.pacs)
    with world.stand.dmp_misbehaves(after("TD0.2", Kind.FAULT, code="soap:Sender")):
        await world.stand.report(study)
        await world.stand.idle()


async def refused_by_the_dmp(world: World) -> None:
    study = world.studies.new(world.pacs)
    with world.stand.dmp_misbehaves(after("TD2.1", Kind.ERROR, code="XDSRepositoryMetadataError")):
        await world.stand.report(study)
        await world.stand.idle()


async def withdrawal_refused(world: World) -> None:
    with world.stand.dmp_misbehaves(after("TD3.3c", Kind.ERROR, code="XDSMetadataUpdateError")):
        await withdrawn(world)


async def delivered(world: World) -> None:
    study, kos, _ = await world.publish(instances=4)
    assert (await world.fetch(study, kos)).complete


async def wrong_kos(world: World) -> None:
    study, _, _ = await world.publish()
    assert (await world.fetch(study, "2.25.1")).status == 404


async def stranger(world: World) -> None:
    study, kos, _ = await world.publish()
    certificate = world.stand.consumer("db1.999.mesimagesmedicales.fr")
    assert (await world.fetch(study, kos, certificate=certificate)).status == 401


async def cut(world: World) -> None:
    study, kos, _ = await world.publish(instances=4)
    world.pacs.behaviour = Behaviour(pause=0.1, stop_after=2)
    assert not (await world.fetch(study, kos)).complete


async def find_failed(world: World) -> None:
    world.pacs.behaviour = Behaviour(find_status=0xA700)
    study = world.studies.new(world.pacs)
    await world.stand.report(study)
    await until(lambda: world.pacs.seen("find"), what="a C-FIND")

    async def counted() -> bool:
        return any(key[0] == "STF13" for key in await world.values())

    await until(counted, what="a failed C-FIND counted")
    world.pacs.behaviour = Behaviour()
    await world.stand.idle()


async def move_failed(world: World) -> None:
    study, kos, _ = await world.publish()
    world.pacs.behaviour = Behaviour(move_status=0xA801)
    assert (await world.fetch(study, kos)).status == 502


async def not_interpretable(world: World) -> None:
    await world.stand.report("not a uid")
    await world.stand.idle()


US, HERE = ("FINESS", "999999999"), "site1"
#: Each statistic, what makes it, whose it is with its detail, and by how much it grows: None is "some".
CASES: list[tuple[str, Callable[[World], Awaitable[None]], tuple[str, str], str, str, float | None]] = [
    ("STF01", sent, US, HERE, "", 1),
    ("STF02", updated, US, HERE, "", 1),
    ("STF03", withdrawn, US, HERE, "", 1),
    ("STF04", in_no_pacs, US, "", "", 1),
    ("STF04", without_record, US, HERE, "", 1),
    ("STF04", not_interpretable, US, "", "", 1),
    ("STF05", refused_by_the_dmp, US, HERE, "", 1),
    ("STF06", withdrawal_refused, US, HERE, "", 1),
    ("STF07", delivered, US, HERE, "", 1),
    ("STF08", wrong_kos, US, HERE, "", 1),
    ("STF08", stranger, US, HERE, "", 1),
    ("STF08", cut, US, HERE, "", 1),
    ("STF09", delivered, US, HERE, EXPLICIT_LE, 4),
    ("STF10", delivered, US, HERE, "CT", 4),
    ("STF11", delivered, US, HERE, "", None),
    ("STF12", sent, US, HERE, "", 1),
    ("STF13", find_failed, US, HERE, "", None),
    ("STF14", delivered, US, HERE, "", 1),
    ("STF15", move_failed, US, HERE, "", None),
    ("STF16", delivered, US, HERE, "", 4),
    ("STF22", sent, US, "", "", 1),
    ("STF23", not_interpretable, US, "", "", 1),
]


@pytest.mark.parametrize(
    ("stat", "deed", "structure", "site", "part", "amount"),
    [pytest.param(*case, id=f"{case[0]}-{case[1].__name__}") for case in CASES],
)
@pytest_twisted.ensureDeferred
async def test_a_statistic_counts_what_it_is_about(
    world: World,
    stat: str,
    deed: Callable[[World], Awaitable[None]],
    structure: tuple[str, str],
    site: str,
    part: str,
    amount: float | None,
) -> None:
    world.pacs.behaviour = Behaviour()
    await world.stand.idle()
    before = await world.values()
    try:
        await deed(world)
    finally:
        world.pacs.behaviour = Behaviour()
    key = (stat, *structure, site, part)

    async def grown() -> float:
        return (await world.values())[key] - before[key]

    more = await until(grown, what=f"{key} to grow")
    assert more > 0 if amount is None else more == amount
    # Nothing of the same kind for anybody else.
    after_all = await world.values()
    others = {other for other in after_all if other[0] == stat and after_all[other] != before[other]}
    assert others == {key}


@pytest_twisted.ensureDeferred
async def test_the_pacs_test_gives_stf20_and_stf21_of_the_day(world: World) -> None:
    done = await drimbox(world.stand.config, "speedtest")
    assert done.returncode == 0, done.stdout + done.stderr
    (day,) = (await world.shown())["days"]
    assert (day["site"], day["runs"], day["failures"]) == ("site1", 1, 0)
    for stat in ("STF20", "STF21"):
        assert 0 <= day[stat]["min"] <= day[stat]["mean"] <= day[stat]["max"]
    shown = await drimbox(world.stand.config, "statistics", "export")
    assert {row["statistique"] for row in table(shown.stdout)} >= {"STF20", "STF21"}


def table(text: str) -> list[dict[str, str]]:
    """Read CSV as an operator's spreadsheet does."""
    return list(csv.DictReader(io.StringIO(text), delimiter=";"))


@pytest_twisted.ensureDeferred
async def test_the_raw_rows_add_up_to_the_values(world: World) -> None:
    await delivered(world)
    month = f"{datetime.now():%Y-%m}"  # noqa: DTZ005 - the month of the machine's clock

    async def both() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        found = []
        for arguments in (("--raw",), ()):
            done = await drimbox(world.stand.config, "statistics", "export", "--month", month, *arguments)
            assert done.returncode == 0, done.stderr
            found.append(table(done.stdout))
        return found[0], found[1]

    raw, values = await both()
    keys = ("statistique", "type_structure", "structure", "site", "detail")
    sums: Counter[tuple[str, ...]] = Counter()
    for row in raw:
        sums[tuple(row[key] for key in keys)] += int(row["quantite"])
    shown = {}
    for row in values:
        if row["statistique"] not in ("STF20", "STF21"):
            unit = 1e6 if row["statistique"] == "STF11" else 1
            shown[tuple(row[key] for key in keys)] = float(row["valeur"]) * unit
    assert {row["periode"] for row in values if len(row["periode"]) == 7} == {month}
    assert shown == pytest.approx(dict(sums))
    assert len(raw) > 10
    audited = world.stand.query("SELECT payload FROM audit WHERE payload LIKE '%statistiques brutes%'")
    assert audited


@pytest_twisted.ensureDeferred
async def test_nothing_of_a_patient_or_a_study_is_in_the_rows(world: World) -> None:
    study, kos, _ = await world.publish()
    await world.fetch(study, kos)
    done = await drimbox(world.stand.config, "statistics", "export", "--raw")
    for word in (study.study_uid, kos, study.patient.id, *study.patient.name.split("^")):
        assert word not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "--month", "2026-13"), 1, "AAAA-MM"),
        (("show", "--from", "2999-01", "--to", "2026-01"), 1, "après"),
        (("export", "--month", "2026-01", "--to", "2026-02"), 2, "--month"),
        (("show", "--month", "2001-01"), 0, "Aucun événement"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_months_that_cannot_be_shown_are_said(
    world: World, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = await drimbox(world.stand.config, "statistics", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr


@pytest_twisted.ensureDeferred
async def test_a_killed_gateway_counts_a_publication_once(world: World) -> None:
    study = world.studies.new(world.pacs)
    before = await world.values()
    with world.stand.dmp_misbehaves(after("TD2.1", Kind.CUT_AFTER)):
        await world.stand.report(study)
        await until(lambda: world.stand.kos(study), what="KOS in the DMP")
        await world.stand.kill_gateway()
    await world.stand.start_gateway()
    await world.stand.published_one(study)
    key = ("STF01", "FINESS", "999999999", "site1", "")
    assert (await world.values())[key] == before[key] + 1


def test_no_statistic_is_forgotten() -> None:
    """STF17 to STF19 begin with the viewer; STF20 and STF21 have a test of their own."""
    tried = {case[0] for case in CASES} | {"STF20", "STF21"}
    assert tried == {f"STF{number:02}" for number in range(1, 24)} - {"STF17", "STF18", "STF19"}

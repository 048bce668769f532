"""Several clients at once over real sockets, two PACS that behave otherwise at every move.

The same promises as in `tests/properties`, with the gateway as a process, TLS, and PACS that share no code
with it. What each PACS does at its n-th move follows from the seed; how moves and requests meet does not,
so a failure names the seed and what the PACS did last rather than promising the same run again.
`DRIMBOX_SEED` chooses another one, `DRIMBOX_SOAK` makes it last.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.sim.consumer import FetchResult
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.pacs_store import Payload
from drimbox.sim.studies import SimPatient, make_study
from tests.integration.hospital import (
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_LS,
    POOLS,
    Hospital,
    Served,
    data_set,
    received,
)
from tests.integration.probe import Probe
from tests.integration.waiting import until, wait

SOAK = bool(os.environ.get("DRIMBOX_SOAK"))
SEED = os.environ.get("DRIMBOX_SEED") or (str(random.SystemRandom().randrange(1 << 32)) if SOAK else "1")
#: Seconds of each test; clients at once.
LASTS, CLIENTS = (900.0, 12) if SOAK else (15.0, 6)
TITLES = [title for pool in POOLS for title in pool]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway with a small window, so that clients make it hold the PACS back, and patient queues."""
    hospital = Hospital(
        tmp_path_factory.mktemp("busy"),
        wado={
            "window": "262144",
            "queue_timeout": "40",
            "max_deliveries": "24",
            "max_per_consumer": "24",
            "max_waiting": "64",
        },
    )
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module")
def holdings(busy: Hospital, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Served, int]]:
    """Every series that can be asked for: two patients in the first PACS, another in the second."""
    folder = tmp_path_factory.mktemp("studies")
    scanner = make_study(
        folder / "1", instances=12, series=2, rows=128, columns=128, transfer_syntax=JPEG_LS, seed=201
    )
    resonance = make_study(
        folder / "2",
        instances=5,
        modality="MR",
        rows=64,
        columns=64,
        transfer_syntax=IMPLICIT_LE,
        patient=SimPatient(id="IPP0201", name="DEUX^DANIEL"),
        seed=202,
    )
    large = make_study(
        folder / "3", instances=6, rows=256, columns=256, patient=SimPatient(id="IPP0202"), seed=203
    )
    served = [wait(busy.publish(scanner)), wait(busy.publish(resonance)), wait(busy.publish(large, 1))]
    return [(each, number) for each in served for number in range(len(each.study.series))]


@pytest.fixture
def well_behaved(busy: Hospital) -> Iterator[None]:
    wait(busy.idle())
    yield
    for pacs in busy.pacs:
        pacs.each_move = None
        pacs.behaviour = Behaviour()


# -- what a PACS may do -------------------------------------------------------------------------------


def harmless(chance: random.Random) -> dict[str, Any]:
    """Draw manners after which every instance was sent before the final response, or on its heels."""
    values: dict[str, Any] = {
        "shuffle": chance.randrange(1000),
        "pending": chance.random() < 0.7,
        "pause": chance.choice((0.0, 0.0, 0.05, 0.3)),
        "propose": chance.choice(("both", "stored", "each")),
        "originator": chance.choice(("right", "right", "absent")),
        "move_delay": chance.choice((0.0, 0.0, 0.4)),
    }
    if chance.random() < 0.3:
        values |= {"associations": chance.randint(2, 4), "parallel": chance.random() < 0.7}
    elif chance.random() < 0.3:
        values["final"] = "early"
    elif chance.random() < 0.3:
        values["reopen"] = True
    if chance.random() < 0.3:
        values["repeat"] = tuple(chance.sample(range(6), 2))
    if chance.random() < 0.3:
        values |= {"intruder": chance.choice(("study", "series")), "intruder_at": chance.randrange(4)}
    if chance.random() < 0.2:
        values["drip"] = chance.choice((0.05, 0.4))
    if chance.random() < 0.3:
        values |= {"astray": (chance.randrange(4),), "astray_to": chance.choice((*TITLES, "NOBODY"))}
    if chance.random() < 0.2:
        values |= {"claim_completed": chance.randrange(9), "claim_failed": chance.randrange(3)}
    return values


def harmful(chance: random.Random) -> dict[str, Any]:
    """Draw something that no PACS should do, or two."""
    faults: list[dict[str, Any]] = [
        {"stop_after": chance.randrange(4), "stop": chance.choice(("close", "abort", "release", "inside"))},
        {"stop_after": chance.randrange(4), "stop": "silent"},
        {"stop_after": chance.randrange(4), "stop": "inside", "stop_move": True},
        {"fail": (chance.randrange(4),)},
        {"skip": (chance.randrange(4),)},
        {"skip": tuple(range(12))},
        {"fail": (chance.randrange(4),), "claim_failed": 0, "final_status": 0},
        {"final": chance.choice(("never", "garbage"))},
        {"final_status": chance.choice((0x0000, 0xA702, 0xB000, 0xC001, 0xFE00))},
        {"late": chance.randint(1, 5), "late_after": chance.choice((0.0, 0.3, 1.5))},
        {"late": 12, "late_after": 0.5, "originator": "absent"},
        {"tear": (chance.randrange(4),), "resend": chance.random() < 0.5},
        {"intruder": "disguise", "intruder_at": chance.randrange(4)},
        {"intruder": chance.choice(("study", "series")), "on_refusal": "abandon"},
        {"originator": chance.choice(("wrong", "other"))},
        {"store_calling": "SOMEBODY"},
        {"move": chance.choice(("silent", "abort", "close", "garbage"))},
        {"move_status": chance.choice((0xA801, 0xA701, 0xC000))},
        {"patience": 0.5},
        {"drip": 3.5},
    ]
    values: dict[str, Any] = {}
    for fault in chance.sample(faults, chance.choice((1, 1, 2))):
        values |= fault
    if chance.random() < 0.5:
        values |= {"ignore_cancel": True, "survive_abort": chance.random() < 0.5}
    return values


class Chance:
    """Behaviours of the moves of one PACS, and the last ones that were drawn."""

    def __init__(self, name: str, draw: Callable[[random.Random], dict[str, Any]]) -> None:
        self._name = name
        self._draw = draw
        self.last: deque[tuple[int, dict[str, Any]]] = deque(maxlen=8)

    def __call__(self, number: int) -> Behaviour:
        values = self._draw(random.Random(f"{SEED} {self._name} {number}"))
        self.last.append((number, values))
        return Behaviour(**values)


def wild(chance: random.Random) -> dict[str, Any]:
    """Draw one move out of three without fault."""
    values = harmless(chance)
    return values if chance.random() < 0.33 else values | harmful(chance)


# -- what the clients see -----------------------------------------------------------------------------


@functools.cache
def forms(folder: Path, number: int) -> dict[str, frozenset[str]]:
    """Digests that each instance of a series may have.

    As it is held; or, when that brought nothing and the move was made again, as the PACS expands it, in
    Explicit VR or in the Implicit that the gateway turns explicit.
    """
    found: dict[str, frozenset[str]] = {}
    for path in _files[folder][number]:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        syntax = str(header.file_meta.TransferSyntaxUID)
        data = data_set(path.read_bytes())
        payload = Payload(str(header.SOPClassUID), str(header.SOPInstanceUID), syntax, data)
        converter = ImplicitToExplicit()
        turned = bytes(converter.feed(payload.encoded_in(IMPLICIT_LE))) + bytes(converter.finish())
        allowed = [turned, payload.encoded_in(EXPLICIT_LE), *([data] if syntax != IMPLICIT_LE else [])]
        found[payload.sop_instance] = frozenset(hashlib.sha256(each).hexdigest() for each in allowed)
    return found


#: Files of each study, by its folder and the place of the series.
_files: dict[Path, list[list[Path]]] = {}


def judge(result: FetchResult, served: Served, number: int) -> str:
    """Hold one answer against what the PACS holds; say in a word what it was."""
    study = served.study
    _files.setdefault(study.folder, [[one.path for one in each.instances] for each in study.series])
    held = forms(study.folder, number)
    got = received(result)
    assert len(got) == len(result.parts), "an instance twice"
    for uid, digest in got.items():
        assert digest in held.get(uid, ()), "bytes that the PACS does not hold in this series"
    if result.complete and result.status == 200:
        assert got.keys() == held.keys(), "complete without every instance"
        return "complete"
    if result.status == 200:
        assert result.error, "an end that looks like one"
        return "cut"
    if result.status is not None:
        assert result.problem is not None, "a refusal without its reason"
        assert not result.parts
    return str(result.status)


async def ask(busy: Hospital, served: Served, number: int, chance: random.Random) -> str:
    """Ask for a series as some client would."""
    kind = chance.random()
    options: dict[str, Any] = {}
    if kind < 0.15:
        options["disconnect_after"] = chance.choice((0, 1, 3000, 30_000, 200_000))
    elif kind < 0.3:
        options["bytes_per_second"] = chance.choice((60_000.0, 200_000.0))
    result = await busy.fetch(served, number, timeout=90.0, **options)
    return judge(result, served, number)


async def crowd(
    busy: Hospital,
    holdings: list[tuple[Served, int]],
    seconds: float,
    one: Callable[[Served, int, random.Random], Any],
) -> Counter[str]:
    """Have many clients ask one thing after the other for a while; count what they got."""
    clock: Any = busy.stand._reactor
    end = clock.seconds() + seconds
    counts: Counter[str] = Counter()

    async def client(name: int) -> None:
        chance = random.Random(f"{SEED} client {name}")
        while clock.seconds() < end:
            served, number = chance.choice(holdings)
            counts[await one(served, number, chance)] += 1

    await gatherResults(
        [Deferred.fromCoroutine(client(number)) for number in range(CLIENTS)], consumeErrors=True
    )
    return counts


def nothing_went_astray(busy: Hospital) -> None:
    """No copy was taken on a title that is nobody's, or that another PACS stores to."""
    for pacs, pool in zip(busy.pacs, POOLS, strict=True):
        strange = [event for event in pacs.seen("astray") if event.details["called"] not in pool]
        assert strange, (SEED, "the test proves nothing")
        assert all(event.details["status"] is None for event in strange), (SEED, pacs.ae_title)


async def nothing_left(busy: Hospital, descriptors: int) -> None:
    """Wait until the gateway has given everything back."""
    await busy.idle()

    async def empty() -> bool:
        names = ("drimbox_window_bytes", "drimbox_spool_bytes", "drimbox_deliveries_running")
        used = [await busy.metric(name) for name in names]
        return not any(used) and open_files(busy) <= descriptors

    await until(empty, what="memory, spool and descriptors given back", seconds=60.0)
    log = busy.stand.log.read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log


def open_files(busy: Hospital) -> int:
    """Count the descriptors of the gateway, less the store's."""
    return Probe(busy).descriptors().total()


async def baseline(busy: Hospital, holdings: list[tuple[Served, int]]) -> int:
    """Serve everything once; the descriptors that are open then, and a few to spare."""
    for served, number in holdings:
        assert judge(await busy.fetch(served, number), served, number) == "complete"
    await busy.idle()
    return open_files(busy) + 4


@pytest.mark.slow
@pytest.mark.requirement("DB.SO.32", "DB.SO.35", "DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_odd_but_good_pacs_always_give_complete_answers(
    busy: Hospital, holdings: list[tuple[Served, int]], well_behaved: None
) -> None:
    descriptors = await baseline(busy, holdings)
    drawn = [Chance(pacs.ae_title, harmless) for pacs in busy.pacs]
    for pacs, chance in zip(busy.pacs, drawn, strict=True):
        pacs.each_move = chance

    async def one(served: Served, number: int, chance: random.Random) -> str:
        slow = {"bytes_per_second": 100_000.0} if chance.random() < 0.2 else {}
        result = await busy.fetch(served, number, timeout=90.0, **slow)
        said = judge(result, served, number)
        assert said == "complete", (SEED, said, result.error, result.problem, list(drawn[served.site].last))
        return said

    counts = await crowd(busy, holdings, LASTS, one)
    assert counts["complete"] > LASTS, (SEED, counts)
    nothing_went_astray(busy)
    await nothing_left(busy, descriptors)


@pytest.mark.slow
@pytest.mark.threat("images of another patient")
@pytest.mark.requirement("DB.SO.32", "DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_whatever_the_pacs_do_no_answer_lies_and_nothing_is_left(
    busy: Hospital, holdings: list[tuple[Served, int]], well_behaved: None
) -> None:
    descriptors = await baseline(busy, holdings)
    drawn = [Chance(pacs.ae_title, wild) for pacs in busy.pacs]
    for pacs, chance in zip(busy.pacs, drawn, strict=True):
        pacs.each_move = chance

    async def one(served: Served, number: int, chance: random.Random) -> str:
        try:
            return await ask(busy, served, number, chance)
        except AssertionError as error:
            raise AssertionError(f"{error} {(SEED, list(drawn[served.site].last))}") from error

    counts = await crowd(busy, holdings, LASTS, one)
    assert counts["complete"], (SEED, counts)
    assert counts["cut"], (SEED, counts)
    nothing_went_astray(busy)
    for pacs in busy.pacs:
        pacs.each_move = None
    await nothing_left(busy, descriptors)
    # And it serves as at first.
    assert await baseline(busy, holdings) <= descriptors + 4

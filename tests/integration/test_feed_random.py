"""Random histories of the feed over real sockets: the gateway as a process, killed and started again.

The same operations, the same model and the same verdict as in `tests/histories`, with PACS that share no
code with the gateway, MLLP, DICOM and SOAP over mutual TLS, signatures verified, and time that is real. How
things meet differs from run to run, so a failure names the seed and the history rather than promising the
same run again. `DRIMBOX_SEED` chooses other histories, `DRIMBOX_SOAK` makes many.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.threads import deferToThread

from drimbox.sim.behaviour import NORMAL, Behaviour, Kind
from drimbox.sim.dmp_registry import Registry
from drimbox.sim.dmp_rules import CONFIDENTIALITY
from drimbox.sim.dmp_service import Request
from drimbox.sim.listening import utc_now
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.ris import NoAck
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import SimPatient, StudyFacts, base_dataset, write_instance
from tests.histories import operations as ops
from tests.histories import verdict
from tests.histories.messages import CT, EXPLICIT, KEY_OBJECT, key_object
from tests.histories.model import INSIDE, Holding, Thing, study_uid
from tests.histories.world import World
from tests.integration.feed_stand import POOL, SECOND_POOL, FeedStand
from tests.integration.waiting import pause, until, wait

SOAK = bool(os.environ.get("DRIMBOX_SOAK"))
SEED = int(os.environ.get("DRIMBOX_SEED") or (random.SystemRandom().randrange(1 << 32) if SOAK else 4))
#: Histories, and operations of each.
COUNT, LENGTH = (150, 25) if SOAK else (4, 15)
#: Seconds after which a submission that lies somewhere is carried out: the gateway has given up by then.
LATE = 3.0
_PACS = {
    "up": PacsBehaviour(),
    "silent": PacsBehaviour(find="silent", move="silent"),
    "refusing": PacsBehaviour(down=True),
    "immobile": PacsBehaviour(move_status=0xA702),
}
_DMP = {
    "lost": Kind.CUT_BEFORE,
    "unanswered": Kind.CUT_AFTER,
    "twice": Kind.SILENT,
    "refuse": Kind.ERROR,
}


class RandomStand(FeedStand):
    """`FeedStand` whose DMP lets some submissions lie."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: Transactions whose next requests are carried out late.
        self.lying: Counter[str] = Counter()
        #: Requests that lie now.
        self.lies = 0

    def _answer(self, plain: Callable[[Any, Request], None]) -> Callable[[Any, Request], None]:
        def carry_out(request: Request) -> None:
            self.lies -= 1
            self.dmp.service.handle(request, utc_now())

        def answer(web_request: Any, request: Request) -> None:
            transaction = self.dmp.service.identify(request)
            if self.lying[transaction]:
                self.lying[transaction] -= 1
                self.lies += 1
                self._reactor.callLater(LATE, carry_out, request)
            else:
                plain(web_request, request)

        return answer

    @property
    def running(self) -> bool:
        """True unless the gateway was killed."""
        return self._process is not None and not self._process.ended.called


class Hospital(World):
    """One history over the sockets of a stand, with a gateway that remembers nothing before it."""

    def __init__(
        self, stand: FeedStand, pacses: list[SimulatedPacs], folder: Path, number: int = 0
    ) -> None:
        super().__init__(number)
        self.stand: Any = stand
        self.pacses = pacses
        self._folder = folder
        #: By study, the submissions that had been refused when it was last named.
        self._refused: dict[int, int] = {}

    async def begin(self) -> None:
        """Forget every history before."""
        stand = self.stand
        await stand.kill_gateway()
        shutil.rmtree(stand.folder / "state", ignore_errors=True)
        stand.dmp.service.registry = Registry()
        stand.dmp.service.exchanges.clear()
        for pacs in self.pacses:
            pacs.index.clear()
        await self.fill()
        await stand.start_gateway()

    async def fill(self) -> None:
        """Put into the PACS what they hold at the beginning."""
        self._folder.mkdir(parents=True)
        for number, studies in enumerate(self.model.holdings):
            for study, holding in studies.items():
                await self.hold(number, study, holding)

    async def do(self, operation: Any) -> None:
        named = dict(self.model.named)
        refused = {study: self._refusals(study) for study in named}
        await super().do(operation)
        for study, before in named.items():
            if self.model.named[study] != before:
                self._refused[study] = refused[study]

    # -- to the gateway ----------------------------------------------------------------------------

    async def send(self, raw: bytes) -> None:
        while True:
            await self._up()
            try:
                ack = await self.stand.send(raw)
            except (NoAck, ConnectError, ConnectionLost):
                # It was killed meanwhile.
                await pause(0.05)
                continue
            assert ack.code == "AA", ack
            return

    async def store(self, pacs: int, note: Dataset) -> None:
        note.file_meta = FileMetaDataset()
        note.file_meta.TransferSyntaxUID = EXPLICIT
        title = self.pacses[pacs].ae_title
        while True:
            await self._up()
            if await deferToThread(_stored, title, self.stand.dicom_port, note):
                return
            await pause(0.05)

    async def _up(self) -> None:
        if not self.stand.running:
            await self.stand.start_gateway()

    async def kill(self, seconds: float, commits: int) -> None:
        await pause(min(seconds, 0.4) + commits * 0.02)
        await self.stand.kill_gateway()

    async def pass_time(self, seconds: float) -> None:
        await self._up()
        await pause(min(seconds, 1.0))

    async def rest(self) -> None:
        await until(
            lambda: not self.stand.lies and not self.waiting(), seconds=90.0, what="an end of the work"
        )

    # -- around it ---------------------------------------------------------------------------------

    async def hold(self, pacs: int, study: int, holding: Holding) -> None:
        index = self.pacses[pacs].index
        uid = study_uid(study)
        wanted = {thing.uid: thing for thing in holding}
        present = {
            each.uid("SOPInstanceUID") for each in index.entries() if each.uid("StudyInstanceUID") == uid
        }
        for gone in present - set(wanted):
            index.remove(gone)
        series_of = {thing.uid: thing.series for thing in holding}
        for new in set(wanted) - present:
            path = self._folder / f"{new}.dcm"
            if not path.exists():
                write_instance(path, _object(uid, wanted[new], series_of), EXPLICIT)
            index.add(path)

    async def set_pacs(self, pacs: int, state: str) -> None:
        self.pacses[pacs].behaviour = _PACS[state]

    async def set_dmp(self, state: str) -> None:
        dmp = self.stand.dmp
        dmp.script.default = Behaviour(Kind.HTTP, status=503) if state == "busy" else NORMAL
        if state == "down":
            await dmp.down()
        else:
            dmp.up()

    async def treat(self, transaction: str, treatment: str, times: int) -> None:
        script = self.stand.dmp.script
        if not treatment:
            script.queue.clear()
            self.stand.lying.clear()
        elif treatment == "late":
            self.stand.lying[transaction] += times
        else:
            script.push(Behaviour(_DMP[treatment], transaction=transaction, code="XDSRegistryError"), times)

    # -- what is seen ------------------------------------------------------------------------------

    def current(self, study: int) -> list[verdict.Shown]:
        return [
            verdict.read(
                entry.document,
                entry.entry_uuid,
                (each.code for each in entry.metadata.classified(CONFIDENTIALITY)),
            )
            for entry in self.stand.kos(study_uid(study))
        ]

    def known(self) -> Mapping[str, str]:
        entries = self.stand.dmp.service.registry.entries.values()
        return {entry.unique_id: entry.entry_uuid for entry in entries}

    def _refusals(self, study: int) -> int:
        rows = self.query(
            "SELECT count(*) FROM outbox WHERE state = 'failed' AND study_uid = ?", study_uid(study)
        )
        return int(rows[0][0])

    def excused(self, study: int) -> bool:
        return self._refusals(study) > self._refused.get(study, 0)

    def changes(self) -> int:
        return len(self.stand.dmp.service.registry.submissions)

    def broken(self) -> list[str]:
        """What the DMP refused by its rules, a repetition excepted."""
        return [
            f"{each.transaction} {each.codes} {each.details}"
            for each in self.stand.dmp.service.exchanges
            if each.outcome in ("failure", "fault") and "XDSDuplicateUniqueIdInRegistry" not in each.codes
        ]

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.stand.query(sql, *values)


def _object(uid: str, thing: Thing, series_of: Mapping[str, str]) -> Dataset:
    """Make the object of a study that stands for `thing`."""
    if thing.title:
        cited = {one: series_of.get(one, thing.series) for one in thing.cites}
        return key_object(uid, thing.title, thing.uid, thing.series, cited)
    data = base_dataset(SimPatient(id="P0"), StudyFacts(), uid, CT, "CT")
    data.SOPInstanceUID, data.SeriesInstanceUID = thing.uid, thing.series
    data.StudyInstanceUID, data.InstanceNumber, data.SeriesNumber = uid, thing.number, 1
    return data


def _stored(title: str, port: int, note: Dataset) -> bool:
    """C-STORE a key object as the PACS `title`; False when the gateway was not there to take it."""
    entity = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    entity.add_requested_context(KEY_OBJECT, EXPLICIT)
    association = entity.associate(LOOPBACK, port, ae_title="DRIMBOX")
    if not association.is_established:
        return False
    answer = association.send_c_store(note)
    association.release()
    return "Status" in answer and answer.Status == 0


def variety(history: tuple[Any, ...]) -> int:
    """Count the different things that happen."""
    named = ("treatment", "state", "told", "hidden", "flaw", "replaces", "remove")
    return len({(type(each), *(getattr(each, name, None) for name in named)) for each in history})


def drawn(
    scene: SearchStrategy[Any] = ops.ANYTHING, *, count: int = COUNT, length: int = LENGTH
) -> list[tuple[Any, ...]]:
    """Draw histories, and keep those in which most happens: there is time for few."""
    found: dict[tuple[str, ...], tuple[Any, ...]] = {}

    @seed(SEED)
    @settings(
        max_examples=max(400, 4 * count),
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(ops.histories(scene))
    def collect(history: tuple[Any, ...]) -> None:
        history = history[:length]
        if sum(isinstance(each, ops.Report) and not each.flaw for each in history) >= 3:
            # Hypothesis draws many that are nearly the same.
            found.setdefault(tuple(type(each).__name__ for each in history), history)

    collect()
    return sorted(found.values(), key=variety, reverse=True)[:count]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RandomStand, list[SimulatedPacs]]]:
    folder = tmp_path_factory.mktemp("random")
    pacses = [SimulatedPacs("PACS-A"), SimulatedPacs("PACS-B")]
    for pacs in pacses:
        pacs.start()
    quick = {"query_timeout": "1.5", "first_image_timeout": "2", "gap_timeout": "2", "patience": "1"}
    stand = RandomStand(
        folder,
        [
            PacsAddress(pacs.ae_title, pacs.port, pool, settings=quick)
            for pacs, pool in zip(pacses, (POOL, SECOND_POOL), strict=True)
        ],
        ris={"PACS-Z": "PACS-Z"},
        sites=[{"excluded_uid_roots": f'["{INSIDE}"]'}] * len(pacses),
        extra={
            "wado": {"instance_level": "true"},
            "dmp": {"timeout": "2", "connect_timeout": "1", "retry_max": "1"},
            "feed": {"retry_max": "1"},
        },
    )
    for pacs, pool in zip(pacses, (POOL, SECOND_POOL), strict=True):
        pacs.destinations.update(dict.fromkeys(pool, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield stand, pacses
    wait(stand.stop())
    for pacs in pacses:
        pacs.stop()


@pytest.mark.slow
@pytest.mark.requirement(
    "DB.SO.11", "DB.SO.12", "DB.SO.13", "DB.SO.15", "DB.SO.25", "DB.SO.26", "DB.SO.97", "DB.SO.133"
)
@pytest_twisted.ensureDeferred
async def test_whatever_happens_the_record_mirrors_pacs_and_reports(
    stand: tuple[RandomStand, list[SimulatedPacs]], tmp_path: Path
) -> None:
    histories = drawn()
    assert len(histories) == COUNT
    for number, history in enumerate(histories):
        hospital = Hospital(*stand, tmp_path / str(number))
        await hospital.begin()
        try:
            await hospital.run(history)
        except Exception as error:
            shown = "\n".join(map(repr, history))
            raise AssertionError(f"seed {SEED}, history {number}:\n{shown}\n{error!r}") from error

"""A whole gateway under a simulated clock, between clients and a PACS that do what they were told.

Real: deliveries, attempts, transfers, outflows, spool, AE-title pool, acceptor, requestor, retrieval. In
memory: sockets, clock, archive of KOS, introspection, codec. `World.run` lets a history happen to its
very end, when nothing is left to do anywhere; `verdict.judge` then says what must have held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogPublisher

from drimbox import metrics
from drimbox.config import (
    Appliance,
    Certificate,
    Config,
    DicomSettings,
    DmpSettings,
    Pacs,
    PscSettings,
    Site,
    TrustSettings,
    WadoSettings,
)
from drimbox.dicom.acceptor import AcceptorFactory
from drimbox.dicom.aetitles import Pools, Title, TitleState
from drimbox.dicom.archive import PacsArchive
from drimbox.dicom.requestor import Links
from drimbox.dicom.retrieval import Mover, Retrieval
from drimbox.dicom.transcoding import Transcoded, TranscodeFailed
from drimbox.model import KosState, Patient
from drimbox.ports import ArchivedKos, Introspection
from drimbox.source import dues
from drimbox.source.delivery import Deliveries
from drimbox.store.spool import Spool
from drimbox.wado.request import ImagesRequest
from tests.properties.archive import GATEWAY, HOST, OURS, PORT, Archive, MoveServed
from tests.properties.associations import later
from tests.properties.clients import ACCEPTS, Client, Wish
from tests.properties.holdings import EXCLUDED_ROOT, REFERENCE, SERIES, catalogue
from tests.properties.network import Network
from tests.properties.plans import Plan

PATH = Path("/nonexistent")
PAIR = Certificate(PATH, PATH)
#: Seconds after which a history that still goes on is one that hangs.
TOO_LONG = 2000.0
#: Seconds a title may stay out after the last thing that happened on it: the grace after a C-CANCEL, the
#: quarantine, the end of what is left open on it, and the network in between.
LONGEST_RETURN = 5.0 + 8.0 + 3.0 + 1.0
_asking: ContextVar[Client] = ContextVar("asking")


@attrs.frozen
class Conditions:
    """What the gateway has to live with."""

    seed: int = 0
    titles: int = 2
    #: Associations it may open to the PACS.
    links: int = 8
    window: int = 1 << 20
    total_window: int = 1 << 20
    #: Bytes of spool of one delivery; twice that in all; 0 is off.
    spool: int = 1 << 20
    #: What the codec does: none there, works, or fails now and then.
    codec: str = "works"
    #: The PACS says that it no longer has the study, when asked after a move that brought nothing.
    forgotten: bool = False

    @property
    def roomy(self) -> bool:
        """True when a slow client can always be served."""
        return self.spool >= 1 << 20


CONDITIONS = st.builds(
    Conditions,
    seed=st.integers(0, 1 << 16),
    titles=st.integers(1, 3),
    links=st.sampled_from((8, 2, 1)),
    window=st.sampled_from((1 << 20, 4000, 500)),
    total_window=st.sampled_from((1 << 20, 2000)),
    spool=st.sampled_from((1 << 20, 1 << 20, 3000, 0)),
    codec=st.sampled_from(("works", "works", "none", "fails")),
    forgotten=st.booleans(),
)


@attrs.frozen
class History:
    """Everything that makes a run: the same history twice is the same run twice."""

    conditions: Conditions
    wishes: tuple[Wish, ...]
    #: Of the C-MOVEs, in the order in which the PACS is asked.
    plans: tuple[Plan, ...]


@attrs.define
class Lease:
    """One title held for one client."""

    title: str
    client: Client
    start: float
    end: float = float("inf")


class World:
    """One history and what became of it."""

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        conditions = history.conditions
        self.net = Network(conditions.seed)
        pool = tuple(f"DRIM{number}" for number in range(1, conditions.titles + 1))
        pacs = Pacs(
            "P",
            "PACS",
            HOST,
            PORT,
            pool,
            max_associations=conditions.links,
            query_timeout=4.0,
            first_image_timeout=30.0,
            gap_timeout=15.0,
            move_ceiling=200.0,
            patience=2.0,
            quarantine=8.0,
        )
        self.pacs = pacs
        self.site = Site(
            "site1", "db1.349.example", "vi1.349.example", pacs, PAIR, excluded_uid_roots=(EXCLUDED_ROOT,)
        )
        settings = DicomSettings(ae_title=OURS, artim_timeout=3.0, idle_timeout=30.0)
        self.pools = Pools([pacs], self.net)
        self.links = Links(settings, self.net)
        self.factory = AcceptorFactory(settings, self.pools, self.net)
        self.net.listening[GATEWAY] = lambda host: self.factory.buildProtocol(
            IPv4Address("TCP", host, 40000)
        )
        self.archive = Archive(self.net, pool, history.plans)
        self.archive.on_move = self._moved
        self.spool = Spool(
            folder, per_file=conditions.spool, total=2 * conditions.spool, in_thread=self._in_thread
        )
        self._mover = Mover(self.links, self.pools, self.net)
        self.deliveries = Deliveries(
            self._config(),
            clock=self.net,
            introspector=self,
            archive=self,
            archives={"site1": PacsArchive(pacs, self, self)},
            spool=self.spool,
            transcoder=self if conditions.codec != "none" else None,
        )
        self.clients = [Client(wish, self.net) for wish in history.wishes]
        self.leases: list[Lease] = []
        #: For whom each C-MOVE was asked.
        self.movers: dict[MoveServed, Client] = {}
        #: What the gateway logged as a failure of its own.
        self.failures: list[Any] = []
        #: Titles that came back longer than due after anything had happened on them.
        self.lingering: list[str] = []
        self._stirred: dict[str, tuple[int, float]] = {}
        #: Titles leased while an association of an earlier lease was open on them.
        self.crowded: list[str] = []
        self._codecs = 0
        for gauge in (metrics.WINDOW_BYTES, metrics.SPOOL_BYTES, metrics.DELIVERIES_RUNNING):
            gauge.set(0)

    def _config(self) -> Config:
        conditions = self.history.conditions
        return Config(
            Appliance(PATH, "349"),
            (self.site,),
            (),
            (),
            TrustSettings(PATH, PATH, PATH),
            DmpSettings("https://dmp.example", PATH),
            PscSettings("https://psc.example", "id", PATH),
            wado=WadoSettings(
                window=conditions.window,
                total_window=conditions.total_window,
                queue_timeout=10.0,
                stall_timeout=20.0,
                reference_study=REFERENCE,
            ),
        )

    def run(self) -> None:
        """Let everything happen, to the end."""
        for client in self.clients:
            self.net.callLater(client.wish.at, self._ask, client)
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        try:
            with mock.patch.object(dues, "promise_of", _promise):
                while self.net.step():
                    self._note_leases()
                    assert self.net.seconds() < TOO_LONG, "it never ends"
        finally:
            globalLogPublisher.removeObserver(observer)

    def _ask(self, client: Client) -> None:
        held = client.wish.held
        kos = None if held.listed is None else f"{held.study}.500"
        request = ImagesRequest(
            held.study,
            held.uid,
            kos,
            "token",
            ACCEPTS[client.wish.accept],
            instance_uid=client.wish.instance_uid,
        )
        token = _asking.set(client)
        try:
            work = Deferred.fromCoroutine(self.deliveries.deliver(self.site, request, client))
        finally:
            _asking.reset(token)
        work.addCallbacks(client.over, self.failures.append)

    def _observe(self, event: Any) -> None:
        if event.get("log_level") in (LogLevel.critical, LogLevel.error):
            self.failures.append(event.get("log_failure") or event)

    def _note_leases(self) -> None:
        running = {each.title: each for each in self.leases if each.end == float("inf")}
        now = self.net.seconds()
        for name, title in self.pools.by_pacs["P"].titles.items():
            client = next((each for each in self.clients if title.receiver in each.receivers), None)
            self._note_return(title)
            lease = running.get(name)
            if lease is not None and lease.client is not client:
                lease.end = now
            if client is not None and (lease is None or lease.client is not client):
                self.leases.append(Lease(name, client, now))
                channels: Any = title.channels
                if any(each._opened is not title.receiver for each in channels):
                    self.crowded.append(f"{name} at {now}")

    def _moved(self, move: MoveServed) -> None:
        """Note for whom a C-MOVE is: who has leased its destination now, or had when it was sent."""
        title = self.pools.find(move.title)
        assert title is not None
        client = next((each for each in self.clients if title.receiver in each.receivers), None)
        if client is None:
            client = [lease for lease in self.leases if lease.title == move.title][-1].client
        self.movers[move] = client

    def _note_return(self, title: Title) -> None:
        """See how long a title takes to come back once nothing happens on it any more."""
        now, held = self.net.seconds(), len(title.channels)
        before, since = self._stirred.get(title.ae_title, (0, now))
        if title.receiver is not None or held != before:
            since = now
        self._stirred[title.ae_title] = (held, since)
        quiet = now - max(since, self.archive.touched.get(title.ae_title, 0.0))
        if title.state is not TitleState.FREE and title.receiver is None and quiet > LONGEST_RETURN:
            self.lingering.append(f"{title.ae_title} at {now}")

    # -- the doors -----------------------------------------------------------------------------------

    async def introspect(self, token: str, consumer: str) -> Introspection:
        await later(self.net, self.net.random.choice((0.0, 0.01, 0.2)))
        return Introspection("899700000000", None, None)

    async def candidates(self, site: str, study: str, *, with_data: bool = False) -> list[ArchivedKos]:
        return [self._kos(study)]

    async def get(self, number: int) -> ArchivedKos:
        return self._kos(f"2.25.{number}")

    def _kos(self, study: str) -> ArchivedKos:
        now = datetime(2026, 1, 2, tzinfo=UTC)
        number = int(study.rpartition(".")[2])
        state = KosState.PUBLISHED
        return ArchivedKos(
            number, "site1", study, f"{study}.500", state, study.encode(), b"", "", "S", "I", "O", "P",
            (), None, now,
        )  # fmt: skip

    async def find_study(self, pacs: Pacs, study: str) -> Any:
        return None if self.history.conditions.forgotten else catalogue(study)

    def retrieval(self, pacs: Pacs, receiver: Any) -> Retrieval:
        """Make the real thing, and remember for whom."""
        _asking.get().receivers.append(receiver)
        return self._mover.retrieval(pacs, receiver)

    async def transcode_to_first(self, dataset: Any, source: str, targets: Sequence[str]) -> Transcoded:
        await later(self.net, self.net.random.choice((0.0, 0.01, 0.5)))
        self._codecs += 1
        if self.history.conditions.codec == "fails" and self._codecs % 4 == 0:
            raise TranscodeFailed("crashed", "as planned")
        return Transcoded(targets[0], dataset)

    def _in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        """A disk: not at once, and in order."""
        done: Deferred[Any] = Deferred()
        self.net.callLater(self.net.random.choice((0.0, 0.005, 0.05)), done.callback, None)
        return done.addCallback(lambda _: work())


def _promise(data: bytes) -> dues.Promise:
    patient = Patient("284070100499094", "1.2.250.1.213.1.4.10", "EXEMPLE", "CLAIRE", "19840701", "F")
    study = data.decode()
    lists = {held.uid: held.listed for held in SERIES if held.study == study and held.listed is not None}
    return dues.Promise(lists, patient)

"""One request judged, moved and answered, over ports played by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.config import (
    Appliance,
    Certificate,
    Config,
    DmpSettings,
    Pacs,
    PscSettings,
    Site,
    TrustSettings,
    WadoSettings,
)
from drimbox.dicom.archive import PacsArchive
from drimbox.dicom.moving import Abandoned, MoveResult
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG_LS_LOSSLESS, RLE_LOSSLESS
from drimbox.errors import (
    PacsCommunicationError,
    PacsUnavailable,
    RetrieveTimeout,
    TokenInvalid,
    TooManyRequests,
)
from drimbox.model import Instance, KosState, Patient, Series, Study
from drimbox.ports import ArchivedKos, Introspection
from drimbox.source import dues
from drimbox.source.attempt import ClientGone, Delivered
from drimbox.source.clearance import Clearance
from drimbox.source.delivery import Deliveries
from drimbox.wado.accept import parse
from drimbox.wado.request import ImagesRequest
from tests.source.answers import (
    CT,
    EXPLICIT,
    SERIES,
    STUDY,
    FakeArea,
    FakeChannel,
    FakeSink,
    command,
    dataset,
)

ONE, TWO = "2.25.103", "2.25.104"
KOS = "2.25.500"
PATH = Path("/nowhere")
PAIR = Certificate(PATH, PATH)
PACS = Pacs("P", "PACS", "127.0.0.1", 104, ("DB1",))
SITE = Site("site1", "db1.349.example", "vi1.349.example", PACS, PAIR)
REQUEST = ImagesRequest(
    STUDY,
    SERIES,
    KOS,
    "token",
    parse(
        [
            b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80; q=0.8',
            b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1; q=0.4',
        ]
    ),
)


def kos(state: KosState = KosState.PUBLISHED, uid: str = KOS, number: int = 1) -> ArchivedKos:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return ArchivedKos(
        number, "site1", STUDY, uid, state, b"manifest", b"", "", "S", "I", "O", "P", (), None, now
    )


def held(*instances: str) -> Study:
    """What the PACS lists of the study."""
    return Study(STUDY, (Series(SERIES, "CT", tuple(Instance(uid, CT) for uid in instances)),))


class Moving:
    """A C-MOVE whose instances and end the test plays."""

    def __init__(self, receiver: Any, world: World) -> None:
        self.receiver = receiver
        self.channel = FakeChannel()
        self.end: Deferred[MoveResult] = Deferred()
        self.wait = 0.0
        self.instance_uid: str | None = None
        self._world = world

    async def run(self, study: str, series: str, *, wait: float, instance_uid: str | None = None) -> Any:
        assert (study, series) == (STUDY, SERIES)
        self.wait, self.instance_uid = wait, instance_uid
        self.receiver.opened(self.channel)
        return await self.end

    def abandon(self) -> None:
        self._world.abandoned += 1
        if not self.end.called:
            self.end.errback(Abandoned())

    def send(self, instance: str) -> None:
        self.receiver.store(self.channel, command(instance), EXPLICIT)
        self.receiver.data(self.channel, dataset(instance), True)

    def over(self, status: int = 0, completed: int | None = None) -> None:
        self.end.callback(MoveResult(status, completed, 0, 0))


class World:
    """Everything a delivery asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.archived = [kos()]
        self.reads = 0
        self.token: Exception | None = None
        self.in_pacs: Any = None
        self.abandoned = 0
        self.moves: list[Moving] = []
        self.clock = Clock()
        patient = Patient("284070100499094", "1.2.250.1.213.1.4.10", "EXEMPLE", "CLAIRE", "19840701", "F")
        promise = dues.Promise({SERIES: frozenset({ONE, TWO})}, patient)
        monkeypatch.setattr(dues, "promise_of", lambda _: promise)
        config = Config(
            Appliance(PATH, "349"),
            (SITE,),
            (),
            (),
            TrustSettings(PATH, PATH, PATH),
            DmpSettings("https://dmp.example", PATH),
            PscSettings("https://psc.example", "id", PATH),
            wado=WadoSettings(**settings),
        )
        self.deliveries = Deliveries(
            config,
            clock=self.clock,
            introspector=self,
            archive=self,
            archives={"site1": PacsArchive(PACS, self, self)},
            spool=FakeArea(),
        )

    async def introspect(self, token: str, consumer: str) -> Introspection:
        assert token == "token"
        if self.token is not None:
            raise self.token
        return Introspection("899700000000", None, None)

    async def candidates(self, site: str, study: str, *, with_data: bool = False) -> list[ArchivedKos]:
        assert (site, study) == ("site1", STUDY)
        return self.archived

    async def get(self, number: int) -> ArchivedKos:
        self.reads += 1
        return next(one for one in self.archived if one.id == number)

    async def find_study(self, pacs: Pacs, study: str) -> Any:
        if isinstance(self.in_pacs, Exception):
            raise self.in_pacs
        return self.in_pacs

    def retrieval(self, pacs: Pacs, receiver: Any) -> Moving:
        self.moves.append(Moving(receiver, self))
        return self.moves[-1]

    def ask(
        self,
        sink: FakeSink | None = None,
        request: ImagesRequest = REQUEST,
        consumer: str = "C",
        begin: Callable[[Delivered], Clearance] = lambda result: Clearance(),
    ) -> tuple[FakeSink, Deferred[Delivered]]:
        sink = sink or FakeSink()
        work = self.deliveries.deliver(SITE, request, sink, consumer, begin)
        return sink, Deferred.fromCoroutine(work)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def result_of(asked: Deferred[Delivered]) -> Delivered:
    assert asked.called
    result: Any = asked.result  # type: ignore[attr-defined]
    assert isinstance(result, Delivered), result
    return result


def test_a_series_is_delivered_whole(world: World) -> None:
    sink, asked = world.ask()
    move = world.moves[0]
    world.clock.advance(0.5)
    move.send(ONE)
    assert not asked.called
    assert sink.output
    move.send(TWO)
    move.over(completed=2)
    result = result_of(asked)
    assert result.error is None
    assert not result.cut
    assert result.instances == 2
    assert result.first_image == 0.5
    assert result.bytes == len(sink.output) - 56
    assert result.syntaxes == {EXPLICIT: 2}
    assert not result.differs
    assert sink.finished
    assert len(sink.read()[0]) == 2


@pytest.mark.requirement("DB.SO.38")
@pytest.mark.parametrize(
    ("archived", "code", "status"),
    [
        ([], "E1001", 404),
        ([kos(uid="2.25.777")], "E1103", 404),
        ([kos(uid="2.25.777", number=2), kos(KosState.REPLACED)], "E1103", 404),
        ([kos(KosState.REFUSED)], "E1103", 404),
        ([kos(KosState.DEPUBLISHED)], "E1002", 410),
        ([kos(KosState.DEPUBLISHED, uid="2.25.777")], "E1002", 410),
    ],
)
def test_the_kos_of_the_request_is_the_archive_s(
    world: World, archived: list[ArchivedKos], code: str, status: int
) -> None:
    world.archived = archived
    sink, asked = world.ask()
    error = result_of(asked).error
    assert error is not None
    assert (error.code, error.status) == (code, status)
    assert not world.moves
    assert not sink.content_type


def test_a_kos_whose_publication_has_begun_is_served(world: World) -> None:
    world.archived = [kos(KosState.PENDING)]
    _, asked = world.ask()
    assert world.moves
    assert not asked.called


def test_a_series_the_kos_does_not_list_is_not_served(world: World) -> None:
    _, asked = world.ask(request=attrs.evolve(REQUEST, series_uid="2.25.999"))
    error = result_of(asked).error
    assert error is not None
    assert error.code == "E1001"
    assert not world.moves


def test_the_manifest_is_read_once(world: World) -> None:
    for _ in range(3):
        world.ask()
    assert world.reads == 1


def test_an_unreadable_manifest_is_our_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    _, asked = world.ask()
    error = result_of(asked).error
    assert error is not None
    assert (error.code, error.status) == ("E1104", 500)


@pytest.mark.requirement("DB.SO.32")
def test_without_a_good_token_nothing_is_looked_up(world: World) -> None:
    world.token = TokenInvalid()
    _, asked = world.ask()
    assert result_of(asked).error is world.token
    assert result_of(asked).kos is None
    assert not world.moves


@pytest.mark.requirement("DB.SO.38")
def test_the_reference_study_is_served_without_a_kos(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, reference_study=STUDY)
    world.archived = []
    sink, asked = world.ask(request=attrs.evolve(REQUEST, kos_uid=None))
    world.moves[0].send("2.25.1")
    world.moves[0].over(completed=1)
    assert result_of(asked).error is None
    assert sink.finished


@pytest.mark.parametrize(("status", "completed"), [(0, 2), (0xB000, 1), (0xFE00, 1)])
def test_without_a_kos_the_pacs_s_own_count_decides(
    monkeypatch: pytest.MonkeyPatch, status: int, completed: int
) -> None:
    world = World(monkeypatch, reference_study=STUDY)
    sink, asked = world.ask()
    world.moves[0].send("2.25.1")
    world.moves[0].over(status, completed)
    assert result_of(asked).cut
    assert sink.aborted


@pytest.mark.requirement("DB.SO.35")
def test_over_the_limit_is_e1003_with_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_deliveries=3, max_waiting=0)
    running = [world.ask() for _ in range(3)]
    _, asked = world.ask()
    error = result_of(asked).error
    assert isinstance(error, TooManyRequests)
    assert error.status == 503
    assert error.retry_after
    assert not any(each.called for _, each in running)
    world.moves[0].over(0xC000)
    assert not world.ask()[1].called


@pytest.mark.requirement("DB.SO.35")
def test_over_the_limit_of_a_consumer_a_request_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_per_consumer=3)
    for _ in range(3):
        world.ask(consumer="A")
    _, waiting = world.ask(consumer="A")
    assert len(world.moves) == 3
    world.ask(consumer="B")
    assert len(world.moves) == 4
    world.clock.advance(2.0)
    world.moves[0].over(0xC000)
    assert len(world.moves) == 5
    # What it waited for its turn it does not wait for a title again.
    assert world.moves[4].wait == 18.0
    world.moves[4].over(0xC000)
    assert result_of(waiting).waited == 2.0


@pytest.mark.requirement("DB.SO.35")
def test_a_client_that_leaves_the_line_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_per_consumer=3)
    for _ in range(3):
        world.ask()
    sink, asked = world.ask()
    sink.lost()
    assert isinstance(result_of(asked).error, ClientGone)
    world.moves[0].over(0xC000)
    assert len(world.moves) == 3


@pytest.mark.parametrize(
    "failure", [PacsUnavailable("down"), RetrieveTimeout("late"), TooManyRequests("pool")]
)
def test_a_failure_before_the_first_byte_is_left_for_a_status(world: World, failure: Exception) -> None:
    sink, asked = world.ask()
    world.moves[0].end.errback(failure)
    result = result_of(asked)
    assert result.error is failure
    assert not result.cut
    assert not sink.content_type
    assert not sink.aborted
    assert world.abandoned == 0


@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("begun", [True, False])
def test_no_answer_takes_for_ever(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    world = World(monkeypatch, delivery_ceiling=900.0)
    _, asked = world.ask()
    if begun:
        world.moves[0].send(ONE)
    world.clock.advance(899.0)
    assert not asked.called
    world.clock.advance(1.5)
    result = result_of(asked)
    assert result.error is not None
    assert (result.error.code, result.cut) == ("E1005", begun)
    assert world.abandoned == 1
    # An answer that ends in time leaves nothing behind.
    _, asked = world.ask()
    for instance in (ONE, TWO):
        world.moves[1].send(instance)
    world.moves[1].over(completed=2)
    assert result_of(asked).error is None
    assert not world.clock.getDelayedCalls()


def test_a_failure_after_the_first_byte_cuts(world: World) -> None:
    sink, asked = world.ask()
    world.moves[0].send(ONE)
    world.moves[0].end.errback(RetrieveTimeout("plus d'image"))
    result = result_of(asked)
    assert result.cut
    assert result.error is not None
    assert result.error.code == "E1005"
    assert sink.aborted
    assert not sink.read()[1]
    assert not result.differs


@pytest.mark.requirement("DB.SO.190")
def test_an_instance_the_pacs_no_longer_has_cuts_and_asks_for_a_comparison(world: World) -> None:
    sink, asked = world.ask()
    world.moves[0].send(ONE)
    world.moves[0].over(completed=2)  # the PACS lies
    result = result_of(asked)
    assert result.cut
    assert result.differs
    assert sink.aborted
    assert result.error is not None
    assert result.error.code == "E1004"


def test_an_instance_the_kos_does_not_list_is_delivered_and_asks_for_a_comparison(world: World) -> None:
    sink, asked = world.ask()
    for instance in (ONE, TWO, "2.25.105"):
        world.moves[0].send(instance)
    world.moves[0].over(completed=3)
    result = result_of(asked)
    assert result.error is None
    assert result.differs
    assert len(sink.read()[0]) == 3


def test_a_failed_move_says_nothing_about_what_the_pacs_holds(world: World) -> None:
    _, asked = world.ask()
    world.moves[0].send(ONE)
    world.moves[0].over(0xA702)
    assert result_of(asked).cut
    assert not result_of(asked).differs


@pytest.mark.requirement("DB.SO.190")
@pytest.mark.requirement("DB.SO.190")
@pytest.mark.parametrize(
    ("held", "code", "differs"),
    [
        (None, "E1002", True),
        (held(), "E1002", True),
        (held(ONE), "E1004", True),
        (held(ONE, TWO), "E1004", False),
        (PacsCommunicationError("pas de réponse"), "E1004", False),
    ],
)
def test_success_with_nothing_sent_is_asked_about(
    world: World, held: object, code: str, differs: bool
) -> None:
    world.in_pacs = held
    _, asked = world.ask()
    world.moves[0].over(completed=0)
    result = result_of(asked)
    assert result.error is not None
    assert result.error.code == code
    assert result.differs is differs


@pytest.mark.requirement("DB.SO.85")
def test_a_pacs_that_fails_in_the_syntax_chosen_is_asked_in_the_next(world: World) -> None:
    sink, asked = world.ask()
    proposed = ProposedContext(1, CT, (JPEG_LS_LOSSLESS, EXPLICIT_LE))
    assert world.moves[0].receiver.choose(proposed) == JPEG_LS_LOSSLESS
    world.moves[0].over(0xA702)
    assert len(world.moves) == 2
    assert not asked.called
    assert world.moves[1].receiver.choose(proposed) == EXPLICIT_LE
    world.moves[1].send(ONE)
    world.moves[1].send(TWO)
    world.moves[1].over(completed=2)
    result = result_of(asked)
    assert result.error is None
    assert result.instances == 2
    assert sink.finished
    assert world.abandoned == 0


def test_a_pacs_that_fails_in_every_syntax_is_unavailable(world: World) -> None:
    _, asked = world.ask()
    proposed = ProposedContext(1, CT, (JPEG_LS_LOSSLESS, EXPLICIT_LE))
    for number in range(2):
        world.moves[number].receiver.choose(proposed)
        world.moves[number].over(0xA702)
    error = result_of(asked).error
    assert error is not None
    assert error.code == "E1004"
    assert len(world.moves) == 2


def test_a_pacs_without_an_acceptable_syntax_is_406_with_what_there_is(world: World) -> None:
    _, asked = world.ask()
    world.moves[0].receiver.choose(ProposedContext(1, CT, (RLE_LOSSLESS, "1.2.840.10008.1.2.4.91")))
    world.moves[0].over(0xA702)
    error = result_of(asked).error
    assert error is not None
    assert error.status == 406
    assert "JPEG 2000" in error.detail


def test_a_client_that_leaves_stops_the_pacs(world: World) -> None:
    sink, asked = world.ask()
    world.moves[0].send(ONE)
    sink.lost()
    result = result_of(asked)
    assert world.abandoned == 1
    assert result.cut
    assert result.error is not None
    assert "consommatrice" in result.error.title
    world.moves[0].send(TWO)
    assert world.moves[0].channel.answers[-1] == (TWO, 0xA700)


def test_a_client_that_left_during_the_checks_costs_the_pacs_nothing(world: World) -> None:
    class Gone(FakeSink):
        def listen(self, **told: Any) -> None:
            super().listen(**told)
            told["lost"]()

    _, asked = world.ask(Gone())
    assert result_of(asked).error is not None
    assert not result_of(asked).cut
    assert not world.moves[0].end.called
    assert world.abandoned == 0


def test_a_slow_client_is_waited_for_after_the_pacs_is_done(world: World) -> None:
    sink, asked = world.ask()
    sink.full = True
    world.moves[0].send(ONE)
    world.moves[0].send(TWO)
    world.moves[0].over(completed=2)
    assert not asked.called
    assert not sink.read()[1]
    sink.full = False
    sink.resume()
    assert result_of(asked).error is None
    assert sink.finished


@pytest.mark.threat("slowloris, stalled reader")
def test_a_client_that_stalls_after_the_pacs_is_done_is_cut_not_complete(world: World) -> None:
    sink, asked = world.ask()
    sink.full = True
    world.moves[0].send(ONE)
    world.moves[0].send(TWO)
    world.moves[0].over(completed=2)
    world.clock.advance(60.1)
    result = result_of(asked)
    assert result.cut
    assert result.error is not None
    assert sink.aborted
    assert not sink.finished


def test_a_bug_on_the_way_never_looks_complete(world: World) -> None:
    sink, asked = world.ask()
    asked.addErrback(lambda failure: failure.value)
    world.moves[0].send(ONE)
    world.moves[0].end.errback(ZeroDivisionError())
    assert isinstance(asked.result, ZeroDivisionError)  # type: ignore[attr-defined]
    assert sink.aborted
    assert not sink.finished
    assert not world.ask()[1].called

"""An archive that is read, played into a receiver: whole, in turn, bounded, whatever its class does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from drimbox.dicom.dimse import Status
from drimbox.dicom.moving import Abandoned
from drimbox.errors import NotAcceptable, PacsUnavailable, RetrieveTimeout, TooManyRequests
from drimbox.native import pull as pulling
from drimbox.native.store import InstanceGone, StoredInstance, StoreTimeout, StoreUnavailable
from tests.native.scripted import (
    CT,
    EXPLICIT,
    JPEG_LS,
    Receiver,
    Scene,
    data_set,
    part10,
    result,
    uid,
)


@pytest.mark.requirement("DB.SO.165")
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_series_comes_whole(parallel: int) -> None:
    scene = Scene(parallel=parallel)
    scene.store.hold(*range(20))
    _, ended = scene.pull()
    scene.settle()
    move = result(ended)
    assert (move.status, move.completed, move.failed) == (Status.SUCCESS, 20, 0)
    assert scene.receiver.whole == {uid(number): data_set(number) for number in range(20)}
    assert {each.syntax for each in scene.receiver.arrived} == {EXPLICIT}
    assert [clean for _, clean in scene.receiver.ended] == [True] * len(scene.receiver.channels)
    assert scene.places.free == scene.settings.max_readings
    assert scene.clock.getDelayedCalls() == []


@given(cuts=st.lists(st.integers(0, 2400), max_size=12), preamble=st.binary(max_size=128))
def test_the_data_set_is_the_same_however_the_file_comes(cuts: list[int], preamble: bytes) -> None:
    scene = Scene()
    scene.store.hold(1)
    whole = part10(1, preamble=preamble)
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    scene.store.files[uid(1)] = [whole[a:b] for a, b in pairwise(places)]
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).success
    assert scene.receiver.whole == {uid(1): data_set(1)}


@pytest.mark.parametrize("step", [1, 16, 24, 512, 1000, 4096])
def test_long_file_meta_is_read_whole_however_it_comes(step: int) -> None:
    """Private elements behind the usual ones, so that many a cut falls between two of them."""
    usual = part10(1, b"")
    private = b"".join(b"\x02\x00\x02\x01UI\x10\x00" + bytes(16) for _ in range(100))
    whole = usual + private + data_set(1)
    scene = Scene()
    scene.store.hold(1)
    scene.store.files[uid(1)] = [whole[at : at + step] for at in range(0, len(whole), step)]
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).completed == 1
    assert scene.receiver.whole == {uid(1): data_set(1)}


def test_a_bare_data_set_is_taken_as_it_is() -> None:
    scene = Scene()
    scene.store.listing = [StoredInstance(uid(1), CT, JPEG_LS, part10=False)]
    # Even one that looks like a file: what it is has been said.
    scene.store.files[uid(1)] = [b"\0" * 128 + b"DICM", b"", b"rest"]
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).completed == 1
    assert scene.receiver.whole == {uid(1): b"\0" * 128 + b"DICMrest"}
    assert scene.receiver.arrived[0].syntax == JPEG_LS


def test_one_instance_is_brought_alone_with_one_reading() -> None:
    scene = Scene(parallel=4)
    scene.store.hold(1, 2, 3)
    _, ended = scene.pull(instance=uid(2))
    scene.settle()
    assert result(ended).completed == 1
    assert list(scene.receiver.whole) == [uid(2)]
    assert len(scene.receiver.channels) == 1


def test_an_empty_list_ends_in_success_with_nothing() -> None:
    scene = Scene(parallel=4)
    _, ended = scene.pull()
    scene.settle()
    move = result(ended)
    assert (move.status, move.completed) == (Status.SUCCESS, 0)
    assert scene.receiver.channels == []


# --- several readings -------------------------------------------------------------------------------


def test_no_more_readings_than_allowed_run_at_once() -> None:
    scene = Scene(parallel=3, max_readings=4)
    scene.store.hold(*range(8))
    for number in range(8):
        scene.store.files[uid(number)] = [Deferred()]
    one, first = scene.pull()
    assert scene.store.most == 3
    assert scene.places.free == 1
    scene.store.files = {uid(number): [Deferred()] for number in range(8)}
    two, second = scene.pull(receiver=Receiver())
    # One place is left: one reading, not three.
    assert scene.store.asked.count("list") == 2
    assert len(scene.store.asked) == 2 + 3 + 1
    assert scene.places.free == 0
    for pull, ended in ((one, first), (two, second)):
        pull.abandon()
        with pytest.raises(Abandoned):
            result(ended)
    assert scene.places.free == 4


def test_a_pull_waits_for_a_place_then_gives_up() -> None:
    scene = Scene(max_readings=1)
    scene.store.hold(1)
    scene.store.files[uid(1)] = [Deferred()]
    pull, ended = scene.pull()
    _, waiting = scene.pull(wait=5.0)
    scene.clock.advance(4.9)
    assert not waiting.called
    scene.clock.advance(0.2)
    with pytest.raises(TooManyRequests) as caught:
        result(waiting)
    assert caught.value.retry_after == 5
    pull.abandon()
    with pytest.raises(Abandoned):
        result(ended)


def test_a_place_given_back_goes_to_who_waited_longest() -> None:
    scene = Scene(max_readings=1)
    scene.store.hold(1)
    block: Deferred[Any] = Deferred()
    scene.store.files[uid(1)] = [block]
    scene.pull()
    second, third = Receiver(), Receiver()
    _, one = scene.pull(receiver=second)
    leaving, gone = scene.pull(receiver=third)
    scene.store.files[uid(1)] = [part10(1)]
    leaving.abandon()
    with pytest.raises(Abandoned):
        result(gone)
    block.callback(part10(1))
    scene.settle()
    assert result(one).completed == 1
    assert second.whole
    assert not third.arrived
    assert scene.places.free == 1


# --- pace -------------------------------------------------------------------------------------------


def test_a_paused_reading_asks_for_nothing() -> None:
    scene = Scene()
    scene.store.hold(1, 2)
    scene.store.files[uid(1)] = [part10(1)[:1000], part10(1)[1000:]]
    scene.receiver.on_data = lambda channel: channel.pause()
    _, ended = scene.pull()
    scene.settle()
    # The first block came, and one behind it: the last piece is always held back.
    assert scene.receiver.pieces == 1
    assert scene.store.asked == ["list", uid(1)]
    scene.clock.advance(50)
    assert not ended.called
    scene.receiver.on_data = lambda channel: None
    scene.receiver.channels[0].resume()
    scene.settle()
    assert result(ended).completed == 2


def test_a_pause_in_the_middle_of_a_block_is_obeyed() -> None:
    scene = Scene()
    scene.store.hold(1)
    scene.store.files[uid(1)] = [part10(1, bytes(5_000_000))]
    scene.receiver.on_data = lambda channel: channel.pause()
    _, ended = scene.pull()
    scene.settle()
    assert scene.receiver.pieces == 1
    assert not ended.called
    scene.receiver.on_data = lambda channel: None
    scene.receiver.channels[0].resume()
    scene.settle()
    assert result(ended).completed == 1


def test_time_spent_paused_is_not_the_archives() -> None:
    scene = Scene(timeout=10.0)
    scene.store.hold(1, 2)
    scene.receiver.on_data = lambda channel: channel.pause()
    _, ended = scene.pull()
    for _ in range(8):
        scene.clock.advance(10)
    assert not ended.called
    assert scene.receiver.pieces == 1


def test_an_archive_that_never_waits_lets_others_have_their_turn() -> None:
    scene = Scene()
    scene.store.hold(*range(200))
    for number in range(200):
        scene.store.files[uid(number)] = [part10(number, bytes(20_000))]
    _, ended = scene.pull()
    assert not ended.called, "200 instances without a look at the reactor"
    assert 10 < len(scene.receiver.whole) < 60
    scene.settle()
    assert result(ended).completed == 200


def test_a_huge_block_is_handed_over_in_pieces() -> None:
    scene = Scene()
    scene.store.hold(1)
    scene.store.files[uid(1)] = [part10(1, bytes(5_000_000))]
    largest: list[int] = []
    take = scene.receiver.data
    scene.receiver.data = lambda channel, piece, last: (  # type: ignore[method-assign]
        largest.append(len(piece)),
        take(channel, piece, last),
    )
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).completed == 1
    assert max(largest) <= 256 * 1024
    assert len(scene.receiver.whole[uid(1)]) == 5_000_000


# --- ends -------------------------------------------------------------------------------------------


def test_whoever_asked_is_gone() -> None:
    scene = Scene(parallel=2)
    scene.store.hold(1, 2, 3)
    blocks: list[Deferred[Any]] = [Deferred(), Deferred()]
    scene.store.files[uid(1)] = [part10(1)[:800], blocks[0]]
    scene.store.files[uid(2)] = [blocks[1]]
    pull, ended = scene.pull()
    pull.abandon()
    with pytest.raises(Abandoned):
        result(ended)
    assert scene.store.open == set(), "a reading was left open"
    assert sorted(scene.store.closed) == [uid(1), uid(2)]
    assert scene.places.free == scene.settings.max_readings
    before = scene.receiver.pieces
    scene.settle()
    assert scene.receiver.pieces == before
    # Nothing is held back for an instance of which no byte was handed over.
    assert [clean for _, clean in scene.receiver.ended] == [False]
    assert scene.clock.getDelayedCalls() == []


def test_abandoned_before_it_began() -> None:
    scene = Scene()
    pull = pulling.Pull(scene.store, scene.settings, scene.places, scene.receiver, scene.clock)
    pull.abandon()
    with pytest.raises(Abandoned):
        result(Deferred.fromCoroutine(pull.run("2.25.1", "2.25.2", wait=1)))
    assert scene.places.free == scene.settings.max_readings
    assert scene.store.asked == []


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize("where", ["list", "file", "inside"])
@pytest.mark.parametrize(
    ("raised", "error", "status"),
    [
        (StoreUnavailable("plus de disque"), PacsUnavailable, 502),
        (StoreTimeout("trop lent"), RetrieveTimeout, 504),
        (TimeoutError(), RetrieveTimeout, 504),
        (ValueError("DUPONT Jean"), PacsUnavailable, 502),
        (CancelledError(), PacsUnavailable, 502),
    ],
    ids=["unavailable", "timeout", "builtin timeout", "bug", "its own cancellation"],
)
def test_what_the_class_raises_is_a_coded_error(
    where: str, raised: Exception, error: type[Exception], status: int
) -> None:
    scene = Scene(parallel=3)
    scene.store.hold(1, 2)
    if where == "list":
        scene.store.listing.append(raised)
    else:
        scene.store.files[uid(2)] = [raised] if where == "file" else [part10(2)[:1500], b"x", raised]
    said: list[str] = []

    def listen(event: Any) -> None:
        said.append(str(event.get("log_format", "")) + str({k: str(v) for k, v in event.items()}))

    globalLogPublisher.addObserver(listen)
    try:
        _, ended = scene.pull()
        scene.settle()
        with pytest.raises(error) as caught:
            result(ended)
    finally:
        globalLogPublisher.removeObserver(listen)
    assert caught.value.status == status  # type: ignore[attr-defined]
    assert "DUPONT" not in str(caught.value) + "".join(said)
    assert isinstance(raised, ValueError) == any("ValueError" in line for line in said)
    assert scene.places.free == scene.settings.max_readings
    assert scene.store.open == set()
    assert scene.clock.getDelayedCalls() == []
    if where == "inside":
        assert False in [clean for _, clean in scene.receiver.ended]
        assert uid(2) not in scene.receiver.whole


def test_an_instance_that_is_gone_is_missing_and_the_others_come() -> None:
    scene = Scene()
    scene.store.hold(1, 2, 3)
    scene.store.files[uid(2)] = [InstanceGone()]
    _, ended = scene.pull()
    scene.settle()
    move = result(ended)
    assert (move.status, move.completed, move.failed) == (Status.WARNING, 2, 1)
    assert sorted(scene.receiver.whole) == [uid(1), uid(3)]


def test_an_instance_that_goes_while_it_is_read_ends_the_pull() -> None:
    scene = Scene()
    scene.store.hold(1, 2)
    scene.store.files[uid(1)] = [part10(1)[:900], part10(1)[900:1200], InstanceGone()]
    _, ended = scene.pull()
    scene.settle()
    with pytest.raises(PacsUnavailable, match="retirée"):
        result(ended)
    assert scene.receiver.whole == {}


@pytest.mark.parametrize("where", ["list", "file"])
def test_a_silent_archive_ends_the_pull(where: str) -> None:
    scene = Scene(timeout=10.0)
    scene.store.hold(1)
    if where == "list":
        scene.store.listing = [Deferred()]
    else:
        scene.store.files[uid(1)] = [part10(1)[:700], Deferred()]
    _, ended = scene.pull()
    scene.clock.pump([0.5] * 20)
    assert not ended.called
    scene.clock.pump([0.5] * 3)
    with pytest.raises(RetrieveTimeout):
        result(ended)
    assert scene.store.open == set()
    assert scene.places.free == scene.settings.max_readings


def test_an_archive_that_trickles_meets_the_ceiling() -> None:
    scene = Scene(timeout=10.0, ceiling=60.0)
    scene.store.hold(1)
    blocks: list[Deferred[Any]] = [Deferred() for _ in range(40)]
    scene.store.files[uid(1)] = [part10(1), *blocks]
    _, ended = scene.pull()
    for block in blocks:
        scene.clock.pump([0.5] * 6)
        if ended.called:
            break
        block.callback(b"x")
    assert scene.clock.seconds() <= 63
    with pytest.raises(RetrieveTimeout, match="60 s"):
        result(ended)


@pytest.mark.threat("memory leaks by repeated requests")
def test_a_class_that_ignores_cancellation_holds_nobody_up() -> None:
    scene = Scene(max_readings=2)
    scene.store.hold(1)
    later: Deferred[bytes] = Deferred()

    async def stubborn(instance: StoredInstance) -> AsyncIterator[bytes]:
        yield part10(1)[:1000]
        try:
            await Deferred()
        except CancelledError:
            yield await later

    scene.store.read = stubborn  # type: ignore[method-assign]
    pull, ended = scene.pull()
    pull.abandon()
    with pytest.raises(Abandoned):
        result(ended)
    # It still reads: its place is its own. What it reads reaches nobody.
    assert scene.places.free == 1
    pieces = scene.receiver.pieces
    later.callback(b"late")
    scene.settle()
    assert scene.receiver.pieces == pieces
    assert scene.places.free == 2


# --- what comes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"<html>erreur</html>" * 40,
        b"",
        b"\0" * 128 + b"DIC",
        b"\0" * 128 + b"DICM",
        b"\0" * 128 + b"DICM" + b"\xff" * 100_000,
        part10(1)[:200],
        part10(1, b""),
        b"\0" * 127 + b"DICM" + part10(1)[132:],
    ],
    ids=["html", "nothing", "cut mark", "no meta", "endless meta", "cut meta", "no data set", "mark early"],
)
def test_garbage_instead_of_a_file_ends_the_pull(content: bytes) -> None:
    scene = Scene()
    scene.store.hold(1, 2)
    scene.store.files[uid(1)] = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    _, ended = scene.pull()
    scene.settle()
    with pytest.raises(PacsUnavailable, match="autre chose qu'un objet DICOM"):
        result(ended)
    assert scene.receiver.whole == {}


def test_endless_file_meta_is_not_kept() -> None:
    scene = Scene()
    scene.store.hold(1)
    read: list[int] = []

    async def endless(instance: StoredInstance) -> AsyncIterator[bytes]:
        yield b"\0" * 128 + b"DICM"
        while len(read) < 100_000:
            read.append(1)
            # Private elements of group 0002, for ever.
            yield b"\x02\x00\x00\x01UI\x10\x00" + b"1.2.3.4.5.6.7.8\0"

    scene.store.read = endless  # type: ignore[method-assign]
    _, ended = scene.pull()
    scene.settle()
    with pytest.raises(PacsUnavailable):
        result(ended)
    assert len(read) < 10_000


@pytest.mark.requirement("DB.SO.85")
def test_a_form_the_client_needs_and_does_not_take_ends_the_pull_before_it_is_read() -> None:
    scene = Scene(Receiver(EXPLICIT))
    scene.store.hold(1, syntax=JPEG_LS)
    _, ended = scene.pull(needed={uid(1)})
    scene.settle()
    with pytest.raises(NotAcceptable, match="JPEG-LS"):
        result(ended)
    assert scene.store.asked == ["list"]


def test_a_form_nobody_needs_is_left_out() -> None:
    scene = Scene(Receiver(EXPLICIT))
    scene.store.hold(1)
    scene.store.hold(2, syntax=JPEG_LS)
    _, ended = scene.pull(needed={uid(1)})
    scene.settle()
    assert result(ended).success
    assert list(scene.receiver.whole) == [uid(1)]


def test_a_file_that_is_not_read_to_its_end_is_closed_in_order() -> None:
    scene = Scene(Receiver(EXPLICIT))
    scene.store.listing = [StoredInstance(uid(1))]
    ended_in_order: list[str] = []

    async def careful(instance: StoredInstance) -> AsyncIterator[bytes]:
        try:
            # Only the file says that nobody takes it.
            yield part10(1, syntax=JPEG_LS)
            yield b"more"
        finally:
            await deferLater(scene.clock, 0.01)
            ended_in_order.append(instance.sop_instance_uid)

    scene.store.read = careful  # type: ignore[method-assign]
    _, ended = scene.pull(needed=())
    scene.settle()
    scene.clock.advance(0.01)
    assert result(ended).success
    assert ended_in_order == [uid(1)]
    assert scene.receiver.arrived == []


@pytest.mark.requirement("DB.CS.83")
def test_what_can_be_decoded_is_brought_and_each_form_is_proposed_once() -> None:
    scene = Scene(Receiver(EXPLICIT, decodes=(JPEG_LS,)))
    scene.store.hold(1, 2, syntax=JPEG_LS)
    scene.store.hold(3, 4)
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).completed == 4
    assert scene.receiver.proposed == [(CT, JPEG_LS), (CT, EXPLICIT)]


def test_the_file_and_not_the_index_says_in_which_form_it_is() -> None:
    scene = Scene(Receiver(EXPLICIT, JPEG_LS))
    scene.store.hold(1)
    scene.store.files[uid(1)] = [part10(1, syntax=JPEG_LS)]
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).completed == 1
    assert scene.receiver.arrived[0].syntax == JPEG_LS


def test_an_index_that_knows_no_form_is_enough() -> None:
    scene = Scene()
    scene.store.listing = [StoredInstance(uid(1))]
    scene.store.files[uid(1)] = [part10(1, syntax=JPEG_LS)]
    _, ended = scene.pull()
    scene.settle()
    assert result(ended).completed == 1
    assert scene.receiver.arrived[0].syntax == JPEG_LS


@pytest.mark.parametrize("change", [{"sop_class_uid": "CT"}, {"transfer_syntax_uid": "../../etc"}])
def test_an_index_with_something_else_than_uids_is_refused(change: dict[str, str]) -> None:
    scene = Scene()
    scene.store.hold(1)
    listed = scene.store.listing[0]
    assert isinstance(listed, StoredInstance)
    scene.store.listing = [attrs.evolve(listed, **change)]
    _, ended = scene.pull()
    scene.settle()
    with pytest.raises(PacsUnavailable):
        result(ended)
    assert scene.receiver.arrived == []


def test_an_endless_list_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "MAX_INSTANCES", 50)
    scene = Scene()
    scene.store.hold(*range(60))
    _, ended = scene.pull()
    scene.settle()
    with pytest.raises(PacsUnavailable, match="50 images"):
        result(ended)

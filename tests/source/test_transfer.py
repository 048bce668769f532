"""C-STOREs of one move: what is delivered, what is dropped, what is refused, and how each is answered."""

from __future__ import annotations

import pytest

from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.syntaxes import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG_LS_LOSSLESS, RLE_LOSSLESS
from drimbox.source.batch import SOON
from drimbox.source.transfer import Transfer
from drimbox.wado.accept import parse
from tests.source.answers import CT, EXPLICIT, SERIES, STUDY, FakeChannel, Scene, command, dataset

ONE, TWO = "2.25.103", "2.25.104"
BOTH = parse(
    [
        b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80; q=0.8',
        b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1; q=0.4',
    ]
)


class Playing:
    """A transfer in its scene."""

    def __init__(self, due: frozenset[str] | None = frozenset({ONE}), avoid: frozenset[str] = frozenset()):
        self.scene = Scene(window=1 << 20)
        self.transfer = Transfer(
            study_uid=STUDY,
            series_uid=SERIES,
            due=due,
            acceptable=BOTH,
            outflow=self.scene.outflow,
            clock=self.scene.clock,
            avoid=avoid,
        )

    def opened(self) -> FakeChannel:
        channel = FakeChannel()
        self.transfer.opened(channel)
        return channel

    def store(self, channel: FakeChannel, instance: str = ONE, data: bytes | None = None) -> None:
        data = dataset(instance) if data is None else data
        self.transfer.store(channel, command(instance), EXPLICIT)
        self.transfer.data(channel, data[:200], False)
        self.transfer.data(channel, data[200:], True)


def test_an_instance_is_answered_when_its_last_byte_is_ours_not_when_the_client_has_it() -> None:
    play = Playing()
    channel = play.opened()
    play.scene.sink.full = True
    play.scene.outflow.pause()
    play.store(channel)
    assert channel.answers == [(ONE, 0)]
    assert not play.scene.sink.output
    assert play.transfer.satisfied
    assert play.transfer.tally.delivered == set()
    play.scene.sink.full = False
    play.scene.outflow.resume()
    assert play.transfer.tally.delivered == {ONE}
    assert play.transfer.tally.syntaxes == {EXPLICIT: 1}


def test_a_repeated_instance_is_answered_success_and_dropped() -> None:
    play = Playing()
    channel = play.opened()
    play.store(channel)
    play.store(channel)
    assert channel.answers == [(ONE, 0), (ONE, 0)]
    play.scene.outflow.complete()
    assert len(play.scene.sink.parts()) == 1


def test_an_instance_that_comes_on_two_associations_at_once_is_delivered_once() -> None:
    play = Playing()
    first, second = play.opened(), play.opened()
    data = dataset()
    play.transfer.store(first, command(), EXPLICIT)
    play.transfer.data(first, data[:1200], False)
    play.store(second)
    play.transfer.data(first, data[1200:], True)
    assert first.answers == second.answers == [(ONE, 0)]
    play.scene.outflow.complete()
    assert len(play.scene.sink.parts()) == 1


@pytest.mark.threat("images of another patient")
@pytest.mark.requirement("DB.SO.85")
def test_an_instance_of_another_study_is_refused_and_never_delivered() -> None:
    play = Playing()
    channel = play.opened()
    play.store(channel, data=dataset(StudyInstanceUID="2.25.901"))
    assert channel.answers == [(ONE, 0x0124)]
    assert play.transfer.tally.refused == {ONE: 0x0124}
    assert not play.scene.outflow.started
    assert play.transfer.missing == {ONE}
    # Its true namesake may still come.
    play.store(channel)
    assert channel.answers[-1] == (ONE, 0)
    assert not play.transfer.missing


def test_an_instance_without_a_uid_is_refused() -> None:
    play = Playing()
    channel = play.opened()
    play.store(channel, instance="../../etc", data=dataset())
    assert channel.answers == [("../../etc", 0xC000)]
    assert play.transfer.tally.refused


def test_what_comes_after_the_client_has_gone_is_refused_and_what_is_in_flight_is_answered() -> None:
    play = Playing()
    channel = play.opened()
    play.transfer.store(channel, command(), EXPLICIT)
    play.transfer.data(channel, dataset()[:200], False)
    play.transfer.discard()
    # DCMTK and Orthanc look at a C-CANCEL only after this answer.
    play.transfer.data(channel, dataset()[200:], True)
    assert channel.answers == [(ONE, 0)]
    play.store(channel, TWO)
    assert channel.answers[-1] == (TWO, 0xA700)
    assert not play.scene.sink.output


def test_an_association_that_ends_inside_an_instance_cuts_an_answer_that_has_its_first_bytes() -> None:
    play = Playing()
    channel = play.opened()
    play.transfer.store(channel, command(), EXPLICIT)
    play.transfer.data(channel, dataset()[:-10], False)
    play.scene.clock.advance(SOON)
    assert play.scene.outflow.started
    play.transfer.closed(channel, False)
    assert play.scene.sink.aborted


def test_an_association_that_ends_before_an_instance_is_known_harms_nobody() -> None:
    play = Playing(frozenset({TWO}))
    lost, good = play.opened(), play.opened()
    play.transfer.store(lost, command(), EXPLICIT)
    play.transfer.data(lost, dataset()[:200], False)
    assert play.transfer.busy
    assert not play.transfer.satisfied
    play.transfer.closed(lost, False)
    play.store(good, TWO)
    assert play.transfer.satisfied
    assert not play.scene.sink.aborted


def test_what_the_kos_lists_and_what_came_are_compared() -> None:
    play = Playing(frozenset({ONE, "2.25.200"}))
    channel = play.opened()
    play.store(channel)
    play.store(channel, TWO)
    assert play.transfer.missing == {"2.25.200"}
    assert play.transfer.unexpected == {TWO}
    assert play.transfer.received == 2
    assert not play.transfer.satisfied


def test_without_a_kos_nothing_is_missing_nor_ever_known_to_be_all() -> None:
    play = Playing(None)
    play.store(play.opened())
    assert not play.transfer.missing
    assert not play.transfer.unexpected
    assert not play.transfer.satisfied


@pytest.mark.requirement("DB.SO.85")
@pytest.mark.parametrize(
    ("proposed", "avoid", "chosen", "among"),
    [
        ((EXPLICIT_LE, JPEG_LS_LOSSLESS), (), JPEG_LS_LOSSLESS, True),
        ((EXPLICIT_LE, JPEG_LS_LOSSLESS), (JPEG_LS_LOSSLESS,), EXPLICIT_LE, False),
        ((IMPLICIT_LE,), (), IMPLICIT_LE, False),
        ((IMPLICIT_LE, EXPLICIT_LE), (), EXPLICIT_LE, True),
        ((EXPLICIT_BE, RLE_LOSSLESS), (), None, False),
    ],
)
def test_the_client_s_wishes_choose_among_what_the_pacs_proposes(
    proposed: tuple[str, ...], avoid: tuple[str, ...], chosen: str | None, among: bool
) -> None:
    play = Playing(avoid=frozenset(avoid))
    assert play.transfer.choose(ProposedContext(1, CT, proposed)) == chosen
    assert play.transfer.tally.chosen_among == ({chosen} if among else set())
    assert play.transfer.tally.unacceptable == (set(proposed) if chosen is None else set())


def test_silence_that_is_ours_is_not_held_against_the_pacs() -> None:
    play = Playing()
    channel = play.opened()
    play.scene.clock.advance(1)
    play.scene.sink.pause()
    data = dataset()
    play.transfer.store(channel, command(), EXPLICIT)
    play.transfer.data(channel, data + bytes(2 << 20), False)
    assert channel.paused
    assert play.transfer.held_back
    play.scene.clock.advance(3)
    play.scene.sink.resume()
    assert not play.transfer.held_back
    assert play.transfer.last_activity == 4


@pytest.mark.threat("forged dimensions, codec out of bounds")
def test_instances_that_wait_for_a_codec_slow_the_one_association_they_came_on() -> None:
    play = Playing(frozenset({ONE, TWO}))
    transfer = Transfer(
        study_uid=STUDY,
        series_uid=SERIES,
        due={ONE, TWO},
        acceptable=BOTH,
        outflow=play.scene.outflow,
        clock=play.scene.clock,
        max_collected=1 << 30,
    )
    channel = FakeChannel()
    transfer.opened(channel)
    # Nothing accepts RLE as it is, and no codec ever answers.
    transfer.store(channel, command(ONE), RLE_LOSSLESS)
    transfer.data(channel, dataset(ONE) + bytes(2 << 20), False)
    # What comes for the head is wanted whatever it weighs.
    assert not channel.paused
    transfer.data(channel, bytes(10), True)
    assert channel.paused

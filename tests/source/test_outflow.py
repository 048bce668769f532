"""Parts on their way to one client: order, bounds, patience, and no answer that only looks complete."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from drimbox.ports import SpoolFull
from drimbox.source.batch import SOON
from drimbox.source.overflow import BLOCK
from drimbox.source.parts import Part
from tests.source.answers import FakeArea, FakeSink, Scene, bare_part


def end(scene: Scene, part: Part, data: bytes = b"") -> None:
    part.ended = True
    scene.outflow.push(part, [data] if data else [])


def begun(scene: Scene, part: Part) -> None:
    """Let the first bytes of a part leave."""
    scene.outflow.push(part, [b"begun"])
    scene.clock.advance(SOON)


def test_a_part_leaves_as_it_comes_and_the_answer_is_closed_once() -> None:
    scene = Scene()
    one = bare_part(scene.channel())
    scene.outflow.push(one, [b"first"])
    scene.clock.advance(SOON)
    assert scene.sink.output.endswith(b"first")
    assert scene.outflow.held == 0
    end(scene, one, b"last")
    assert scene.sent == [one]
    scene.outflow.complete()
    assert scene.sink.read() == ([b"firstlast"], True)
    assert scene.sink.finished
    scene.quiet()


def test_an_empty_part_is_no_part() -> None:
    scene = Scene()
    scene.outflow.push(bare_part(scene.channel()), [])
    assert not scene.outflow.started


@pytest.mark.requirement("DB.SO.85")
def test_parts_of_several_associations_never_interleave() -> None:
    scene = Scene()
    one, two = bare_part(scene.channel()), bare_part(scene.channel())
    for _ in range(3):
        scene.outflow.push(one, [b"1" * 10])
        scene.outflow.push(two, [b"2" * 10])
    end(scene, two)
    assert scene.sent == []
    end(scene, one)
    assert scene.sent == [one, two]
    scene.outflow.complete()
    assert scene.sink.read() == ([b"1" * 30, b"2" * 30], True)
    scene.quiet()


def test_an_association_waiting_for_its_turn_is_paused_while_the_head_reads_on() -> None:
    scene = Scene(window=100)
    head, other = scene.channel(), scene.channel()
    one, two = bare_part(head), bare_part(other)
    scene.outflow.push(one, [b"1"])
    scene.outflow.push(two, [b"2" * 101])
    assert other.paused
    assert not head.paused
    assert not scene.outflow.held_back
    # Its end lets the other on: had it been paused too, nothing would ever move.
    end(scene, one)
    assert not other.paused
    assert scene.released == 1
    end(scene, two)
    scene.outflow.complete()
    scene.quiet()


def test_over_the_window_every_association_is_paused_and_let_go_at_half_of_it() -> None:
    scene = Scene(window=100)
    channel = scene.channel()
    one = bare_part(channel)
    scene.sink.pause()
    scene.outflow.push(one, [b"x" * 60])
    assert not channel.paused
    scene.outflow.push(one, [b"x" * 60])
    assert channel.paused
    assert scene.outflow.held_back
    late = scene.channel()
    assert late.paused
    scene.sink.full = True
    scene.sink.resume()  # one piece leaves, then the connection is full again
    assert scene.outflow.held == 60
    assert channel.paused
    scene.sink.resume()
    assert scene.outflow.held == 0
    assert not channel.paused
    assert not late.paused
    assert scene.budget.used == 0


def test_after_the_pacs_s_patience_the_rest_goes_to_disk() -> None:
    """The client reads now and then, not enough for the PACS."""
    scene = Scene(window=100)
    channel = scene.channel()
    one = bare_part(channel)
    scene.sink.full = True
    scene.sink.pause()
    scene.outflow.push(one, [bytes([number]) * 10 for number in range(70)])
    for _ in range(12):
        scene.clock.advance(0.4)
        scene.sink.resume()
        assert channel.paused
        assert not scene.area.files
    scene.clock.advance(0.3)
    assert scene.area.pending
    scene.area.settle()
    assert not channel.paused
    scene.sink.full = False
    scene.sink.resume()
    end(scene, one)
    scene.area.settle()
    scene.outflow.complete()
    assert scene.sink.read() == ([b"".join(bytes([number]) * 10 for number in range(70))], True)
    scene.quiet()


def test_no_patience_is_spent_on_a_client_that_takes_nothing() -> None:
    scene = Scene(window=100)
    channel = scene.channel()
    one = bare_part(channel)
    scene.sink.pause()
    scene.outflow.push(one, [b"a" * 150])
    scene.clock.advance(0.4)
    assert channel.paused
    assert not scene.area.files
    scene.clock.advance(0.2)
    assert scene.area.pending
    # The disk is not the PACS's business either: it reads again once the block is written.
    assert channel.paused
    scene.area.step()
    assert not channel.paused
    assert scene.outflow.held == 0
    scene.outflow.push(one, [b"b" * 50])
    end(scene, one)
    scene.area.settle()
    assert scene.outflow.held == 0
    scene.sink.resume()
    scene.area.settle()
    assert scene.sent == [one]
    scene.outflow.complete()
    assert scene.sink.read() == ([b"a" * 150 + b"b" * 50], True)
    scene.quiet()


def test_large_blocks_go_to_disk_in_pieces_and_come_back_one_at_a_time() -> None:
    scene = Scene(window=4 * BLOCK)
    one = bare_part(scene.channel())
    scene.sink.pause()
    pieces = [bytes([number]) * (BLOCK // 4) for number in range(18)]
    for piece in pieces:
        scene.outflow.push(one, [piece])
    scene.clock.advance(5.1)
    assert len(scene.area.pending) == 5
    scene.area.settle()
    assert scene.outflow.held == 0
    scene.sink.resume()
    assert len(scene.area.pending) == 1
    scene.area.step()
    assert scene.outflow.held <= BLOCK + BLOCK // 4
    scene.area.settle()
    end(scene, one)
    scene.outflow.complete()
    assert scene.sink.read() == ([b"".join(pieces)], True)
    scene.quiet()


def test_memory_serves_again_once_the_disk_is_read() -> None:
    scene = Scene(window=100)
    one = bare_part(scene.channel())
    scene.sink.pause()
    scene.outflow.push(one, [b"x" * 200])
    scene.clock.advance(5.1)
    scene.area.settle()
    scene.sink.resume()
    scene.area.settle()
    scene.outflow.push(one, [b"direct"])
    scene.clock.advance(SOON)
    assert scene.sink.output.endswith(b"direct")
    scene.sink.pause()
    scene.outflow.push(one, [b"y" * 50])
    assert not scene.area.pending
    assert scene.outflow.held == 50


def test_without_a_spool_a_client_that_outlasts_the_patience_is_cut() -> None:
    scene = Scene(FakeArea(enabled=False), window=100)
    channel = scene.channel()
    one = bare_part(channel)
    begun(scene, one)
    scene.sink.pause()
    scene.outflow.push(one, [b"x" * 200])
    scene.clock.advance(5.1)
    assert scene.sink.aborted
    assert not scene.sink.finished
    assert "trop lent" in scene.failures[0]
    assert not channel.paused
    scene.outflow.complete()
    assert not scene.sink.read()[1]
    scene.quiet()


def test_without_a_spool_a_client_that_only_just_paused_is_not_blamed() -> None:
    scene = Scene(FakeArea(enabled=False), window=100)
    one, two = bare_part(scene.channel()), bare_part(scene.channel())
    scene.outflow.push(one, [b"begun"])
    scene.outflow.push(two, [b"x" * 200])  # the second association waits, the client does not
    scene.clock.advance(20.0)
    assert not scene.failures
    scene.sink.pause()
    scene.clock.advance(4.0)
    assert not scene.failures
    scene.clock.advance(5.1)
    assert scene.failures


def test_a_full_spool_cuts_the_answer() -> None:
    scene = Scene(FakeArea(room=120), window=100)
    one = bare_part(scene.channel())
    begun(scene, one)
    scene.sink.pause()
    scene.outflow.push(one, [b"x" * 101])
    scene.clock.advance(5.1)
    scene.area.settle()
    assert not scene.failures
    end(scene, one, b"y" * 101)
    assert scene.sink.aborted
    assert scene.failures == ["client trop lent, espace tampon sur disque plein"]
    scene.quiet()


@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_broken_disk_cuts_the_answer(operation: str) -> None:
    scene = Scene(window=100)
    one = bare_part(scene.channel())
    begun(scene, one)
    scene.sink.pause()
    scene.outflow.push(one, [b"x" * 101])
    scene.clock.advance(5.1)
    if operation == "read":
        scene.area.settle()
        scene.sink.resume()
    scene.area.step(OSError("No space left on device"))
    assert scene.failures == ["espace tampon sur disque en erreur"]
    assert scene.sink.aborted
    scene.quiet()


def test_a_disk_that_never_answers_does_not_hold_the_client_for_ever() -> None:
    scene = Scene(window=100)
    one = bare_part(scene.channel())
    scene.sink.pause()
    scene.outflow.push(one, [b"x" * 101])
    scene.clock.advance(5.1)
    scene.area.settle()
    scene.sink.resume()
    scene.clock.advance(60.1)
    assert scene.failures == ["espace tampon sur disque sans réponse"]
    scene.quiet()


@pytest.mark.threat("slowloris, stalled reader")
def test_a_client_that_reads_nothing_is_cut() -> None:
    scene = Scene()
    one = bare_part(scene.channel())
    begun(scene, one)
    scene.sink.pause()
    scene.clock.advance(59.0)
    scene.sink.resume()
    scene.sink.pause()
    scene.clock.advance(59.0)
    assert not scene.failures
    scene.clock.advance(1.1)
    assert scene.failures == ["client sans lecture depuis 60 s"]
    assert scene.sink.aborted
    scene.quiet()


@pytest.mark.threat("slowloris, stalled reader")
def test_a_client_that_reads_slowly_is_not_cut() -> None:
    scene = Scene()
    one = bare_part(scene.channel())
    begun(scene, one)
    scene.sink.pause()
    for _ in range(10):
        scene.clock.advance(40.0)
        scene.sink.pause()  # still full, but something was read
    assert not scene.failures
    scene.clock.advance(60.1)
    assert scene.failures == ["client sans lecture depuis 60 s"]
    scene.quiet()


def test_failure_reaches_its_owner_before_whoever_waits_for_the_end() -> None:
    scene = Scene()
    one = bare_part(scene.channel())
    scene.sink.pause()
    end(scene, one, b"x")
    seen: list[list[str]] = []
    waiting = Deferred.fromCoroutine(scene.outflow.drain())
    waiting.addCallback(lambda _: seen.append(list(scene.failures)))
    scene.outflow.fail("cut")
    # Woken first, it would find no failure and call the answer complete.
    assert seen == [["cut"]]


def test_drain_waits_for_the_client() -> None:
    scene = Scene()
    one = bare_part(scene.channel())
    scene.sink.pause()
    end(scene, one, b"x")
    waiting = Deferred.fromCoroutine(scene.outflow.drain())
    assert not waiting.called
    with pytest.raises(RuntimeError):
        scene.outflow.complete()
    scene.sink.resume()
    assert waiting.called
    scene.outflow.complete()
    scene.quiet()


def test_a_part_given_up_before_its_first_byte_leaves_no_trace() -> None:
    scene = Scene(window=100)
    one, two, three = (bare_part(scene.channel()) for _ in range(3))
    scene.outflow.push(one, [b"1"])
    scene.outflow.push(two, [b"2" * 150])
    end(scene, three, b"3")
    scene.outflow.drop(two, "association ended inside an instance")
    assert scene.outflow.held == 1
    end(scene, one)
    scene.outflow.complete()
    assert scene.sink.read() == ([b"1", b"3"], True)
    scene.quiet()


@pytest.mark.parametrize("when", ["writing", "written", "reading"])
def test_a_part_given_up_on_disk_gives_everything_back(when: str) -> None:
    scene = Scene(window=100)
    one, two = bare_part(scene.channel()), bare_part(scene.channel())
    scene.sink.pause()
    scene.outflow.push(one, [b"1" * 150])
    end(scene, two, b"2" * 20)
    scene.clock.advance(5.1)
    if when != "writing":
        scene.area.settle()
    if when == "reading":
        scene.sink.full = True
        scene.sink.resume()
    scene.outflow.drop(one, "association ended inside an instance")
    scene.sink.full = False
    scene.sink.resume()
    scene.area.settle()
    assert scene.outflow.held == 0
    assert scene.budget.used == 0
    scene.outflow.complete()
    assert scene.sink.read() == ([b"2" * 20], True)
    scene.quiet()


def test_a_part_given_up_after_its_first_byte_cuts_the_answer() -> None:
    scene = Scene()
    one = bare_part(scene.channel())
    scene.outflow.push(one, [b"half"])
    scene.clock.advance(SOON)
    scene.outflow.drop(one, "association ended inside an instance")
    assert scene.sink.aborted
    assert scene.failures == ["association ended inside an instance"]
    scene.outflow.push(one, [b"more"])
    scene.outflow.complete()
    assert scene.sink.read() == ([], False)
    scene.quiet()


def test_a_failure_before_the_first_byte_leaves_the_connection_for_a_status() -> None:
    scene = Scene()
    scene.outflow.fail("nothing came")
    assert not scene.sink.aborted
    assert not scene.sink.content_type
    scene.outflow.fail("again")
    assert scene.failures == ["nothing came"]


def test_an_association_that_is_over_is_not_touched_any_more() -> None:
    scene = Scene(window=100)
    channel = scene.channel()
    one = bare_part(channel)
    scene.sink.pause()
    end(scene, one, b"x" * 200)
    assert channel.paused
    scene.outflow.leave(channel)
    scene.sink.resume()
    assert channel.paused


def test_the_budget_of_all_pauses_who_holds_and_tells_when_there_is_room() -> None:
    scene = Scene(window=1000, total=100)
    quick_sink = FakeSink()
    quick = scene.another(quick_sink)
    slow_channel, quick_channel = scene.channel(), scene.channel()
    scene.outflow.leave(quick_channel)
    quick.join(quick_channel)
    slow_part, quick_part = bare_part(slow_channel), bare_part(quick_channel)
    scene.sink.pause()
    scene.outflow.push(slow_part, [b"x" * 101])
    assert slow_channel.paused
    # Who holds nothing is not made to wait: its bytes pass through.
    quick.push(quick_part, [b"y" * 50])
    assert not quick_channel.paused
    scene.clock.advance(SOON)
    assert quick_sink.output.endswith(b"y" * 50)
    quick_sink.pause()
    quick.push(quick_part, [b"y" * 50])
    assert quick_channel.paused
    # Nothing happens on the quick answer itself: only the other one makes room.
    scene.sink.resume()
    assert not quick_channel.paused
    assert not slow_channel.paused
    assert scene.budget.used == 50
    quick.close()
    assert scene.budget.used == 0


def test_giving_memory_back_never_sends_a_piece_twice() -> None:
    scene = Scene(window=1000, total=100)
    one = bare_part(scene.channel())
    scene.sink.pause()
    for number in range(30):
        scene.outflow.push(one, [bytes([65 + number % 26]) * 10])
    scene.sink.resume()  # the budget is no longer exceeded half-way through
    end(scene, one)
    scene.outflow.complete()
    assert scene.sink.parts() == [b"".join(bytes([65 + number % 26]) * 10 for number in range(30))]
    scene.quiet()


def test_the_fake_disk_is_a_disk() -> None:
    area = FakeArea(room=10)
    file = area.open()
    assert file.reserve(6) == 0
    with pytest.raises(SpoolFull):
        file.reserve(5)
    file.empty()
    assert file.reserve(10) == 0

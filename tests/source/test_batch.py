"""What several reads of a PACS bring leaves together: after the C-STORE is answered, or soon."""

from __future__ import annotations

import pytest

from drimbox.source.batch import SOON, TOGETHER
from drimbox.source.parts import Part
from tests.source.answers import FakeSink, Scene, bare_part


class CountingSink(FakeSink):
    """A client that counts the writes."""

    writes = 0

    def write(self, *pieces: bytes | memoryview) -> None:
        self.writes += 1
        super().write(*pieces)


@pytest.fixture
def scene() -> Scene:
    scene = Scene(window=10 * TOGETHER)
    scene.sink = CountingSink()
    scene.outflow.close()
    scene.outflow = scene.another(scene.sink, 10 * TOGETHER)
    return scene


def writes(scene: Scene) -> int:
    assert isinstance(scene.sink, CountingSink)
    return scene.sink.writes


def end(scene: Scene, part: Part, data: bytes) -> None:
    part.ended = True
    scene.outflow.push(part, [data])


@pytest.mark.requirement("DB.SO.100")
def test_an_instance_leaves_in_one_write_once_it_is_whole(scene: Scene) -> None:
    for _ in range(2):
        part = bare_part(scene.channel())
        scene.outflow.push(part, [b"a" * 1000])
        scene.outflow.push(part, [b"b" * 1000])
        end(scene, part, b"c")
    assert writes(scene) == 2
    scene.outflow.complete()
    assert scene.sink.read() == ([b"a" * 1000 + b"b" * 1000 + b"c"] * 2, True)
    scene.quiet()


@pytest.mark.requirement("DB.SO.113")
def test_what_a_slow_pacs_sends_does_not_wait_for_the_rest(scene: Scene) -> None:
    part = bare_part(scene.channel())
    scene.outflow.push(part, [b"a"])
    assert not scene.outflow.started
    scene.clock.advance(SOON)
    assert scene.sink.output.endswith(b"a")
    scene.outflow.push(part, [b"b"])
    scene.clock.advance(SOON)
    assert scene.sink.output.endswith(b"ab")


def test_a_large_instance_flows_while_it_comes(scene: Scene) -> None:
    part = bare_part(scene.channel())
    for number in range(1, 4):
        scene.outflow.push(part, [b"x" * (TOGETHER // 2), b"y" * (TOGETHER // 2)])
        assert writes(scene) == number
    assert scene.outflow.held == 0


def test_what_waits_when_the_client_stops_reading_leaves_first_when_it_reads_again(scene: Scene) -> None:
    part = bare_part(scene.channel())
    scene.outflow.push(part, [b"1"])
    scene.sink.pause()
    scene.outflow.push(part, [b"2"])
    scene.clock.advance(SOON)
    assert not scene.sink.output
    scene.sink.resume()
    assert scene.sink.output.endswith(b"12")
    end(scene, part, b"3")
    scene.outflow.complete()
    assert scene.sink.read() == ([b"123"], True)
    scene.quiet()


def test_an_instance_given_up_before_anything_of_it_left_costs_nothing(scene: Scene) -> None:
    lost = bare_part(scene.channel())
    scene.outflow.push(lost, [b"half"])
    scene.outflow.drop(lost, "association ended inside an instance")
    assert not scene.failures
    good = bare_part(scene.channel())
    end(scene, good, b"whole")
    scene.outflow.complete()
    assert scene.sink.read() == ([b"whole"], True)
    scene.quiet()


def test_a_later_instance_given_up_takes_nothing_of_the_one_before(scene: Scene) -> None:
    first, second = bare_part(scene.channel()), bare_part(scene.channel())
    scene.outflow.push(first, [b"first"])
    scene.outflow.push(second, [b"second"])
    scene.outflow.drop(second, "association ended inside an instance")
    end(scene, first, b".")
    scene.outflow.complete()
    assert scene.sink.read() == ([b"first."], True)
    scene.quiet()


def test_an_answer_cut_leaves_no_timer(scene: Scene) -> None:
    scene.outflow.push(bare_part(scene.channel()), [b"a"])
    scene.outflow.fail("gone")
    scene.quiet()

"""Workers: a few rows at once, in one look at a time, whatever breaks."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.store.errors import NotInHand
from drimbox.worker import Worker


class Queue:
    """A queue in memory whose takes and works the test lets finish."""

    def __init__(self, rows: Sequence[str] = (), *, parallel: int = 2) -> None:
        self.rows = list(rows)
        self.looks = 0
        self.working: dict[str, Deferred[None]] = {}
        self.put_off: list[str] = []
        self.causes: list[Exception] = []
        self.failures: list[Exception] = []
        self.gate: Deferred[None] | None = None
        self.broken_error: Exception | None = None
        self.tries = 0
        self.renewals: list[list[str]] = []
        self.renewing: Deferred[None] | None = None
        self.clock = Clock()
        self.held = 0.0
        self.worker: Worker[str] = Worker(
            "queue",
            take=self.take,
            work=self.work,
            broken=self.broken,
            parallel=parallel,
            clock=self.clock,
            interval=1.0,
            hold=lambda: self.held,
            renew=self.renew,
            renew_every=75.0,
        )

    async def take(self, limit: int) -> list[str]:
        self.looks += 1
        assert 0 < limit <= 2
        if self.gate is not None:
            await self.gate
        if self.failures:
            raise self.failures.pop()
        taken, self.rows = self.rows[:limit], self.rows[limit:]
        return taken

    async def work(self, row: str) -> None:
        assert row not in self.working
        self.working[row] = Deferred()
        await self.working[row]

    async def renew(self, rows: Sequence[str]) -> None:
        self.renewals.append(list(rows))
        if self.renewing is not None:
            await self.renewing

    async def broken(self, row: str, error: Exception) -> None:
        self.tries += 1
        self.causes.append(error)
        if self.broken_error is not None:
            raise self.broken_error
        self.put_off.append(row)

    def end(self, row: str, error: Exception | None = None) -> None:
        done = self.working.pop(row)
        if error is None:
            done.callback(None)
        else:
            done.errback(error)


def test_at_most_so_many_rows_at_once_and_the_next_as_soon_as_one_ends() -> None:
    queue = Queue("abcde")
    queue.worker.startService()
    assert set(queue.working) == {"a", "b"}
    queue.clock.advance(5)
    assert set(queue.working) == {"a", "b"}
    queue.end("b")
    assert set(queue.working) == {"a", "c"}
    for row in "acde":
        queue.end(row)
    assert queue.working == {}
    assert queue.rows == []


def test_an_empty_queue_is_looked_at_at_every_interval_and_at_a_wake() -> None:
    queue = Queue()
    queue.worker.startService()
    assert queue.looks == 1
    queue.clock.pump([0.5, 0.5, 0.5, 0.5])
    assert queue.looks == 3
    queue.rows.append("a")
    queue.worker.wake()
    assert set(queue.working) == {"a"}
    # One timer at a time, however often it was woken, beside that of the renewal.
    for _ in range(10):
        queue.worker.wake()
    assert len(queue.clock.getDelayedCalls()) == 2


def test_wakes_during_a_look_make_one_more_look() -> None:
    queue = Queue()
    queue.gate = Deferred()
    queue.worker.startService()
    for _ in range(100):
        queue.worker.wake()
    assert queue.looks == 1
    queue.rows.append("a")
    gate, queue.gate = queue.gate, None
    gate.callback(None)
    assert queue.looks == 2
    assert set(queue.working) == {"a"}


def test_a_row_whose_work_breaks_is_put_off_and_the_others_go_on() -> None:
    queue = Queue("abc")
    queue.worker.startService()
    bug = RuntimeError("bug")
    queue.end("a", bug)
    assert queue.put_off == ["a"]
    assert queue.causes == [bug]
    assert set(queue.working) == {"b", "c"}


def test_a_row_that_cannot_be_put_off_is_tried_until_it_can_and_no_other_joins_it() -> None:
    queue = Queue("abc")
    queue.broken_error = OSError("disk full")
    queue.worker.startService()
    queue.end("a", RuntimeError("bug"))
    assert set(queue.working) == {"b"}
    tries = [1, 2, 4, 8, 16, 32, 60, 60]
    for wait in tries:
        queue.clock.advance(wait - 0.5)
        queue.clock.advance(0.5)
    assert queue.tries == 1 + len(tries)
    queue.broken_error = None
    queue.clock.advance(60)
    assert queue.put_off == ["a"]
    assert set(queue.working) == {"b", "c"}


def test_a_row_that_had_ended_before_its_work_broke_is_left_alone() -> None:
    queue = Queue("abc")
    queue.broken_error = NotInHand("outbox", 1)
    queue.worker.startService()
    queue.end("a", RuntimeError("bug"))
    assert queue.tries == 1
    assert set(queue.working) == {"b", "c"}


def test_a_stop_does_not_wait_for_a_row_that_cannot_be_put_off() -> None:
    queue = Queue("a")
    queue.broken_error = OSError("disk full")
    queue.worker.startService()
    queue.end("a", RuntimeError("bug"))
    queue.clock.advance(1)
    stopped = queue.worker.stopService()
    assert stopped is None or stopped.called
    assert queue.clock.getDelayedCalls() == []


def test_a_queue_that_cannot_be_read_is_looked_at_again() -> None:
    queue = Queue("a")
    queue.failures = [OSError("locked"), OSError("locked")]
    queue.worker.startService()
    assert queue.working == {}
    queue.clock.advance(1)
    queue.clock.advance(1)
    assert set(queue.working) == {"a"}


def test_a_stop_waits_for_what_is_in_hand_and_takes_no_more() -> None:
    queue = Queue("abc")
    queue.worker.startService()
    stopped = queue.worker.stopService()
    assert stopped is not None
    assert queue.worker.stopService() is stopped
    queue.end("a")
    assert not stopped.called
    queue.end("b")
    assert stopped.called
    queue.worker.wake()
    queue.clock.advance(10)
    assert queue.rows == ["c"]
    assert queue.clock.getDelayedCalls() == []


def test_a_stop_waits_for_a_look_that_is_under_way_and_for_what_it_took() -> None:
    queue = Queue("a")
    queue.gate = Deferred()
    queue.worker.startService()
    stopped = queue.worker.stopService()
    assert stopped is not None
    queue.gate.callback(None)
    assert not stopped.called
    queue.end("a")
    assert stopped.called


def test_a_stop_of_an_idle_worker_is_at_once_and_it_can_start_again() -> None:
    queue = Queue()
    queue.worker.startService()
    assert queue.worker.stopService() is None
    assert queue.clock.getDelayedCalls() == []
    queue.rows.append("a")
    queue.worker.wake()
    assert queue.working == {}
    queue.worker.startService()
    assert set(queue.working) == {"a"}


def test_rows_that_end_at_once_do_not_pile_up() -> None:
    """Hundreds of rows whose work never waits: no recursion, none forgotten."""
    done: list[int] = []
    rows = list(range(500))

    async def take(limit: int) -> list[int]:
        taken = rows[:limit]
        del rows[:limit]
        return taken

    async def work(row: int) -> None:
        done.append(row)

    async def broken(row: int) -> None:
        raise AssertionError(row)

    worker: Worker[int] = Worker(
        "quick", take=take, work=work, broken=broken, parallel=2, clock=Clock(), interval=1.0
    )
    worker.startService()
    assert done == list(range(500))


def test_no_row_is_taken_while_something_else_goes_first() -> None:
    queue = Queue(["a"])
    queue.held = 0.01
    queue.worker.startService()
    queue.clock.advance(0.01)
    queue.worker.wake()
    assert (queue.looks, queue.working) == (0, {})
    queue.held = 0.0
    queue.clock.advance(0.01)
    assert list(queue.working) == ["a"]


# -- leases ------------------------------------------------------------------------------------------


def test_rows_are_renewed_for_as_long_as_they_are_worked_on_and_no_others() -> None:
    queue = Queue("abc")
    queue.worker.startService()
    queue.clock.pump([25] * 3)
    assert queue.renewals == [["a", "b"]]
    queue.end("a")
    queue.clock.pump([25] * 3)
    assert queue.renewals[1:] == [["b", "c"]]
    for row in "bc":
        queue.end(row)
    queue.clock.pump([25] * 12)
    assert len(queue.renewals) == 2
    queue.rows.append("d")
    queue.worker.wake()
    queue.clock.pump([25] * 3)
    assert queue.renewals[2:] == [["d"]]


def test_a_row_that_cannot_be_put_off_is_still_renewed() -> None:
    queue = Queue("a")
    queue.worker.startService()
    queue.broken_error = OSError("disk full")
    queue.end("a", ValueError("broken"))
    queue.clock.pump([25] * 3)
    assert queue.renewals == [["a"]]


def test_a_renewal_that_fails_or_takes_its_time_is_followed_by_another_and_never_doubled() -> None:
    queue = Queue("a")
    queue.worker.startService()
    queue.renewing = Deferred()
    queue.clock.pump([25] * 9)
    assert len(queue.renewals) == 1, "the first is still under way"
    failing, queue.renewing = queue.renewing, None
    failing.errback(OSError("database away"))
    queue.clock.pump([25] * 3)
    assert len(queue.renewals) == 2
    assert set(queue.working) == {"a"}


def test_a_stop_renews_what_it_waits_for_and_leaves_no_timer() -> None:
    queue = Queue("a")
    queue.worker.startService()
    stopping = queue.worker.stopService()
    assert stopping is not None
    queue.clock.pump([25] * 6)
    assert len(queue.renewals) == 2
    queue.end("a")
    assert stopping.called
    assert queue.clock.getDelayedCalls() == []

"""Who may come in at a door: counts, pace, and what is remembered of whoever knocks."""

from __future__ import annotations

import pytest

from drimbox.limits import MAX_PACES, Doorkeeper, Pace, Why, host_of


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_an_address_is_counted_as_one_host_would_have_it(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.threat("slowloris, stalled reader")
def test_one_address_does_not_take_what_is_there_for_all() -> None:
    doorkeeper = Doorkeeper(10, 4)
    answers = [doorkeeper.admit("10.0.0.1") for _ in range(6)]
    assert answers == [None] * 4 + [Why.ADDRESS] * 2
    assert [doorkeeper.admit(f"10.0.0.{n}") for n in range(2, 10)] == [None] * 6 + [Why.TOTAL] * 2
    doorkeeper.leave("10.0.0.1")
    assert doorkeeper.admit("10.0.0.1") is None
    assert len(doorkeeper) == 10


def test_strangers_have_a_part_of_their_own() -> None:
    doorkeeper = Doorkeeper(3, 10, strangers=2)
    assert [doorkeeper.admit("10.9.9.9", stranger=True) for _ in range(3)] == [None, None, Why.STRANGER]
    assert [doorkeeper.admit("10.0.0.1") for _ in range(4)] == [None, None, None, Why.TOTAL]
    doorkeeper.leave("10.9.9.9", stranger=True)
    assert doorkeeper.admit("10.0.0.1") is Why.TOTAL
    assert doorkeeper.admit("10.9.9.8", stranger=True) is None


def test_a_burst_is_let_in_and_then_one_after_the_other() -> None:
    now = Time()
    doorkeeper = Doorkeeper(1000, 1000, pace=Pace(2.0, 5, now))
    answers = [doorkeeper.admit("10.0.0.1") for _ in range(8)]
    assert answers == [None] * 5 + [Why.RATE] * 3
    # Knocking in vain costs nothing: the pace stays what it is.
    now.now += 1.0
    assert [doorkeeper.admit("10.0.0.1") for _ in range(4)] == [None, None, Why.RATE, Why.RATE]
    assert doorkeeper.admit("10.0.0.2") is None
    now.now += 60.0
    assert [doorkeeper.admit("10.0.0.1") for _ in range(6)] == [None] * 5 + [Why.RATE]


def test_what_is_remembered_is_bounded_and_nothing_stays_of_the_refused() -> None:
    now = Time()
    pace = Pace(1.0, 2, now)
    doorkeeper = Doorkeeper(100, 1, pace=pace)
    for number in range(3 * MAX_PACES):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        if doorkeeper.admit(address) is None:
            doorkeeper.leave(address)
    assert len(pace) == MAX_PACES
    assert len(doorkeeper) == 0
    assert not doorkeeper._by_host

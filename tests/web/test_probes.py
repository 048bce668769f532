"""Who may ask for the state of the gateway: lists of every shape, and what becomes of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted

from drimbox.config import HealthSettings
from drimbox.trust.download import FetchFailed
from drimbox.web.probes import KEPT, MAX_BYTES, ListRefused, Probes, read_list

T = TypeVar("T")
pytestmark = pytest.mark.requirement("DB.SO.182")


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.10\n2001:db8::10\n198.51.100.0/24\n",
        "\ufeff# probes\r\n192.0.2.10 # Paris\r\n2001:db8::10/128\r\n198.51.100.0/24\r\n",
        'Country;City;IP\nFrance;Paris;"192.0.2.10, 2001:db8::10"\nGermany;Berlin;198.51.100.0/24;v1.2\n',
        '[{"city": "Paris", "ip_addresses": ["192.0.2.10", "2001:db8::10"]},\n{"n": ["198.51.100.0/24"]}]',
        "<li>192.0.2.10</li><li>2001:db8::10</li>\n198.51.100.7/24",
    ],
)
def test_addresses_are_found_whatever_stands_beside_them(text: str) -> None:
    assert {str(network) for network in read_list(text.encode())} == {
        "192.0.2.10/32",
        "2001:db8::10/128",
        "198.51.100.0/24",
    }


def test_only_the_regions_wanted_count() -> None:
    text = "Europe;Paris;192.0.2.1\nEUROPE;Rome;192.0.2.2\nNorth America;Boston;192.0.2.3\n192.0.2.4\n"
    found = read_list(text.encode(), ["europe"])
    assert {str(network.network_address) for network in found} == {"192.0.2.1", "192.0.2.2"}
    with pytest.raises(ListRefused):
        read_list(text.encode(), ["Asia"])


@pytest.mark.threat("the health check, open to the Internet")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html><body>401 Unauthorized</body></html>",
        b"0.0.0.0/0\n::/0\n1.2.3.4/2",
        b"1.2.3\n300.1.1.1\n12345\n1.2.3.4.5",
        b"\xff\xfe\x00" * 10,
        b"192.0.2.1\n" * (MAX_BYTES // 10 + 1),
        b"".join(b"10.%d.%d.1\n" % (n // 250, n % 250) for n in range(10_001)),
    ],
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(ListRefused):
        read_list(data)


class Notices:
    def __init__(self) -> None:
        self.open: dict[str, str] = {}

    async def post(self, *, key: str, code: str, text: str) -> None:
        self.open[key] = text

    async def resolve(self, key: str) -> bool:
        return self.open.pop(key, None) is not None


class World:
    """A publisher, a clock, a state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notices = Notices()
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self.published: bytes | None = b"192.0.2.1"
        self.asked = 0

    async def fetch(self) -> bytes:
        self.asked += 1
        if self.published is None:
            raise FetchFailed("serveur injoignable")
        return self.published

    async def in_thread(self, work: Callable[[], T]) -> T:
        return work()

    def probes(self, *, fetched: bool = True, **settings: Any) -> Probes:
        return Probes(
            HealthSettings(**settings),
            self.notices,
            fetch=self.fetch if fetched else None,
            now=lambda: self.time,
            in_thread=self.in_thread,
            folder=self.folder,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_without_any_address_nobody_may_ask(world: World) -> None:
    probes = world.probes(fetched=False)
    assert not any(map(probes.allows, ("127.0.0.1", "::1", "192.0.2.1", "")))


def test_configured_networks_may_ask_also_through_a_door_on_both_families(world: World) -> None:
    probes = world.probes(fetched=False, addresses=("192.0.2.0/24", "2001:db8::/32"))
    assert all(map(probes.allows, ("192.0.2.77", "::ffff:192.0.2.77", "2001:db8::1")))
    assert not any(map(probes.allows, ("198.51.100.1", "::ffff:198.51.100.1", "2001:db9::1", "x")))


@pytest_twisted.ensureDeferred
async def test_a_fetched_list_is_added_renewed_daily_and_outlives_a_restart(world: World) -> None:
    probes = world.probes(addresses=("203.0.113.5",))
    await probes.start()
    assert not probes.allows("192.0.2.1")
    await probes.refresh_if_due()
    assert probes.allows("192.0.2.1")
    assert probes.allows("203.0.113.5")
    world.published = b"192.0.2.2"
    world.time += timedelta(hours=23)
    await probes.refresh_if_due()
    assert world.asked == 1
    world.time += timedelta(hours=2)
    await probes.refresh_if_due()
    assert [probes.allows(address) for address in ("192.0.2.1", "192.0.2.2")] == [False, True]
    again = world.probes()
    await again.start()
    assert again.allows("192.0.2.2")
    assert not world.notices.open


@pytest_twisted.ensureDeferred
async def test_a_list_that_does_not_come_leaves_the_last_good_one_and_is_told_after_a_day(
    world: World,
) -> None:
    probes = world.probes()
    await probes.refresh_if_due()
    for bad in (None, b"<html>proxy</html>"):
        world.published = bad
        world.time += timedelta(hours=25)
        await probes.refresh_if_due()
    assert probes.allows("192.0.2.1")
    assert "reste en vigueur" in world.notices.open["health-probes"]
    world.published = b"192.0.2.1 192.0.2.9"
    # Not a day later: while none comes, it is tried every hour.
    world.time += timedelta(hours=1)
    await probes.refresh_if_due()
    assert probes.allows("192.0.2.9")
    assert not world.notices.open


@pytest_twisted.ensureDeferred
async def test_no_list_at_all_is_told_at_once(world: World) -> None:
    world.published = None
    await world.probes().refresh_if_due()
    assert "aucune sonde n'est admise" in world.notices.open["health-probes"]


@pytest_twisted.ensureDeferred
async def test_a_list_that_cannot_be_kept_counts_all_the_same(world: World) -> None:
    (world.folder / (KEPT + ".new")).mkdir()
    probes = world.probes()
    await probes.refresh_if_due()
    assert probes.allows("192.0.2.1")


@pytest_twisted.ensureDeferred
async def test_a_file_is_read_again_and_a_bad_one_changes_nothing(world: World) -> None:
    path = world.folder / "sondes.txt"
    path.write_text("192.0.2.1")
    probes = world.probes(fetched=False, addresses_file=path)
    await probes.start()
    assert probes.allows("192.0.2.1")
    path.write_text("192.0.2.2")
    await probes.refresh_if_due()
    assert probes.allows("192.0.2.2")
    path.unlink()
    await probes.refresh_if_due()
    assert probes.allows("192.0.2.2")
    assert not probes.allows("192.0.2.1")


def test_what_is_remembered_of_callers_is_bounded(world: World) -> None:
    probes = world.probes(fetched=False, addresses=("10.0.0.0/8",))
    for number in range(5000):
        assert probes.allows(f"10.0.{number // 250}.{number % 250}")
    assert len(probes._known) <= 1000

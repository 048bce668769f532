"""Consumers that fetch images, each in its way; every answer is held against what the PACS has."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.consumer import FetchResult
from drimbox.sim.stand import STRANGER
from tests.integration.hospital import (
    ACCEPT,
    EXPLICIT_LE,
    Hospital,
    Served,
    digests,
    received,
    served_whole,
)
from tests.integration.mixed.day import Day
from tests.integration.mixed.stand import Holding, Mixed
from tests.integration.test_delivery_transcoding import JPEG_LOSSLESS, same_pixels, syntaxes
from tests.integration.waiting import pause

#: Syntaxes that the PACS does not have the scan in.
_OTHERS = (EXPLICIT_LE, JPEG_LOSSLESS)


class Consumers:
    """Asks for images in every way; several works at once ask independently."""

    def __init__(self, hospital: Mixed, day: Day, holding: Holding) -> None:
        self._hospital, self._day, self._holding = hospital, day, holding
        self._studies = (holding.scan, holding.small, holding.long, holding.other)
        self._held = {
            (served.uid, series): digests(served.study, series)
            for served in self._studies
            for series in range(len(served.study.series))
        }
        #: What the scan is in other syntaxes; verified once, pixel by pixel.
        self._transcoded: dict[str, dict[str, str]] = {}

    async def prepare(self, folder: Path) -> None:
        """Fetch once what the PACS has in another syntax; look at every pixel with programs of others."""
        scan, other = self._holding.scan, self._holding.other
        for syntax in _OTHERS:
            self._transcoded[syntax] = await self._verified(scan, syntax, folder)
        self._held[other.uid, 0] = await self._verified(other, EXPLICIT_LE, folder)

    async def _verified(self, served: Served, syntax: str, folder: Path) -> dict[str, str]:
        result = await self._fetch(served, accept=[ACCEPT.format(syntax)])
        assert served_whole(result), result
        assert syntaxes(result) == {syntax}
        assert same_pixels(result, served, folder)
        return received(result)

    async def work(self, seed: int) -> None:
        """Ask in every way, in random order, again and again."""
        chance, ways = random.Random(seed), self._ways()
        for number in self._day.rounds():
            for name in chance.sample(list(ways), len(ways)):
                if self._day.wants(enough=number > 0):
                    await ways[name](chance)
                    self._day.done[f"images {name}"] += 1
                    await pause(0.1)

    def _ways(self) -> dict[str, Callable[[random.Random], Awaitable[None]]]:
        return {
            "a series": self._series,
            "a study": self._study,
            "transcoded": self._other_syntax,
            "one image": self._instance,
            "slow": self._slow,
            "gone": self._gone,
            "refused": self._refused,
        }

    # -- ways --------------------------------------------------------------------------------------

    async def _series(self, chance: random.Random) -> None:
        served = chance.choice(self._studies)
        await self._whole(served, chance.randrange(len(served.study.series)))

    async def _study(self, chance: random.Random) -> None:
        """All series at once, as viewers do."""
        served = chance.choice((self._holding.scan, self._holding.small))
        await gatherResults(
            [
                Deferred.fromCoroutine(self._whole(served, series))
                for series in range(len(served.study.series))
            ],
            consumeErrors=True,
        )

    async def _other_syntax(self, chance: random.Random) -> None:
        syntax = chance.choice(_OTHERS)
        result = await self._fetch(self._holding.scan, accept=[ACCEPT.format(syntax)])
        assert served_whole(result), result
        assert received(result) == self._transcoded[syntax], syntax

    async def _instance(self, chance: random.Random) -> None:
        served = chance.choice(self._studies)
        wanted = chance.choice(served.study.series[0].instances).sop_instance_uid
        result = await self._fetch(served, instance=wanted)
        assert served_whole(result), result
        assert received(result) == {wanted: self._held[served.uid, 0][wanted]}, (served.uid, wanted)

    async def _slow(self, chance: random.Random) -> None:
        served = self._holding.long
        await self._whole(served, 0, bytes_per_second=served.study.size / 2.0)

    async def _gone(self, chance: random.Random) -> None:
        served = self._holding.long
        result = await self._fetch(
            served, disconnect_after=chance.randrange(1, served.study.size // 2), keep="size"
        )
        assert (result.status, result.error) == (200, "disconnected on purpose"), result

    async def _refused(self, chance: random.Random) -> None:
        options, status, code = chance.choice(
            (
                ({"token": "inconnu"}, 403, "E1104"),
                ({"token": None}, 401, "E1104"),
                ({"kos": "2.25.1103"}, 404, "E1103"),
                ({"certificate": self._hospital.stand.consumer(STRANGER)}, 401, "E1102"),
                ({"accept": [ACCEPT.format("1.2.840.10008.1.2.4.201")]}, 406, "E1104"),
            )
        )
        result = await self._fetch(self._holding.small, **options)
        assert result.problem is not None, (options, result)
        assert (result.status, result.problem["code"]) == (status, code)

    # -- own ---------------------------------------------------------------------------------------

    async def _whole(self, served: Served, series: int, **options: Any) -> None:
        result = await self._fetch(served, series, **options)
        assert served_whole(result), result
        assert received(result) == self._held[served.uid, series], (served.uid, series)

    async def _fetch(self, served: Served, series: int = 0, **options: Any) -> FetchResult:
        self._day.asked["RAD-107"] += 1
        hospital: Hospital = self._hospital
        return await hospital.fetch(served, series, timeout=120.0, **options)

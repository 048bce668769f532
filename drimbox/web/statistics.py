"""The admin routes of the statistics (DB.SO.87): values by month, and the raw rows that they add up to."""

from __future__ import annotations

import re
from typing import Any

import attrs

from drimbox.statistics import DEFINITIONS, structure_of
from drimbox.store.speedtests import SpeedDay, SpeedTestStore
from drimbox.store.statistics import Month, RawCount, StatisticsStore, Value
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem


def register(api: AdminApi, store: StatisticsStore, speed: SpeedTestStore, note: Note) -> None:
    """Add the routes of the statistics to the admin listener."""

    def months(call: AdminCall) -> tuple[Month, Month]:
        """Return the months asked for, `from` and `to`: both the current one when none is named."""
        first = _month(call.query.get("from"), store.current())
        last = _month(call.query.get("to"), max(first, store.current()) if "from" in call.query else first)
        if first > last:
            raise AdminProblem(400, "« from » est après « to »")
        return max(first, store.oldest()), min(last, store.current())

    async def get_values(call: AdminCall) -> object:
        first, last = months(call)
        found: list[dict[str, Any]] = []
        month = first
        while month <= last:
            found += [_value(str(month), each) for each in await store.values(month)]
            month = month.plus(1)
        days = [_day(each) for each in await speed.days() if str(first) <= str(each.day)[:7] <= str(last)]
        return {
            "from": str(first),
            "to": str(last),
            "oldest": str(store.oldest()),
            "definitions": [attrs.asdict(each) for each in DEFINITIONS.values()],
            "values": found,
            "days": days,
        }

    async def get_raw(call: AdminCall) -> object:
        first, last = months(call)
        after = call.query.get("after", "0")
        if not re.fullmatch(r"[0-9]{1,18}", after, re.ASCII):
            raise AdminProblem(400, "after : numéro de ligne attendu")
        if after == "0":
            await note("Export des statistiques brutes", f"{first} à {last}")
        rows = await store.raw(first, last, after=int(after))
        return {"rows": [_raw(each) for each in rows]}

    api.register("GET", "/statistics", get_values)
    api.register("GET", "/statistics/raw", get_raw)


def _month(text: str | None, default: Month) -> Month:
    if text is None:
        return default
    found = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", text, re.ASCII)
    if found is None or found[1] == "0000":
        raise AdminProblem(400, "mois attendu sous la forme AAAA-MM")
    return Month(int(found[1]), int(found[2]))


def _value(month: str, value: Value) -> dict[str, Any]:
    kind, number = structure_of(value.structure)
    definition = DEFINITIONS[value.stat]
    return {
        "month": month,
        "stat": value.stat,
        "structure_kind": kind,
        "structure": number,
        "site": value.site,
        "part": value.part,
        # MB of 10^6 bytes, as the specification wants them, to the byte.
        "value": value.amount / 1e6 if definition.bytes else value.amount,
    }


def _raw(row: RawCount) -> dict[str, Any]:
    kind, number = structure_of(row.count.structure)
    return {
        "id": row.id,
        "at": row.at.astimezone().isoformat(),
        "stat": row.count.stat,
        "structure_kind": kind,
        "structure": number,
        "site": row.count.site,
        "part": row.count.part,
        "amount": row.count.amount,
    }


def _day(day: SpeedDay) -> dict[str, Any]:
    """Return one day of the PACS test: STF20 is the transmission, STF21 the latency."""
    return {
        "day": day.day.isoformat(),
        "site": day.site,
        "runs": day.runs,
        "failures": day.failures,
        "STF20": attrs.asdict(day.duration) if day.duration is not None else None,
        "STF21": attrs.asdict(day.latency) if day.latency is not None else None,
    }

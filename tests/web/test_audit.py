"""The admin route of the audit trail: what it refuses, how it pages, every search written first."""

from __future__ import annotations

from typing import Any

import pytest

from drimbox.audit import messages
from drimbox.clock import SystemClock
from drimbox.ports import AuditEvent
from drimbox.source.jobs import Jobs
from drimbox.store.auditchain import ChainHead
from drimbox.store.auditsearch import AuditQuery, AuditRecord
from drimbox.web import audit
from drimbox.web.admin import AdminApi
from tests.store.samples import START
from tests.web.test_admin import Wire

pytestmark = pytest.mark.requirement("DB.CS.10")
EVENT = messages.application_start(name="drimbox", source_name="db1")


class Trail:
    """A trail of 300 events that all match."""

    def __init__(self) -> None:
        #: What was written and asked, in order.
        self.log: list[Any] = []

    async def head(self) -> ChainHead:
        return ChainHead(300, "0" * 64)

    async def record(self, event: AuditEvent) -> None:
        self.log.append(event)

    async def search(self, query: AuditQuery, *, limit: int, before: int) -> list[AuditRecord]:
        self.log.append((query, limit, before))
        return [
            AuditRecord(id, START, EVENT, "ab")
            for id in range(before - 1, before - 1 - limit, -1)
            if id > 0
        ]


async def note(_action: str, _subject: str) -> None:
    """Nothing here is noted."""


def ask(trail: Trail, path: str) -> tuple[int, Any]:
    api = AdminApi()
    audit.register(api, trail, "349", Jobs(SystemClock(), "le journal d'audit"), note)  # type: ignore[arg-type]
    return Wire(api).ask("GET", path)[::2]


def test_pages_lead_from_the_newest_event_to_the_oldest() -> None:
    trail = Trail()
    status, first = ask(trail, "/audit?limit=200")
    assert status == 200
    assert [each["numero"] for each in first["events"]][::199] == ["300", "101"]
    assert first["before"] == 101
    status, second = ask(trail, f"/audit?limit=200&before={first['before']}")
    assert len(second["events"]) == 100
    assert second["before"] is None


def test_a_search_is_written_before_it_is_made_and_found_by_whom_it_is_about() -> None:
    trail = Trail()
    status, _ = ask(
        trail, "/audit?ins=284070100499094&event=images&outcome=echec&from=2026-01-12T00:00:00Z"
    )
    assert status == 200
    written, (query, limit, before) = trail.log
    assert written.event_type[0] == "AUDIT-SEARCH"
    assert written.patient_ins == "284070100499094"
    assert written.participants[0].user_id == "admin"
    assert ("event", "images") in written.objects[0].details
    assert (query.ins, query.event_id, query.event_types) == (
        "284070100499094",
        "110106",
        ("RAD-107", "RAD-106"),
    )
    assert query.start is not None
    assert (limit, before) == (100, 301)


@pytest.mark.parametrize(
    "path",
    [
        "/audit?limit=0",
        "/audit?limit=1001",
        "/audit?before=x",
        "/audit?before=-1",
        "/audit?from=hier",
        "/audit?to=99999-01-01",
        "/audit?ins=1%27%20OR%201",
        "/audit?study=" + "1" * 65,
        "/audit?event=tout",
        "/audit?outcome=0",
        "/audit?nom=x",
    ],
)
def test_what_is_no_criterion_is_refused_and_nothing_is_asked(path: str) -> None:
    trail = Trail()
    status, problem = ask(trail, path)
    assert (status, trail.log) == (400, [])
    assert "OR 1" not in str(problem)

"""The routes of the notices over a store in memory, for the tests of the listener and of the command."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from drimbox.ports import Notice, Severity
from drimbox.source.notifying import Trial
from drimbox.web import notices
from drimbox.web.admin import AdminApi


class NoticeDesk:
    """Holds one open notice, number 7."""

    def __init__(self, text: str = "liste blanche non relue") -> None:
        instant = datetime(2026, 11, 22, 10, tzinfo=UTC)
        self.notice = Notice(7, "k", "E006", Severity.ATTENTION, text, 2, instant, instant)
        self.acknowledged: list[int] = []
        #: What was noted for the audit, in order.
        self.notes: list[tuple[str, str]] = []
        self.by: list[str] = []
        self.asked: dict[str, Any] = {}
        self.channels: list[Any] = []
        self.results: list[Trial] = []

    def register(self, api: AdminApi) -> AdminApi:
        """Add the routes to a listener."""
        notices.register(api, self, self, self.note)  # type: ignore[arg-type]
        return api

    async def note(self, action: str, subject: str) -> None:
        self.notes.append((action, subject))

    async def page(self, **wanted: Any) -> list[Notice]:
        self.asked = wanted
        return [self.notice]

    async def acknowledge(self, number: int, who: str) -> bool:
        self.acknowledged.append(number)
        self.by.append(who)
        return number == 7

    async def test(self) -> list[Trial]:
        return self.results

"""The admin routes of the queues: what they refuse, and that everything done is noted first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drimbox.store.mending import CannotMend, Retried
from drimbox.web import queues
from drimbox.web.admin import AdminApi
from tests.web.test_admin import POST, Wire

pytestmark = pytest.mark.requirement("DB.SO.21")


class Desk:
    """Rows 1 and 2 of every queue; row 2 cannot be mended."""

    def __init__(self) -> None:
        #: What was noted, done and woken, in order.
        self.log: list[tuple[str, ...]] = []
        self.asked: dict[str, Any] = {}

    async def page(self, queue: str, **wanted: Any) -> list[dict[str, Any]]:
        self.asked = {"queue": queue, **wanted}
        return [{"id": 1}]

    async def one(self, queue: str, number: int) -> dict[str, Any] | None:
        return {"id": number} if number < 3 else None

    async def raw(self, queue: str, number: int) -> bytes | None:
        self.log.append(("raw", queue))
        return b"MSH|\xe9" if number < 3 else None

    async def retry(self, queue: str, number: int) -> None:
        self._mend(number)
        self.log.append(("retry", queue))

    async def retry_all(self, queue: str, state: str, *, after: int = 0) -> Retried:
        self.log.append(("all", queue, state))
        return Retried([1], {2: "en cours"}, None)

    async def drop(self, queue: str, number: int, reason: str) -> None:
        self._mend(number)
        self.log.append(("drop", queue, reason))

    def _mend(self, number: int) -> None:
        if number == 2:
            raise CannotMend("elle est en cours de traitement")
        if number > 2:
            raise KeyError(number)

    async def note(self, action: str, subject: str) -> None:
        self.log.append(("note", action, subject))

    def wake(self, queue: str) -> None:
        self.log.append(("wake", queue))


def wire(desk: Any) -> Wire:
    api = AdminApi()
    queues.register(api, desk, desk, desk.note, desk.wake)
    return Wire(api)


def post(desk: Desk, path: str, **body: Any) -> tuple[int, Any]:
    return wire(desk).ask("POST", path, POST, body=json.dumps(body).encode())[::2]


def test_a_page_is_asked_for_by_state_study_and_place() -> None:
    desk = Desk()
    path = "/queues/outbox?state=parked&study=2.25.1&before=7&limit=3"
    assert wire(desk).ask("GET", path)[2] == {"rows": [{"id": 1}], "limit": 3}
    assert desk.asked == {"queue": "outbox", "state": "parked", "study": "2.25.1", "before": 7, "limit": 3}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/queues/other", 404),
        ("/queues/inbox?state=lost", 400),
        ("/queues/inbox?study=DUPONT", 400),
        ("/queues/inbox?before=-1", 400),
        ("/queues/inbox?limit=many", 400),
        ("/queues/inbox/x", 400),
        ("/queues/inbox/3", 404),
        ("/queues/inbox/1", 200),
    ],
)
def test_what_is_asked_is_checked(path: str, status: int) -> None:
    assert wire(Desk()).ask("GET", path)[0] == status


def test_content_leaves_by_a_post_and_is_noted_before() -> None:
    desk = Desk()
    assert wire(desk).ask("GET", "/queues/inbox/1/raw")[0] == 405
    status, headers, body = wire(desk).ask("POST", "/queues/inbox/1/raw", POST, body=b"{}")
    assert (status, body) == (200, b"MSH|\xe9")
    assert headers["content-type"] == "application/octet-stream"
    assert desk.log == [("note", "Contenu d'une ligne de file extrait", "inbox 1"), ("raw", "inbox")]
    assert post(desk, "/queues/inbox/3/raw")[0] == 404


def test_a_row_is_played_again_noted_first_and_its_worker_woken() -> None:
    desk = Desk()
    assert post(desk, "/queues/feed/1/retry") == (200, {"queue": "feed", "retried": [1]})
    assert desk.log == [
        ("note", "Rejeu d'une ligne de file", "feed 1"),
        ("retry", "feed"),
        ("wake", "feed"),
    ]
    status, answer = post(desk, "/queues/feed/2/retry")
    assert status == 409
    assert "en cours" in answer["error"]["detail"]
    assert post(desk, "/queues/feed/3/retry")[0] == 404
    assert post(desk, "/queues/other/1/retry")[0] == 404


def test_all_rows_of_a_state() -> None:
    desk = Desk()
    for body in (
        {},
        {"state": "done"},
        {"state": "failed", "after": True},
        {"state": "failed", "after": -1},
    ):
        assert post(desk, "/queues/inbox/retry", **body)[0] == 400
    assert desk.log == []
    status, answer = post(desk, "/queues/inbox/retry", state="failed")
    assert status == 200
    assert (answer["retried"], answer["refused"]) == ([1], [{"id": 2, "reason": "en cours"}])
    assert desk.log[0][0] == "note"
    assert desk.log[-1] == ("wake", "inbox")


def test_giving_up_needs_a_reason() -> None:
    desk = Desk()
    for body in ({}, {"reason": "  "}, {"reason": 3}, {"reason": "x" * 501}):
        assert post(desk, "/queues/outbox/1/drop", **body)[0] == 400
    assert desk.log == []
    assert post(desk, "/queues/outbox/1/drop", reason=" essai ") == (200, {"queue": "outbox", "dropped": 1})
    assert desk.log[:2] == [
        ("note", "Abandon d'une ligne de file : essai", "outbox 1"),
        ("drop", "outbox", "essai"),
    ]
    assert post(desk, "/queues/outbox/2/drop", reason="essai")[0] == 409

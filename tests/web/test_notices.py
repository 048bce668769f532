"""The admin routes of the notices: what is asked for, who acknowledges, and the test of a channel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drimbox.ports import Severity
from drimbox.source.notifying import Trial
from drimbox.web.admin import AdminApi
from tests.web.notice_desk import NoticeDesk
from tests.web.test_admin import POST, Wire

pytestmark = pytest.mark.requirement("DB.SO.21")


def wire(desk: NoticeDesk) -> Wire:
    return Wire(desk.register(AdminApi()))


def post(desk: NoticeDesk, path: str, body: Any = None) -> tuple[int, Any]:
    return wire(desk).ask("POST", path, POST, body=json.dumps(body or {}).encode())[::2]


def test_a_notice_is_shown_with_all_that_is_known_of_it() -> None:
    desk = NoticeDesk()
    (shown,) = wire(desk).ask("GET", "/notices")[2]["notices"]
    assert shown == {
        "id": 7,
        "severity": "attention",
        "code": "E006",
        "text": "liste blanche non relue",
        "count": 2,
        "first": "2026-11-22T10:00:00+00:00",
        "last": "2026-11-22T10:00:00+00:00",
        "acknowledged": None,
        "by": None,
    }
    assert desk.asked == {"every": False, "severities": [], "code": "", "before": None, "limit": 200}


def test_a_list_is_limited_as_asked() -> None:
    desk = NoticeDesk()
    wire(desk).ask("GET", "/notices?all=1&severity=attention&code=E007&before=9&limit=5")
    wanted = [Severity.ATTENTION, Severity.GRAVE]
    assert desk.asked == {"every": True, "severities": wanted, "code": "E007", "before": 9, "limit": 5}
    for query in ("severity=rouge", "before=x", "limit=-1"):
        assert wire(desk).ask("GET", f"/notices?{query}")[0] == 400


def test_who_acknowledges_is_kept_and_audited_first() -> None:
    desk = NoticeDesk()
    assert post(desk, "/notices/7/acknowledge", {"by": " marie "})[1] == {
        "acknowledged": 7,
        "by": "admin (marie)",
    }
    assert desk.notes == [("Acquittement d'un avis par admin (marie)", "avis 7")]
    assert post(desk, "/notices/8/acknowledge")[0] == 404
    assert desk.by == ["admin (marie)", "admin"]
    for bad in ("", " ", "x" * 101, "a\nb", 3):
        assert post(desk, "/notices/7/acknowledge", {"by": bad})[0] == 400
    assert desk.acknowledged == [7, 8]


def test_a_test_says_how_each_channel_did() -> None:
    desk = NoticeDesk()
    status, answer = post(desk, "/notices/test")
    assert status == 409
    assert "[notifications.mail]" in answer["error"]["detail"]
    assert desk.notes == []

    class Mail:
        name = "mail"

    desk.channels = [Mail()]
    desk.results = [Trial("mail", "connexion refusée", "")]
    assert post(desk, "/notices/test") == (
        200,
        {"channels": [{"channel": "mail", "error": "connexion refusée", "remark": ""}]},
    )
    assert desk.notes == [("Essai d'envoi des avis", "mail")]

"""Messages that could not be stored: told once, when the store works again."""

from __future__ import annotations

import pytest

from drimbox.source.storing import Storing
from tests.source.fakes import Clock, Notices, run

pytestmark = pytest.mark.requirement("DB.SO.21")


class Inbox:
    def __init__(self) -> None:
        self.full = False
        self.raw: list[bytes] = []

    async def add(self, *, ris: str, peer: str, control_id: str, raw: bytes) -> int:
        if self.full:
            raise OSError("disk full")
        self.raw.append(raw)
        return len(self.raw)


class Stage:
    def __init__(self) -> None:
        self.inbox, self.notices, self.clock = Inbox(), Notices(), Clock()
        self.storing = Storing(self.inbox, self.notices, self.clock)

    def add(self) -> int:
        return run(self.storing.add(ris="RIS", peer="192.0.2.1", control_id="7", raw=b"MSH"))

    def refuse(self, times: int) -> None:
        self.inbox.full = True
        for _ in range(times):
            with pytest.raises(OSError, match="disk full"):
                self.add()
            self.clock.advance(60)
        self.inbox.full = False


def test_what_was_turned_away_is_told_with_the_next_that_is_stored() -> None:
    stage = Stage()
    assert stage.add() == 1
    stage.refuse(3)
    assert stage.notices.open == {}
    assert stage.add() == 2
    code, text = stage.notices.open["store"]
    assert code == "BASE"
    assert "12/01/2026 à 10:00:00 : 3 message(s)" in text
    assert stage.add() == 3
    assert stage.notices.posted == ["store"]


def test_a_notice_that_cannot_be_kept_costs_no_message_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    stage.refuse(2)
    with monkeypatch.context() as broken:
        broken.delattr(Notices, "post")
        assert stage.add() == 1
    stage.refuse(1)
    assert stage.add() == 2
    assert "3 message(s)" in stage.notices.open["store"][1]

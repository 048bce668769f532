"""What the weather service is told: the agency's JSON, one look for all who ask, no PACS waited for."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.errors import PacsCommunicationError
from drimbox.source.health import ArchiveChecks, Check, Remembered, answer_of


@pytest.mark.requirement("DB.SO.182", "DB.SO.183")
def test_the_json_is_the_agency_s() -> None:
    checks = [Check("VISIONNEUSE", True), Check("WADO-RS", True), Check("LISTEBLANCHE", False)]
    assert answer_of(checks).body == (
        b'{"status":"DOWN","checks":[{"name":"VISIONNEUSE","status":"UP"},'
        b'{"name":"WADO-RS","status":"UP"},{"name":"LISTEBLANCHE","status":"DOWN"}]}'
    )
    up = answer_of([Check("PACS1", True), Check("PACS2", True)])
    assert up.body == (
        b'{"status":"UP","checks":[{"name":"PACS1","status":"UP"},{"name":"PACS2","status":"UP"}]}'
    )
    assert up.up


class Look:
    """A look whose end the test decides."""

    def __init__(self) -> None:
        self.looks: list[Deferred[list[Check]]] = []

    async def __call__(self) -> list[Check]:
        self.looks.append(Deferred())
        return await self.looks[-1]


def ask(work: Awaitable[Any]) -> list[Any]:
    """Begin to ask; the list holds the answer, or the failure, once there is one."""
    answers: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(answers.append)  # type: ignore[arg-type]
    return answers


def test_whoever_asks_meanwhile_waits_for_the_same_look_and_the_answer_is_kept() -> None:
    clock, look = Clock(), Look()
    question = Remembered(look, clock, keep=5.0)
    asked = [ask(question.answer()) for _ in range(3)]
    assert question.fresh() is None
    look.looks[0].callback([Check("A", True)])
    assert [each[0].up for each in asked] == [True] * 3
    clock.advance(4.9)
    assert question.fresh() is not None
    ask(question.answer())
    assert len(look.looks) == 1
    clock.advance(0.2)
    assert question.fresh() is None
    late = ask(question.answer())
    look.looks[1].callback([Check("A", False)])
    assert not late[0].up


def test_one_who_goes_away_takes_the_answer_from_nobody() -> None:
    look = Look()
    question = Remembered(look, Clock(), keep=5.0)
    first = Deferred.fromCoroutine(question.answer())
    first.addErrback(lambda _: None)
    second = ask(question.answer())
    first.cancel()
    look.looks[0].callback([Check("A", True)])
    assert second[0].up


def test_a_look_that_fails_is_told_to_all_and_made_again() -> None:
    look = Look()
    question = Remembered(look, Clock(), keep=5.0)
    asked = [ask(question.answer()) for _ in range(2)]
    look.looks[0].errback(ValueError("broken"))
    assert [each[0].type for each in asked] == [ValueError] * 2
    again = ask(question.answer())
    look.looks[1].callback([])
    assert again[0].up


@pytest.mark.requirement("DB.SO.183")
def test_a_pacs_without_an_answer_is_down_in_time_and_asked_once() -> None:
    clock = Clock()
    silent: list[Deferred[None]] = []
    refusing = 0

    async def hang() -> None:
        silent.append(Deferred())
        await silent[-1]

    async def refuse() -> None:
        nonlocal refusing
        refusing += 1
        raise PacsCommunicationError("refusé")

    async def good() -> None:
        pass

    checks = ArchiveChecks({"SLOW": hang, "NO": refuse, "YES": good}, clock, timeout=5.0)
    first = ask(checks.look())
    assert not first
    clock.advance(5.1)
    assert first == [[Check("SLOW", False), Check("NO", False), Check("YES", True)]]
    second = ask(checks.look())
    assert (len(silent), refusing) == (1, 2)
    # It answers after all: whoever waits now learns it.
    silent[0].callback(None)
    assert second[0][0] == Check("SLOW", True)
    ask(checks.look())
    assert len(silent) == 2
    assert len(clock.getDelayedCalls()) == 1

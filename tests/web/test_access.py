"""Who guesses, and who tries more than their role: how often they may, and what the trail has of it."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from drimbox.accounts import Role, make_account, write_accounts
from drimbox.web.access import MAX_FAILURES, WINDOW, Access, AccessDenied, Caller

pytestmark = [
    pytest.mark.requirement("DB.CS.06", "DB.CS.10"),
    pytest.mark.threat("whoever reaches the administration from the network"),
]
PASSWORD = "mot-de-passe-de-{}"


class Door:
    """The access of a listener with two accounts, and what it wrote down."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.noted: list[tuple[str, str]] = []
        accounts = folder / "comptes"
        roles = {"anne": Role.OPERATOR, "aude": Role.AUDITOR}
        made = [make_account(name, role, PASSWORD.format(name)) for name, role in roles.items()]
        write_accounts(accounts, made)
        self.access = Access(accounts, self.clock, self._here, self._note)

    async def _here(self, work: Callable[[], Any]) -> Any:
        return work()

    async def _note(self, action: str, subject: str) -> None:
        self.noted.append((action, subject))

    def call(self, name: str, password: str = "", address: str = "192.0.2.7") -> Awaitable[Caller]:
        given = f"{name}:{password or PASSWORD.format(name)}".encode()
        return self.access.caller("/status", b"Basic " + base64.b64encode(given), address)

    async def status(self, *given: str) -> int:
        try:
            await self.call(*given)
        except AccessDenied as denied:
            return denied.status
        return 200


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


@pytest_twisted.ensureDeferred
async def test_who_has_an_account_guesses_that_of_others_no_faster(door: Door) -> None:
    for number in range(MAX_FAILURES):
        assert await door.status("aude") == 200
        assert await door.status("anne", f"mauvais-mot-de-passe-{number}") == 401
    assert await door.status("aude") == 429
    assert await door.status("anne") == 429
    assert await door.status("anne", "", "192.0.2.8") == 200
    assert len(door.noted) == MAX_FAILURES
    door.clock.advance(WINDOW)
    assert await door.status("anne") == 200


@pytest_twisted.ensureDeferred
async def test_who_mistypes_and_then_does_not_begins_anew(door: Door) -> None:
    for _ in range(2):
        for number in range(MAX_FAILURES - 1):
            assert await door.status("anne", f"mauvais-mot-de-passe-{number}") == 401
        assert await door.status("anne") == 200


@pytest_twisted.ensureDeferred
async def test_what_a_role_may_not_is_written_down_and_fills_no_trail(door: Door) -> None:
    caller = await door.call("aude")
    for number in range(3 * MAX_FAILURES):
        with pytest.raises(AccessDenied) as denied:
            caller.require("POST", "/backup")
        await door.access.forbidden(caller, denied.value.asked, "192.0.2.7")
        door.clock.advance(1)
        assert len(door.noted) == min(number + 1, MAX_FAILURES)
    assert set(door.noted) == {("Action d'administration refusée", "POST /backup depuis 192.0.2.7")}
    await door.access.forbidden(await door.call("anne"), "POST /x", "192.0.2.7")
    door.clock.advance(WINDOW)
    await door.access.forbidden(caller, "POST /backup", "192.0.2.7")
    assert len(door.noted) == MAX_FAILURES + 2
    caller.require("GET", "/status")

"""Titles of key objects are kept for ever, the first one said (interfaces.md 3.2)."""

from __future__ import annotations

import pytest_twisted

from drimbox.store.keytitles import KeyTitles
from tests.store.conftest import Stores


@pytest_twisted.ensureDeferred
async def test_titles_are_remembered(stores: Stores) -> None:
    titles = KeyTitles(stores.database, clock=stores.clock)
    assert await titles.known(["2.25.1"]) == {}
    await titles.learn({})
    await titles.learn({"2.25.1": "113001", "2.25.2": "A" * 40})
    # Told again, by whomever, it stays what it is.
    await titles.learn({"2.25.1": "113000", "2.25.3": ""})
    found = await titles.known(["2.25.1", "2.25.2", "2.25.3", "2.25.4"])
    assert found == {"2.25.1": "113001", "2.25.2": "A" * 15 + "…", "2.25.3": ""}
    # What nobody could read then may be told later, by whoever can.
    await titles.learn({"2.25.3": "113039"})
    assert await titles.known(["2.25.3"]) == {"2.25.3": "113039"}


@pytest_twisted.ensureDeferred
async def test_many_are_asked_for_at_once(stores: Stores) -> None:
    titles = KeyTitles(stores.database, clock=stores.clock)
    many = {f"2.25.{number}": "113000" for number in range(1200)}
    await titles.learn(many)
    assert await titles.known(list(many)) == many

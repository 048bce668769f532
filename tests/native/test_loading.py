"""Making the archive of a site: Orthanc's, an editor's, and what cannot be made."""

from __future__ import annotations

import sys
import types
from typing import Any

import attrs
import pytest

from drimbox.config import Native
from drimbox.native.archive import NativeArchive
from drimbox.native.loading import NativeUnusable, open_archive
from drimbox.native.orthanc import OrthancStore
from drimbox.native.store import Surroundings
from tests.native.scripted import ScriptedStore, result, started

ORTHANC = Native("A", "orthanc", "http://127.0.0.1:8042")
EDITOR = Native("A", "python", factory="tests_editor:archive")


async def at_once(work: Any) -> Any:
    return work()


def opened(settings: Native) -> NativeArchive:
    nobody: Any = object()
    return open_archive("site1", settings, nobody, at_once, nobody)  # type: ignore[arg-type]


def test_orthanc_is_one_of_them() -> None:
    archive = opened(ORTHANC)
    assert isinstance(archive._store, OrthancStore)
    assert archive.name == "A"


def test_an_editors_class_gets_its_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Surroundings] = []
    store = ScriptedStore()
    module = types.ModuleType("tests_editor")
    module.archive = lambda surroundings: got.append(surroundings) or store  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_editor", module)
    archive = opened(EDITOR)
    assert archive._store is store
    (surroundings,) = got
    assert (surroundings.site, surroundings.settings) == ("site1", EDITOR)
    assert surroundings.in_thread is at_once


@pytest.mark.parametrize(
    "factory", ["nowhere_at_all:x", "drimbox.native.store:Nothing", "drimbox.native.store:Changes.of"]
)
def test_what_is_not_there_says_so(factory: str) -> None:
    with pytest.raises(NativeUnusable, match="introuvable"):
        opened(attrs.evolve(EDITOR, factory=factory))


def test_something_else_than_a_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tests_editor")
    module.archive = lambda surroundings: "archive"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_editor", module)
    with pytest.raises(NativeUnusable, match="ImageStore"):
        opened(EDITOR)


def test_closing_it_closes_the_class() -> None:
    class Closing(ScriptedStore):
        closed_it = False

        async def close(self) -> None:
            self.closed_it = True

    from twisted.internet.task import Clock

    store = Closing()
    clock: Any = Clock()
    assert result(started(NativeArchive(store, EDITOR, clock).close())) is None
    assert store.closed_it

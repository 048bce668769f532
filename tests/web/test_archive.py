"""The admin routes of the archive and of test KOS: what is refused, what is begun, what is audited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from drimbox.source.jobs import Jobs, Progress
from drimbox.web import archive, homologation
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply
from drimbox.xdm.names import Month
from tests.source.fakes import Clock, run, site

pytestmark = pytest.mark.requirement("DB.SO.29", "DB.SO.30")


@attrs.frozen
class Count:
    kos: int = 4
    patients: int = 2


@attrs.define
class Works:
    """Stands for export, load and homologation: notes what it is told, ends when it is let."""

    enabled: bool = True
    told: list[Mapping[str, Any]] = attrs.field(factory=list)
    gate: Deferred[None] = attrs.field(factory=Deferred)

    async def run(self, progress: Progress, **what: Any) -> Mapping[str, Any]:
        self.told.append(what)
        progress.total = 7
        await self.gate
        return {"done": True}

    load = run

    async def clear(self) -> int:
        return 4

    async def count(self) -> Any:
        return attrs.make_class(
            "Count", {"kos": attrs.field(default=4), "patients": attrs.field(default=2)}
        )()


class Stage:
    def __init__(self, works: Any = None) -> None:
        self.works = works = works or Works()
        self.notes: list[tuple[str, str]] = []
        self.changes = 0
        self.api, sites, jobs = AdminApi(), [site(1), site(2)], Jobs(Clock(), "l'archive")
        archive.register(self.api, sites, jobs, works, works, self.note)
        homologation.register(self.api, sites, jobs, works, self.note, self.changed)

    async def note(self, action: str, subject: str) -> None:
        self.notes.append((action, subject))

    async def changed(self) -> None:
        self.changes += 1

    def call(self, method: str, path: str, **body: Any) -> Any:
        route, params = self.api.find(method, path)

        async def ask() -> Any:
            return await route.handler(AdminCall(params, {}, body))

        answer = run(ask())
        return answer.body if isinstance(answer, Reply) else answer

    def problem(self, path: str, **body: Any) -> tuple[int, str]:
        with pytest.raises(AdminProblem) as caught:
            self.call("POST", path, **body)
        assert self.works.told == []
        assert self.notes == []
        return caught.value.status, caught.value.detail


def test_an_export_is_audited_begun_and_followed() -> None:
    stage = Stage()
    assert stage.call("GET", "/archive") == {"job": None}
    begun = stage.call("POST", "/archive/export", folder="/mnt/a", site="site2", month="202601")
    assert begun == {"job": 1}
    (told,) = stage.works.told
    assert (told["folder"], told["month"], told["large"]) == (Path("/mnt/a"), Month(2026, 1), False)
    assert [each.name for each in told["sites"]] == ["site2"]
    assert stage.notes == [("Export de l'archive XDM vers /mnt/a", "site2, 202601")]
    state = stage.call("GET", "/archive")["job"]
    assert (state["running"], state["total"], state["result"]) == (True, 7, None)
    # One at a time, of whichever kind; what is refused is not audited as done.
    for path, body in (("/archive/import", {"site": "site1"}), ("/homologation/load", {"site": "site1"})):
        with pytest.raises(AdminProblem, match="déjà en cours"):
            stage.call("POST", path, paths=["/mnt/a"], **body)
    assert len(stage.notes) == 1
    stage.works.gate.callback(None)
    state = stage.call("GET", "/archive")["job"]
    assert (state["running"], state["result"], state["error"]) == (False, {"done": True}, "")


def test_without_a_site_an_export_is_of_all() -> None:
    stage = Stage()
    stage.call("POST", "/archive/export", folder="/mnt/a", large=True)
    (told,) = stage.works.told
    assert ([each.name for each in told["sites"]], told["large"]) == (["site1", "site2"], True)


def test_a_load_is_audited_with_its_paths() -> None:
    stage = Stage()
    stage.call("POST", "/archive/import", site="site1", paths=["/mnt/a", "/mnt/b"], dry_run=True)
    (told,) = stage.works.told
    assert (told["site"].name, told["paths"], told["dry_run"]) == (
        "site1",
        [Path("/mnt/a"), Path("/mnt/b")],
        True,
    )
    assert stage.notes == [("Chargement d'une archive XDM (essai)", "site1 : /mnt/a, /mnt/b")]


@pytest.mark.parametrize("folder", [None, "", "relative/path", "/mnt/\0", 7, "/" + "a" * 5000])
def test_a_path_that_is_none_is_refused(folder: object) -> None:
    assert Stage().problem("/archive/export", folder=folder)[0] == 400
    assert Stage().problem("/archive/import", site="site1", paths=[folder])[0] == 400


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/archive/export", {"folder": "/mnt", "site": "nobody"}, 404),
        ("/archive/export", {"folder": "/mnt", "month": "202613"}, 400),
        ("/archive/import", {"paths": ["/mnt"]}, 404),
        ("/archive/import", {"site": "site1", "paths": []}, 400),
        ("/archive/import", {"site": "site1", "paths": "/mnt"}, 400),
        ("/archive/import", {"site": "site1", "paths": ["/mnt"] * 201}, 400),
        ("/homologation/load", {"paths": ["/mnt"]}, 404),
    ],
)
def test_what_makes_no_sense_is_refused(path: str, body: dict[str, Any], status: int) -> None:
    assert Stage().problem(path, **body)[0] == status


def test_test_kos_are_loaded_only_while_the_mode_is_on() -> None:
    stage = Stage(Works(enabled=False))
    assert stage.problem("/homologation/load", site="site1", paths=["/mnt/a"])[0] == 409
    assert stage.call("GET", "/homologation") == {"enabled": False, "loaded": 4, "patients": 2}
    # Cleared they can always be.
    assert stage.call("POST", "/homologation/clear") == {"cleared": 4}
    assert (stage.changes, stage.notes[0][0]) == (1, "Effacement des KOS de test")
    stage = Stage()
    stage.call("POST", "/homologation/load", site="site1", paths=["/mnt/a"])
    assert stage.notes == [("Chargement de KOS de test", "site1 : /mnt/a")]
    assert stage.changes == 0
    stage.works.gate.callback(None)
    assert stage.changes == 1

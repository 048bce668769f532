"""When a link is beyond doubt: an answer, and a study that is known to be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from drimbox.config import SiteResyncSettings
from drimbox.errors import PacsCommunicationError
from drimbox.source.link import Link
from tests.source.fakes import run, site

pytestmark = pytest.mark.requirement("DB.SO.28")


class Archive:
    name = "PACS1"

    def __init__(self, *held: str, down: bool = False) -> None:
        self.held, self.down = held, down
        self.asked: list[str] = []

    async def verify(self) -> None:
        self.asked.append("echo")
        if self.down:
            raise PacsCommunicationError("pas de réponse")

    async def holds(self, study_uid: str) -> bool:
        self.asked.append(study_uid)
        return study_uid in self.held


def doubt(
    archive: Archive,
    *,
    control: str | None = None,
    seen: Sequence[str] | None = None,
    kept: Sequence[str] = (),
) -> str:
    async def controls(name: str) -> Sequence[str]:
        return kept

    archives: Any = {"site1": archive}
    here = site(resync=SiteResyncSettings(control))
    return run(Link(archives, controls).doubt(here, seen))


def test_a_silent_archive_is_in_doubt_and_asked_nothing_more() -> None:
    archive = Archive("2.25.1", down=True)
    assert doubt(archive, control="2.25.1") == "PACS1 injoignable (pas de réponse)"
    assert archive.asked == ["echo"]


@pytest.mark.parametrize("held", [(), ("2.25.9",)])
def test_the_configured_control_study_alone_counts(held: tuple[str, ...]) -> None:
    archive = Archive(*held)
    assert "sans l'examen témoin" in doubt(archive, control="2.25.1", seen=("2.25.9",), kept=("2.25.9",))
    assert archive.asked == ["echo", "2.25.1"]
    assert doubt(Archive("2.25.1"), control="2.25.1") == ""


def test_any_study_just_seen_there_is_a_control() -> None:
    archive = Archive("2.25.3")
    assert doubt(archive, seen=("2.25.2", "2.25.3", "2.25.4")) == ""
    assert archive.asked == ["echo", "2.25.2", "2.25.3"]
    assert "témoin" in doubt(Archive(), seen=("2.25.2",))


def test_the_last_walk_s_are_used_by_whoever_saw_none() -> None:
    assert doubt(Archive("2.25.7"), kept=("2.25.7",)) == ""
    assert "témoin" in doubt(Archive(), kept=("2.25.7",))
    # Seen none, and that is known: the answer itself is all there is.
    assert doubt(Archive(), seen=(), kept=("2.25.7",)) == ""

"""Is the link with an archive beyond doubt? Before images are called gone, and again before a removal.

A PACS that is silent, that refuses, or that answers "nothing" to everything must never empty the national
record (DB.SO.28). Two questions tell: does it answer at all (C-ECHO, or a question to a native archive),
and does it list a *control study*, one that it is known to hold: the configured one, else any of those
that the walk has just seen there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from drimbox.config import Site
from drimbox.errors import PacsCommunicationError
from drimbox.ports import Archives


class Link:
    """Verifies the links with the archives; `controls` returns the studies last seen at a site."""

    def __init__(self, archives: Archives, controls: Callable[[str], Awaitable[Sequence[str]]]) -> None:
        self._archives = archives
        self._controls = controls

    async def doubt(self, site: Site, seen: Sequence[str] | None = None) -> str:
        """Return why what the site does not hold must not be believed, in French; empty when it may.

        `seen` are studies just seen there; those of the last walk when not given. Without any control
        study only the answer itself counts.
        """
        archive = self._archives[site.name]
        configured = site.resync.control_study
        try:
            await archive.verify()
            controls = [configured] if configured else seen
            if controls is None:
                controls = await self._controls(site.name)
            for study_uid in controls:
                if await archive.holds(study_uid):
                    return ""
        except PacsCommunicationError as error:
            return f"{site.archive} injoignable ({error.detail})"
        return f"{site.archive} répond, mais sans l'examen témoin" if controls else ""

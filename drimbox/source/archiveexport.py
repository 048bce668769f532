"""Export of the archive to removable media or a share: one zip a site and month (DB.SO.29).

Memory holds one batch of manifests and the numbers of one month. A month whose zip could not be finished
leaves nothing behind; those before it stay.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from twisted.logger import Logger

from drimbox import __version__
from drimbox.config import Config, Site
from drimbox.ports import InThread
from drimbox.source.jobs import JobFailed, Progress
from drimbox.systemerrors import system_reason
from drimbox.xdm.entries import MetadataRefused
from drimbox.xdm.names import Month, prefixes
from drimbox.xdm.pages import Sender
from drimbox.xdm.takeover import bounds, month_of
from drimbox.xdm.writing import FAT_LIMIT, ExportedKos, ExportRefused, MonthWriter

#: Manifests in memory at a time: at most some 16 MiB each, some 40 KiB as a rule.
_BATCH = 8
#: Manifests named in the result when they could not be written.
_MAX_NAMED = 100

_REASONS = {
    errno.ENOSPC: "support plein",
    errno.EROFS: "support en lecture seule",
    errno.EACCES: "accès refusé au compte de DRIMbox",
    errno.EFBIG: "fichier trop grand pour ce support",
    errno.ENOENT: "dossier absent",
    errno.EIO: "erreur d'entrée-sortie du support",
}


class Listing(Protocol):
    """The archive as an export reads it."""

    async def span(self, site: str) -> tuple[datetime, datetime] | None:
        """Return when the first and the last published manifest of a site were published."""

    async def numbers(self, site: str, start: datetime, end: datetime) -> list[int]:
        """Return the numbers of those published in between, in the order of the archive."""

    async def load(self, kos_id: int) -> ExportedKos | None:
        """Read one; None when it is no longer published."""


def os_reason(error: OSError) -> str:
    """Say in French why the system refused."""
    return _REASONS.get(error.errno or 0, system_reason(error))


class ArchiveExport:
    """Writes the archive to a folder of the server."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        listing: Listing,
        in_thread: InThread,
        waiting: Callable[[], Awaitable[int]],
    ) -> None:
        """`waiting` counts what is still on its way to the archive or the DMP."""
        self._config = config
        self._listing = listing
        self._in_thread = in_thread
        self._waiting = waiting
        self._prefixes = prefixes([site.name for site in config.sites])

    async def run(
        self,
        progress: Progress,
        *,
        folder: Path,
        sites: Sequence[Site],
        month: Month | None = None,
        large: bool = False,
    ) -> Mapping[str, Any]:
        """Write every month of these sites, or one; `large` allows files that no FAT32 holds.

        Returns `files` (site, file, sets, bytes), `failed` (manifests left out, with why), and `waiting`.
        Raises `JobFailed`, `JobStopped`.
        """
        await self._check(folder)
        waiting = await self._waiting()
        work = [(site, each) for site in sites for each in await self._months(site, month)]
        numbers = {}
        for site, each in work:
            numbers[site.name, each] = await self._listing.numbers(site.name, *bounds(each))
        progress.total = sum(map(len, numbers.values()))
        files: list[Mapping[str, Any]] = []
        failed: list[Mapping[str, str]] = []
        for site, each in work:
            listed = numbers.pop((site.name, each))
            if listed:
                files += await self._month(progress, folder, site, each, listed, failed, large)
        return {"folder": str(folder), "files": files, "failed": failed[:_MAX_NAMED], "waiting": waiting}

    async def _check(self, folder: Path) -> None:
        def writable() -> bool:
            # Unlike its method of `Path`, this one is false for what lies in a folder we may not look into.
            return folder.is_absolute() and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)

        if not await self._in_thread(writable):
            raise JobFailed(
                f"{folder} : chemin absolu d'un dossier du serveur attendu, où le compte de DRIMbox "
                "peut écrire"
            )

    async def _months(self, site: Site, month: Month | None) -> list[Month]:
        if month is not None:
            return [month]
        span = await self._listing.span(site.name)
        if span is None:
            return []
        first, last = map(month_of, span)
        found = [first]
        while found[-1] < last:
            found.append(found[-1].next)
        return found

    async def _month(
        self,
        progress: Progress,
        folder: Path,
        site: Site,
        month: Month,
        numbers: Sequence[int],
        failed: list[Mapping[str, str]],
        large: bool,
    ) -> list[Mapping[str, Any]]:
        limit = None if large else FAT_LIMIT
        prefix, sender = self._prefixes[site.name], self._sender(site)
        writer: MonthWriter | None = None
        try:
            writer = await self._in_thread(lambda: MonthWriter(folder, prefix, month, sender, limit=limit))
            for start in range(0, len(numbers), _BATCH):
                batch = [await self._listing.load(each) for each in numbers[start : start + _BATCH]]
                failed += await self._in_thread(_adding(writer, batch))
                progress.step(len(batch))
            if not writer.sets:
                return []
            path = await self._in_thread(writer.finish)
            size = await self._in_thread(lambda: path.stat().st_size)
        except ExportRefused as refusal:
            raise JobFailed(str(refusal)) from None
        except OSError as error:
            raise JobFailed(f"écriture dans {folder} impossible : {os_reason(error)}") from None
        finally:
            if writer is not None:
                await self._in_thread(writer.abandon)
        self.log.info("{name} written: {sets} manifests", name=path.name, sets=writer.sets)
        return [{"site": site.name, "file": path.name, "sets": writer.sets, "bytes": size}]

    def _sender(self, site: Site) -> Sender:
        config = self._config
        here = [each for each in config.structures if not site.structures or each.id in site.structures]
        return Sender(
            structures=tuple((each.name, each.id) for each in here),
            site=site.name,
            application=config.drimbox.name,
            version=__version__,
            manufacturer=config.drimbox.manufacturer,
        )


def _adding(
    writer: MonthWriter, batch: Sequence[ExportedKos | None]
) -> Callable[[], list[Mapping[str, str]]]:
    """Return the work that adds a batch and returns those that could not be written."""

    def work() -> list[Mapping[str, str]]:
        failed: list[Mapping[str, str]] = []
        for kos in batch:
            if kos is None:
                continue
            try:
                writer.add(kos)
            except MetadataRefused as refusal:
                failed.append({"sop_instance_uid": kos.sop_instance_uid, "reason": str(refusal)})
        return failed

    return work

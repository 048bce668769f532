"""Homologation mode: test KOS loaded by hand, so that image requests on them are answered.

For the test sessions of the national programme (requirements.md 2.23). The files are bare manifests, or an
XDM archive of which only the manifests are read: XDS metadata may be missing. What is loaded is no part of
the archive (`store/homologation`). Off unless the configuration says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from drimbox.config import Site
from drimbox.kos.changes import is_part10
from drimbox.kos.reading import MAX_BYTES, Manifest, ManifestRefused, read_manifest
from drimbox.ports import InThread
from drimbox.source.archiveexport import os_reason
from drimbox.source.jobs import JobFailed, Progress
from drimbox.xdm.names import is_kos
from drimbox.xdm.opening import ArchiveRefused, FileRefused, find_archives, open_archive

#: Test KOS kept at once: sessions have some dozens.
MAX_LOADED = 1000
OFF = "mode homologation désactivé : écrire enabled = true dans [homologation], puis relancer DRIMbox"


class Count(Protocol):
    """How many test KOS there are."""

    @property
    def kos(self) -> int: ...

    @property
    def patients(self) -> int: ...


class Loaded(Protocol):
    """Where test KOS are kept."""

    async def load(self, site: str, manifest: Manifest, data: bytes) -> bool:
        """Keep one; False when it was known already."""

    async def clear(self) -> int:
        """Remove them all."""

    async def count(self) -> Count:
        """Count them."""


class Homologation:
    """Loads and clears test KOS."""

    def __init__(self, enabled: bool, loaded: Loaded, in_thread: InThread) -> None:
        self.enabled = enabled
        self._loaded = loaded
        self._in_thread = in_thread

    async def load(self, progress: Progress, *, site: Site, paths: Sequence[Path]) -> Mapping[str, Any]:
        """Load the manifests at these paths of the server.

        Returns how many were `loaded`, `known` already, and `patients` there are among the loaded; and the
        `refused` files with why. Raises `JobFailed` and `JobStopped`.
        """
        if not self.enabled:
            raise JobFailed(OFF)
        found: list[tuple[str, Manifest, bytes]] = []
        refused: list[Mapping[str, str]] = []
        there = (await self._loaded.count()).kos
        for path in paths:
            good, bad = await self._in_thread(partial(_read, path))
            found += good
            refused += bad
            if len(found) + there > MAX_LOADED:
                raise JobFailed(f"plus de {MAX_LOADED} KOS de test")
        progress.total, loaded = len(found), 0
        for _, manifest, data in found:
            loaded += await self._loaded.load(site.name, manifest, data)
            progress.step()
        patients = len({manifest.patient.ins for _, manifest, _ in found})
        return {
            "site": site.name,
            "loaded": loaded,
            "known": len(found) - loaded,
            "patients": patients,
            "refused": refused[:100],
        }

    async def clear(self) -> int:
        """Forget every test KOS; return how many there were."""
        return await self._loaded.clear()

    async def count(self) -> Count:
        """Count the test KOS and their patients."""
        return await self._loaded.count()

    def warning(self, count: Count) -> str:
        """Say what an administrator must not forget, French; empty when there is nothing."""
        if self.enabled:
            return (
                f"Mode homologation actif, {count.kos} KOS de test servis : à désactiver après les essais"
            )
        return (
            f"{count.kos} KOS de test restent, non servis : drimbox homologation clear" if count.kos else ""
        )


def _read(path: Path) -> tuple[list[tuple[str, Manifest, bytes]], list[Mapping[str, str]]]:
    """Read the manifests of a file, or of the archives at a path."""
    good: list[tuple[str, Manifest, bytes]] = []
    bad: list[Mapping[str, str]] = []
    for name, data in _files(path, bad):
        try:
            good.append((name, read_manifest(data), data))
        except ManifestRefused as refusal:
            bad.append({"file": name, "reason": str(refusal)})
    return good, bad


def _files(path: Path, bad: list[Mapping[str, str]]) -> list[tuple[str, bytes]]:
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if is_part10(data):
                return [(path.name, data)]
        found = []
        for archive_path in find_archives(path):
            with open_archive(archive_path) as archive:
                for name in archive.sets:
                    try:
                        held = archive.files(name)
                    except FileRefused as refusal:
                        bad.append({"file": f"{archive_path.name} {name}", "reason": str(refusal)})
                        continue
                    found += [(f"{name} {file}", data) for file, data in held.items() if is_kos(file)]
                    if len(found) > MAX_LOADED:
                        raise ArchiveRefused(f"{archive_path.name} : plus de {MAX_LOADED} KOS")
    except ArchiveRefused as refusal:
        bad.append({"file": path.name, "reason": str(refusal)})
        return []
    except OSError as error:
        bad.append({"file": path.name, "reason": os_reason(error)})
        return []
    return found

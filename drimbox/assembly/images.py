"""Where the images are: the PACS and the native archives of the sites, and the ways to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from drimbox.assembly.ground import Ground
from drimbox.config import Site
from drimbox.counted import CountedArchive, CountedFind, CountedMover, Counter
from drimbox.dicom.aetitles import Pool, Pools
from drimbox.dicom.archive import PacsArchive
from drimbox.dicom.directory import find_study
from drimbox.dicom.gateway import PacsGateway
from drimbox.dicom.requestor import Links
from drimbox.dicom.retrieval import Mover
from drimbox.doctor.pacs import PacsDoors
from drimbox.errors import PacsCommunicationError
from drimbox.native.archive import NativeArchive
from drimbox.native.loading import open_archive
from drimbox.native.places import Places
from drimbox.ports import Archives, ImageArchive
from drimbox.reached import Reached
from drimbox.trust.outgoing import client_policy


class Images:
    """The PACS and native archives of all sites. Raises `NativeUnusable`."""

    def __init__(self, ground: Ground) -> None:
        config, reactor = ground.config, ground.reactor
        self._ground = ground
        self.pools = Pools([site.pacs for site in config.sites if site.pacs is not None], reactor)
        self._links = Links(config.dicom, reactor)
        self.reached = Reached(ground.clock.now)
        self._counter = Counter(config, ground.stores.statistics, self.reached)
        #: What `drimbox doctor` moves is no activity of the site's.
        self._plain_mover = Mover(self._links, self.pools, reactor)
        self.mover = CountedMover(self._plain_mover, self._counter)
        self.find = CountedFind(partial(find_study, self._links), self._counter)
        self._pacses = PacsGateway(self._links, self.mover, reactor, find=self.find)
        self.natives = self._make_natives()
        self.archives = self._make_archives()

    def _make_natives(self) -> dict[str, NativeArchive]:
        """Make the native archives, by site. Raises `NativeUnusable`."""
        ground = self._ground
        return {
            site.name: open_archive(
                site.name, site.native, ground.reactor, ground.defer, client_policy(site.native.roots, None)
            )
            for site in ground.config.sites
            if site.native is not None
        }

    def _make_archives(self) -> Archives:
        archives: dict[str, ImageArchive] = {
            name: CountedArchive(archive, self._counter, name) for name, archive in self.natives.items()
        }
        for site in self._ground.config.sites:
            if site.pacs is not None:
                archives[site.name] = PacsArchive(site.pacs, self._pacses, self.mover)
        return archives

    def busy(self, site: Site) -> bool:
        """Say whether somebody waits for an image of the site, or would have to."""
        places: Pool | Places = (
            self.natives[site.name].places if site.pacs is None else self.pools.by_pacs[site.pacs.name]
        )
        return bool(places.waiting) or not places.free

    def verifications(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the question that tells whether each PACS, or native archive, is there, by its name."""

        def asked(site: Site) -> Awaitable[None]:
            if site.pacs is None:
                return self._counter.asked(site.name, self.natives[site.name].verify())
            return self._counter.asked(site.name, self._pacses.is_there(site.pacs))

        return {site.archive: partial(asked, site) for site in self._ground.config.sites}

    def doors(self) -> PacsDoors:
        """Return what the trial of the PACS needs (`drimbox doctor`)."""
        return PacsDoors(
            archives=lambda site: self.archives[site.name],
            find=partial(find_study, self._links),
            mover=self._plain_mover,
            pools=self.pools,
            controls=self._ground.stores.walks.controls,
            clock=self._ground.reactor,
        )

    async def close_natives(self) -> None:
        """Let go of the native archives."""
        for archive in self.natives.values():
            # One that fails to close keeps no other open.
            with suppress(PacsCommunicationError):
                await archive.close()

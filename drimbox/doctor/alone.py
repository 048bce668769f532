"""An examination while the service is stopped: what the process would have is made here, for its time.

Run it as the user of the service, or files that it may read will seem unreadable.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread

from drimbox.clock import SystemClock
from drimbox.config import Config, Site
from drimbox.dicom.acceptor import AcceptorFactory
from drimbox.dicom.aetitles import Pools
from drimbox.dicom.archive import PacsArchive
from drimbox.dicom.directory import find_study
from drimbox.dicom.gateway import PacsGateway
from drimbox.dicom.requestor import Links
from drimbox.dicom.retrieval import Mover
from drimbox.doctor import database, own
from drimbox.doctor.examination import Doors, Examination, ordered
from drimbox.doctor.findings import Finding
from drimbox.doctor.pacs import PacsDoors
from drimbox.native.loading import open_archive
from drimbox.ports import ImageArchive
from drimbox.trust.listkeeper import KEPT
from drimbox.trust.outgoing import client_policy
from drimbox.trust.whitelist import WhitelistHolder, WhitelistRefused


async def examine_alone(
    config: Config, path: Path, reactor: Any, study: str, *, send: bool = False
) -> list[Finding]:
    """Look at everything; `path` is the file that `config` was read from. Raises `NativeUnusable`.

    `study` is the one to ask the PACS for; with `send`, test messages leave by mail and webhook.
    """
    clock = SystemClock()
    whitelist = WhitelistHolder(config.trust, config.sites, clock.now, kept=config.drimbox.state_dir / KEPT)
    await deferToThread(_load, whitelist)
    pools = Pools([site.pacs for site in config.sites if site.pacs is not None], reactor)
    links = Links(config.dicom, reactor)
    mover = Mover(links, pools, reactor)
    archives = await _archives(config, links, mover, reactor)
    ports, dicom = own.free_ports(config, reactor, AcceptorFactory(config.dicom, pools, reactor))
    try:
        examination = Examination(
            Doors(
                config,
                reactor,
                clock,
                deferToThread,
                whitelist,
                PacsDoors(
                    archives=lambda site: archives[site.name],
                    find=partial(find_study, links),
                    mover=mover if dicom is not None else None,
                    pools=pools,
                    controls=_nothing_seen,
                    clock=reactor,
                ),
                own=(
                    ("configuration", lambda: deferToThread(own.configuration, path)),
                    ("store", lambda: deferToThread(database.beside, config, clock.now())),
                ),
            ),
            study,
            send=send,
        )
        await examination.run()
    finally:
        pools.stop()
        if dicom is not None:
            await maybeDeferred(dicom.stopListening)
        for archive in archives.values():
            if not isinstance(archive, PacsArchive):
                await archive.close()
    return ordered([*examination.findings, *ports])


def _load(whitelist: WhitelistHolder) -> None:
    try:
        whitelist.load()
    except WhitelistRefused:
        return  # its `reasons` say why


async def _nothing_seen(_: str) -> Sequence[str]:
    """What a walk has seen is in the store, which is not ours."""
    return ()


async def _archives(config: Config, links: Links, mover: Mover, reactor: Any) -> dict[str, Any]:
    questions = PacsGateway(links, mover, reactor)

    def make(site: Site) -> ImageArchive:
        if site.pacs is not None:
            return PacsArchive(site.pacs, questions, mover)
        assert site.native is not None
        policy = client_policy(site.native.roots, None)
        return open_archive(site.name, site.native, reactor, deferToThread, policy)

    return {site.name: make(site) for site in config.sites}

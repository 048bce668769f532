"""What answers the requests for images: deliveries, who may ask for them, and what they are kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from drimbox.assembly.ground import Ground
from drimbox.dicom.codecpool import CodecPool
from drimbox.ports import Archives, Introspector, SeriesCache
from drimbox.psc.introspection import TokenIntrospector
from drimbox.psc.remembered import RememberingIntrospector
from drimbox.source.delivery import Deliveries
from drimbox.store.archive import Archive
from drimbox.store.homologation import ArchiveWithLoaded
from drimbox.store.spool import Spool
from drimbox.trust.outgoing import Revoked, client_policy
from drimbox.trust.ways import Ways

#: Has a function called when one of some files changes.
WatchFiles = Callable[[Iterable[Path], Callable[[], None]], None]


def make_deliveries(
    ground: Ground, introspector: Introspector, archives: Archives, codecs: CodecPool, cache: SeriesCache
) -> Deliveries:
    """Make the deliveries of all sites."""
    config = ground.config
    return Deliveries(
        config,
        clock=ground.reactor,
        introspector=introspector,
        archive=_known(ground),
        archives=archives,
        spool=Spool(
            config.drimbox.state_dir / "spool",
            per_file=config.wado.spool,
            total=config.wado.total_spool,
            in_thread=ground.defer,
        ),
        in_thread=ground.defer,
        transcoder=codecs,
        cache=cache,
    )


def _known(ground: Ground) -> Archive | ArchiveWithLoaded:
    """Return the KOS that image requests are answered for, those of a test session with them."""
    stores = ground.stores
    if ground.config.homologation.enabled:
        return ArchiveWithLoaded(stores.archive, stores.loaded)
    return stores.archive


def make_introspector(ground: Ground, ways: Ways, watch: WatchFiles, revoked: Revoked) -> Introspector:
    """Make what asks who is behind a token; `revoked` is that of `client_policy`.

    Raises `SecretUnusable`, `CertificateUnusable`.
    """
    psc, reactor, now = ground.config.psc, ground.reactor, ground.clock.now
    policy = client_policy(psc.roots, psc.certificate, revoked=revoked)
    if psc.certificate is not None:
        watch(psc.certificate.files, policy.reload)
    agent = ways.agent("psc", policy, psc.timeout)
    asking = TokenIntrospector(psc, agent, reactor, now)
    if not psc.cache_time:
        return asking
    return RememberingIntrospector(asking, reactor, now, seconds=psc.cache_time, most=psc.cache_entries)

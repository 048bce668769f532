"""Joins the WADO-RS face to trust, deliveries and the audit trail (an implementation of `server.Gate`).

Every request leaves one audit record when it ends, however it ends (DB.SO.46, DB.SO.47): before its first
byte what is known of it is in the store, in case the process dies. It leaves one line in the log and its
metrics too; what an administrator must mend becomes a notice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import attrs
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox import metrics
from drimbox.audit import messages
from drimbox.config import Config, Site
from drimbox.dicom.syntaxes import TABLE
from drimbox.errors import DrimboxError, ImageError, PeerNotTrusted
from drimbox.ports import AuditEvent, AuditTrail, Count, Notices, OpenRecords, Statistics
from drimbox.source import counting
from drimbox.source.attempt import Delivered
from drimbox.source.delivery import Deliveries
from drimbox.source.structures import Structures
from drimbox.source.traces import Trace
from drimbox.trust.contexts import verified_chain, verified_peer
from drimbox.wado.request import ImagesRequest
from drimbox.wado.server import Peer, RequestAnswer

#: Images of an answer whose speed says something.
_RATED = 10
#: Refusals that an operator of ours can do something about.
_NOTICED = frozenset({"E1004", "E1005", "E1006"})


class Lists(Protocol):
    """The whitelist as the gate reads it."""

    def lists(self, certificate: x509.Certificate) -> bool:
        """Say whether CN and OU stand in one entry of the list in force (DB.SO.154)."""

    def serves(self, site: Site) -> bool:
        """Say whether our own certificate of that site is listed (DB.CS.164)."""


@attrs.frozen
class ConsumerPeer:
    """The Consumer at the other end (a `server.Peer`)."""

    address: str
    listed: bool
    #: Subject of its certificate: what its simultaneous requests are counted by.
    name: str = ""


class WadoGate:
    """Trust, deliveries and audit behind the WADO-RS face."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        deliveries: Deliveries,
        whitelist: Lists,
        audit: AuditTrail,
        notices: Notices,
        compare: Callable[[str], Awaitable[object]],
        statistics: Statistics,
        records: OpenRecords,
        stands: Callable[[list[x509.Certificate]], Awaitable[None]] | None = None,
    ) -> None:
        """`compare` queues a comparison of KOS and PACS for a study (DB.SO.190).

        `stands` asks of whom it is about whether a peer, by its verified chain, is not revoked, and raises
        `PeerNotTrusted`; None asks nobody.
        """
        self._stands = stands
        self._config = config
        self._deliveries = deliveries
        self._whitelist = whitelist
        self._audit = audit
        self._notices = notices
        self._compare = compare
        self._statistics = statistics
        self._records = records
        self._structures = Structures(config)
        #: False while the gateway stops: new requests get 503.
        self.open = True

    def site_of(self, transport: Any) -> Site | None:
        """Return the site whose WADO name the TLS handshake chose."""
        try:
            return verified_peer(transport).site
        except PeerNotTrusted:
            return None

    def peer_of(self, transport: Any) -> Peer | None:
        """Return the verified Consumer, None without a verified certificate."""
        try:
            certificate = verified_peer(transport).certificate
        except PeerNotTrusted:
            return None
        address = str(getattr(transport.getPeer(), "host", ""))
        if certificate is None:
            return ConsumerPeer(address, False)
        return ConsumerPeer(
            address, self._whitelist.lists(certificate), certificate.subject.rfc4514_string()
        )

    async def verify(self, transport: Any) -> None:
        """Raise `PeerNotTrusted` when the authority of the peer no longer stands by its certificate."""
        if self._stands is not None:
            await self._stands(verified_chain(transport))

    def enabled(self, site: Site) -> bool:
        """Say whether image access is switched on."""
        return self.open and self._whitelist.serves(site)

    async def serve(
        self, site: Site, peer: Peer, request: ImagesRequest, answer: RequestAnswer
    ) -> DrimboxError | None:
        """Deliver, then take note; return the error when nothing has been written."""
        describe = partial(self._describe, site, peer, request)
        trace = Trace(self._records, request, describe, self._structures.only_at(site.name))
        try:
            result = await self._deliveries.deliver(site, request, answer, peer.name, trace.begin)
        except Exception:
            await self._broke(trace, trace.result or Delivered(request.study_uid, site.name), answer)
            raise
        self._measure(site, request, result)
        await trace.end(result)
        await self._notify(site, result)
        return result.error if not result.cut else None

    async def _broke(self, trace: Trace, result: Delivered, answer: RequestAnswer) -> None:
        """Record a delivery that a bug of ours ended."""
        result.error, result.cut = ImageError("erreur interne"), answer.begun
        try:
            await trace.end(result)
        except Exception:
            self.log.failure("a broken delivery is not recorded", failure=Failure())

    def _describe(self, site: Site, peer: Peer, request: ImagesRequest, result: Delivered) -> AuditEvent:
        return messages.images_served(
            study_uid=request.study_uid,
            caller_address=peer.address,
            source_name=site.wado_fqdn,
            kos=result.kos,
            introspection=result.introspection,
            situation=request.situation or "",
            repository_uid=site.retrieve_location_uid or "",
            internal_id=self._structures.internal_id(result.kos.structure_id) if result.kos else "",
            error=result.error,
            cut=result.cut,
        )

    async def refused(self, site: Site | None, address: str, study_uid: str, error: DrimboxError) -> None:
        """Audit a request refused before it reached the deliveries."""
        name = site.name if site is not None else ""
        metrics.DELIVERIES.labels(name, error.code).inc()
        self._count(counting.of_refusal(name, self._structures.only_at(name), study_uid, error))
        self.log.info("request refused: {code} {status}", code=error.code, status=error.status)
        await self._audit.record(
            messages.images_served(
                study_uid=study_uid,
                caller_address=address,
                source_name=site.wado_fqdn if site is not None else self._config.sites[0].wado_fqdn,
                kos=None,
                repository_uid=(site.retrieve_location_uid or "") if site is not None else "",
                error=error,
            )
        )

    def _count(self, counts: Sequence[Count]) -> None:
        """Count beside the audit record, which shares the commit; a count that fails keeps nobody."""
        if counts:
            Deferred.fromCoroutine(self._statistics.add(counts)).addErrback(
                lambda failure: self.log.warn("request not counted: {why!r}", why=failure.value)
            )

    def _measure(self, site: Site, request: ImagesRequest, result: Delivered) -> None:
        code = result.error.code if result.error is not None else "ok"
        metrics.DELIVERIES.labels(site.name, code).inc()
        metrics.DELIVERY_WAIT_SECONDS.labels(site.name).observe(result.waited)
        metrics.DELIVERED_BYTES.labels(site.name).inc(result.bytes)
        metrics.DELIVERY_SECONDS.labels(site.name).observe(result.seconds)
        for uid, count in result.syntaxes.items():
            metrics.DELIVERED_INSTANCES.labels(site.name, _syntax(uid)).inc(count)
        if result.first_image is not None:
            metrics.FIRST_IMAGE_SECONDS.labels(site.name).observe(result.first_image)
            took = result.seconds - result.first_image
            if code == "ok" and result.instances >= _RATED and took > 0:
                most = max(result.syntaxes, key=lambda uid: result.syntaxes[uid])
                metrics.DELIVERY_RATE.labels(site.name, _syntax(most)).observe(result.instances / took)
        self.log.info(
            "{what} of {study} for {site} from {origin}: {code}, {instances} instances, "
            "{bytes} bytes in {seconds:.3f} s, {waited:.3f} s of it in line",
            what="series" if request.instance_uid is None else "instance",
            origin="cache" if result.cached else "PACS",
            waited=result.waited,
            study=result.study_uid,
            site=site.name,
            code=code,
            instances=result.instances,
            bytes=result.bytes,
            seconds=result.seconds,
        )

    async def _notify(self, site: Site, result: Delivered) -> None:
        if result.differs:
            await self._notices.post(
                key=f"compare-{result.study_uid}",
                code="E1002",
                text=f"Examen {result.study_uid} : le KOS et le PACS {site.archive} diffèrent",
            )
            await self._compare(result.study_uid)
        if result.error is not None and result.error.code in _NOTICED:
            await self._notices.post(
                key=f"{result.error.code}-{site.name}",
                code=result.error.code,
                text=f"Site {site.name} : {result.error}",
            )


def _syntax(uid: str) -> str:
    """Return the name of a transfer syntax as a label: the known ones, and one for all others."""
    return TABLE[uid].name if uid in TABLE else "other"

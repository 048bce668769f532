"""Every audit event reaches the audit repository, in order, however long it is away (DB.CS.96).

The spool is a position in the trail itself. A batch leaves in a session of its own; the position moves once
the session is confirmed (`ports.BatchDelivery`), and not otherwise: a batch whose end is not known is sent
again, byte for byte the same. So nothing is ever lost, and what comes twice is one batch at most. After a
session of which something may have arrived the next batches begin with one event and double with every
success, so that a repository that fails again and again gets the same single event twice, not a hundred.
"""

from __future__ import annotations

from datetime import datetime

from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit.atna import audit_source_id
from drimbox.audit.ontrail import unreadable
from drimbox.audit.syslog import SyslogFormat, frame
from drimbox.config import AtnaSettings, Config
from drimbox.ports import (
    AuditSpool,
    BatchDelivery,
    BatchNotDelivered,
    Clock,
    ExportedEvent,
    InThread,
    OutageNotices,
)
from drimbox.source.backoff import backoff

#: Key of the notice.
_NOTICE = "atna"


class AtnaExport:
    """Sends the trail on; `look` is called again and again."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        settings: AtnaSettings,
        spool: AuditSpool,
        link: BatchDelivery,
        notices: OutageNotices,
        clock: Clock,
        in_thread: InThread,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._link = link
        self._notices = notices
        self._clock = clock
        self._in_thread = in_thread
        self._name, self._host = config.drimbox.name, config.sites[0].wado_fqdn
        self._format = SyslogFormat(
            host=self._host,
            application=config.drimbox.name,
            source_id=audit_source_id(config.drimbox.system_id),
            enterprise_number=settings.enterprise_number,
        )
        #: Events of the next session at most.
        self._size = settings.batch
        self._failures = 0
        self._due: datetime | None = None
        self._reason = ""
        #: Whether everything had been sent once, and whether the administrator was told that it waits.
        self._caught_up = False
        self._told: bool | None = None
        self._stopping = False

    def stop(self) -> None:
        """Begin no further session."""
        self._stopping = True

    async def look(self) -> None:
        """Send what waits, unless a failure is too recent; tell when it waits too long."""
        try:
            if self._due is None or self._clock.now() >= self._due:
                while not self._stopping and await self._send():
                    pass
        finally:
            await self._tell()

    async def _send(self) -> bool:
        """Send one batch; say whether to go on."""
        if not (await self._spool.backlog()).count:
            return False
        events = await self._spool.take(self._size)
        if not events:
            return False
        frames = await self._in_thread(lambda: [self._frame(event) for event in events])
        try:
            await self._link.deliver(frames)
        except BatchNotDelivered as error:
            self._failed(error)
            return False
        await self._spool.confirm(events[-1].id)
        self._confirmed(len(events))
        return True

    def _frame(self, one: ExportedEvent) -> bytes:
        event = one.event or unreadable(name=self._name, source_name=self._host, number=one.id)
        return frame(self._format.message(one.id, one.hash, one.instant, event))

    def _confirmed(self, count: int) -> None:
        if self._failures:
            self.log.info("audit repository: answers again after {count} failures", count=self._failures)
        self._failures, self._due, self._reason = 0, None, ""
        self._size = min(2 * self._size, self._settings.batch)
        metrics.AUDIT_SESSIONS.labels("confirmed").inc()
        metrics.AUDIT_SENT.inc(count)

    def _failed(self, error: BatchNotDelivered) -> None:
        self._failures += 1
        wait = backoff(self._failures, self._settings.retry_first, self._settings.retry_max)
        self._due, self._reason = self._clock.now() + wait, str(error)
        if error.sent:
            self._size = 1
        metrics.AUDIT_SESSIONS.labels("unconfirmed" if error.sent else "refused").inc()
        self.log.warn("audit repository: {reason}", reason=str(error))

    async def _tell(self) -> None:
        """Tell the administrator when something waits too long, and when that is over."""
        backlog = await self._spool.backlog()
        age = 0.0
        if backlog.oldest is not None:
            age = max(0.0, (self._clock.now() - backlog.oldest).total_seconds())
        if not backlog.count:
            self._caught_up = True
            if self._told is not False:
                await self._notices.resolve(_NOTICE)
            self._told = False
        elif age > self._settings.late and not self._told and (self._caught_up or self._reason):
            await self._notices.post(
                key=_NOTICE,
                code="ATNA",
                text=f"Dépôt d'audit : {backlog.count} événements attendent, le plus ancien depuis le "
                f"{backlog.oldest:%d/%m/%Y à %H:%M} UTC ({self._reason or 'envoi en cours'}) ; "
                "aucun n'est perdu",
            )
            self._told = True

"""The inbox: HL7 messages, safe before they are acknowledged (architecture.md rule 4, DB.SO.03).

A message waits, is read by the feed, and ends *done* (with one feed job per study it names, created in
the same transaction) or *failed* (E005: kept for ever, with the reason, for the administrator).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cached_property, partial

from sqlalchemy import Connection, bindparam, insert, select

from drimbox.ports import Count, InboxMessage, ReportSaid
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow
from drimbox.store.queue import Claim, Queue
from drimbox.store.reports import record_report
from drimbox.store.schema import DONE, FAILED, feed_job, inbox
from drimbox.store.statistics import count_in

_MESSAGE = (inbox.c.id, inbox.c.ris, inbox.c.peer, inbox.c.raw, inbox.c.received_at, inbox.c.attempts)
_ADD, _ADD_JOBS = insert(inbox), insert(feed_job)
_RIS = select(inbox.c.ris).where(inbox.c.id == bindparam("message"))


def _read(row: AnyRow) -> InboxMessage:
    return InboxMessage(**{column.name: getattr(row, column.name) for column in _MESSAGE})


class Inbox(Queue):
    """Implements `ports.Inbox`, and what the feed needs of it."""

    _table, _created = inbox, inbox.c.received_at

    @cached_property
    def _turn(self) -> Claim[InboxMessage]:
        return self._claiming(_MESSAGE, [inbox.c.id], _read)

    async def add(self, *, ris: str, peer: str, control_id: str, raw: bytes) -> int:
        """Commit the message and return its number; only then may `AA` be sent.

        Raises `StoreBusy` when too much waits: the sender must get no positive acknowledgement.
        """
        now = self._clock.now()
        row = {
            "ris": clip(ris),
            "peer": clip(peer),
            "control_id": clip(control_id, 200),
            "raw": raw,
            "received_at": now,
            "due_at": now,
        }

        def work(connection: Connection) -> int:
            key = connection.execute(_ADD, row).inserted_primary_key
            assert key is not None
            return int(key[0])

        return await self._database.run(work)

    async def take(self, now: datetime, limit: int) -> list[InboxMessage]:
        """Take the oldest messages that are due and in nobody's hands, at most `limit`.

        `attempts` is the number of times the message was taken before.
        """
        return await self._claim(self._turn, now, limit)

    async def message(self, message_id: int) -> InboxMessage:
        """Read a message again, whatever its state; `KeyError` when there is none."""
        query = select(*_MESSAGE).where(inbox.c.id == message_id)
        row = (await self._database.read(lambda connection: connection.execute(query).all()))[:1]
        if not row:
            raise KeyError(message_id)
        return _read(row[0])

    async def processed(
        self,
        message_id: int,
        *,
        result: str,
        said: ReportSaid | None = None,
        studies: Collection[str] = (),
        count: Count | None = None,
    ) -> None:
        """The message is read: end it and create one feed job per study, in one transaction (DB.SO.12).

        `result` says in a word what the message was; `said` is what a report says, None for
        none: its studies are those it cites and those of the report it takes back. `studies` are to be
        compared with their PACS anyway; `count` is what the statistics count of it. Doing it twice
        creates nothing twice; raises `NotInHand` when the message is not ours.
        """
        await self._database.run(partial(self._processed, message_id, clip(result), said, studies, count))

    def _processed(
        self,
        message_id: int,
        result: str,
        said: ReportSaid | None,
        studies: Collection[str],
        count: Count | None,
        connection: Connection,
    ) -> None:
        if not self._end(connection, message_id, DONE, result=result):
            return
        if count is not None:
            count_in(connection, self._clock.now(), [count])
        concerned = record_report(connection, message_id, said) if said is not None else []
        ris = connection.execute(_RIS, {"message": message_id}).scalar_one()
        now = self._clock.now()
        jobs = [
            {"message_id": message_id, "ris": ris, "study_uid": study, "created_at": now, "due_at": now}
            for study in dict.fromkeys((*concerned, *studies))
        ]
        if jobs:
            connection.execute(_ADD_JOBS, jobs)

    async def failed(
        self, message_id: int, code: str, detail: str, *, counts: Sequence[Count] = ()
    ) -> None:
        """The message cannot be used (`code`, mostly E005): keep it for ever with the reason."""

        def work(connection: Connection) -> None:
            ended = self._end(connection, message_id, FAILED, error_code=code, error_detail=clip(detail))
            if ended:
                count_in(connection, self._clock.now(), counts)

        await self._database.run(work)

    async def retry_later(self, message_id: int, at: datetime, error: str) -> None:
        """Put the message off until `at`; `error` says why, without patient data."""
        await self._put_off(message_id, at, error)

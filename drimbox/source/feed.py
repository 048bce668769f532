"""From a stored report to a queued publication (requirements.md 4.2, steps 2 to 7).

Two steps, each a queue of the store. *Reading* (here) writes down what a message says, and makes one job
per StudyInstanceUID it is about: those it cites, and those of the report it replaces or withdraws
(DB.SO.12, DB.SO.97). *Matching* (`matching`) makes the record match the PACS for one study. Either step
may be killed at any moment: its row is still there, and doing it again changes nothing but a second line
in the audit trail, which is written first so that nothing ever goes unaudited.
"""

from __future__ import annotations

from twisted.logger import Logger

from drimbox.audit import messages
from drimbox.config import Config
from drimbox.errors import DrimboxError
from drimbox.model import MessageAction, is_uid
from drimbox.ports import Count, FeedJob, InboxMessage, ReportSaid
from drimbox.source.feed_doors import Doors
from drimbox.source.interpretation import Interpretation, interpret
from drimbox.source.matching import Matching
from drimbox.source.structures import Structures
from drimbox.source.unreadable import unreadable

__all__ = ["Doors", "Feed"]

#: Results of a message that withdraws its report, and of one about changed studies.
WITHDRAWAL, CHANGE = "depublication", "changement"


def _said(read: Interpretation) -> ReportSaid:
    """Return what a message says of which studies."""
    message, report = read.message, read.report
    assert message is not None
    assert report is not None
    studies = dict.fromkeys(act.study_uid for act in report.acts if is_uid(act.study_uid))
    withdraws = message.action is MessageAction.DELETE
    return ReportSaid(
        document_id=report.document_id,
        replaces=None if withdraws else report.replaces,
        action=message.action,
        sent_at=message.sent_at,
        studies=tuple(studies),
    )


def _count(read: Interpretation) -> Count | None:
    """Return what the statistics count of a message: nothing, when it holds no report."""
    if read.message is None:
        return None
    structure = read.report.structure.id if read.report is not None else ""
    return Count("STF22" if read.error is None else "STF23", structure)


def _withdraws(read: Interpretation) -> bool:
    return read.message is not None and read.message.action is MessageAction.DELETE


def _studies(read: Interpretation) -> tuple[str, ...]:
    """Return the studies that a report of no use names, `UNKNOWN` for none."""
    acts = read.report.acts if read.report is not None else ()
    named = dict.fromkeys(act.study_uid for act in acts if is_uid(act.study_uid))
    return tuple(named) or (messages.UNKNOWN,)


def _failures(read: Interpretation, studies: int) -> list[Count]:
    """Return what the statistics count of a report of no use about so many studies: itself, and its KOS."""
    itself = _count(read)
    if itself is None:
        return []
    return [itself, Count("STF06" if _withdraws(read) else "STF04", itself.structure, amount=studies)]


class Feed:
    """Reads reports, and makes the record match the PACS."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = Structures(config)
        self._matching = Matching(config, doors)

    async def match(self, job: FeedJob) -> None:
        """Make the record match the PACS for one study of one report."""
        await self._matching.match(job)

    async def read(self, stored: InboxMessage) -> None:
        """Read one stored message: audit its reception, and say which studies it feeds (DB.SO.11, 43)."""
        read = await self._doors.in_thread(lambda: interpret(stored.raw, self._config.hl7))
        assert isinstance(read, Interpretation)
        if read.changed:
            await self._changed(stored, read)
            return
        await self._audit_reception(stored, read)
        if read.error is not None:
            await self._unusable(stored, read, read.error)
            return
        if read.reason:
            self.log.info("message {id} does not feed: {reason}", id=stored.id, reason=read.reason)
            await self._doors.messages.processed(stored.id, result=read.reason, count=_count(read))
            return
        said = _said(read)
        result = WITHDRAWAL if said.action is MessageAction.DELETE else "feed"
        await self._doors.messages.processed(stored.id, result=result, said=said, count=_count(read))

    async def _changed(self, stored: InboxMessage, read: Interpretation) -> None:
        """A PACS says that studies changed: compare them; deliver nothing kept meanwhile (DB.SO.133)."""
        if read.key_object is not None:
            # The PACS may keep it in the study: what it is need not be asked.
            await self._doors.rejections.learn(read.key_object.sop_instance_uid, read.key_object.title)
        for study_uid in read.changed:
            await self._doors.forget(study_uid)
        await self._doors.messages.processed(stored.id, result=CHANGE, studies=read.changed)

    async def _audit_reception(self, stored: InboxMessage, read: Interpretation) -> None:
        """Audit that the report came; one that nobody can read carries its error (DB.SO.43)."""
        report = read.report
        author = report.author_organization.id if report is not None else ""
        structure = report.structure.id if report is not None else ""
        await self._doors.audit.record(
            messages.report_received(
                message=read.message,
                report=report,
                ris_address=stored.peer,
                source_name=self._structures.source_name(structure),
                internal_id=self._structures.internal_id(author),
                error=read.error if report is None else None,
            )
        )

    async def _unusable(self, stored: InboxMessage, read: Interpretation, error: DrimboxError) -> None:
        """Audit the failed interpretation, tell the administrator, keep the message (E005, E001)."""
        self.log.warn("message {id} not interpretable: {code}", id=stored.id, code=error.code)
        report, studies = read.report, _studies(read)
        if report is None:
            await self._doors.audit.record(unreadable(self._structures, read.message, error))
        else:
            for study_uid in studies:
                await self._doors.audit.record(
                    messages.kos_failed(
                        report=report,
                        study_uid=study_uid,
                        source_name=self._structures.source_name(report.structure.id),
                        internal_id=self._structures.internal_id(report.structure.id),
                        error=error,
                        removal=_withdraws(read),
                    )
                )
        await self._doors.notices.post(
            key=f"message-{stored.id}",
            code=error.code,
            text=f"Message {stored.id} ({stored.ris}) : {error}",
        )
        counts = _failures(read, len(studies))
        await self._doors.messages.failed(stored.id, error.code, error.detail, counts=counts)

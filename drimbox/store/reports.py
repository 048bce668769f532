"""What the reports say of each study: which one speaks for it now, if any still does (DB.SO.97, DB.SO.12).

Every message that counts leaves one row: its document, what it replaces, what it wants, when it was sent,
and the studies it cites. A report speaks for a study until it is taken back: withdrawn (T04), replaced by
another document (T10), or sent again with other flags under the same identifier. Of those that still
speak, the one that came last does.

Messages may arrive in another order than they were sent: a replacement before what it replaces, a
withdrawal before what it withdraws. Whatever was known first then takes back what comes late; "late" is
told by the instants the sender wrote (MSH-7), used for nothing else, because a sender's clock may lie:
a withdrawal that comes last counts whatever its instant.

A message may also come twice, the second time after others: to the byte the same, it says nothing new, and
what came between keeps the last word. Its studies are looked at again all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select

from drimbox.model import MessageAction
from drimbox.ports import IMPORTED, ReportSaid, Speaker, Voice
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import inbox, kos, kos_report, report, report_study

# Statements of every report, made once: to build one costs SQLAlchemy more than SQLite takes to run it.
_THIS, _OTHER = inbox.alias("this"), inbox.alias("other")
_WRITTEN = (
    select(report.c.id)
    .where(report.c.document_id == bindparam("document"), report.c.message_id == bindparam("message"))
    .limit(1)
)
_REPEATED = (
    select(report.c.id)
    .join(_OTHER, _OTHER.c.id == report.c.message_id)
    .join(_THIS, _THIS.c.id == bindparam("message"))
    .where(
        report.c.document_id == bindparam("document"),
        or_(
            report.c.message_id == bindparam("message"),
            and_(
                _OTHER.c.ris == _THIS.c.ris,
                _OTHER.c.control_id == _THIS.c.control_id,
                _OTHER.c.raw == _THIS.c.raw,
            ),
        ),
    )
    .limit(1)
)
_CITED = (
    select(report_study.c.study_uid)
    .join(report, report.c.id == report_study.c.report_id)
    .where(report.c.document_id.in_(bindparam("documents", expanding=True)))
    .order_by(report_study.c.id)
)
_ARCHIVED = (
    select(kos.c.study_uid)
    .join(kos_report, kos_report.c.kos_id == kos.c.id)
    .where(kos_report.c.report_id.in_(bindparam("documents", expanding=True)))
    .order_by(kos.c.id)
)
_ADD, _ADD_STUDIES = insert(report), insert(report_study)
_RECEIVED = select(inbox.c.received_at).where(inbox.c.id == bindparam("message"))
_LAST_SENT = select(func.max(report.c.sent_at)).where(report.c.document_id == bindparam("document"))
_CITING = (
    select(report, inbox.c.ris)
    .join(report_study, report_study.c.report_id == report.c.id)
    .join(inbox, inbox.c.id == report.c.message_id)
    .where(report_study.c.study_uid == bindparam("study"))
    .order_by(report.c.message_id.desc())
)
_RELATED = select(report).where(
    or_(
        report.c.document_id.in_(bindparam("documents", expanding=True)),
        report.c.replaces.in_(bindparam("documents", expanding=True)),
    )
)


class Reports:
    """The record of reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def speaker(self, study_uid: str) -> Speaker | Voice:
        """Return which message says what the record must hold of a study."""
        return await self._database.read(lambda connection: _speaker(connection, study_uid))

    async def standing(self, study_uid: str) -> dict[int, str]:
        """Return the messages that speak for a study, the last word among them: document by message."""

        def work(connection: Connection) -> dict[int, str]:
            rows = _citing(connection, study_uid)
            return {row.message_id: row.document_id for row in _speaking(connection, rows)}

        return await self._database.read(work)


def record_report(connection: Connection, message_id: int, said: ReportSaid) -> list[str]:
    """Write down what a message says, once; return every study it is about.

    Those it cites, those cited by what it takes back, and those whose manifest was published for that.
    """
    received = connection.execute(_RECEIVED, {"message": message_id}).scalar_one()
    sent_at = _sent_at(connection, said, received)
    if not _recorded(connection, message_id, said):
        key = connection.execute(
            _ADD,
            {
                "message_id": message_id,
                "document_id": said.document_id,
                "replaces": said.replaces,
                "action": said.action.value,
                "sent_at": sent_at,
            },
        ).inserted_primary_key
        assert key is not None
        rows = [{"report_id": key[0], "study_uid": study} for study in dict.fromkeys(said.studies)]
        if rows:
            connection.execute(_ADD_STUDIES, rows)
    return list(dict.fromkeys((*said.studies, *_concerned(connection, said))))


def _sent_at(connection: Connection, said: ReportSaid, received: datetime) -> datetime:
    """Return when a message was sent: not after it came, whatever the sender's clock says.

    Unless our own has been set back since an earlier message of that document came: to call a later one
    older than that would have what it says ignored.
    """
    if said.sent_at is None:
        return received
    known = connection.execute(_LAST_SENT, {"document": said.document_id}).scalar_one()
    return min(said.sent_at, received if known is None else max(received, known))


def _recorded(connection: Connection, message_id: int, said: ReportSaid) -> bool:
    """Say whether this message, or one that is the same to the byte, is written down already.

    A message that does not say when it was sent is never taken for another: the bytes alone do not tell a
    repetition from a report that is sent once more on purpose.
    """
    query = _REPEATED if said.sent_at is not None else _WRITTEN
    return (
        connection.execute(query, {"message": message_id, "document": said.document_id}).first() is not None
    )


def _concerned(connection: Connection, said: ReportSaid) -> list[str]:
    """Studies of the same document, and of the one it replaces."""
    documents = {"documents": [said.document_id, *([said.replaces] if said.replaces else [])]}
    cited, archived = connection.execute(_CITED, documents), connection.execute(_ARCHIVED, documents)
    return [*cited.scalars(), *archived.scalars()]


def _speaker(connection: Connection, study_uid: str) -> Speaker | Voice:
    rows = _citing(connection, study_uid)
    if not rows:
        return Voice.UNKNOWN
    speaking = _speaking(connection, rows)
    return Speaker(speaking[0].message_id, speaking[0].ris) if speaking else Voice.NONE_LEFT


def silenced(connection: Connection, study_uid: str) -> set[str]:
    """Return the documents that once spoke for a study and do no longer."""
    rows = _citing(connection, study_uid)
    speaking = {row.document_id for row in _speaking(connection, rows)}
    return {row.document_id for row in rows} - speaking


def _citing(connection: Connection, study_uid: str) -> Sequence[AnyRow]:
    return connection.execute(_CITING, {"study": study_uid}).all()


def _speaking(connection: Connection, rows: Sequence[AnyRow]) -> list[AnyRow]:
    """Return those of the rows that nothing takes back, the one that counts first."""
    documents = {row.document_id for row in rows}
    related = connection.execute(_RELATED, {"documents": list(documents)}).all()
    return [
        row
        for row in _in_order(rows)
        if row.action != MessageAction.DELETE.value
        and not any(_takes_back(other, row) for other in related)
    ]


def _in_order(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """Put the last word first.

    What an archive brought came late but was said before: it stands where its instant puts it among the
    messages that came by themselves.
    """
    heard = [row for row in rows if row.ris != IMPORTED]

    def place(row: AnyRow) -> tuple[int, bool, int]:
        if row.ris != IMPORTED:
            return row.message_id, False, row.message_id
        before = [each.message_id for each in heard if each.sent_at <= row.sent_at]
        return max(before, default=0), True, row.message_id

    return sorted(rows, key=place, reverse=True)


def _takes_back(other: AnyRow, row: AnyRow) -> bool:
    """Say whether the message `other` takes back what `row` said."""
    came_after = other.message_id > row.message_id
    if other.action == MessageAction.DELETE.value:
        return bool(other.document_id == row.document_id and (came_after or row.sent_at < other.sent_at))
    if other.document_id == row.document_id:
        if came_after:
            return bool(other.sent_at >= row.sent_at)
        return other.message_id != row.message_id and bool(other.sent_at > row.sent_at)
    return bool(other.replaces == row.document_id and (came_after or row.sent_at <= other.sent_at))

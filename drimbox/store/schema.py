"""The tables, in SQLAlchemy Core, the same on SQLite and PostgreSQL.

Theory of operation. Three queues share the same columns (`_queue_columns`): a row *waits* until `due_at`,
is *in hand* while `holder` names the process that works on it (until `held_until`, so that a dead node's
rows come back to the others), and ends *done* or *failed*; one whose work breaks again and again is
*parked* until somebody looks, one that somebody gave up is *dropped*. Rows are never deleted.
The archive is `kos` with `kos_report`; the database itself allows one PUBLISHED KOS per site and study.
A walk over the archive is `walk` with `walk_study`; a site has at most one open walk.
The audit trail is `audit`, append-only by triggers (made by the migrations), chained by hashes whose last
link is `audit_head`; what retention removed from its old end is remembered in `audit_anchor`, and how far
it was sent on in `audit_export`. A delivery under way has the record it would leave in `open_record`.

Instants are UTC (`UtcDateTime`). Whole objects are JSON text made by `codec`. The Alembic revisions
under `migrations/` hold the history; a test compares their result with this module.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

WAITING = "waiting"
DONE = "done"
FAILED = "failed"
PARKED = "parked"
DROPPED = "dropped"
#: Kinds of rows in the outbox.
PUBLISH, REMOVE = "publish", "remove"

#: Hash that precedes the first link of the audit chain.
GENESIS = "0" * 64
#: Rows of `audit` with an index of their own: failures, and reports about several studies (blanks between).
FAILURES = "outcome <> 0"
SEVERAL = "replace(study_uid, ' ', '') <> study_uid"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in Python, UTC in the database. SQLite keeps no zone, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant without time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: SQLite numbers rows by itself only when the key is an INTEGER.
_KEY = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


#: What taking a row looks at. An index that holds it behind the order of the queue gives the first rows
#: that may be taken without reading any row, which may be megabytes long, nor all those that wait.
_TURN = ("due_at", "holder", "held_until")


def _queue_columns() -> list[Any]:
    """Columns common to the queues; see the module's theory of operation."""
    return [
        Column("state", String(16), nullable=False, server_default=WAITING),
        Column("due_at", UtcDateTime, nullable=False),
        #: Times the row was taken (inbox, feed_job) or an attempt begun (outbox).
        Column("attempts", Integer, nullable=False, server_default="0"),
        Column("holder", Text),
        Column("held_until", UtcDateTime),
        #: Times in a row that its work broke in an unforeseen way, or that its process died with it.
        Column("failures", Integer, nullable=False, server_default="0"),
        #: Why it was put off last, parked or dropped; NULL while it never was.
        Column("last_error", Text),
        #: When it ended; of a parked row, when the administrator was told.
        Column("finished_at", UtcDateTime),
        CheckConstraint(
            f"state in ('{WAITING}', '{DONE}', '{FAILED}', '{PARKED}', '{DROPPED}')", name="state"
        ),
    ]


def _single_row() -> list[Any]:
    """The key of a table that has one row, and what keeps it from having another."""
    return [
        Column("id", Integer, primary_key=True, autoincrement=False),
        CheckConstraint("id = 1", name="single"),
    ]


def _where(condition: str) -> dict[str, Any]:
    """Limit an index to the rows that meet a condition, on both databases."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


inbox = Table(
    "inbox",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("ris", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("control_id", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("result", Text),
    Column("error_code", Text),
    Column("error_detail", Text),
    *_queue_columns(),
    Index(None, "state", "id", *_TURN),
    Index(None, "state", "ris", "id", "last_error"),
    sqlite_autoincrement=True,
)

feed_job = Table(
    "feed_job",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("message_id", _KEY, ForeignKey("inbox.id"), nullable=False),
    Column("ris", Text, nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("result", Text),
    Column("detail", Text),
    #: Why it is compared: a `ports.Purpose`.
    Column("purpose", String(16), nullable=False, server_default="match"),
    *_queue_columns(),
    UniqueConstraint("message_id", "study_uid"),
    Index(None, "state", "message_id", "id", *_TURN),
    Index(None, "state", "study_uid", "id"),
    # The last job of a study.
    Index(None, "study_uid", "id"),
    sqlite_autoincrement=True,
)

#: What each message that counts says: `reports` tells which one speaks for a study.
report = Table(
    "report",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("message_id", _KEY, ForeignKey("inbox.id"), nullable=False),
    Column("document_id", Text, nullable=False),
    Column("replaces", Text),
    Column("action", String(8), nullable=False),
    #: When the RIS says it sent it, never after it came.
    Column("sent_at", UtcDateTime, nullable=False),
    CheckConstraint("action in ('new', 'replace', 'delete')", name="action"),
    UniqueConstraint("message_id"),
    Index(None, "document_id"),
    Index(None, "replaces"),
    sqlite_autoincrement=True,
)

report_study = Table(
    "report_study",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("report_id", _KEY, ForeignKey("report.id"), nullable=False),
    Column("study_uid", String(64), nullable=False),
    UniqueConstraint("report_id", "study_uid"),
    Index(None, "study_uid"),
    sqlite_autoincrement=True,
)

kos = Table(
    "kos",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("site", Text, nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False, server_default=""),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("structure_id", Text, nullable=False),
    Column("patient_ins", Text, nullable=False),
    Column("patient_ins_oid", Text, nullable=False),
    Column("patient_id", Text, nullable=False),
    Column("pacs_ins", Text),
    Column("entry_uuid", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    #: When the last change of state happened.
    Column("changed_at", UtcDateTime, nullable=False),
    CheckConstraint(
        "state in ('pending', 'published', 'replaced', 'depublished', 'refused')", name="state"
    ),
    UniqueConstraint("sop_instance_uid"),
    Index(None, "study_uid", "site", "id"),
    Index(None, "state", "published_at"),
    # The database itself refuses a second current KOS (requirements.md 2.7).
    Index(
        "uq_kos_current",
        "site",
        "study_uid",
        unique=True,
        **_where("state = 'published'"),
    ),
    sqlite_autoincrement=True,
)

kos_report = Table(
    "kos_report",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("kos_id", _KEY, ForeignKey("kos.id"), nullable=False),
    Column("report_id", Text, nullable=False),
    UniqueConstraint("kos_id", "report_id"),
    Index(None, "report_id"),
    sqlite_autoincrement=True,
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("kos_id", _KEY, ForeignKey("kos.id"), nullable=False),
    Column("site", Text, nullable=False),
    Column("study_uid", String(64), nullable=False),
    #: "publish" or "remove": the whole `Submission`, or the whole `Removal`, as `codec` writes it.
    Column("kind", String(8), nullable=False, server_default=PUBLISH),
    Column("submission", Text, nullable=False),
    #: True from "attempt begun" until somebody knows whether the DMP got it.
    Column("outcome_unknown", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", UtcDateTime, nullable=False),
    #: JSON list of the DMP's own words.
    Column("warnings", Text),
    Column("error_code", Text),
    Column("error_text", Text),
    *_queue_columns(),
    Index(None, "kos_id"),
    Index(None, "state", "id", *_TURN, "study_uid"),
    Index(None, "state", "study_uid", "id"),
    sqlite_autoincrement=True,
)

audit = Table(
    "audit",
    metadata,
    # Numbered by `audit_head`, without gaps, so that a missing row shows.
    Column("id", _KEY, primary_key=True, autoincrement=False),
    Column("instant", UtcDateTime, nullable=False),
    Column("event_id", String(64), nullable=False),
    Column("outcome", Integer, nullable=False),
    Column("patient_ins", Text, nullable=False),
    Column("study_uid", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index(None, "instant"),
    Index(None, "patient_ins", "id"),
    Index(None, "study_uid", "id"),
    Index(None, "event_id", "id"),
    Index("ix_audit_failed", "id", **_where(FAILURES)),
    Index("ix_audit_several", "id", "study_uid", **_where(SEVERAL)),
)

audit_head = Table(
    "audit_head",
    metadata,
    *_single_row(),
    Column("last_id", _KEY, nullable=False),
    Column("hash", String(64), nullable=False),
)

audit_anchor = Table(
    "audit_anchor",
    metadata,
    *_single_row(),
    # The last event removed and its hash, which the first one kept cites; 0 and `GENESIS` before any was.
    Column("last_id", _KEY, nullable=False),
    Column("hash", String(64), nullable=False),
)

audit_export = Table(
    "audit_export",
    metadata,
    *_single_row(),
    # The last event that the audit repository has confirmed, and when it did.
    Column("last_id", _KEY, nullable=False),
    Column("confirmed_at", UtcDateTime),
    # The node that sends, until when.
    Column("holder", Text),
    Column("held_until", UtcDateTime),
)

#: Deliveries under way, each with the audit record it leaves when its process dies (`openrecords`).
open_record = Table(
    "open_record",
    metadata,
    Column("key", String(32), primary_key=True),
    #: Whose it is: name of the node, and identity of its state folder (`nodes.Home`).
    Column("node", String(64), nullable=False),
    Column("home", String(64), nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    #: An `openrecords.Left`, as `codec` writes it.
    Column("content", Text, nullable=False),
)

notice = Table(
    "notice",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("key", Text, nullable=False),
    Column("code", Text, nullable=False),
    #: "information", "attention" or "grave" (`ports.Severity`).
    Column("severity", String(16), nullable=False, server_default="attention"),
    Column("text", Text, nullable=False),
    Column("count", Integer, nullable=False, server_default="1"),
    Column("first_at", UtcDateTime, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    Column("acknowledged_at", UtcDateTime),
    Column("acknowledged_by", Text),
    Index(None, "acknowledged_at", "last_at"),
    Index(
        "uq_notice_open",
        "key",
        unique=True,
        **_where("acknowledged_at IS NULL"),
    ),
    sqlite_autoincrement=True,
)

#: Which notice has left by which channel ("mail", "webhook").
notice_delivery = Table(
    "notice_delivery",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("notice_id", _KEY, ForeignKey("notice.id"), nullable=False),
    Column("channel", String(16), nullable=False),
    Column("delivered_at", UtcDateTime, nullable=False),
    UniqueConstraint("notice_id", "channel"),
    sqlite_autoincrement=True,
)

#: When each channel may speak again: after its last digest, or after failures in a row.
notice_channel = Table(
    "notice_channel",
    metadata,
    Column("channel", String(16), primary_key=True),
    Column("next_at", UtcDateTime, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("last_error", Text),
)

#: Raw measures of the PACS test (STF20, STF21), kept for the current and the previous month.
speedtest = Table(
    "speedtest",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("site", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    #: Seconds; NULL when the run failed.
    Column("latency", Float),
    Column("duration", Float),
    Column("images", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    #: `E1004 - ...`; empty on success.
    Column("error", Text, nullable=False, server_default=""),
    CheckConstraint("error <> '' OR (latency IS NOT NULL AND duration IS NOT NULL)", name="measured"),
    Index(None, "started_at"),
    Index(None, "site", "started_at"),
    sqlite_autoincrement=True,
)

#: Raw events of the statistics, each as it happened, kept for 24 months (requirements.md 3.3).
statistic = Table(
    "statistic",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    #: A key of `statistics.DEFINITIONS`.
    Column("stat", String(8), nullable=False),
    #: Struct_IdNat, empty when unknown; name of the site, empty when it is about none.
    Column("structure", Text, nullable=False),
    Column("site", Text, nullable=False),
    #: Transfer syntax or modality, empty for what has no breakdown.
    Column("part", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Index(None, "at"),
    sqlite_autoincrement=True,
)

#: Where the watching of a native archive goes on from (DB.SO.27).
native_site = Table(
    "native_site",
    metadata,
    Column("site", Text, primary_key=True),
    Column("cursor", Text, nullable=False),
)

native_study = Table(
    "native_study",
    metadata,
    Column("site", Text, primary_key=True),
    Column("study_uid", String(64), primary_key=True),
    #: The archive's word for the state in which study and KOS agreed; empty: gone; NULL: never looked at.
    Column("mark", Text),
    #: True when the two are to be compared.
    Column("due", Boolean, nullable=False),
    Index(None, "site", "due"),
)

#: One walk over the archive of a site (DB.SO.28, DB.SO.31): where it is, and what it counted.
walk = Table(
    "walk",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("site", Text, nullable=False),
    Column("dry_run", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    #: StudyInstanceUID of the last study judged; empty before the first.
    Column("position", String(64), nullable=False, server_default=""),
    #: True once every study of the site has been judged.
    Column("complete", Boolean, nullable=False, server_default=text("false")),
    #: True once an administrator has released removals beyond the share.
    Column("confirmed", Boolean, nullable=False, server_default=text("false")),
    #: Why it is suspended; empty else.
    Column("reason", Text, nullable=False, server_default=""),
    #: StudyInstanceUIDs that the site was last seen to hold, between blanks.
    Column("controls", Text, nullable=False, server_default=""),
    #: What stands before `/studies/...` in the addresses given, when the walk began.
    Column("address", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    #: STR01 and STR05; the latter NULL until the end.
    Column("kos_before", Integer, nullable=False),
    Column("kos_after", Integer),
    *[
        Column(verdict, Integer, nullable=False, server_default="0")
        for verdict in ("unchanged", "changed", "gone", "retracted", "silent", "undecidable")
    ],
    CheckConstraint("kind in ('resync', 'address')", name="kind"),
    CheckConstraint("state in ('running', 'stopped', 'suspended', 'done', 'abandoned')", name="state"),
    Index(None, "site", "id"),
    # The database itself refuses a second open walk of a site.
    Index(
        "uq_walk_open",
        "site",
        unique=True,
        **_where("state in ('running', 'stopped', 'suspended')"),
    ),
    sqlite_autoincrement=True,
)

#: What a walk found of each study, and what is still to be done about it.
walk_study = Table(
    "walk_study",
    metadata,
    Column("walk_id", _KEY, ForeignKey("walk.id"), primary_key=True),
    Column("study_uid", String(64), primary_key=True),
    #: The KOS that was current when the study was judged.
    Column("kos_id", _KEY, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
    #: A `walks.Step`.
    Column("step", String(16), nullable=False),
    #: Result of its job, or the E-code of the DMP's refusal; empty while there is none.
    Column("result", Text, nullable=False, server_default=""),
    Column("judged_at", UtcDateTime, nullable=False),
    Index(None, "walk_id", "step", "study_uid"),
)

#: KOS loaded by hand for test sessions: apart from the archive, so that nothing that works on it sees them.
homologation = Table(
    "homologation",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("site", Text, nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("patient_ins", Text, nullable=False),
    Column("patient_ins_oid", Text, nullable=False),
    Column("loaded_at", UtcDateTime, nullable=False),
    UniqueConstraint("sop_instance_uid"),
    Index(None, "study_uid", "site"),
    sqlite_autoincrement=True,
)

#: Titles of the key objects in the studies of a PACS (`keytitles`).
key_object = Table(
    "key_object",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    #: DCM code, 113001; empty for one that has none or that nobody can read.
    Column("title", String(16), nullable=False),
    Column("known_at", UtcDateTime, nullable=False),
)

node = Table(
    "node",
    metadata,
    Column("name", String(64), primary_key=True),
    #: Identity of its state folder (`nodes.Home`).
    Column("home", String(64), nullable=False),
    Column("version", Text, nullable=False),
    #: JSON list of the AE titles it answers to.
    Column("titles", Text, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("held_until", UtcDateTime, nullable=False),
    #: Revision of the schema that its program knows, and where its DICOM door listens (`host:port`); empty
    #: of a node of an earlier version.
    Column("revision", String(8), nullable=False, server_default=""),
    Column("dicom", Text, nullable=False, server_default=""),
    #: Seconds by which its clock is ahead of the database's, when it last showed that it lives.
    Column("ahead", Float, nullable=False, server_default="0"),
)

#: What one node at a time does for all.
node_role = Table(
    "node_role",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("node", String(64), nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
    Column("held_until", UtcDateTime, nullable=False),
)

#: Studies that every node lets go from its cache of series, in the order in which they were told.
cache_forget = Table(
    "cache_forget",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("site", Text, nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index(None, "at"),
    sqlite_autoincrement=True,
)

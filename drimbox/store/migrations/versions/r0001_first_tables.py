"""First tables: queues, archive, audit trail, notices.

A revision is history: it imports nothing of the package, so that it still means the same in ten years.
The triggers of the audit trail are part of it; a later revision that rebuilds `audit` or `audit_head`
(Alembic's batch mode) must make them again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _KEY, autoincrement=False, nullable=False),
        sa.Column("instant", _INSTANT, nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("patient_ins", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("prev_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_event_id_id"), "audit", ["event_id", "id"])
    op.create_index(op.f("ix_audit_instant"), "audit", ["instant"])
    op.create_index(op.f("ix_audit_patient_ins_id"), "audit", ["patient_ins", "id"])
    op.create_index(op.f("ix_audit_study_uid_id"), "audit", ["study_uid", "id"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_id", _KEY, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "inbox",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("ris", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("control_id", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", _INSTANT, nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), server_default="waiting", nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("held_until", _INSTANT, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("finished_at", _INSTANT, nullable=True),
        sa.CheckConstraint("state in ('waiting', 'done', 'failed')", name=op.f("ck_inbox_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbox")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_inbox_state_due_at"), "inbox", ["state", "due_at"])
    op.create_index(op.f("ix_inbox_state_ris_id"), "inbox", ["state", "ris", "id"])
    op.create_table(
        "kos",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("series_uid", sa.String(length=64), server_default="", nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("structure_id", sa.Text(), nullable=False),
        sa.Column("patient_ins", sa.Text(), nullable=False),
        sa.Column("patient_ins_oid", sa.Text(), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("pacs_ins", sa.Text(), nullable=True),
        sa.Column("entry_uuid", sa.Text(), nullable=True),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("published_at", _INSTANT, nullable=True),
        sa.Column("changed_at", _INSTANT, nullable=False),
        sa.CheckConstraint(
            "state in ('pending', 'published', 'replaced', 'depublished', 'refused')",
            name=op.f("ck_kos_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kos")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_kos_sop_instance_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_kos_state_published_at"), "kos", ["state", "published_at"])
    op.create_index(op.f("ix_kos_study_uid_site_id"), "kos", ["study_uid", "site", "id"])
    op.create_index(
        "uq_kos_current",
        "kos",
        ["site", "study_uid"],
        unique=True,
        sqlite_where=sa.text("state = 'published'"),
        postgresql_where=sa.text("state = 'published'"),
    )
    op.create_table(
        "notice",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), server_default="1", nullable=False),
        sa.Column("first_at", _INSTANT, nullable=False),
        sa.Column("last_at", _INSTANT, nullable=False),
        sa.Column("acknowledged_at", _INSTANT, nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_notice_acknowledged_at_last_at"), "notice", ["acknowledged_at", "last_at"])
    op.create_index(
        "uq_notice_open",
        "notice",
        ["key"],
        unique=True,
        sqlite_where=sa.text("acknowledged_at IS NULL"),
        postgresql_where=sa.text("acknowledged_at IS NULL"),
    )
    op.create_table(
        "feed_job",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("message_id", _KEY, nullable=False),
        sa.Column("ris", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), server_default="waiting", nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("held_until", _INSTANT, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("finished_at", _INSTANT, nullable=True),
        sa.CheckConstraint("state in ('waiting', 'done', 'failed')", name=op.f("ck_feed_job_state")),
        sa.ForeignKeyConstraint(["message_id"], ["inbox.id"], name=op.f("fk_feed_job_message_id_inbox")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_job")),
        sa.UniqueConstraint("message_id", "study_uid", name=op.f("uq_feed_job_message_id_study_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_feed_job_state_due_at"), "feed_job", ["state", "due_at"])
    op.create_index(op.f("ix_feed_job_state_study_uid_id"), "feed_job", ["state", "study_uid", "id"])
    op.create_table(
        "kos_report",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("kos_id", _KEY, nullable=False),
        sa.Column("report_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["kos_id"], ["kos.id"], name=op.f("fk_kos_report_kos_id_kos")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kos_report")),
        sa.UniqueConstraint("kos_id", "report_id", name=op.f("uq_kos_report_kos_id_report_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_kos_report_report_id"), "kos_report", ["report_id"])
    op.create_table(
        "outbox",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("kos_id", _KEY, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("submission", sa.Text(), nullable=False),
        sa.Column("outcome_unknown", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("warnings", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_text", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), server_default="waiting", nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("held_until", _INSTANT, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("finished_at", _INSTANT, nullable=True),
        sa.CheckConstraint("state in ('waiting', 'done', 'failed')", name=op.f("ck_outbox_state")),
        sa.ForeignKeyConstraint(["kos_id"], ["kos.id"], name=op.f("fk_outbox_kos_id_kos")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outbox_kos_id"), "outbox", ["kos_id"])
    op.create_index(op.f("ix_outbox_state_due_at"), "outbox", ["state", "due_at"])
    op.create_index(op.f("ix_outbox_state_study_uid_id"), "outbox", ["state", "study_uid", "id"])
    head = sa.table("audit_head", sa.column("id"), sa.column("last_id"), sa.column("hash"))
    op.bulk_insert(head, [{"id": 1, "last_id": 0, "hash": "0" * 64}])
    statements = _SQLITE if op.get_context().dialect.name == "sqlite" else _POSTGRESQL
    for statement in statements:
        op.execute(statement)


# An event is added at the end of the chain and never touched again; the head only moves one link on.
# On SQLite the INSERT rules also stop REPLACE, which deletes without asking the DELETE triggers.
_NO = "audit trail is append-only"
_SQLITE = (
    f"""CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_insert_last BEFORE INSERT ON audit
        WHEN NEW.id IS NOT (SELECT last_id + 1 FROM audit_head WHERE id = 1)
          OR NEW.prev_hash IS NOT (SELECT hash FROM audit_head WHERE id = 1)
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_head_no_insert BEFORE INSERT ON audit_head
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_head_forward BEFORE UPDATE ON audit_head
        WHEN NEW.id IS NOT OLD.id OR NEW.last_id IS NOT OLD.last_id + 1
          OR NEW.hash IS NOT (SELECT hash FROM audit WHERE id = NEW.last_id)
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
)
_POSTGRESQL = (
    f"""CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '{_NO}'; END $$""",
    f"""CREATE FUNCTION audit_insert_last() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF NOT EXISTS (SELECT 1 FROM audit_head
                         WHERE id = 1 AND last_id + 1 = NEW.id AND hash = NEW.prev_hash) THEN
            RAISE EXCEPTION '{_NO}';
          END IF;
          RETURN NEW;
        END $$""",
    f"""CREATE FUNCTION audit_head_forward() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF NEW.id <> OLD.id OR NEW.last_id <> OLD.last_id + 1
             OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.last_id AND hash = NEW.hash) THEN
            RAISE EXCEPTION '{_NO}';
          END IF;
          RETURN NEW;
        END $$""",
    """CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit
       FOR EACH ROW EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit
       FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_insert_last BEFORE INSERT ON audit
       FOR EACH ROW EXECUTE FUNCTION audit_insert_last()""",
    """CREATE TRIGGER audit_head_no_change BEFORE INSERT OR DELETE ON audit_head
       FOR EACH ROW EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_head_no_truncate BEFORE TRUNCATE ON audit_head
       FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_head_forward BEFORE UPDATE ON audit_head
       FOR EACH ROW EXECUTE FUNCTION audit_head_forward()""",
)

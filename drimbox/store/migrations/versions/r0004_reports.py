"""What each report message said of which study, and withdrawals in the outbox (DB.SO.97)."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "report",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("message_id", _KEY, nullable=False),
        sa.Column("document_id", sa.Text(), nullable=False),
        sa.Column("replaces", sa.Text(), nullable=True),
        sa.Column("action", sa.String(length=8), nullable=False),
        sa.Column("sent_at", _INSTANT, nullable=False),
        sa.CheckConstraint("action in ('new', 'replace', 'delete')", name=op.f("ck_report_action")),
        sa.ForeignKeyConstraint(["message_id"], ["inbox.id"], name=op.f("fk_report_message_id_inbox")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_report")),
        sa.UniqueConstraint("message_id", name=op.f("uq_report_message_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_report_document_id"), "report", ["document_id"])
    op.create_index(op.f("ix_report_replaces"), "report", ["replaces"])
    op.create_table(
        "report_study",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("report_id", _KEY, nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["report.id"], name=op.f("fk_report_study_report_id_report")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_report_study")),
        sa.UniqueConstraint("report_id", "study_uid", name=op.f("uq_report_study_report_id_study_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_report_study_study_uid"), "report_study", ["study_uid"])
    op.add_column("outbox", sa.Column("kind", sa.String(8), nullable=False, server_default="publish"))

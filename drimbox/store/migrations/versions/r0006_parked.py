"""Rows of the queues that are parked or dropped; severity and delivery of notices (DB.SO.21).

SQLite cannot change a CHECK constraint: the three queues are rebuilt there.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    rebuilt = op.get_bind().dialect.name == "sqlite"
    for table in ("inbox", "feed_job", "outbox"):
        with op.batch_alter_table(table, table_kwargs={"sqlite_autoincrement": True}) as batch:
            batch.add_column(sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
            if not rebuilt:  # a rebuilt table has lost its check constraint
                batch.drop_constraint(op.f(f"ck_{table}_state"), type_="check")
            batch.create_check_constraint(
                op.f(f"ck_{table}_state"), "state in ('waiting', 'done', 'failed', 'parked', 'dropped')"
            )
    severity = sa.Column("severity", sa.String(16), nullable=False, server_default="attention")
    op.add_column("notice", severity)
    op.create_table(
        "notice_delivery",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("notice_id", _KEY, nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("delivered_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["notice_id"], ["notice.id"], name=op.f("fk_notice_delivery_notice_id_notice")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice_delivery")),
        sa.UniqueConstraint("notice_id", "channel", name=op.f("uq_notice_delivery_notice_id_channel")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "notice_channel",
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("next_at", _INSTANT, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("channel", name=op.f("pk_notice_channel")),
    )

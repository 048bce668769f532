"""Raw measures of the PACS test (DB.SO.102)."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "speedtest",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("latency", sa.Float(), nullable=True),
        sa.Column("duration", sa.Float(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint(
            "error <> '' OR (latency IS NOT NULL AND duration IS NOT NULL)",
            name=op.f("ck_speedtest_measured"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_speedtest")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_speedtest_started_at"), "speedtest", ["started_at"])
    op.create_index(op.f("ix_speedtest_site_started_at"), "speedtest", ["site", "started_at"])

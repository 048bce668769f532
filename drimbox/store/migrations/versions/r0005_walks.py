"""Walks over the archive, and why a feed job compares its study (DB.SO.28, DB.SO.31)."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = sa.DateTime(timezone=True)
_OPEN = sa.text("state in ('running', 'stopped', 'suspended')")


def upgrade() -> None:
    op.add_column("feed_job", sa.Column("purpose", sa.String(16), nullable=False, server_default="match"))
    op.create_index(op.f("ix_feed_job_study_uid_id"), "feed_job", ["study_uid", "id"])
    op.create_table(
        "walk",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("position", sa.String(length=64), server_default="", nullable=False),
        sa.Column("complete", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("confirmed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("controls", sa.Text(), server_default="", nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT, nullable=True),
        sa.Column("kos_before", sa.Integer(), nullable=False),
        sa.Column("kos_after", sa.Integer(), nullable=True),
        sa.Column("unchanged", sa.Integer(), server_default="0", nullable=False),
        sa.Column("changed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("gone", sa.Integer(), server_default="0", nullable=False),
        sa.Column("retracted", sa.Integer(), server_default="0", nullable=False),
        sa.Column("silent", sa.Integer(), server_default="0", nullable=False),
        sa.Column("undecidable", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("kind in ('resync', 'address')", name=op.f("ck_walk_kind")),
        sa.CheckConstraint(
            "state in ('running', 'stopped', 'suspended', 'done', 'abandoned')", name=op.f("ck_walk_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_walk")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_walk_site_id"), "walk", ["site", "id"])
    op.create_index(
        "uq_walk_open", "walk", ["site"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN
    )
    op.create_table(
        "walk_study",
        sa.Column("walk_id", _KEY, nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("kos_id", _KEY, nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.Column("step", sa.String(length=16), nullable=False),
        sa.Column("result", sa.Text(), server_default="", nullable=False),
        sa.Column("judged_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["walk_id"], ["walk.id"], name=op.f("fk_walk_study_walk_id_walk")),
        sa.PrimaryKeyConstraint("walk_id", "study_uid", name=op.f("pk_walk_study")),
    )
    op.create_index(
        op.f("ix_walk_study_walk_id_step_study_uid"), "walk_study", ["walk_id", "step", "study_uid"]
    )

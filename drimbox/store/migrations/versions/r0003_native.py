"""Watching of native archives (DB.SO.27)."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "native_site",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site", name=op.f("pk_native_site")),
    )
    op.create_table(
        "native_study",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("due", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("site", "study_uid", name=op.f("pk_native_study")),
    )
    op.create_index(op.f("ix_native_study_site_due"), "native_study", ["site", "due"])

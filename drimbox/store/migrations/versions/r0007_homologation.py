"""KOS loaded by hand for test sessions (requirements.md 2.23)."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "homologation",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("patient_ins", sa.Text(), nullable=False),
        sa.Column("patient_ins_oid", sa.Text(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_homologation")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_homologation_sop_instance_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_homologation_study_uid_site"), "homologation", ["study_uid", "site"], unique=False
    )

"""How far the audit trail has been sent on, and which node does it."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_export",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_export_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_export")),
    )
    export = sa.table("audit_export", sa.column("id"), sa.column("last_id"))
    op.bulk_insert(export, [{"id": 1, "last_id": 0}])

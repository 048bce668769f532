"""Audit trail: retention removes from the old end, behind an anchor; indexes for failures and long reports.

The anchor says which event was removed last, and its hash: the chain goes on from there. The triggers let
nothing go that the anchor has not passed, and the anchor only move forward, onto an event of the trail.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_NO = "audit trail is append-only"
_SQLITE = (
    "DROP TRIGGER audit_no_delete",
    f"""CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
        WHEN OLD.id > (SELECT last_id FROM audit_anchor WHERE id = 1)
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_anchor_no_delete BEFORE DELETE ON audit_anchor
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_anchor_no_insert BEFORE INSERT ON audit_anchor
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
    f"""CREATE TRIGGER audit_anchor_forward BEFORE UPDATE ON audit_anchor
        WHEN NEW.id IS NOT OLD.id OR NEW.last_id <= OLD.last_id
          OR NEW.last_id >= (SELECT last_id FROM audit_head WHERE id = 1)
          OR NEW.hash IS NOT (SELECT hash FROM audit WHERE id = NEW.last_id)
        BEGIN SELECT RAISE(ABORT, '{_NO}'); END""",
)
_POSTGRESQL = (
    "DROP TRIGGER audit_no_change ON audit",
    f"""CREATE FUNCTION audit_delete_old() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF OLD.id > (SELECT last_id FROM audit_anchor WHERE id = 1) THEN
            RAISE EXCEPTION '{_NO}';
          END IF;
          RETURN OLD;
        END $$""",
    f"""CREATE FUNCTION audit_anchor_forward() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF NEW.id <> OLD.id OR NEW.last_id <= OLD.last_id
             OR NEW.last_id >= (SELECT last_id FROM audit_head WHERE id = 1)
             OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.last_id AND hash = NEW.hash) THEN
            RAISE EXCEPTION '{_NO}';
          END IF;
          RETURN NEW;
        END $$""",
    """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
       FOR EACH ROW EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
       FOR EACH ROW EXECUTE FUNCTION audit_delete_old()""",
    """CREATE TRIGGER audit_anchor_no_change BEFORE INSERT OR DELETE ON audit_anchor
       FOR EACH ROW EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_anchor_no_truncate BEFORE TRUNCATE ON audit_anchor
       FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_anchor_forward BEFORE UPDATE ON audit_anchor
       FOR EACH ROW EXECUTE FUNCTION audit_anchor_forward()""",
)


def upgrade() -> None:
    op.create_table(
        "audit_anchor",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_anchor_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_anchor")),
    )
    anchor = sa.table("audit_anchor", sa.column("id"), sa.column("last_id"), sa.column("hash"))
    op.bulk_insert(anchor, [{"id": 1, "last_id": 0, "hash": "0" * 64}])
    failed, several = "outcome <> 0", "replace(study_uid, ' ', '') <> study_uid"
    for name, columns, rows in (("failed", ["id"], failed), ("several", ["id", "study_uid"], several)):
        where = sa.text(rows)
        op.create_index(f"ix_audit_{name}", "audit", columns, sqlite_where=where, postgresql_where=where)
    statements = _SQLITE if op.get_context().dialect.name == "sqlite" else _POSTGRESQL
    for statement in statements:
        op.execute(statement)

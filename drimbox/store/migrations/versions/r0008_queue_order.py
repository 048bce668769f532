"""Indexes in the order of the queues: taking a row read and sorted all that waited."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TURN = ("due_at", "holder", "held_until")
_ADDED: dict[str, list[tuple[str, ...]]] = {
    "inbox": [("state", "id", *_TURN), ("state", "ris", "id", "last_error")],
    "feed_job": [("state", "message_id", "id", *_TURN)],
    "outbox": [("state", "id", *_TURN, "study_uid")],
}
_DROPPED: dict[str, list[tuple[str, ...]]] = {
    "inbox": [("state", "due_at"), ("state", "ris", "id")],
    "feed_job": [("state", "due_at")],
    "outbox": [("state", "due_at")],
}


def upgrade() -> None:
    for table, indexes in _DROPPED.items():
        for columns in indexes:
            op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)
    for table, indexes in _ADDED.items():
        for columns in indexes:
            op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))

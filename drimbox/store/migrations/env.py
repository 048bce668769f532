"""Alembic's entry point: runs the revisions on the connection `upgrade.py` gives, in its transaction."""

from __future__ import annotations

from alembic import context

from drimbox.store.schema import metadata

connection = context.config.attributes["connection"]
if connection is None:
    raise RuntimeError("the revisions run through drimbox.store.upgrade, on an open connection")
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite cannot alter a column or a constraint: Alembic rebuilds the table.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()

"""What each node says of itself: schema revision of its program, DICOM address, clock (`drimbox doctor`)."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, kind, default in (
        ("revision", sa.String(length=8), ""),
        ("dicom", sa.Text(), ""),
        ("ahead", sa.Float(), "0"),
    ):
        op.add_column("node", sa.Column(name, kind, nullable=False, server_default=default))

"""What came when quarantine was full: counted, not kept."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("recorded_messages", sa.Column("sender", sa.Text(), server_default="", nullable=False))
    op.create_table(
        "quarantine_overflow",
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_fingerprint", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sender", "reason", name=op.f("quarantine_overflow_pkey")),
    )

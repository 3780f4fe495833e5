"""Where traces are kept while their orders wait, and how old the code on this schema may be."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "trace_contexts",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("source", "event_id", name=op.f("trace_contexts_pkey")),
    )
    op.create_index(
        "trace_contexts_recorded_at_idx",
        "trace_contexts",
        ["recorded_at"],
        unique=False,
        postgresql_using="brin",
    )
    op.add_column("deployment", sa.Column("oldest_code", sa.Text(), nullable=True))

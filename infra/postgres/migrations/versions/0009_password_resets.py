"""A forgotten withdrawal password: two operators let a seller enrol anew."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # May be null, so nothing is rewritten, and older code need not know of it.
    op.add_column("sellers", sa.Column("password_reset_until", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "password_resets",
        sa.Column("reset_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("proposed_by", sa.Text(), nullable=False),
        sa.Column("proposed_why", sa.Text(), nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_why", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(decided_by IS NULL) = (decided_at IS NULL) AND (valid_until IS NULL) = (decided_at IS NULL)",
            name=op.f("password_resets_decided_check"),
        ),
        sa.CheckConstraint(
            "lower(trim(decided_by)) <> lower(trim(proposed_by))",
            name=op.f("password_resets_two_names_check"),
        ),
        sa.PrimaryKeyConstraint("reset_id", name=op.f("password_resets_pkey")),
        sa.UniqueConstraint("shop_id", "event_id", name=op.f("password_resets_shop_id_event_id_key")),
    )

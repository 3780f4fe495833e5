"""Withdrawals that wait: limits, reviews, cooling-off, and pauses of payouts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for column in (
        sa.Column("reserved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pending_reason", sa.Text(), nullable=True),
        sa.Column("over_limit", sa.Text(), nullable=True),
        sa.Column("pending_until", sa.DateTime(timezone=True), nullable=True),
    ):
        op.add_column("withdrawals", column)
    # Not checked against the rows that are there: that would lock the table while it is read. See 0005.
    op.execute("""
        ALTER TABLE withdrawals ADD CONSTRAINT withdrawals_pending_check
        CHECK (state <> 'pending' OR (pending_reason IS NOT NULL AND reserved_at IS NOT NULL)) NOT VALID
    """)
    op.create_table(
        "withdrawal_limits",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("per_withdrawal_minor", sa.BigInteger(), nullable=True),
        sa.Column("per_day_minor", sa.BigInteger(), nullable=True),
        sa.Column("per_hour_count", sa.Integer(), nullable=True),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "scope IN ('shop', 'sellers', 'seller')", name=op.f("withdrawal_limits_scope_check")
        ),
        sa.CheckConstraint(
            "(scope = 'seller') = (seller_id <> '')", name=op.f("withdrawal_limits_seller_check")
        ),
        sa.CheckConstraint(
            "per_withdrawal_minor >= 0 AND per_day_minor >= 0 AND per_hour_count >= 0",
            name=op.f("withdrawal_limits_limits_check"),
        ),
        sa.PrimaryKeyConstraint(
            "shop_id", "scope", "seller_id", "currency", name=op.f("withdrawal_limits_pkey")
        ),
    )
    op.create_table(
        "withdrawal_reviews",
        sa.Column("payout_id", sa.Uuid(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("proposed_by", sa.Text(), nullable=False),
        sa.Column("proposed_why", sa.Text(), nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_why", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("verdict IN ('approve', 'reject')", name=op.f("withdrawal_reviews_verdict_check")),
        sa.CheckConstraint(
            "(decided_by IS NULL) = (decided_at IS NULL)", name=op.f("withdrawal_reviews_decided_check")
        ),
        sa.CheckConstraint(
            "lower(trim(decided_by)) <> lower(trim(proposed_by))",
            name=op.f("withdrawal_reviews_two_names_check"),
        ),
        sa.PrimaryKeyConstraint("payout_id", name=op.f("withdrawal_reviews_pkey")),
    )
    op.create_table(
        "payout_pauses",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column(
            "paused_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("paused_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("shop_id", name=op.f("payout_pauses_pkey")),
    )

"""Payouts of a shop's own money: fees, and what was recovered by claims."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "shop_payouts",
        sa.Column("payout_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("destination_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("proposed_by", sa.Text(), nullable=False),
        sa.Column("proposed_why", sa.Text(), nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_why", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("source IN ('fees', 'recovered')", name=op.f("shop_payouts_source_check")),
        sa.CheckConstraint(
            "state IN ('proposed', 'approved', 'rejected')", name=op.f("shop_payouts_state_check")
        ),
        sa.CheckConstraint(
            "amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("shop_payouts_amount_check")
        ),
        sa.CheckConstraint(
            "(state = 'proposed') = (decided_at IS NULL) AND (decided_by IS NULL) = (decided_at IS NULL)",
            name=op.f("shop_payouts_decided_check"),
        ),
        sa.CheckConstraint(
            "state <> 'approved' OR lower(trim(decided_by)) <> lower(trim(proposed_by))",
            name=op.f("shop_payouts_two_names_check"),
        ),
        sa.PrimaryKeyConstraint("payout_id", name=op.f("shop_payouts_pkey")),
        sa.UniqueConstraint("shop_id", "reference", name=op.f("shop_payouts_shop_id_reference_key")),
    )
    # What a transfer pays out: a seller's withdrawal, or a shop's own money.
    op.execute("""
        CREATE VIEW payouts AS
            SELECT payout_id, shop_id, withdrawal_id AS reference, seller_id, amount_minor, currency,
                   destination_id, 'seller'::text AS source
            FROM withdrawals
            UNION ALL
            SELECT payout_id, shop_id, reference, ''::text, amount_minor, currency, destination_id, source
            FROM shop_payouts
    """)

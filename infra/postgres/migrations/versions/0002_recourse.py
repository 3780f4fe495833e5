"""Recourse: disputes, refunds, claims, and credits that the bank takes back."""

import sqlalchemy as sa
from alembic import op

# ruff: noqa: E501 - generated conditions are left as they are

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "bank_debits",
        sa.Column("debit_id", sa.Uuid(), nullable=False),
        sa.Column("bank_id", sa.Text(), nullable=False),
        sa.Column("statement_line", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("bank_reference", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("credit_id", sa.Uuid(), nullable=True),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint(
            "amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("bank_debits_amount_check")
        ),
        sa.PrimaryKeyConstraint("debit_id", name=op.f("bank_debits_pkey")),
        sa.UniqueConstraint("bank_id", "statement_line", name=op.f("bank_debits_bank_id_statement_line_key")),
    )
    op.create_index(
        "bank_debits_open_idx",
        "bank_debits",
        ["bank_reference"],
        unique=False,
        postgresql_where=sa.text("credit_id IS NULL"),
    )
    op.create_index(
        "bank_debits_payment_id_idx",
        "bank_debits",
        ["payment_id"],
        unique=False,
        postgresql_where=sa.text("payment_id IS NOT NULL"),
    )
    op.create_table(
        "claims",
        sa.Column("claim_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("taken_minor", sa.BigInteger(), nullable=False),
        sa.Column("fee_minor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("hold_id", sa.Uuid(), nullable=True),
        sa.Column("operator", sa.Text(), nullable=True),
        sa.Column("second_operator", sa.Text(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("returned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(cause = 'operator') = (operator IS NOT NULL)", name=op.f("claims_operator_check")
        ),
        sa.CheckConstraint("cause IN ('operator', 'chargeback')", name=op.f("claims_cause_check")),
        sa.CheckConstraint("amount_minor BETWEEN 0 AND 1000000000000000", name=op.f("claims_amount_check")),
        sa.CheckConstraint("fee_minor >= 0 AND amount_minor + fee_minor >= 1", name=op.f("claims_fee_check")),
        sa.CheckConstraint("cause <> 'chargeback' OR hold_id IS NOT NULL", name=op.f("claims_hold_check")),
        sa.CheckConstraint(
            "second_operator IS NULL OR second_operator <> operator", name=op.f("claims_two_names_check")
        ),
        sa.CheckConstraint("taken_minor BETWEEN 0 AND amount_minor", name=op.f("claims_taken_check")),
        sa.PrimaryKeyConstraint("claim_id", name=op.f("claims_pkey")),
    )
    op.create_index(
        "claims_standing_key",
        "claims",
        ["hold_id"],
        unique=True,
        postgresql_where=sa.text("cause = 'chargeback' AND returned_at IS NULL"),
    )
    op.create_table(
        "dispute_holds",
        sa.Column("dispute_key", sa.Uuid(), nullable=False),
        sa.Column("hold_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("dispute_key", "hold_id", name=op.f("dispute_holds_pkey")),
    )
    op.create_index(op.f("dispute_holds_hold_id_idx"), "dispute_holds", ["hold_id"], unique=False)
    op.create_table(
        "disputes",
        sa.Column("dispute_key", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("dispute_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("complaint", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolution_hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(state = 'rejected') = (reason IS NOT NULL)", name=op.f("disputes_reason_check")),
        sa.CheckConstraint(
            "(state = 'resolved') = (resolved_at IS NOT NULL)", name=op.f("disputes_resolved_at_check")
        ),
        sa.CheckConstraint("state IN ('open', 'resolved', 'rejected')", name=op.f("disputes_state_check")),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolution_hash IS NULL)", name=op.f("disputes_resolution_check")
        ),
        sa.PrimaryKeyConstraint("dispute_key", name=op.f("disputes_pkey")),
        sa.UniqueConstraint("shop_id", "dispute_id", name=op.f("disputes_shop_id_dispute_id_key")),
    )
    op.create_index(
        "disputes_open_idx",
        "disputes",
        ["opened_at"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "receivables",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("owed_minor", sa.Numeric(precision=38, scale=0), nullable=False),
        sa.CheckConstraint("owed_minor >= 0", name=op.f("receivables_not_negative_check")),
        sa.PrimaryKeyConstraint("shop_id", "seller_id", "currency", name=op.f("receivables_pkey")),
    )
    op.create_table(
        "refund_parts",
        sa.Column("refund_key", sa.Uuid(), nullable=False),
        sa.Column("hold_id", sa.Uuid(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("refund_parts_amount_check")
        ),
        sa.PrimaryKeyConstraint("refund_key", "hold_id", name=op.f("refund_parts_pkey")),
    )
    op.create_table(
        "refunds",
        sa.Column("refund_key", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("refund_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("end_to_end_id", sa.Text(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("origin IN ('refund', 'dispute')", name=op.f("refunds_origin_check")),
        sa.CheckConstraint("state <> 'rejected' OR reason IS NOT NULL", name=op.f("refunds_reason_check")),
        sa.CheckConstraint(
            "state = 'rejected' OR (payment_id IS NOT NULL AND currency IS NOT NULL AND end_to_end_id IS NOT NULL)",
            name=op.f("refunds_accepted_check"),
        ),
        sa.CheckConstraint(
            "state IN ('rejected', 'waiting', 'ready', 'sending', 'unknown', 'submitted', 'settled', 'failed')",
            name=op.f("refunds_state_check"),
        ),
        sa.CheckConstraint("amount_minor >= 1", name=op.f("refunds_amount_check")),
        sa.PrimaryKeyConstraint("refund_key", name=op.f("refunds_pkey")),
        sa.UniqueConstraint("end_to_end_id", name=op.f("refunds_end_to_end_id_key")),
        sa.UniqueConstraint(
            "shop_id", "origin", "refund_id", name=op.f("refunds_shop_id_origin_refund_id_key")
        ),
    )
    op.create_index(
        "refunds_open_idx",
        "refunds",
        ["touched_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'ready', 'sending', 'unknown', 'submitted')"),
    )
    op.create_index(
        "refunds_payment_idx",
        "refunds",
        ["payment_id"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_table(
        "sweep_marks",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("settled_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("sweep_marks_pkey")),
    )
    op.add_column("bank_credits", sa.Column("taken_back_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("payments", sa.Column("charged_back_at", sa.DateTime(timezone=True), nullable=True))
    # NOT VALID takes no long lock, and VALIDATE lets others write meanwhile.
    for table, name, condition in (
        ("bank_credits", "bank_credits_taken_back_check", "taken_back_at IS NULL OR payment_id IS NULL"),
        ("payments", "payments_charged_back_check", "funded_at IS NULL OR charged_back_at IS NULL"),
    ):
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
    op.create_index(
        "bank_credits_suspense_idx",
        "bank_credits",
        ["received_at"],
        unique=False,
        postgresql_where=sa.text("payment_id IS NULL AND taken_back_at IS NULL"),
    )

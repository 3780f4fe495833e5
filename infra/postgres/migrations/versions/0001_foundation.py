"""Foundation: shops and keys, messages, payments, holds, payouts and the ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

# ruff: noqa: E501 - generated conditions are left as they are

revision = "0001"
down_revision = None


class Xid8(UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


# Posted rows never change. Table owners are not exempt: a trigger holds them too.
_INSERT_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % refused: rows are only ever inserted', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation',
              HINT = 'Correct a posting with another posting.';
END $$;
CREATE TRIGGER postings_insert_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# Double entry as an accountant reads it: two lines a posting.
_ENTRIES = """
CREATE VIEW entries AS
    SELECT posting_id, kind, cause_id, shop_id, seller_id, currency, debit AS account,
           amount_minor AS debit_minor, 0::bigint AS credit_minor, booked_at
    FROM postings
    UNION ALL
    SELECT posting_id, kind, cause_id, shop_id, seller_id, currency, credit AS account,
           0::bigint, amount_minor, booked_at
    FROM postings;
"""

# What balances are summed from, credits positive: the sealed subtotals, and the postings behind them.
_BALANCE_LINES = """
CREATE VIEW balance_lines AS
    SELECT shop_id, seller_id, currency, kind, debit AS account, -total_minor AS net_minor FROM subtotals
    UNION ALL
    SELECT shop_id, seller_id, currency, kind, credit, total_minor FROM subtotals
    UNION ALL
    SELECT shop_id, seller_id, currency, kind, debit, -amount_minor
    FROM postings WHERE xact >= (SELECT horizon FROM seal)
    UNION ALL
    SELECT shop_id, seller_id, currency, kind, credit, amount_minor
    FROM postings WHERE xact >= (SELECT horizon FROM seal);
"""


def upgrade() -> None:
    op.create_table(
        "available_balances",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("available_minor", sa.Numeric(precision=38, scale=0), nullable=False),
        sa.CheckConstraint("available_minor >= 0", name=op.f("available_balances_not_negative_check")),
        sa.PrimaryKeyConstraint("shop_id", "seller_id", "currency", name=op.f("available_balances_pkey")),
    )
    op.create_table(
        "bank_credits",
        sa.Column("credit_id", sa.Uuid(), nullable=False),
        sa.Column("bank_id", sa.Text(), nullable=False),
        sa.Column("statement_line", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("bank_reference", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("matched_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(payment_id IS NULL) = (matched_at IS NULL)", name=op.f("bank_credits_matched_check")
        ),
        sa.CheckConstraint(
            "amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("bank_credits_amount_check")
        ),
        sa.PrimaryKeyConstraint("credit_id", name=op.f("bank_credits_pkey")),
        sa.UniqueConstraint(
            "bank_id", "statement_line", name=op.f("bank_credits_bank_id_statement_line_key")
        ),
    )
    op.create_index(
        "bank_credits_payment_id_key",
        "bank_credits",
        ["payment_id"],
        unique=True,
        postgresql_where=sa.text("payment_id IS NOT NULL"),
    )
    op.create_index(op.f("bank_credits_bank_reference_idx"), "bank_credits", ["bank_reference"], unique=False)
    op.create_table(
        "bank_cursors",
        sa.Column("feed", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("feed", name=op.f("bank_cursors_pkey")),
    )
    op.create_table(
        "banks",
        sa.Column("bank_id", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("bank_id ~ '^[a-z0-9-]{1,64}$'", name=op.f("banks_bank_id_check")),
        sa.PrimaryKeyConstraint("bank_id", name=op.f("banks_pkey")),
    )
    op.create_table(
        "deployment",
        sa.Column("deployment_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("protection_day_seconds", sa.Integer(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("deployment_id = 1", name=op.f("deployment_one_row_check")),
        sa.CheckConstraint("protection_day_seconds > 0", name=op.f("deployment_day_length_check")),
        sa.PrimaryKeyConstraint("deployment_id", name=op.f("deployment_pkey")),
    )
    op.create_table(
        "destinations",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("destination_id", sa.Text(), nullable=False),
        sa.Column("details_encrypted", sa.LargeBinary(), nullable=False),
        sa.Column("masked", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("shop_id", "seller_id", "destination_id", name=op.f("destinations_pkey")),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("events_pkey")),
    )
    op.create_index(
        op.f("events_shop_id_occurred_at_idx"), "events", ["shop_id", "occurred_at"], unique=False
    )
    op.create_table(
        "holdfast_keys",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("use", sa.Text(), nullable=False),
        sa.Column("public_jwk", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("private_encrypted", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("not_after", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("use IN ('sig', 'enc')", name=op.f("holdfast_keys_use_check")),
        sa.PrimaryKeyConstraint("kid", name=op.f("holdfast_keys_pkey")),
    )
    op.create_table(
        "holds",
        sa.Column("hold_id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fee_minor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fee_bps", sa.Integer(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="held", nullable=False),
        sa.Column("protection_days", sa.SmallInteger(), nullable=False),
        sa.Column("day_seconds", sa.Integer(), nullable=False),
        sa.Column("held_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("release_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rearmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'released') = (released_at IS NOT NULL)", name=op.f("holds_released_at_check")
        ),
        sa.CheckConstraint(
            "state IN ('held', 'frozen', 'released', 'refunded')", name=op.f("holds_state_check")
        ),
        sa.CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("holds_amount_check")),
        sa.CheckConstraint(
            "fee_minor BETWEEN 0 AND amount_minor - refunded_minor", name=op.f("holds_fee_check")
        ),
        sa.CheckConstraint("protection_days BETWEEN 3 AND 7", name=op.f("holds_protection_days_check")),
        sa.CheckConstraint("refunded_minor BETWEEN 0 AND amount_minor", name=op.f("holds_refunded_check")),
        sa.CheckConstraint(
            "release_at = held_at + make_interval(secs => protection_days * day_seconds)",
            name=op.f("holds_release_at_check"),
        ),
        sa.CheckConstraint("released_at >= release_at", name=op.f("holds_never_early_check")),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("holds_pkey")),
        sa.UniqueConstraint("payment_id", "seller_id", name=op.f("holds_payment_id_seller_id_key")),
    )
    op.create_index(
        "holds_due_idx", "holds", ["release_at"], unique=False, postgresql_where=sa.text("state = 'held'")
    )
    op.create_table(
        "inbox",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("answer_id", sa.Uuid(), nullable=True),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("source", "event_id", name=op.f("inbox_pkey")),
    )
    op.create_table(
        "operator_actions",
        sa.Column("action_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "acted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("action_id", name=op.f("operator_actions_pkey")),
    )
    op.create_table(
        "outbox",
        sa.Column("outbox_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("command", sa.Text(), nullable=True),
        sa.Column("arguments", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("delay_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=True),
        sa.Column("type", sa.Text(), nullable=True),
        sa.Column("event_ids", postgresql.ARRAY(sa.Uuid()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(queue IS NOT NULL AND command IS NOT NULL AND arguments IS NOT NULL AND event_ids IS NULL) OR (queue IS NULL AND shop_id IS NOT NULL AND type IS NOT NULL AND event_ids IS NOT NULL)",
            name=op.f("outbox_command_or_events_check"),
        ),
        sa.CheckConstraint("delay_ms >= 0", name=op.f("outbox_delay_check")),
        sa.PrimaryKeyConstraint("outbox_id", name=op.f("outbox_pkey")),
    )
    op.create_index("outbox_published_idx", "outbox", ["published_at"], unique=False, postgresql_using="brin")
    op.create_index(
        "outbox_unpublished_idx",
        "outbox",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_table(
        "password_attempts",
        sa.Column("attempt_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("answer_id", sa.Uuid(), nullable=False),
        sa.Column("payout_id", sa.Uuid(), nullable=True),
        sa.Column("destination_id", sa.Text(), nullable=True),
        sa.Column("sealed", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(purpose = 'withdrawal') = (payout_id IS NOT NULL)", name=op.f("password_attempts_payout_check")
        ),
        sa.CheckConstraint(
            "(state IN ('waiting', 'counted')) = (sealed IS NOT NULL)",
            name=op.f("password_attempts_sealed_check"),
        ),
        sa.CheckConstraint(
            "purpose IN ('enrolment', 'password_change', 'withdrawal')",
            name=op.f("password_attempts_purpose_check"),
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'counted', 'accepted', 'refused')",
            name=op.f("password_attempts_state_check"),
        ),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("password_attempts_pkey")),
    )
    op.create_index(
        "password_attempts_open_idx",
        "password_attempts",
        ["shop_id", "seller_id", "requested_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'counted')"),
    )
    op.create_table(
        "payments",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("buyer_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("bank_reference", sa.Text(), nullable=False),
        sa.Column("splits", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("protection_days", sa.SmallInteger(), nullable=False),
        sa.Column("paid_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("funded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'rejected') = (reason IS NOT NULL)", name=op.f("payments_reason_check")),
        sa.CheckConstraint("state IN ('received', 'rejected')", name=op.f("payments_state_check")),
        sa.CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("payments_amount_check")),
        sa.CheckConstraint("protection_days BETWEEN 3 AND 7", name=op.f("payments_protection_days_check")),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("payments_pkey")),
        sa.UniqueConstraint("shop_id", "order_id", name=op.f("payments_shop_id_order_id_key")),
    )
    op.create_index(
        "payments_bank_reference_key",
        "payments",
        ["bank_reference", "shop_id"],
        unique=True,
        postgresql_where=sa.text("state = 'received'"),
    )
    op.create_index(
        "payments_received_at_idx", "payments", ["received_at"], unique=False, postgresql_using="brin"
    )
    op.create_table(
        "postings",
        sa.Column("posting_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("debit", sa.Text(), nullable=False),
        sa.Column("credit", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("xact", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.CheckConstraint(
            "(seller_id <> '') = (debit IN ('held', 'available', 'in_payout', 'refundable', 'receivable') OR credit IN ('held', 'available', 'in_payout', 'refundable', 'receivable'))",
            name=op.f("postings_seller_check"),
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("postings_currency_check")),
        sa.CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("postings_amount_check")),
        sa.CheckConstraint("debit <> credit", name=op.f("postings_two_accounts_check")),
        sa.PrimaryKeyConstraint("posting_id", name=op.f("postings_pkey")),
    )
    op.create_index("postings_xact_idx", "postings", ["xact"], unique=False)
    op.create_table(
        "recorded_messages",
        sa.Column("record_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("exchange", sa.Text(), nullable=False),
        sa.Column("routing_key", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("message_type", sa.Text(), nullable=True),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("times_seen", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "last_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('quarantine', 'dead_letter', 'orphan')", name=op.f("recorded_messages_kind_check")
        ),
        sa.CheckConstraint(
            "state IN ('open', 'replayed', 'discarded')", name=op.f("recorded_messages_state_check")
        ),
        sa.PrimaryKeyConstraint("record_id", name=op.f("recorded_messages_pkey")),
        sa.UniqueConstraint("fingerprint", name=op.f("recorded_messages_fingerprint_key")),
    )
    op.create_index(
        op.f("recorded_messages_state_reason_idx"), "recorded_messages", ["state", "reason"], unique=False
    )
    op.create_table(
        "seal",
        sa.Column("seal_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("horizon", Xid8(), nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("seal_id = 1", name=op.f("seal_one_row_check")),
        sa.PrimaryKeyConstraint("seal_id", name=op.f("seal_pkey")),
    )
    op.create_table(
        "sellers",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("failed_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("locked_by_failures", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("password_changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("failed_attempts >= 0", name=op.f("sellers_failed_attempts_check")),
        sa.PrimaryKeyConstraint("shop_id", "seller_id", name=op.f("sellers_pkey")),
    )
    op.create_table(
        "sender_keys",
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("sender_kind", sa.Text(), nullable=False),
        sa.Column("sender_id", sa.Text(), nullable=False),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=True),
        sa.Column("secret_encrypted", sa.LargeBinary(), nullable=True),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "not_before",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("not_after", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(scheme = 'v1a' AND public_key IS NOT NULL AND secret_encrypted IS NULL) OR (scheme = 'v1' AND secret_encrypted IS NOT NULL AND public_key IS NULL)",
            name=op.f("sender_keys_material_check"),
        ),
        sa.CheckConstraint("sender_kind IN ('shop', 'bank')", name=op.f("sender_keys_sender_kind_check")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("sender_keys_pkey")),
    )
    op.create_index(
        op.f("sender_keys_sender_kind_sender_id_idx"),
        "sender_keys",
        ["sender_kind", "sender_id"],
        unique=False,
    )
    op.create_table(
        "shops",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("protection_days", sa.SmallInteger(), nullable=False),
        sa.Column("funding", sa.Text(), nullable=False),
        sa.Column("fee_bps", sa.Integer(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("funding IN ('confirmed', 'announced')", name=op.f("shops_funding_check")),
        sa.CheckConstraint("shop_id ~ '^[a-z0-9-]{1,64}$'", name=op.f("shops_shop_id_check")),
        sa.CheckConstraint("state IN ('active', 'suspended')", name=op.f("shops_state_check")),
        sa.CheckConstraint("fee_bps BETWEEN 0 AND 10000", name=op.f("shops_fee_bps_check")),
        sa.CheckConstraint("protection_days BETWEEN 3 AND 7", name=op.f("shops_protection_days_check")),
        sa.PrimaryKeyConstraint("shop_id", name=op.f("shops_pkey")),
    )
    op.create_table(
        "subtotals",
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("debit", sa.Text(), nullable=False),
        sa.Column("credit", sa.Text(), nullable=False),
        sa.Column("total_minor", sa.Numeric(precision=38, scale=0), nullable=False),
        sa.PrimaryKeyConstraint(
            "shop_id", "seller_id", "currency", "kind", "debit", "credit", name=op.f("subtotals_pkey")
        ),
    )
    op.create_table(
        "transfers",
        sa.Column("payout_id", sa.Uuid(), nullable=False),
        sa.Column("end_to_end_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('ready', 'sending', 'unknown', 'submitted', 'settled', 'failed', 'returned')",
            name=op.f("transfers_state_check"),
        ),
        sa.PrimaryKeyConstraint("payout_id", name=op.f("transfers_pkey")),
        sa.UniqueConstraint("end_to_end_id", name=op.f("transfers_end_to_end_id_key")),
    )
    op.create_index(
        "transfers_open_idx",
        "transfers",
        ["touched_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'sending', 'unknown', 'submitted')"),
    )
    op.create_table(
        "withdrawals",
        sa.Column("payout_id", sa.Uuid(), nullable=False),
        sa.Column("shop_id", sa.Text(), nullable=False),
        sa.Column("withdrawal_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("destination_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'rejected') = (reason IS NOT NULL)", name=op.f("withdrawals_reason_check")
        ),
        sa.CheckConstraint(
            "state IN ('checking', 'pending', 'accepted', 'rejected')", name=op.f("withdrawals_state_check")
        ),
        sa.CheckConstraint(
            "amount_minor BETWEEN 1 AND 1000000000000000", name=op.f("withdrawals_amount_check")
        ),
        sa.PrimaryKeyConstraint("payout_id", name=op.f("withdrawals_pkey")),
        sa.UniqueConstraint("shop_id", "withdrawal_id", name=op.f("withdrawals_shop_id_withdrawal_id_key")),
    )
    op.execute(_INSERT_ONLY)
    op.execute(_ENTRIES)
    op.execute(_BALANCE_LINES)
    op.execute("INSERT INTO seal (seal_id, horizon, sealed_at) VALUES (1, '0', clock_timestamp())")

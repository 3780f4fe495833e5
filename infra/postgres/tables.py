"""
The tables, as SQLAlchemy Core knows them.

The migrations build the schema; this module is what queries are typed by, and a test compares the two.
Comments say what each index is for; there are no others.
"""

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB
from sqlalchemy.types import UserDefinedType

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id: the only thing here that tells what is certainly committed."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


def _moment(name: str, *, nullable: bool = False, default_now: bool = False) -> Column[object]:
    # clock_timestamp(), not now(): a row is booked when it is written, not when its transaction began.
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=func.clock_timestamp() if default_now else None,
    )


def _two_words() -> Sequence[Column[object]]:
    """What one operator proposes and, under another name, another one decides, each with a reason."""
    return (
        Column("proposed_by", Text, nullable=False),
        Column("proposed_why", Text, nullable=False),
        _moment("proposed_at"),
        Column("decided_by", Text, nullable=True),
        Column("decided_why", Text, nullable=True),
        _moment("decided_at", nullable=True),
    )


_TWO_NAMES = "lower(trim(decided_by)) <> lower(trim(proposed_by))"

# --- who takes part -------------------------------------------------------------------------------

deployment = Table(
    "deployment",
    metadata,
    Column("deployment_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("protection_day_seconds", Integer, nullable=False),
    _moment("created_at", default_now=True),
    # The revision that code must know to work on this schema; set by what contracts.
    Column("oldest_code", Text),
    CheckConstraint("deployment_id = 1", name="one_row"),
    CheckConstraint("protection_day_seconds > 0", name="day_length"),
)

shops = Table(
    "shops",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("state", Text, nullable=False, server_default="active"),
    Column("protection_days", SmallInteger, nullable=False),
    Column("funding", Text, nullable=False),
    Column("fee_bps", Integer, nullable=False),
    _moment("created_at", default_now=True),
    CheckConstraint("shop_id ~ '^[a-z0-9-]{1,64}$'", name="shop_id"),
    CheckConstraint("state IN ('active', 'suspended')", name="state"),
    CheckConstraint("protection_days BETWEEN 3 AND 7", name="protection_days"),
    CheckConstraint("funding IN ('confirmed', 'announced')", name="funding"),
    CheckConstraint("fee_bps BETWEEN 0 AND 10000", name="fee_bps"),
)

banks = Table(
    "banks",
    metadata,
    Column("bank_id", Text, primary_key=True),
    _moment("created_at", default_now=True),
    CheckConstraint("bank_id ~ '^[a-z0-9-]{1,64}$'", name="bank_id"),
)

sender_keys = Table(
    "sender_keys",
    metadata,
    Column("key_id", Uuid, primary_key=True),
    Column("sender_kind", Text, nullable=False),
    Column("sender_id", Text, nullable=False),
    Column("scheme", Text, nullable=False),
    Column("public_key", LargeBinary, nullable=True),
    Column("secret_encrypted", LargeBinary, nullable=True),
    Column("scopes", ARRAY(Text), nullable=False),
    _moment("not_before", default_now=True),
    _moment("not_after", nullable=True),
    _moment("revoked_at", nullable=True),
    _moment("created_at", default_now=True),
    CheckConstraint("sender_kind IN ('shop', 'bank')", name="sender_kind"),
    CheckConstraint(
        "(scheme = 'v1a' AND public_key IS NOT NULL AND secret_encrypted IS NULL)"
        " OR (scheme = 'v1' AND secret_encrypted IS NOT NULL AND public_key IS NULL)",
        name="material",
    ),
    Index(None, "sender_kind", "sender_id"),  # a message names its sender; its keys are looked up
)

holdfast_keys = Table(
    "holdfast_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("use", Text, nullable=False),
    Column("public_jwk", JSONB, nullable=False),
    Column("private_encrypted", LargeBinary, nullable=False),
    _moment("created_at", default_now=True),
    _moment("not_after", nullable=True),
    CheckConstraint("use IN ('sig', 'enc')", name="use"),
)

# --- messages -------------------------------------------------------------------------------------

# Under which trace an event came in, so that what follows days later joins it. Written only with tracing on.
trace_contexts = Table(
    "trace_contexts",
    metadata,
    Column("source", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("traceparent", Text, nullable=False),
    _moment("recorded_at"),
    # Tidying up finds the oldest.
    Index("trace_contexts_recorded_at_idx", "recorded_at", postgresql_using="brin"),
)

inbox = Table(
    "inbox",
    metadata,
    Column("source", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    # The event that answers it, now or later; a repeat gets it again.
    Column("answer_id", Uuid, nullable=True),
    _moment("received_at", default_now=True),
)

events = Table(
    "events",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    _moment("occurred_at"),
    # JSON, not JSONB: published again it must be the same text.
    Column("data", JSON, nullable=False),
    Index(None, "shop_id", "occurred_at"),  # `holdfast events replay --shop --since`
)

outbox = Table(
    "outbox",
    metadata,
    Column("outbox_id", BigInteger, Identity(always=True), primary_key=True),
    Column("queue", Text, nullable=True),
    Column("command", Text, nullable=True),
    Column("arguments", JSON, nullable=True),
    Column("delay_ms", BigInteger, nullable=False, server_default="0"),
    Column("shop_id", Text, nullable=True),
    Column("type", Text, nullable=True),
    Column("event_ids", ARRAY(Uuid), nullable=True),
    _moment("created_at", default_now=True),
    _moment("next_attempt_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _moment("published_at", nullable=True),
    CheckConstraint(
        "(queue IS NOT NULL AND command IS NOT NULL AND arguments IS NOT NULL AND event_ids IS NULL)"
        " OR (queue IS NULL AND shop_id IS NOT NULL AND type IS NOT NULL AND event_ids IS NOT NULL)",
        name="command_or_events",
    ),
    CheckConstraint("delay_ms >= 0", name="delay"),
    # What the relay has to publish, oldest first.
    Index("outbox_unpublished_idx", "next_attempt_at", postgresql_where=text("published_at IS NULL")),
    # What the sweep may delete after the retention.
    Index("outbox_published_idx", "published_at", postgresql_using="brin"),
)

recorded_messages = Table(
    "recorded_messages",
    metadata,
    Column("record_id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("exchange", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("content_type", Text, nullable=True),
    Column("message_type", Text, nullable=True),
    Column("headers", JSONB, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="open"),
    Column("times_seen", BigInteger, nullable=False, server_default="1"),
    _moment("first_seen_at", default_now=True),
    _moment("last_seen_at", default_now=True),
    _moment("closed_at", nullable=True),
    # Whom it claims to come from, if that is a sender we know: for the bounds of quarantine.
    Column("sender", Text, nullable=False, server_default=""),
    CheckConstraint("kind IN ('quarantine', 'dead_letter', 'orphan')", name="kind"),
    CheckConstraint("state IN ('open', 'replayed', 'discarded')", name="state"),
    UniqueConstraint("fingerprint"),  # the same message seen again is counted, not stored again
    Index(None, "state", "reason"),  # `holdfast quarantine list`, in bulk by reason
)

# What came when quarantine was full: counted, not kept. Senders are known ones or '', so rows are few.
quarantine_overflow = Table(
    "quarantine_overflow",
    metadata,
    Column("sender", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("messages", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    _moment("first_seen_at"),
    _moment("last_seen_at"),
    Column("last_fingerprint", LargeBinary, nullable=False),
)

operator_actions = Table(
    "operator_actions",
    metadata,
    Column("action_id", BigInteger, Identity(always=True), primary_key=True),
    _moment("acted_at", default_now=True),
    Column("operator", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", JSONB, nullable=False),
    # The name is only said; this is proven.
    Column("database_login", Text, nullable=True),
)

# --- payments -------------------------------------------------------------------------------------

payments = Table(
    "payments",
    metadata,
    Column("payment_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=True),
    Column("buyer_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("bank_reference", Text, nullable=False),
    Column("splits", JSON, nullable=False),
    Column("protection_days", SmallInteger, nullable=False),
    _moment("paid_at"),
    _moment("received_at"),
    _moment("funded_at", nullable=True),
    # The bank took the credit back: nothing is released, whatever the shop's policy, until it comes again.
    _moment("charged_back_at", nullable=True),
    CheckConstraint("state IN ('received', 'rejected')", name="state"),
    CheckConstraint("funded_at IS NULL OR charged_back_at IS NULL", name="charged_back"),
    CheckConstraint("(state = 'rejected') = (reason IS NOT NULL)", name="reason"),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    CheckConstraint("protection_days BETWEEN 3 AND 7", name="protection_days"),
    UniqueConstraint("shop_id", "order_id"),  # the business key
    # One bank reference per shop, and how a bank's credit finds its payment.
    Index(
        "payments_bank_reference_key",
        "bank_reference",
        "shop_id",
        unique=True,
        postgresql_where=text("state = 'received'"),
    ),
    # Payments received but not held: the sweep reads the recent end of the table.
    Index("payments_received_at_idx", "received_at", postgresql_using="brin"),
)

bank_credits = Table(
    "bank_credits",
    metadata,
    Column("credit_id", Uuid, primary_key=True),
    Column("bank_id", Text, nullable=False),
    Column("statement_line", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("bank_reference", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    _moment("booked_at"),
    _moment("received_at"),
    Column("payment_id", Uuid, nullable=True),
    _moment("matched_at", nullable=True),
    # The bank took it back: it confirms nothing any more.
    _moment("taken_back_at", nullable=True),
    # The payment that operators said it is for, whatever its reference says.
    Column("assigned_payment_id", Uuid, nullable=True),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    CheckConstraint("(payment_id IS NULL) = (matched_at IS NULL)", name="matched"),
    CheckConstraint("taken_back_at IS NULL OR payment_id IS NULL", name="taken_back"),
    UniqueConstraint("bank_id", "statement_line"),  # the business key
    # One credit confirms one payment, and one payment is confirmed once.
    Index(
        "bank_credits_payment_id_key",
        "payment_id",
        unique=True,
        postgresql_where=text("payment_id IS NOT NULL"),
    ),
    # Credits found by the payment that explains them, or by the debit that takes them back.
    Index(None, "bank_reference"),
    # Credits in suspense: the sweep.
    Index(
        "bank_credits_suspense_idx",
        "received_at",
        postgresql_where=text("payment_id IS NULL AND taken_back_at IS NULL"),
    ),
)

# --- holds ----------------------------------------------------------------------------------------

holds = Table(
    "holds",
    metadata,
    Column("hold_id", Uuid, primary_key=True),
    Column("payment_id", Uuid, nullable=False),
    Column("shop_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("refunded_minor", BigInteger, nullable=False, server_default="0"),
    Column("fee_minor", BigInteger, nullable=False, server_default="0"),
    Column("fee_bps", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="held"),
    Column("protection_days", SmallInteger, nullable=False),
    Column("day_seconds", Integer, nullable=False),
    _moment("held_at"),
    _moment("release_at"),
    _moment("released_at", nullable=True),
    _moment("rearmed_at", nullable=True),
    CheckConstraint("state IN ('held', 'frozen', 'released', 'refunded')", name="state"),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    CheckConstraint("refunded_minor BETWEEN 0 AND amount_minor", name="refunded"),
    CheckConstraint("fee_minor BETWEEN 0 AND amount_minor - refunded_minor", name="fee"),
    CheckConstraint("protection_days BETWEEN 3 AND 7", name="protection_days"),
    CheckConstraint(
        "release_at = held_at + make_interval(secs => protection_days * day_seconds)", name="release_at"
    ),
    CheckConstraint("(state = 'released') = (released_at IS NOT NULL)", name="released_at"),
    # The promise of the whole product, as the database keeps it.
    CheckConstraint("released_at >= release_at", name="never_early"),
    UniqueConstraint("payment_id", "seller_id"),  # one hold per split; an order's holds
    # Overdue holds and the oldest due one; small, since only open holds are in it.
    Index("holds_due_idx", "release_at", postgresql_where=text("state = 'held'")),
)

# --- recourse -------------------------------------------------------------------------------------

disputes = Table(
    "disputes",
    metadata,
    Column("dispute_key", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("dispute_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("complaint", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=True),
    _moment("opened_at"),
    _moment("resolved_at", nullable=True),
    Column("resolution_hash", LargeBinary, nullable=True),
    CheckConstraint("state IN ('open', 'resolved', 'rejected')", name="state"),
    CheckConstraint("(state = 'rejected') = (reason IS NOT NULL)", name="reason"),
    CheckConstraint("(state = 'resolved') = (resolved_at IS NOT NULL)", name="resolved_at"),
    CheckConstraint("(resolved_at IS NULL) = (resolution_hash IS NULL)", name="resolution"),
    UniqueConstraint("shop_id", "dispute_id"),  # the business key
    # Disputes that nobody has resolved, oldest first: the alarm.
    Index("disputes_open_idx", "opened_at", postgresql_where=text("state = 'open'")),
)

# Which holds a dispute froze. A hold is frozen while any open dispute has it.
dispute_holds = Table(
    "dispute_holds",
    metadata,
    Column("dispute_key", Uuid, primary_key=True),
    Column("hold_id", Uuid, primary_key=True),
    Index(None, "hold_id"),  # the other disputes of a hold
)

refunds = Table(
    "refunds",
    metadata,
    Column("refund_key", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    # A refund of its own, or what a dispute's resolution gave back under the dispute's id.
    Column("origin", Text, nullable=False),
    Column("refund_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("payment_id", Uuid, nullable=True),
    Column("event_id", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=True),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=True),
    Column("end_to_end_id", Text, nullable=True),
    _moment("requested_at"),
    _moment("ended_at", nullable=True),
    _moment("touched_at"),
    # How often operators have begun anew after the bank refused it or it came back.
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("origin IN ('refund', 'dispute')", name="origin"),
    CheckConstraint(
        "state IN ('rejected', 'waiting', 'ready', 'sending', 'unknown', 'submitted', 'settled', 'failed')",
        name="state",
    ),
    CheckConstraint("state <> 'rejected' OR reason IS NOT NULL", name="reason"),
    CheckConstraint(
        "state = 'rejected'"
        " OR (payment_id IS NOT NULL AND currency IS NOT NULL AND end_to_end_id IS NOT NULL)",
        name="accepted",
    ),
    CheckConstraint("amount_minor >= 1", name="amount"),
    UniqueConstraint("shop_id", "origin", "refund_id"),  # the business key
    UniqueConstraint("end_to_end_id"),  # what the bank calls the return
    # Refunds that wait for the credit of their payment, and claims of the sweep.
    Index(
        "refunds_open_idx",
        "touched_at",
        postgresql_where=text("state IN ('waiting', 'ready', 'sending', 'unknown', 'submitted')"),
    ),
    Index("refunds_payment_idx", "payment_id", postgresql_where=text("state = 'waiting'")),
)

refund_parts = Table(
    "refund_parts",
    metadata,
    Column("refund_key", Uuid, primary_key=True),
    Column("hold_id", Uuid, primary_key=True),
    Column("seller_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
)

bank_debits = Table(
    "bank_debits",
    metadata,
    Column("debit_id", Uuid, primary_key=True),
    Column("bank_id", Text, nullable=False),
    Column("statement_line", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("bank_reference", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _moment("booked_at"),
    _moment("received_at"),
    # The credit that it took back, and whom that had confirmed; a debit may come before its credit.
    Column("credit_id", Uuid, nullable=True),
    Column("payment_id", Uuid, nullable=True),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    UniqueConstraint("bank_id", "statement_line"),  # the business key
    # Debits whose credit has not come yet.
    Index("bank_debits_open_idx", "bank_reference", postgresql_where=text("credit_id IS NULL")),
    # What the bank took back of a payment: the reason of its claims.
    Index("bank_debits_payment_id_idx", "payment_id", postgresql_where=text("payment_id IS NOT NULL")),
)

claims = Table(
    "claims",
    metadata,
    Column("claim_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("taken_minor", BigInteger, nullable=False),
    # The shop's fee on it, which is given back with it.
    Column("fee_minor", BigInteger, nullable=False, server_default="0"),
    Column("cause", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("hold_id", Uuid, nullable=True),
    Column("operator", Text, nullable=True),
    Column("second_operator", Text, nullable=True),
    _moment("made_at"),
    # The credit came again, and the seller got it all back.
    _moment("returned_at", nullable=True),
    # Nothing but a fee may be left of a small amount.
    CheckConstraint("amount_minor BETWEEN 0 AND 1000000000000000", name="amount"),
    CheckConstraint("fee_minor >= 0 AND amount_minor + fee_minor >= 1", name="fee"),
    CheckConstraint("taken_minor BETWEEN 0 AND amount_minor", name="taken"),
    CheckConstraint("cause IN ('operator', 'chargeback')", name="cause"),
    CheckConstraint("(cause = 'operator') = (operator IS NOT NULL)", name="operator"),
    CheckConstraint("second_operator IS NULL OR second_operator <> operator", name="two_names"),
    CheckConstraint("cause <> 'chargeback' OR hold_id IS NOT NULL", name="hold"),
    # At most one claim for what was released of a hold: a seller never gives the same money back twice.
    Index(
        "claims_standing_key",
        "hold_id",
        unique=True,
        postgresql_where=text("cause = 'chargeback' AND returned_at IS NULL"),
    ),
)

# What sellers owe after claims; later releases pay it off first, so it is kept and locked.
receivables = Table(
    "receivables",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("seller_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("owed_minor", Numeric(38, 0), nullable=False),
    CheckConstraint("owed_minor >= 0", name="not_negative"),
)

# --- sellers and payouts --------------------------------------------------------------------------

sellers = Table(
    "sellers",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("seller_id", Text, primary_key=True),
    Column("password_hash", Text, nullable=False),
    Column("failed_attempts", Integer, nullable=False, server_default="0"),
    _moment("locked_until", nullable=True),
    Column("locked_by_failures", Boolean, nullable=False, server_default=text("false")),
    _moment("enrolled_at"),
    _moment("password_changed_at"),
    # Until then an enrolment sets a new password, and the old one is good for nothing.
    _moment("password_reset_until", nullable=True),
    CheckConstraint("failed_attempts >= 0", name="failed_attempts"),
)

# Forgotten passwords: which of the platform's events asked, and who let the seller enrol anew.
password_resets = Table(
    "password_resets",
    metadata,
    Column("reset_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    *_two_words(),
    _moment("valid_until", nullable=True),
    _moment("cancelled_at", nullable=True),
    CheckConstraint(
        "(decided_by IS NULL) = (decided_at IS NULL) AND (valid_until IS NULL) = (decided_at IS NULL)",
        name="decided",
    ),
    CheckConstraint(_TWO_NAMES, name="two_names"),
    UniqueConstraint("shop_id", "event_id"),  # one event of the platform asks for one reset
)

destinations = Table(
    "destinations",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("seller_id", Text, primary_key=True),
    Column("destination_id", Text, primary_key=True),
    Column("details_encrypted", LargeBinary, nullable=False),
    Column("masked", Text, nullable=False),
    _moment("added_at"),
)

password_attempts = Table(
    "password_attempts",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("answer_id", Uuid, nullable=False),
    Column("payout_id", Uuid, nullable=True),
    Column("destination_id", Text, nullable=True),
    # The JWE as it came; emptied once decided. Only Holdfast's private key opens it.
    Column("sealed", Text, nullable=True),
    Column("state", Text, nullable=False),
    _moment("requested_at"),
    _moment("counted_at", nullable=True),
    _moment("decided_at", nullable=True),
    CheckConstraint("purpose IN ('enrolment', 'password_change', 'withdrawal')", name="purpose"),
    CheckConstraint("(purpose = 'withdrawal') = (payout_id IS NOT NULL)", name="payout"),
    CheckConstraint("state IN ('waiting', 'counted', 'accepted', 'refused')", name="state"),
    CheckConstraint("(state IN ('waiting', 'counted')) = (sealed IS NOT NULL)", name="sealed"),
    # Attempts still to be decided: the sweep, and the turn of each seller.
    Index(
        "password_attempts_open_idx",
        "shop_id",
        "seller_id",
        "requested_at",
        postgresql_where=text("state IN ('waiting', 'counted')"),
    ),
)

withdrawals = Table(
    "withdrawals",
    metadata,
    Column("payout_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("withdrawal_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("destination_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=True),
    _moment("requested_at"),
    _moment("decided_at", nullable=True),
    # When the password was right and the money was set aside: what limits count by.
    _moment("reserved_at", nullable=True),
    # Why it waits or has waited last; what it is over; and when its cooling-off ends.
    Column("pending_reason", Text, nullable=True),
    Column("over_limit", Text, nullable=True),
    _moment("pending_until", nullable=True),
    # Taken back into the books on an operator's word, because the bank has paid it: without a password.
    _moment("adopted_at", nullable=True),
    CheckConstraint("state IN ('checking', 'pending', 'accepted', 'rejected')", name="state"),
    CheckConstraint("(state = 'rejected') = (reason IS NOT NULL)", name="reason"),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    CheckConstraint(
        "state <> 'pending' OR (pending_reason IS NOT NULL AND reserved_at IS NOT NULL)", name="pending"
    ),
    UniqueConstraint("shop_id", "withdrawal_id"),  # the business key
    # What a seller, or a shop as a whole, has withdrawn of late: the limits.
    Index(
        "withdrawals_of_seller_idx",
        "shop_id",
        "seller_id",
        "reserved_at",
        postgresql_where=text("reserved_at IS NOT NULL"),
    ),
    Index(
        "withdrawals_of_shop_idx",
        "shop_id",
        "reserved_at",
        postgresql_where=text("reserved_at IS NOT NULL"),
    ),
    # Those that wait: the sweep, and the operators' list.
    Index("withdrawals_pending_idx", "pending_until", postgresql_where=text("state = 'pending'")),
)

# What may leave without review, for a shop as a whole, for each of its sellers, or for one of them.
withdrawal_limits = Table(
    "withdrawal_limits",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("seller_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("per_withdrawal_minor", BigInteger, nullable=True),
    Column("per_day_minor", BigInteger, nullable=True),
    Column("per_hour_count", Integer, nullable=True),
    _moment("changed_at", default_now=True),
    CheckConstraint("scope IN ('shop', 'sellers', 'seller')", name="scope"),
    CheckConstraint("(scope = 'seller') = (seller_id <> '')", name="seller"),
    CheckConstraint(
        "per_withdrawal_minor >= 0 AND per_day_minor >= 0 AND per_hour_count >= 0", name="limits"
    ),
)

# What operators say about a withdrawal that waits: one proposes, another one decides.
withdrawal_reviews = Table(
    "withdrawal_reviews",
    metadata,
    Column("payout_id", Uuid, primary_key=True),
    Column("verdict", Text, nullable=False),
    *_two_words(),
    CheckConstraint("verdict IN ('approve', 'reject')", name="verdict"),
    CheckConstraint("(decided_by IS NULL) = (decided_at IS NULL)", name="decided"),
    CheckConstraint(_TWO_NAMES, name="two_names"),
)

# A shop's own money that operators pay out to it. With `withdrawals` it is the view `payouts`: what a
# transfer pays. The destination is one in `destinations` with no seller.
shop_payouts = Table(
    "shop_payouts",
    metadata,
    Column("payout_id", Uuid, primary_key=True),
    Column("shop_id", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("destination_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    *_two_words(),
    CheckConstraint("source IN ('fees', 'recovered')", name="source"),
    CheckConstraint("state IN ('proposed', 'approved', 'rejected')", name="state"),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    CheckConstraint(
        "(state = 'proposed') = (decided_at IS NULL) AND (decided_by IS NULL) = (decided_at IS NULL)",
        name="decided",
    ),
    CheckConstraint(f"state <> 'approved' OR {_TWO_NAMES}", name="two_names"),
    UniqueConstraint("shop_id", "reference"),  # the business key
)

# Whose payouts are not handed to the bank for now; '*' stands for everybody's.
payout_pauses = Table(
    "payout_pauses",
    metadata,
    Column("shop_id", Text, primary_key=True),
    _moment("paused_at", default_now=True),
    Column("paused_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

transfers = Table(
    "transfers",
    metadata,
    Column("payout_id", Uuid, primary_key=True),
    Column("end_to_end_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=True),
    _moment("created_at"),
    _moment("sent_at", nullable=True),
    _moment("submitted_at", nullable=True),
    _moment("settled_at", nullable=True),
    _moment("ended_at", nullable=True),
    _moment("touched_at"),
    CheckConstraint(
        "state IN ('ready', 'sending', 'unknown', 'submitted', 'settled', 'failed', 'returned')", name="state"
    ),
    UniqueConstraint("end_to_end_id"),  # what the bank calls it
    # Instructions that still wait for the bank's last word: the sweep.
    Index(
        "transfers_open_idx",
        "touched_at",
        postgresql_where=text("state IN ('ready', 'sending', 'unknown', 'submitted')"),
    ),
)

# How far back the sweep has seen everything in order, so that it never reads all of history.
sweep_marks = Table(
    "sweep_marks",
    metadata,
    Column("what", Text, primary_key=True),
    _moment("settled_until"),
)

bank_cursors = Table(
    "bank_cursors",
    metadata,
    Column("feed", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

# --- ledger ---------------------------------------------------------------------------------------

postings = Table(
    "postings",
    metadata,
    Column("posting_id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("cause_id", Uuid, nullable=False),
    Column("shop_id", Text, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("debit", Text, nullable=False),
    Column("credit", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    _moment("booked_at"),
    Column("xact", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    CheckConstraint("amount_minor BETWEEN 1 AND 1000000000000000", name="amount"),
    CheckConstraint("debit <> credit", name="two_accounts"),
    CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
    CheckConstraint(
        "(seller_id <> '') = (debit IN ('held', 'available', 'in_payout', 'refundable', 'receivable')"
        " OR credit IN ('held', 'available', 'in_payout', 'refundable', 'receivable'))",
        name="seller",
    ),
    # The tail behind the sealed subtotals, by transaction, since a sequence is not commit order.
    Index("postings_xact_idx", "xact"),
)

# Sums of all postings below the horizon in `seal`, by kind; a kind names both its accounts. With the tail
# behind the horizon they are the view `balance_lines`, from which every balance is read.
subtotals = Table(
    "subtotals",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("seller_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    # A kind has one pair of accounts; should that ever change, old and new sums stay apart.
    Column("debit", Text, primary_key=True),
    Column("credit", Text, primary_key=True),
    Column("total_minor", Numeric(38, 0), nullable=False),
)

seal = Table(
    "seal",
    metadata,
    Column("seal_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("horizon", Xid8, nullable=False),
    _moment("sealed_at"),
    CheckConstraint("seal_id = 1", name="one_row"),
)

# The only balance that is judged before money moves, so the only one that is kept and locked.
available_balances = Table(
    "available_balances",
    metadata,
    Column("shop_id", Text, primary_key=True),
    Column("seller_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("available_minor", Numeric(38, 0), nullable=False),
    CheckConstraint("available_minor >= 0", name="not_negative"),
)

# The hash chain over postings: each link fixes some postings, in the order of their ids, and all links before
# it. A posting is in exactly one link. It survives what changes transaction ids, as a restore elsewhere.
chain_links = Table(
    "chain_links",
    metadata,
    Column("link_id", BigInteger, primary_key=True, autoincrement=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("total_postings", BigInteger, nullable=False),
    _moment("sealed_at"),
    Column("hash", LargeBinary, nullable=False),
    Column("posting_ids", ARRAY(Uuid), nullable=False),
    Column("row_hashes", ARRAY(LargeBinary), nullable=False),
    CheckConstraint("link_id > 0", name="link_id"),
    CheckConstraint("cardinality(posting_ids) = cardinality(row_hashes)", name="members"),
)

# Links whose hash Holdfast has signed.
chain_heads = Table(
    "chain_heads",
    metadata,
    Column("link_id", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    Column("total_postings", BigInteger, nullable=False),
    _moment("signed_at"),
    Column("kid", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

# Below which transaction id every posting is in the chain.
chain_progress = Table(
    "chain_progress",
    metadata,
    Column("chain_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("chained_below", Xid8, nullable=False),
    CheckConstraint("chain_id = 1", name="one_row"),
)

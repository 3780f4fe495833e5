"""
The invariants, as data: a name, the promise in words, and the SQL that proves it from the rows.

Each statement returns one row for every thing that it judged: `broken`, and `example`, which names the
thing. NULL counts as broken: what can't be judged is not proved. All run in one snapshot, so they can
be run at any time, also in the middle of the work; only what depends on time has a bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from infra.postgres.chain import (
    CHAINED_POSTINGS_ARE_UNCHANGED,
    LINKS_FOLLOW_EACH_OTHER,
    PAST_POSTINGS_ARE_CHAINED,
)
from infra.postgres.migrate import schema_problem
from ledger.accounts import ASSET_KINDS, SELLER_KINDS, AccountKind
from ledger.postings import ACCOUNTS_OF, MAX_AMOUNT_MINOR, PostingKind

# How long something may be on its way before it counts as resting: far beyond what the sweep needs to find
# what was lost, and time enough for a system that was down to catch up.
_BOUND: Final = "interval '15 minutes'"
# The bank is asked again after an hour at most, and the sweep asks after two.
_BANK_BOUND: Final = "interval '3 hours'"
# A step's time is read when it begins. It may then wait for a lock, and act on what was committed
# meanwhile under a later time; locks and statements have time-outs, so not for longer than this.
_OVERLAP: Final = "interval '1 minute'"
_MAX_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant; `invariant` is its number in the design."""

    invariant: int
    name: str
    promise: str
    statement: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; examples only where something is broken."""

    check: Check
    checked: int
    violations: int
    examples: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.violations == 0


class SchemaNotCurrent(Exception):
    """The database is at another revision than these statements were written for."""


def run_audit(connection: Connection) -> list[Finding]:
    """
    Run every check in the caller's transaction, which must be REPEATABLE READ: one snapshot for all.

    Takes as long as it takes: the statement time-out is lifted for this transaction.

    Raises:
        SchemaNotCurrent: run the migrations, or the audit of the version that fits.
    """
    problem = schema_problem(connection)
    if problem is not None:
        raise SchemaNotCurrent(problem)
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    return [_run(connection, check) for check in CHECKS]


def _run(connection: Connection, check: Check) -> Finding:
    counted = connection.execute(
        text(f"""
            SELECT count(*) AS checked, count(*) FILTER (WHERE broken IS NOT FALSE) AS violations
            FROM ({check.statement}) AS judged
        """)
    ).one()
    examples: Sequence[str] = ()
    if counted.violations:
        # The same snapshot, so it finds the same rows; only a broken ledger pays for it.
        examples = [
            str(row.example)
            for row in connection.execute(
                text(f"""
                    SELECT example FROM ({check.statement}) AS judged
                    WHERE broken IS NOT FALSE LIMIT {_MAX_EXAMPLES}
                """)
            )
        ]
    return Finding(check, counted.checked, counted.violations, tuple(examples))


def _listed(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


def _derived_id(kind: str, parent: str) -> str:
    """SQL for `ledger.ids.derive_id`; `kind` is an SQL expression too."""
    return _stamped(
        f"substring(uuid_send({parent}) FOR 6)"
        f" || substring(sha256(convert_to({kind} || '|', 'UTF8') || uuid_send({parent})) FOR 10)"
    )


def _attempt_suffix(table: str) -> str:
    """SQL for `ledger.ids.attempt_suffix`; a colon would name a parameter."""
    return f"CASE {table}.attempt WHEN 0 THEN '' ELSE chr(58) || {table}.attempt END"


def _key_id(kind: str, *parts: str) -> str:
    """SQL for `ledger.ids.key_id`; parts are SQL expressions."""
    joined = " || chr(31) || ".join((f"'{kind}'", *parts))
    return _stamped(f"substring(sha256(convert_to({joined}, 'UTF8')) FOR 16)")


def _stamped(raw: str) -> str:
    """SQL for the version and variant bits of a UUIDv8, as in `ledger.ids`."""
    versioned = f"set_byte({raw}, 6, (get_byte({raw}, 6) & 15) | 128)"
    return f"CAST(encode(set_byte({versioned}, 8, (get_byte({raw}, 8) & 63) | 128), 'hex') AS uuid)"


# --- the ledger itself ----------------------------------------------------------------------------

_KINDS: Final = ", ".join(
    f"('{kind}', '{debit}', '{credit}')" for kind, (debit, credit) in sorted(ACCOUNTS_OF.items())
)

_POSTINGS_ARE_SOUND = f"""
    SELECT p.posting_id::text AS example,
           NOT (k.kind IS NOT NULL AND p.debit <> p.credit
                AND p.amount_minor BETWEEN 1 AND {MAX_AMOUNT_MINOR}
                AND p.currency ~ '^[A-Z]{{3}}$') AS broken
    FROM postings AS p
    LEFT JOIN (VALUES {_KINDS}) AS k(kind, debit, credit)
        ON (k.kind, k.debit, k.credit) = (p.kind, p.debit, p.credit)
"""

_LEDGER_SUMS_TO_ZERO = """
    SELECT currency AS example, sum(debit_minor) - sum(credit_minor) <> 0 AS broken
    FROM entries GROUP BY currency
"""

_POSTED_ROWS_ARE_GUARDED = """
    -- tgtype: 8 is DELETE, 16 UPDATE, 32 TRUNCATE; O and A are triggers that fire for us.
    SELECT guarded AS example, NOT EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = to_regclass(guarded) AND tgfoid = to_regproc('refuse_change')
          AND tgenabled IN ('O', 'A') AND tgtype & 56 = 56
    ) AS broken
    FROM unnest(ARRAY['postings', 'chain_links', 'chain_heads']) AS guarded
"""

_SUBTOTALS_EQUAL_POSTINGS = """
    SELECT concat_ws('/', shop_id, nullif(seller_id, ''), currency, kind) AS example,
           stored.total_minor IS DISTINCT FROM summed.total_minor AS broken
    FROM subtotals AS stored
    FULL JOIN (
        SELECT shop_id, seller_id, currency, kind, debit, credit, sum(amount_minor) AS total_minor
        FROM postings WHERE xact < (SELECT horizon FROM seal)
        GROUP BY shop_id, seller_id, currency, kind, debit, credit
    ) AS summed USING (shop_id, seller_id, currency, kind, debit, credit)
"""


def _stored_balance_equals_postings(table: str, column: str, account: AccountKind) -> str:
    sign = 1 if account in ASSET_KINDS else -1
    return f"""
        SELECT concat_ws('/', shop_id, seller_id, currency) AS example,
               coalesce(stored.{column}, 0) <> coalesce(summed.balance, 0) AS broken
        FROM {table} AS stored
        FULL JOIN (
            SELECT shop_id, seller_id, currency, {sign} * sum(debit_minor - credit_minor) AS balance
            FROM entries WHERE account = '{account}' GROUP BY shop_id, seller_id, currency
        ) AS summed USING (shop_id, seller_id, currency)
    """


# Of a shop as a whole, a posting may still name the seller on its other side; of a seller, it always does.
# Cash at the bank is left out: under `announced` funding more may be paid out than has come in. So is
# suspense, which has a check of its own: a debit may come before the credit that it takes back. Fees that
# were paid out count as if they were there: a chargeback after that takes a fee back, which the shop owes.
_NO_BALANCE_IS_NEGATIVE = f"""
    SELECT concat_ws('/', shop_id, owner, currency, account) AS example,
           CASE WHEN account IN ({_listed(list(ASSET_KINDS))}) THEN balance ELSE -balance END < 0 AS broken
    FROM (
        SELECT shop_id, CASE WHEN account IN ({_listed(list(SELLER_KINDS))}) THEN seller_id END AS owner,
               currency, account, sum(debit_minor - credit_minor) AS balance
        FROM entries
        WHERE account NOT IN ('{AccountKind.BANK_CASH}', '{AccountKind.SUSPENSE}')
          AND NOT (account = '{AccountKind.FEES}' AND kind IN (
              '{PostingKind.FEES_PAYOUT_RESERVED}', '{PostingKind.FEES_PAYOUT_FAILED}',
              '{PostingKind.FEES_PAYOUT_RETURNED}'))
        GROUP BY 1, 2, 3, 4
    ) AS balances
"""

_ONE_POSTING_PER_EFFECT = f"""
    SELECT posting_id::text AS example,
           posting_id <> {_derived_id("kind", "cause_id")} AS broken
    FROM postings
"""

# --- orders ---------------------------------------------------------------------------------------

_ORDERS_ADD_UP = f"""
    SELECT concat_ws('/', p.shop_id, p.order_id) AS example,
           CASE p.state
               WHEN 'received' THEN
                   received.amount_minor IS DISTINCT FROM p.amount_minor
                   OR coalesce(held.amount_minor, p.amount_minor) <> p.amount_minor
                   OR split.amount_minor <> p.amount_minor
                   OR coalesce(held.sellers, split.sellers) <> split.sellers
               ELSE received.amount_minor IS NOT NULL OR held.amount_minor IS NOT NULL
           END AS broken
    FROM payments AS p
    CROSS JOIN LATERAL (
        SELECT sum((part ->> 'amount')::numeric) AS amount_minor, count(*) AS sellers
        FROM json_array_elements(p.splits) AS part
    ) AS split
    LEFT JOIN postings AS received
        ON received.cause_id = p.payment_id AND received.kind = '{PostingKind.PAYMENT_RECEIVED}'
    LEFT JOIN (
        SELECT payment_id, sum(amount_minor) AS amount_minor, count(*) AS sellers
        FROM holds GROUP BY payment_id
    ) AS held ON held.payment_id = p.payment_id
"""

_HOLDS_ADD_UP = f"""
    SELECT h.hold_id::text AS example,
           coalesce(booked.held, 0) <> h.amount_minor
           OR coalesce(booked.fee, 0) <> h.fee_minor
           OR coalesce(booked.released, 0)
              <> CASE h.state WHEN 'released' THEN h.amount_minor - h.refunded_minor - h.fee_minor ELSE 0 END
           OR (h.state <> 'released' AND h.fee_minor <> 0)
           OR (h.state = 'refunded') <> (h.refunded_minor = h.amount_minor)
           AS broken
    FROM holds AS h
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.HELD}') AS held,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.RELEASED}') AS released,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.FEE_TAKEN}') AS fee
        FROM postings
        WHERE kind IN ('{PostingKind.HELD}', '{PostingKind.RELEASED}', '{PostingKind.FEE_TAKEN}')
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = h.hold_id
"""

_HELD_EQUALS_OPEN_HOLDS = f"""
    SELECT concat_ws('/', shop_id, seller_id, currency) AS example,
           coalesce(ledger.balance, 0) <> coalesce(open_.amount_minor, 0) AS broken
    FROM (
        SELECT shop_id, seller_id, currency, sum(credit_minor - debit_minor) AS balance
        FROM entries WHERE account = '{AccountKind.HELD}' GROUP BY shop_id, seller_id, currency
    ) AS ledger
    FULL JOIN (
        SELECT shop_id, seller_id, currency, sum(amount_minor - refunded_minor) AS amount_minor
        FROM holds WHERE state IN ('held', 'frozen') GROUP BY shop_id, seller_id, currency
    ) AS open_ USING (shop_id, seller_id, currency)
"""

# --- the protection period ------------------------------------------------------------------------

_PROTECTION_PERIOD_IS_EXACT = """
    SELECT h.hold_id::text AS example,
           NOT (h.protection_days BETWEEN 3 AND 7
                AND h.protection_days = p.protection_days
                AND h.day_seconds = d.protection_day_seconds
                AND h.release_at = h.held_at
                    + make_interval(secs => h.protection_days * d.protection_day_seconds)) AS broken
    FROM holds AS h
    LEFT JOIN payments AS p ON p.payment_id = h.payment_id
    LEFT JOIN deployment AS d ON d.deployment_id = 1
"""

# Both the hold's own time and the ledger's: two witnesses.
_NO_HOLD_RELEASED_EARLY = f"""
    SELECT h.hold_id::text AS example,
           h.released_at < h.release_at OR coalesce(p.booked_at < h.release_at, false)
           OR coalesce(p.booked_at <> h.released_at, false) AS broken
    FROM holds AS h
    LEFT JOIN postings AS p ON p.cause_id = h.hold_id AND p.kind = '{PostingKind.RELEASED}'
    WHERE h.state = 'released'
"""

# The credit's own posting is the witness: a credit may be taken back later, which unmarks the payment.
# A shop's terms may have changed since; what counted at the release is in the record of changes.
_NO_RELEASE_WITHOUT_CREDIT = f"""
    WITH credited AS (
        SELECT p.shop_id, coalesce(a.bank_reference, c.bank_reference) AS bank_reference,
               min(p.booked_at) AS since
        FROM postings AS p
        JOIN bank_credits AS c ON c.credit_id = p.cause_id
        LEFT JOIN payments AS a ON a.payment_id = c.assigned_payment_id
        WHERE p.kind = '{PostingKind.PAYMENT_FUNDED}'
        GROUP BY 1, 2
    ),
    changes AS (
        SELECT subject AS shop_id, acted_at, details -> 'before' ->> 'funding' AS old,
               details -> 'after' ->> 'funding' AS new
        FROM operator_actions WHERE action = 'shop_terms_changed'
    )
    SELECT h.hold_id::text AS example,
           CASE WHEN credited.since <= h.released_at + {_OVERLAP} THEN false
           ELSE coalesce(
                    (SELECT old FROM changes
                     WHERE changes.shop_id = h.shop_id AND acted_at > h.released_at
                     ORDER BY acted_at LIMIT 1),
                    s.funding) <> 'announced'
                AND NOT EXISTS (
                    SELECT FROM changes
                    WHERE changes.shop_id = h.shop_id AND new = 'announced'
                      AND acted_at BETWEEN h.released_at AND h.released_at + {_OVERLAP})
           END AS broken
    FROM holds AS h
    JOIN payments AS p ON p.payment_id = h.payment_id
    JOIN shops AS s ON s.shop_id = h.shop_id
    LEFT JOIN credited ON (credited.shop_id, credited.bank_reference) = (p.shop_id, p.bank_reference)
    WHERE h.state = 'released'
"""

_NO_HOLD_RELEASED_WHILE_FROZEN = f"""
    SELECT h.hold_id::text AS example,
           h.state = 'released' AND h.released_at > d.opened_at + {_OVERLAP}
           AND coalesce(h.released_at < d.resolved_at - {_OVERLAP}, true) AS broken
    FROM dispute_holds AS f
    JOIN disputes AS d ON d.dispute_key = f.dispute_key
    JOIN holds AS h ON h.hold_id = f.hold_id
"""

_FROZEN_HOLDS_HAVE_THEIR_DISPUTE = """
    SELECT h.hold_id::text AS example, (h.state = 'frozen') <> (open_.hold_id IS NOT NULL) AS broken
    FROM holds AS h
    LEFT JOIN (
        SELECT DISTINCT f.hold_id FROM dispute_holds AS f
        JOIN disputes AS d ON d.dispute_key = f.dispute_key WHERE d.state = 'open'
    ) AS open_ ON open_.hold_id = h.hold_id
    -- One that was refunded in full takes part in nothing more.
    WHERE h.state <> 'refunded' AND (h.state = 'frozen' OR open_.hold_id IS NOT NULL)
"""

# Counted, not ordered: a debit and the credit that makes it good may be booked in one step, at one moment.
_NO_RELEASE_AFTER_CHARGE_BACK = f"""
    SELECT h.hold_id::text AS example,
           taken.times > 0 AND taken.times >= (
               SELECT count(*) FROM bank_credits AS c
               JOIN postings AS given ON given.cause_id = c.credit_id
                    AND given.kind = '{PostingKind.PAYMENT_FUNDED}' AND given.shop_id = h.shop_id
               WHERE (c.bank_reference = p.bank_reference OR c.assigned_payment_id = p.payment_id)
                 AND given.booked_at <= h.released_at + {_OVERLAP}
           ) AS broken
    FROM holds AS h
    JOIN payments AS p ON p.payment_id = h.payment_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS times FROM bank_debits AS d
        JOIN postings AS lost ON lost.cause_id = d.debit_id AND lost.kind = '{PostingKind.PAYMENT_UNFUNDED}'
        WHERE d.payment_id = p.payment_id AND lost.booked_at < h.released_at - {_OVERLAP}
    ) AS taken
    WHERE h.state = 'released' AND EXISTS (SELECT FROM bank_debits AS d WHERE d.payment_id = p.payment_id)
"""

# --- one effect per key ---------------------------------------------------------------------------

_ONE_EFFECT_PER_BUSINESS_KEY = """
    SELECT 'order ' || shop_id || '/' || order_id AS example, count(*) > 1 AS broken
    FROM payments GROUP BY shop_id, order_id
    UNION ALL
    SELECT 'bank reference ' || shop_id || '/' || bank_reference, count(*) > 1
    FROM payments WHERE state = 'received' GROUP BY shop_id, bank_reference
    UNION ALL
    SELECT 'withdrawal ' || shop_id || '/' || withdrawal_id, count(*) > 1
    FROM withdrawals GROUP BY shop_id, withdrawal_id
    UNION ALL
    SELECT 'statement line ' || bank_id || '/' || statement_line, count(*) > 1
    FROM bank_credits GROUP BY bank_id, statement_line
    UNION ALL
    SELECT 'debit of statement line ' || bank_id || '/' || statement_line, count(*) > 1
    FROM bank_debits GROUP BY bank_id, statement_line
    UNION ALL
    SELECT 'dispute ' || shop_id || '/' || dispute_id, count(*) > 1
    FROM disputes GROUP BY shop_id, dispute_id
    UNION ALL
    SELECT origin || ' refund ' || shop_id || '/' || refund_id, count(*) > 1
    FROM refunds GROUP BY shop_id, origin, refund_id
    UNION ALL
    SELECT 'hold ' || payment_id || '/' || seller_id, count(*) > 1
    FROM holds GROUP BY payment_id, seller_id
"""

_EFFECTS_COME_FROM_EVENTS = """
    SELECT 'order ' || p.shop_id || '/' || p.order_id AS example,
           (i.type, i.content_hash) IS DISTINCT FROM ('order.paid', p.content_hash) AS broken
    FROM payments AS p
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || p.shop_id, p.event_id)
    UNION ALL
    SELECT 'withdrawal ' || w.shop_id || '/' || w.withdrawal_id,
           -- One that was adopted was said by an operator, which has a check of its own.
           w.adopted_at IS NULL
           AND (i.type, i.content_hash) IS DISTINCT FROM ('withdrawal.requested', w.content_hash)
    FROM withdrawals AS w
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || w.shop_id, w.event_id)
    UNION ALL
    SELECT 'dispute ' || d.shop_id || '/' || d.dispute_id,
           (i.type, i.content_hash) IS DISTINCT FROM ('dispute.opened', d.content_hash)
    FROM disputes AS d
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || d.shop_id, d.event_id)
    UNION ALL
    SELECT r.origin || ' refund ' || r.shop_id || '/' || r.refund_id,
           (i.type, i.content_hash) IS DISTINCT FROM (
               CASE r.origin WHEN 'dispute' THEN 'dispute.resolved' ELSE 'refund.requested' END,
               r.content_hash)
           AND NOT EXISTS (SELECT FROM operator_actions AS o
                           WHERE o.action = 'refund_adopted'
                             AND o.details ->> 'refund_key' = r.refund_key::text)
    FROM refunds AS r
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || r.shop_id, r.event_id)
"""

# --- the bank's credits ---------------------------------------------------------------------------

_CREDITS_ADD_UP = f"""
    SELECT c.bank_id || '/' || c.statement_line AS example,
           CASE WHEN c.payment_id IS NULL THEN
               booked.funded IS NOT NULL OR booked.claimed IS NOT NULL
               OR booked.suspended IS DISTINCT FROM c.amount_minor
           ELSE
               booked.funded IS DISTINCT FROM c.amount_minor
               OR booked.suspended IS DISTINCT FROM booked.claimed
               OR p.funded_at IS NULL
               OR (p.amount_minor, p.currency) IS DISTINCT FROM (c.amount_minor, c.currency)
               -- Another reference only where an operator said so, and is on record for it.
               OR CASE WHEN c.assigned_payment_id IS NULL THEN p.bank_reference <> c.bank_reference
                  ELSE c.assigned_payment_id <> c.payment_id
                       OR NOT EXISTS (SELECT FROM operator_actions AS o WHERE o.action = 'credit_assigned'
                                        AND o.details ->> 'credit_id' = c.credit_id::text)
                  END
           END AS broken
    FROM bank_credits AS c
    LEFT JOIN payments AS p ON p.payment_id = c.payment_id
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.PAYMENT_FUNDED}') AS funded,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CREDIT_SUSPENDED}') AS suspended,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CREDIT_CLAIMED}') AS claimed
        FROM postings
        WHERE kind IN ('{PostingKind.PAYMENT_FUNDED}', '{PostingKind.CREDIT_SUSPENDED}',
                       '{PostingKind.CREDIT_CLAIMED}')
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = c.credit_id
    -- One that the bank took back has been unbooked again, under the debit's own id.
    WHERE c.taken_back_at IS NULL
"""

_SUSPENSE_IS_EXPLAINED = f"""
    SELECT currency AS example, coalesce(booked.balance, 0) <> coalesce(open_.amount_minor, 0) AS broken
    FROM (
        SELECT currency, sum(credit_minor - debit_minor) AS balance
        FROM entries WHERE account = '{AccountKind.SUSPENSE}' GROUP BY currency
    ) AS booked
    FULL JOIN (
        SELECT currency, sum(amount_minor) AS amount_minor
        FROM (
            SELECT currency, amount_minor FROM bank_credits
            WHERE payment_id IS NULL AND taken_back_at IS NULL
            UNION ALL
            SELECT currency, -amount_minor FROM bank_debits WHERE credit_id IS NULL
        ) AS lines
        GROUP BY currency
    ) AS open_ USING (currency)
"""

_FUNDED_PAYMENTS_HAVE_THEIR_CREDIT = """
    SELECT p.shop_id || '/' || p.order_id AS example, c.credit_id IS NULL AS broken
    FROM payments AS p LEFT JOIN bank_credits AS c ON c.payment_id = p.payment_id
    WHERE p.funded_at IS NOT NULL
"""

# --- withdrawals ----------------------------------------------------------------------------------

# The money is set aside when the password was right: also of one that waits, or was given up after it had.
_WITHDRAWALS_HAD_ONE_PASSWORD = f"""
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           CASE WHEN w.state IN ('accepted', 'pending') OR w.pending_reason IS NOT NULL THEN
               reserved.amount_minor IS DISTINCT FROM w.amount_minor
               OR (reserved.shop_id, reserved.seller_id, reserved.currency)
                  IS DISTINCT FROM (w.shop_id, w.seller_id, w.currency)
               -- One that was adopted is an operator's word; that has a check of its own.
               OR (w.adopted_at IS NULL AND (coalesce(checked.accepted, 0) <> 1 OR checked.others <> 0))
           ELSE reserved.posting_id IS NOT NULL
           END AS broken
    FROM withdrawals AS w
    LEFT JOIN postings AS reserved
        ON reserved.cause_id = w.payout_id AND reserved.kind = '{PostingKind.PAYOUT_RESERVED}'
    LEFT JOIN (
        SELECT a.payout_id, count(*) FILTER (WHERE a.state = 'accepted') AS accepted,
               count(*) FILTER (
                   WHERE (a.shop_id, a.seller_id, a.event_id, a.destination_id)
                         IS DISTINCT FROM (x.shop_id, x.seller_id, x.event_id, x.destination_id)
               ) AS others
        FROM password_attempts AS a JOIN withdrawals AS x ON x.payout_id = a.payout_id
        WHERE a.purpose = 'withdrawal'
        GROUP BY a.payout_id
    ) AS checked ON checked.payout_id = w.payout_id
"""

# Only what was not withdrawable is owed, and only while the bank has kept the money.
_ADOPTIONS_ARE_ON_RECORD = f"""
    SELECT coalesce(w.shop_id || '/' || w.withdrawal_id, advanced.cause_id::text) AS example,
           w.adopted_at IS NULL OR t.payout_id IS NULL OR t.state = 'ready'
           OR NOT EXISTS (SELECT FROM operator_actions AS o
                          WHERE o.action = 'payout_adopted' AND o.details ->> 'payout_id' = w.payout_id::text)
           OR coalesce(advanced.amount_minor, 0) > w.amount_minor AS broken
    FROM (SELECT * FROM withdrawals WHERE adopted_at IS NOT NULL) AS w
    LEFT JOIN transfers AS t ON t.payout_id = w.payout_id
    FULL JOIN (SELECT * FROM postings WHERE kind = '{PostingKind.PAYOUT_ADVANCED}') AS advanced
        ON advanced.cause_id = w.payout_id
"""

_DEBTS_ARE_REPAID_BY_WHAT_CAME_BACK = f"""
    SELECT coalesce(w.shop_id || '/' || w.withdrawal_id, repaid.cause_id::text) AS example,
           w.payout_id IS NULL OR repaid.amount_minor > w.amount_minor
           OR NOT coalesce(t.state IN ('failed', 'returned'),
                           w.state = 'rejected' AND w.pending_reason IS NOT NULL) AS broken
    FROM postings AS repaid
    LEFT JOIN withdrawals AS w ON w.payout_id = repaid.cause_id
    LEFT JOIN transfers AS t ON t.payout_id = w.payout_id
    WHERE repaid.kind = '{PostingKind.DEBT_REPAID}'
"""

_CANCELLED_MONEY_IS_BACK = f"""
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           CASE WHEN w.state = 'rejected' AND w.pending_reason IS NOT NULL
                THEN cancelled.amount_minor IS DISTINCT FROM w.amount_minor
                ELSE cancelled.posting_id IS NOT NULL END AS broken
    FROM withdrawals AS w
    LEFT JOIN postings AS cancelled
        ON cancelled.cause_id = w.payout_id AND cancelled.kind = '{PostingKind.PAYOUT_CANCELLED}'
    WHERE w.pending_reason IS NOT NULL OR cancelled.posting_id IS NOT NULL
"""

# The names are compared as the database compares them when they are written.
_REVIEWS_HAD_TWO_NAMES = """
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           CASE WHEN w.state = 'pending' AND w.pending_reason = 'over_limit' THEN r.decided_at IS NOT NULL
           ELSE r.decided_at IS NULL
                OR r.verdict IS DISTINCT FROM CASE w.state WHEN 'rejected' THEN 'reject' ELSE 'approve' END
                OR lower(trim(r.proposed_by)) = lower(trim(r.decided_by)) END AS broken
    FROM withdrawals AS w LEFT JOIN withdrawal_reviews AS r ON r.payout_id = w.payout_id
    -- One that only cools off needs nobody's word, unless it was rejected or somebody has spoken.
    WHERE w.over_limit IS NOT NULL AND NOT (w.state = 'pending' AND w.pending_reason = 'cooling_off')
       OR w.state = 'rejected' AND w.pending_reason IS NOT NULL
"""

_NOTHING_LEFT_BEFORE_ITS_COOLING_OFF = """
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           w.state = 'accepted' AND (w.decided_at < w.pending_until OR t.created_at < w.pending_until)
           AS broken
    FROM withdrawals AS w LEFT JOIN transfers AS t ON t.payout_id = w.payout_id
    WHERE w.pending_until IS NOT NULL
"""

# The change and the attempt that made it are written in one step, under one time.
_PASSWORDS_CHANGED_RIGHTLY = """
    SELECT s.shop_id || '/' || s.seller_id AS example,
           CASE WHEN s.password_changed_at > s.enrolled_at THEN NOT EXISTS (
               SELECT FROM password_attempts AS a
               WHERE (a.shop_id, a.seller_id, a.state) = (s.shop_id, s.seller_id, 'accepted')
                 AND a.decided_at = s.password_changed_at
                 AND (a.purpose = 'password_change' OR (a.purpose = 'enrolment' AND EXISTS (
                     SELECT FROM password_resets AS r
                     WHERE (r.shop_id, r.seller_id) = (s.shop_id, s.seller_id) AND r.decided_by IS NOT NULL
                       AND lower(trim(r.proposed_by)) <> lower(trim(r.decided_by))
                       AND s.password_changed_at BETWEEN r.decided_at
                           AND least(r.valid_until, r.cancelled_at))))
           ) ELSE false END
           OR (s.password_reset_until IS NOT NULL AND NOT EXISTS (
               SELECT FROM password_resets AS r
               WHERE (r.shop_id, r.seller_id, r.valid_until)
                   = (s.shop_id, s.seller_id, s.password_reset_until)
                 AND r.decided_by IS NOT NULL AND r.cancelled_at IS NULL
                 AND lower(trim(r.proposed_by)) <> lower(trim(r.decided_by)))) AS broken
    FROM sellers AS s
    WHERE s.password_changed_at <> s.enrolled_at OR s.password_reset_until IS NOT NULL
"""

_ONE_INSTRUCTION_PER_WITHDRAWAL = """
    SELECT coalesce(p.example, t.payout_id::text) AS example,
           CASE WHEN p.goes
                THEN t.end_to_end_id IS DISTINCT FROM replace(p.payout_id::text, '-', '')
                ELSE t.payout_id IS NOT NULL END AS broken
    FROM (
        SELECT payout_id, shop_id || '/' || withdrawal_id AS example, state = 'accepted' AS goes
        FROM withdrawals
        UNION ALL
        SELECT payout_id, shop_id || '/' || reference, state = 'approved' FROM shop_payouts
    ) AS p FULL JOIN transfers AS t ON t.payout_id = p.payout_id
"""

_SHOP_PAYOUTS_HAD_TWO_NAMES = f"""
    SELECT p.shop_id || '/' || p.reference AS example,
           CASE WHEN p.state = 'approved' THEN
               lower(trim(p.decided_by)) = lower(trim(p.proposed_by))
               OR (reserved.amount_minor, reserved.shop_id, reserved.currency)
                  IS DISTINCT FROM (p.amount_minor, p.shop_id, p.currency)
               OR reserved.kind IS DISTINCT FROM CASE p.source
                   WHEN 'fees' THEN '{PostingKind.FEES_PAYOUT_RESERVED}'
                   ELSE '{PostingKind.RECOVERED_PAYOUT_RESERVED}' END
           ELSE reserved.posting_id IS NOT NULL END AS broken
    FROM shop_payouts AS p
    LEFT JOIN postings AS reserved ON reserved.cause_id = p.payout_id
        AND reserved.kind IN ('{PostingKind.FEES_PAYOUT_RESERVED}',
                              '{PostingKind.RECOVERED_PAYOUT_RESERVED}')
"""

# Of a seller's money, and of a shop's own.
_SETTLED: Final = _listed([PostingKind.PAYOUT_SETTLED, PostingKind.SHOP_PAYOUT_SETTLED])
_FAILED: Final = _listed(
    [PostingKind.PAYOUT_FAILED, PostingKind.FEES_PAYOUT_FAILED, PostingKind.RECOVERED_PAYOUT_FAILED]
)
_RETURNED: Final = _listed(
    [PostingKind.PAYOUT_RETURNED, PostingKind.FEES_PAYOUT_RETURNED, PostingKind.RECOVERED_PAYOUT_RETURNED]
)

_PAYOUTS_FOLLOW_THE_BANK = f"""
    SELECT t.end_to_end_id AS example,
           (coalesce(booked.settled, 0), coalesce(booked.failed, 0), coalesce(booked.returned, 0))
           <> (CASE WHEN t.state IN ('settled', 'returned') THEN p.amount_minor ELSE 0 END,
               CASE WHEN t.state = 'failed' THEN p.amount_minor ELSE 0 END,
               CASE WHEN t.state = 'returned' THEN p.amount_minor ELSE 0 END)
           OR (t.settled_at IS NOT NULL) <> (t.state IN ('settled', 'returned'))
           OR (t.ended_at IS NOT NULL) <> (t.state IN ('settled', 'failed', 'returned'))
           OR (t.state <> 'ready' AND t.sent_at IS NULL) AS broken
    FROM transfers AS t
    LEFT JOIN payouts AS p ON p.payout_id = t.payout_id
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind IN ({_SETTLED})) AS settled,
               sum(amount_minor) FILTER (WHERE kind IN ({_FAILED})) AS failed,
               sum(amount_minor) FILTER (WHERE kind IN ({_RETURNED})) AS returned
        FROM postings
        WHERE kind IN ({_SETTLED}, {_FAILED}, {_RETURNED})
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = t.payout_id
"""

# --- refunds and claims ---------------------------------------------------------------------------

_REFUNDS_ADD_UP = f"""
    SELECT 'hold ' || h.hold_id AS example, h.refunded_minor <> coalesce(given.amount_minor, 0) AS broken
    FROM holds AS h
    FULL JOIN (
        SELECT hold_id, sum(amount_minor) AS amount_minor FROM refund_parts GROUP BY hold_id
    ) AS given ON given.hold_id = h.hold_id
    WHERE h.refunded_minor IS DISTINCT FROM 0 OR given.hold_id IS NOT NULL
    UNION ALL
    SELECT 'refund ' || r.shop_id || '/' || r.refund_id,
           CASE r.state WHEN 'rejected' THEN coalesce(parts.amount_minor, 0) <> 0
           ELSE parts.amount_minor IS DISTINCT FROM r.amount_minor
                OR parts.reserved IS DISTINCT FROM r.amount_minor
                OR coalesce(parts.settled, 0) - coalesce(parts.returned, 0)
                   <> CASE r.state WHEN 'settled' THEN r.amount_minor ELSE 0 END
                -- Each further attempt was an operator's, who is on record for it.
                OR r.attempt <> CASE r.attempt WHEN 0 THEN 0 ELSE (
                       SELECT count(*) FROM operator_actions AS o
                       WHERE o.action IN ('refund_retried', 'refund_settled_by_hand')
                         AND o.details ->> 'refund_key' = r.refund_key::text) END
           END
    FROM refunds AS r
    LEFT JOIN (
        SELECT part.refund_key, sum(part.amount_minor) FILTER (WHERE tried.attempt = 0) AS amount_minor,
               sum(booked.reserved) AS reserved, sum(booked.settled) AS settled,
               sum(booked.returned) AS returned
        FROM refund_parts AS part
        JOIN refunds AS of_part ON of_part.refund_key = part.refund_key
        CROSS JOIN generate_series(0, of_part.attempt) AS tried(attempt)
        LEFT JOIN (
            SELECT cause_id,
                   sum(amount_minor) FILTER (WHERE kind = '{PostingKind.REFUND_RESERVED}') AS reserved,
                   sum(amount_minor) FILTER (WHERE kind = '{PostingKind.REFUND_SETTLED}') AS settled,
                   sum(amount_minor) FILTER (WHERE kind = '{PostingKind.REFUND_RETURNED}') AS returned
            FROM postings
            WHERE kind IN ('{PostingKind.REFUND_RESERVED}', '{PostingKind.REFUND_SETTLED}',
                           '{PostingKind.REFUND_RETURNED}')
            GROUP BY cause_id
        ) AS booked ON booked.cause_id = {
    _derived_id("'refund_part:' || part.hold_id || " + _attempt_suffix("tried"), "part.refund_key")
}
        GROUP BY part.refund_key
    ) AS parts ON parts.refund_key = r.refund_key
"""

# One whose credit has come again was given back in full: to the seller, or off what the seller owes.
_CLAIMS_ADD_UP = f"""
    SELECT c.claim_id::text AS example,
           coalesce(booked.taken, 0) <> c.taken_minor
           OR coalesce(booked.owed, 0) <> c.amount_minor - c.taken_minor
           OR coalesce(booked.fee, 0) <> c.fee_minor
           OR coalesce(booked.given_back, 0) <> CASE WHEN c.returned_at IS NULL THEN 0 ELSE c.amount_minor END
           OR coalesce(booked.fee_restored, 0) <> CASE WHEN c.returned_at IS NULL THEN 0 ELSE c.fee_minor END
           AS broken
    FROM claims AS c
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CLAIM_TAKEN}') AS taken,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CLAIM_OWED}') AS owed,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.FEE_RETURNED}') AS fee,
               sum(amount_minor) FILTER (
                   WHERE kind IN ('{PostingKind.CLAIM_RETURNED}', '{PostingKind.CLAIM_WAIVED}')
               ) AS given_back,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.FEE_RESTORED}') AS fee_restored
        FROM postings
        WHERE kind IN ('{PostingKind.CLAIM_TAKEN}', '{PostingKind.CLAIM_OWED}', '{PostingKind.FEE_RETURNED}',
                       '{PostingKind.CLAIM_RETURNED}', '{PostingKind.CLAIM_WAIVED}',
                       '{PostingKind.FEE_RESTORED}')
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = c.claim_id
"""

# --- what was said --------------------------------------------------------------------------------

_WITHDRAWAL_ANSWER: Final = _key_id("withdrawal_answer", "shop_id", "withdrawal_id")
_WITHDRAWAL_ANSWER_OF_W: Final = _key_id("withdrawal_answer", "w.shop_id", "w.withdrawal_id")

_EVERY_FACT_HAS_ITS_EVENT = f"""
    WITH facts AS (
        SELECT p.shop_id, {_key_id("order_answer", "p.shop_id", "p.order_id")} AS event_id,
               CASE p.state WHEN 'rejected' THEN 'order.rejected' ELSE 'order.held' END AS type
        FROM payments AS p
        WHERE p.state = 'rejected' OR EXISTS (SELECT FROM holds AS h WHERE h.payment_id = p.payment_id)
        UNION ALL
        SELECT p.shop_id, {_derived_id("'order_funded'", "c.credit_id")}, 'order.funded'
        FROM bank_credits AS c JOIN payments AS p ON p.payment_id = c.payment_id
        UNION ALL
        SELECT shop_id, {_derived_id("'hold_released'", "hold_id")}, 'hold.released'
        FROM holds WHERE state = 'released'
        UNION ALL
        SELECT shop_id, {_WITHDRAWAL_ANSWER}, 'withdrawal.' || state
        FROM withdrawals WHERE state IN ('accepted', 'rejected') AND adopted_at IS NULL
        UNION ALL
        -- Adopted after a refusal that was told: that stays, and the other is told beside it.
        SELECT w.shop_id, CASE WHEN told.type = 'withdrawal.rejected'
                               THEN {_derived_id("'withdrawal_adopted'", "told.event_id")}
                               ELSE {_WITHDRAWAL_ANSWER_OF_W} END, 'withdrawal.accepted'
        FROM withdrawals AS w LEFT JOIN events AS told ON told.event_id = {_WITHDRAWAL_ANSWER_OF_W}
        WHERE w.adopted_at IS NOT NULL
        UNION ALL
        SELECT shop_id,
               {_derived_id("'withdrawal_pending:' || pending_reason", _WITHDRAWAL_ANSWER)},
               'withdrawal.pending'
        FROM withdrawals WHERE pending_reason IS NOT NULL
        UNION ALL
        SELECT w.shop_id, {_derived_id("said.type", "t.payout_id")}, said.type
        FROM transfers AS t
        JOIN withdrawals AS w ON w.payout_id = t.payout_id
        JOIN (VALUES ('submitted', 'payout.submitted'), ('settled', 'payout.submitted'),
                     ('settled', 'payout.settled'), ('failed', 'payout.failed'),
                     ('returned', 'payout.submitted'), ('returned', 'payout.settled'),
                     ('returned', 'payout.returned')) AS said(state, type) ON said.state = t.state
        UNION ALL
        SELECT shop_id, {_key_id("answer:dispute.opened", "shop_id", "dispute_id")},
               CASE state WHEN 'rejected' THEN 'dispute.rejected' ELSE 'dispute.accepted' END
        FROM disputes
        UNION ALL
        SELECT shop_id, {_key_id("answer:dispute.resolved", "shop_id", "dispute_id")}, 'dispute.accepted'
        FROM disputes WHERE state = 'resolved'
        UNION ALL
        SELECT d.shop_id, {_derived_id("'hold_frozen:' || f.hold_id", "f.dispute_key")}, 'hold.frozen'
        FROM dispute_holds AS f JOIN disputes AS d ON d.dispute_key = f.dispute_key
        UNION ALL
        SELECT shop_id, {_key_id("answer:refund.requested", "shop_id", "refund_id")},
               CASE state WHEN 'rejected' THEN 'refund.rejected' ELSE 'refund.accepted' END
        FROM refunds WHERE origin = 'refund'
        UNION ALL
        SELECT shop_id, {_derived_id("'refund.settled:settled' || " + _attempt_suffix("r"), "refund_key")},
               'refund.settled'
        FROM refunds AS r WHERE state = 'settled'
        UNION ALL
        SELECT r.shop_id, {_derived_id("'hold_refunded:' || p.hold_id", "p.refund_key")}, 'hold.refunded'
        FROM refund_parts AS p JOIN refunds AS r ON r.refund_key = p.refund_key
    )
    SELECT f.type || ' ' || f.event_id AS example,
           (e.shop_id, e.type) IS DISTINCT FROM (f.shop_id, f.type) AS broken
    FROM facts AS f LEFT JOIN events AS e ON e.event_id = f.event_id
"""

_EVERY_EVENT_HAS_ITS_ANSWER = f"""
    SELECT i.source || ' ' || i.event_id AS example, e.event_id IS NULL
           AND i.received_at < clock_timestamp() - {_BOUND}
           -- Told that it waits; that it does not rest for ever is another check.
           AND NOT (i.type = 'withdrawal.requested' AND EXISTS (
               SELECT FROM events AS told
               WHERE told.event_id IN (
                   {_derived_id("'withdrawal_pending:over_limit'", "i.answer_id")},
                   {_derived_id("'withdrawal_pending:cooling_off'", "i.answer_id")})
           )) AS broken
    FROM inbox AS i LEFT JOIN events AS e ON e.event_id = i.answer_id
    WHERE i.answer_id IS NOT NULL
"""

_OUTBOX_ROWS_ARE_WHOLE = """
    SELECT 'outbox ' || o.outbox_id AS example, e.event_id IS NULL
           OR (e.shop_id, e.type) <> (o.shop_id, o.type) AS broken
    FROM outbox AS o
    CROSS JOIN LATERAL unnest(o.event_ids) AS said(event_id)
    LEFT JOIN events AS e ON e.event_id = said.event_id
"""

# A row that the broker refuses, since a shop's queue is full, say, is tried again within a minute. What
# nobody has tried for so much longer, nobody is going to.
_OUTBOX_IS_PUBLISHED = f"""
    SELECT 'outbox ' || outbox_id AS example,
           published_at IS NULL AND next_attempt_at < clock_timestamp() - {_BOUND} AS broken
    FROM outbox
"""

# --- nothing rests --------------------------------------------------------------------------------

_RECEIVED_PAYMENTS_ARE_HELD = f"""
    SELECT p.shop_id || '/' || p.order_id AS example,
           p.received_at < clock_timestamp() - {_BOUND}
           AND NOT EXISTS (SELECT FROM holds AS h WHERE h.payment_id = p.payment_id) AS broken
    FROM payments AS p WHERE p.state = 'received'
"""

# The clock starts again where a hold became free to go only after its time.
_DUE_HOLDS_ARE_RELEASED = f"""
    SELECT h.hold_id::text AS example,
           greatest(h.release_at, h.rearmed_at, p.funded_at, freed.resolved_at)
               < clock_timestamp() - {_BOUND} AS broken
    FROM holds AS h
    JOIN payments AS p ON p.payment_id = h.payment_id
    JOIN shops AS s ON s.shop_id = h.shop_id
    LEFT JOIN LATERAL (
        SELECT max(d.resolved_at) AS resolved_at
        FROM dispute_holds AS f JOIN disputes AS d ON d.dispute_key = f.dispute_key
        WHERE f.hold_id = h.hold_id
    ) AS freed ON true
    WHERE h.state = 'held'
      AND (s.funding = 'announced' OR p.funded_at IS NOT NULL) AND p.charged_back_at IS NULL
"""

_PASSWORDS_ARE_DECIDED = f"""
    SELECT attempt_id::text AS example,
           coalesce(counted_at, requested_at) < clock_timestamp() - {_BOUND} AS broken
    FROM password_attempts WHERE state IN ('waiting', 'counted')
    UNION ALL
    SELECT w.shop_id || '/' || w.withdrawal_id,
           NOT EXISTS (SELECT FROM password_attempts AS a
                       WHERE a.payout_id = w.payout_id AND a.state IN ('waiting', 'counted'))
    FROM withdrawals AS w WHERE w.state = 'checking'
"""

# Those whose cooling-off is over go on by themselves. Those over a limit wait for people, who see them in
# `holdfast withdrawal list` and `holdfast doctor`; so do those that somebody has proposed to reject.
_COOLED_OFF_WITHDRAWALS_GO_ON = f"""
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           w.pending_until < clock_timestamp() - {_BOUND}
           AND NOT EXISTS (SELECT FROM withdrawal_reviews AS r
                           WHERE r.payout_id = w.payout_id AND r.decided_at IS NULL) AS broken
    FROM withdrawals AS w WHERE w.state = 'pending' AND w.pending_reason = 'cooling_off'
"""

# What is ready is not handed over while an operator has paused it; when payouts resume, the clock starts.
_IS_PAUSED: Final = "EXISTS (SELECT FROM payout_pauses AS p WHERE p.shop_id IN ('*', {shop}))"

_TRANSFERS_ARE_ASKED_FOR = f"""
    SELECT t.end_to_end_id AS example,
           t.touched_at < clock_timestamp()
               - CASE WHEN t.state IN ('submitted', 'unknown') THEN {_BANK_BOUND} ELSE {_BOUND} END
           AND NOT (t.state = 'ready' AND {_IS_PAUSED.format(shop="o.shop_id")}) AS broken
    FROM transfers AS t LEFT JOIN payouts AS o ON o.payout_id = t.payout_id
    WHERE t.state IN ('ready', 'sending', 'unknown', 'submitted')
    UNION ALL
    SELECT r.end_to_end_id, greatest(r.touched_at, CASE r.state WHEN 'waiting' THEN p.funded_at END)
               < clock_timestamp()
               - CASE WHEN r.state IN ('submitted', 'unknown') THEN {_BANK_BOUND} ELSE {_BOUND} END
           AND NOT (r.state IN ('waiting', 'ready') AND {_IS_PAUSED.format(shop="r.shop_id")})
    FROM refunds AS r JOIN payments AS p ON p.payment_id = r.payment_id
    WHERE r.state IN ('ready', 'sending', 'unknown', 'submitted')
       OR (r.state = 'waiting' AND p.funded_at IS NOT NULL)
"""

# A released hold has one standing claim while the bank has its money, and none once the credit came again.
_CHARGE_BACKS_ARE_CLAIMED = f"""
    SELECT 'hold ' || h.hold_id AS example,
           CASE WHEN p.funded_at IS NULL
               THEN p.charged_back_at < clock_timestamp() - {_BOUND} AND standing.claims <> 1
               ELSE p.funded_at < clock_timestamp() - {_BOUND} AND standing.claims <> 0
           END AS broken
    FROM payments AS p
    JOIN holds AS h ON h.payment_id = p.payment_id AND h.state = 'released'
    CROSS JOIN LATERAL (
        SELECT count(*) AS claims FROM claims AS c
        WHERE c.hold_id = h.hold_id AND c.cause = 'chargeback' AND c.returned_at IS NULL
    ) AS standing
    WHERE EXISTS (SELECT FROM bank_debits AS d WHERE d.payment_id = p.payment_id)
"""

CHECKS: Final[tuple[Check, ...]] = (
    Check(
        1,
        "postings_are_sound",
        "every posting has an amount above 0 and the two accounts of its kind",
        _POSTINGS_ARE_SOUND,
    ),
    Check(1, "ledger_sums_to_zero", "debits equal credits in each currency", _LEDGER_SUMS_TO_ZERO),
    Check(
        2,
        "posted_rows_are_guarded",
        "the database refuses to change, delete or truncate postings",
        _POSTED_ROWS_ARE_GUARDED,
    ),
    Check(
        2,
        "chain_links_follow_each_other",
        "every link of the hash chain fixes those before it, and is as it was signed",
        LINKS_FOLLOW_EACH_OTHER,
    ),
    Check(
        2,
        "chained_postings_are_unchanged",
        "no posting in the hash chain was changed or taken out",
        CHAINED_POSTINGS_ARE_UNCHANGED,
    ),
    Check(
        2,
        "past_postings_are_chained",
        "no posting was put into the past behind the hash chain's back",
        PAST_POSTINGS_ARE_CHAINED,
    ),
    Check(
        3,
        "sealed_subtotals_equal_postings",
        "every sealed subtotal equals the sum of its postings",
        _SUBTOTALS_EQUAL_POSTINGS,
    ),
    Check(
        3,
        "available_balances_equal_postings",
        "every withdrawable balance equals the sum of its postings",
        _stored_balance_equals_postings("available_balances", "available_minor", AccountKind.AVAILABLE),
    ),
    Check(
        3,
        "receivables_equal_postings",
        "what every seller owes equals the sum of its postings",
        _stored_balance_equals_postings("receivables", "owed_minor", AccountKind.RECEIVABLE),
    ),
    Check(3, "no_balance_is_negative", "no account is overdrawn", _NO_BALANCE_IS_NEGATIVE),
    Check(
        4,
        "orders_add_up",
        "what was paid for an order is received, and held in full or not yet",
        _ORDERS_ADD_UP,
    ),
    Check(
        4,
        "holds_add_up",
        "each hold = still held + released + fee + refunded, in the ledger too",
        _HOLDS_ADD_UP,
    ),
    Check(
        4,
        "held_equals_open_holds",
        "what the ledger holds for a seller is the sum of the open holds",
        _HELD_EQUALS_OPEN_HOLDS,
    ),
    Check(
        4,
        "refunds_add_up",
        "what was refunded left its holds, once, and the bank as it said",
        _REFUNDS_ADD_UP,
    ),
    Check(4, "claims_add_up", "each claim was taken from its seller or is owed", _CLAIMS_ADD_UP),
    Check(
        4,
        "credits_add_up",
        "each standing credit confirms its one payment or lies in suspense",
        _CREDITS_ADD_UP,
    ),
    Check(
        4,
        "suspense_is_explained",
        "suspense is what credits without payment and early debits make it",
        _SUSPENSE_IS_EXPLAINED,
    ),
    Check(
        5,
        "funded_payments_have_their_credit",
        "no payment counts as confirmed without a credit of the bank",
        _FUNDED_PAYMENTS_HAVE_THEIR_CREDIT,
    ),
    Check(
        5,
        "protection_period_is_exact",
        "every hold ends 3 to 7 whole days of the stored length after it began",
        _PROTECTION_PERIOD_IS_EXACT,
    ),
    Check(5, "no_hold_released_early", "no money left its hold before its time", _NO_HOLD_RELEASED_EARLY),
    Check(
        5,
        "no_hold_released_while_frozen",
        "no money left its hold while a dispute had it",
        _NO_HOLD_RELEASED_WHILE_FROZEN,
    ),
    Check(
        5,
        "frozen_holds_have_their_dispute",
        "a hold is frozen exactly while a dispute of it is open",
        _FROZEN_HOLDS_HAVE_THEIR_DISPUTE,
    ),
    Check(
        5,
        "no_release_without_credit",
        "under confirmed funding, nothing was released before the bank's credit",
        _NO_RELEASE_WITHOUT_CREDIT,
    ),
    Check(
        5,
        "no_release_after_charge_back",
        "nothing was released while the bank had taken its credit back",
        _NO_RELEASE_AFTER_CHARGE_BACK,
    ),
    Check(
        6,
        "one_effect_per_business_key",
        "no order, hold, withdrawal, dispute, refund or statement line twice",
        _ONE_EFFECT_PER_BUSINESS_KEY,
    ),
    Check(
        6,
        "one_posting_per_effect",
        "every posting's id follows from its cause, so it can't be booked twice",
        _ONE_POSTING_PER_EFFECT,
    ),
    Check(
        6,
        "effects_come_from_events",
        "every effect has the authentic event with exactly its content",
        _EFFECTS_COME_FROM_EVENTS,
    ),
    Check(
        7,
        "withdrawals_had_one_password",
        "money was reserved only after one accepted password for just that",
        _WITHDRAWALS_HAD_ONE_PASSWORD,
    ),
    Check(
        7,
        "cancelled_money_is_back",
        "what was given up in review is withdrawable again, once",
        _CANCELLED_MONEY_IS_BACK,
    ),
    Check(
        7,
        "reviews_had_two_names",
        "nothing over a limit left, and nothing was given up, on one name's word",
        _REVIEWS_HAD_TWO_NAMES,
    ),
    Check(
        7,
        "nothing_left_before_its_cooling_off",
        "no withdrawal went on before its time",
        _NOTHING_LEFT_BEFORE_ITS_COOLING_OFF,
    ),
    Check(
        7,
        "passwords_changed_rightly",
        "no password was replaced without the old one or the word of two names",
        _PASSWORDS_CHANGED_RIGHTLY,
    ),
    Check(
        7,
        "adoptions_are_on_record",
        "what was taken into the books after a restore, an operator took, and the bank was asked about it",
        _ADOPTIONS_ARE_ON_RECORD,
    ),
    Check(
        7,
        "debts_are_repaid_by_what_came_back",
        "what was kept of a payout for a debt had come back, and was no more than that",
        _DEBTS_ARE_REPAID_BY_WHAT_CAME_BACK,
    ),
    Check(
        7,
        "shop_payouts_had_two_names",
        "no money of a shop's own left on one name's word, or more than agreed",
        _SHOP_PAYOUTS_HAD_TWO_NAMES,
    ),
    Check(
        7,
        "one_instruction_per_withdrawal",
        "every payout that was accepted has one bank instruction, no other any",
        _ONE_INSTRUCTION_PER_WITHDRAWAL,
    ),
    Check(
        7,
        "payouts_follow_the_bank",
        "payouts are booked as the bank settled, rejected or returned them",
        _PAYOUTS_FOLLOW_THE_BANK,
    ),
    Check(8, "every_fact_has_its_event", "what happened was told to the shop", _EVERY_FACT_HAS_ITS_EVENT),
    Check(8, "outbox_rows_are_whole", "every event that must be published exists", _OUTBOX_ROWS_ARE_WHOLE),
    Check(
        8,
        "outbox_is_published",
        "no message waits in the outbox without being tried again",
        _OUTBOX_IS_PUBLISHED,
    ),
    Check(9, "received_payments_are_held", "no payment rests without its holds", _RECEIVED_PAYMENTS_ARE_HELD),
    Check(9, "due_holds_are_released", "no hold rests that may be released", _DUE_HOLDS_ARE_RELEASED),
    Check(9, "passwords_are_decided", "no password check rests undecided", _PASSWORDS_ARE_DECIDED),
    Check(
        9,
        "cooled_off_withdrawals_go_on",
        "no withdrawal rests whose cooling-off is over",
        _COOLED_OFF_WITHDRAWALS_GO_ON,
    ),
    Check(
        9,
        "transfers_are_asked_for",
        "no payout or refund rests without the bank being asked",
        _TRANSFERS_ARE_ASKED_FOR,
    ),
    Check(
        9,
        "charge_backs_are_claimed",
        "what was released of a charged back payment is claimed",
        _CHARGE_BACKS_ARE_CLAIMED,
    ),
    Check(
        10,
        "every_event_has_its_answer",
        "every authentic event was applied or rejected, and answered",
        _EVERY_EVENT_HAS_ITS_ANSWER,
    ),
)

"""
What operators do about a refund that the bank refused, or that came back: try again, or pay it otherwise.

Either begins a further attempt, with an instruction id, postings and events of its own. The bank's word about
the attempt before is final by then, so nothing that is still to come can meet the new one.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Row, text

from infra.postgres.step import Step
from infra.rabbitmq.topology import PAYOUT_BANK
from ledger.ids import attempt_suffix, derive_id, refund_attempt_id, refund_part_id
from ledger.postings import Posting, PostingKind
from schemas.commands import SubmitRefund
from schemas.outgoing import RefundSettled


class CannotRemedy(Exception):
    """There is no such failed refund; the sentence says what there is, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Remedied:
    """The refund as its new attempt makes it; minor units."""

    refund_key: UUID
    order_id: str
    amount_minor: int
    currency: str
    attempt: int
    end_to_end_id: str
    state: str


def retry_refund(step: Step, *, shop_id: str, origin: str, refund_id: str) -> Remedied:
    """
    Hand a failed refund to the bank once more, as the return of the same credit.

    Where the bank has taken that credit back meanwhile, it waits for it, as any refund does.

    Raises:
        CannotRemedy: it is unknown, or has not failed.
    """
    refund = _lock_failed(step, shop_id, origin, refund_id)
    attempt = _begin_attempt(step, refund, "waiting" if refund.funded_at is None else "ready")
    if attempt.state == "ready":
        step.command(PAYOUT_BANK, SubmitRefund(refund_keys=(attempt.refund_key,)))
    return attempt


def settle_refund_by_hand(step: Step, *, shop_id: str, origin: str, refund_id: str) -> Remedied:
    """
    Book that a failed refund left the bank in another way, and tell the shop that it is settled.

    The new attempt's id is never sent, so no word of the bank can settle it a second time.

    Raises:
        CannotRemedy: it is unknown, or has not failed.
    """
    refund = _lock_failed(step, shop_id, origin, refund_id)
    attempt = _begin_attempt(step, refund, "settled")
    parts = step.connection.execute(
        text("SELECT hold_id, seller_id, amount_minor FROM refund_parts WHERE refund_key = :key"),
        {"key": attempt.refund_key},
    )
    step.post(
        Posting(
            PostingKind.REFUND_SETTLED,
            refund_part_id(attempt.refund_key, part.hold_id, attempt.attempt),
            shop_id,
            part.seller_id,
            attempt.currency,
            part.amount_minor,
        )
        for part in parts
    )
    step.emit(
        derive_id(f"refund.settled:settled{attempt_suffix(attempt.attempt)}", attempt.refund_key),
        shop_id,
        RefundSettled(refund_id=refund_id, order_id=attempt.order_id, event_id=refund.event_id),
    )
    return attempt


def _lock_failed(step: Step, shop_id: str, origin: str, refund_id: str) -> Row[tuple[object, ...]]:
    named = {"shop": shop_id, "origin": origin, "refund": refund_id}
    # The payment before the refund, as whoever takes a credit back locks them: its state decides below.
    step.connection.execute(
        text("""
            SELECT 1 FROM payments WHERE payment_id = (
                SELECT payment_id FROM refunds
                WHERE shop_id = :shop AND origin = :origin AND refund_id = :refund
            ) FOR UPDATE
        """),
        named,
    )
    refund = step.connection.execute(
        text("""
            SELECT r.refund_key, r.order_id, r.event_id, r.state, r.amount_minor, r.currency, r.attempt,
                   p.funded_at
            FROM refunds AS r JOIN payments AS p ON p.payment_id = r.payment_id
            WHERE r.shop_id = :shop AND r.origin = :origin AND r.refund_id = :refund
            FOR UPDATE OF r
        """),
        named,
    ).one_or_none()
    if refund is None:
        raise CannotRemedy(f"shop {shop_id} has no refund of {origin} {refund_id}")
    if refund.state != "failed":
        raise CannotRemedy(f"the refund is {refund.state}; only one that has failed can be begun anew")
    return refund


def _begin_attempt(step: Step, refund: Row[tuple[object, ...]], state: str) -> Remedied:
    attempt = refund.attempt + 1
    end_to_end_id = refund_attempt_id(refund.refund_key, attempt)
    step.connection.execute(
        text("""
            UPDATE refunds
            SET state = :state, attempt = :attempt, end_to_end_id = :end_to_end_id, reason = NULL,
                touched_at = :now, ended_at = CASE WHEN :state = 'settled' THEN :now END
            WHERE refund_key = :key
        """),
        {
            "state": state,
            "attempt": attempt,
            "end_to_end_id": end_to_end_id,
            "now": step.now,
            "key": refund.refund_key,
        },
    )
    return Remedied(
        refund.refund_key,
        refund.order_id,
        refund.amount_minor,
        refund.currency,
        attempt,
        end_to_end_id,
        state,
    )

"""Take a refund back into the books that the bank has made and a restored database has forgotten."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from infra.postgres.step import Step
from infra.rabbitmq.ingress import InboundEvent
from schemas.disputes import RefundPart, RefundRequested
from schemas.envelope import Envelope
from workers.escrow.recourse_handlers import NotHeldYet, receive_round, refund_key_of


class CannotAdopt(Exception):
    """It is not to be adopted, or not like this; the sentence says why. Roll back what was begun."""


@dataclass(frozen=True, slots=True)
class LostRefund:
    """A refund as an operator remembers it and as the bank has it; minor units, by seller."""

    shop_id: str
    refund_id: str
    order_id: str
    parts: dict[str, int]
    amount_minor: int
    currency: str

    @property
    def refund_key(self) -> UUID:
        return refund_key_of(self.shop_id, "refund", self.refund_id)


def adopt_refund(step: Step, lost: LostRefund) -> bool:
    """
    Book a refund that the bank has, as if its shop had asked for it again; False if it is known.

    It is taken from what is still held. The bank is asked what became of it; nothing is sent.

    Raises:
        CannotAdopt: the order is not here, or no longer holds the money.
    """
    if sum(lost.parts.values()) != lost.amount_minor:
        raise CannotAdopt(f"the parts add up to {sum(lost.parts.values())}; the bank has {lost.amount_minor}")
    known = _lock_state(step, lost)
    if known is not None and known != "rejected":
        return False
    if known == "rejected":
        raise CannotAdopt(f"refund {lost.refund_id} was refused here, and a refusal is final")
    try:
        receive_round(step, [_as_asked(lost)])
    except NotHeldYet:
        raise CannotAdopt(f"order {lost.order_id} is not held yet: let the workers hold it first") from None
    refund = step.connection.execute(
        text("SELECT state, reason, currency FROM refunds WHERE refund_key = :key"), {"key": lost.refund_key}
    ).one()
    if refund.state == "rejected":
        raise CannotAdopt(
            f"order {lost.order_id} does not hold that money any more, or is not here: {refund.reason}"
        )
    if refund.currency != lost.currency:
        raise CannotAdopt(f"order {lost.order_id} is in {refund.currency}; the bank has {lost.currency}")
    step.connection.execute(
        # Handed over already, as far as anybody can tell here: so it is asked for before anything is sent.
        text("UPDATE refunds SET state = 'unknown' WHERE refund_key = :key AND state = 'ready'"),
        {"key": lost.refund_key},
    )
    return True


def _lock_state(step: Step, lost: LostRefund) -> str | None:
    state: str | None = step.connection.execute(
        text("SELECT state FROM refunds WHERE refund_key = :key FOR UPDATE"), {"key": lost.refund_key}
    ).scalar()
    return state


def _as_asked(lost: LostRefund) -> InboundEvent:
    """Return the event by which the shop would ask; no inbox has it, so the shop may still say it itself."""
    data = RefundRequested(
        refund_id=lost.refund_id,
        order_id=lost.order_id,
        refunds=tuple(RefundPart(seller_id=seller, amount=amount) for seller, amount in lost.parts.items()),
    )
    envelope = Envelope(lost.refund_key.hex, f"/shops/{lost.shop_id}", data.TYPE, None, None)
    return InboundEvent("shop", lost.shop_id, True, envelope, data, data.content_hash())

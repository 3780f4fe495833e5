"""An operator's word about a credit in suspense: it is for this order, whatever its reference says."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from infra.postgres.step import Step
from workers.payment.decisions import Match, OpenCredit, UnfundedPayment
from workers.payment.handlers import confirm_matches


class CannotAssign(Exception):
    """The credit can't confirm that order; the sentence says why, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What was confirmed; minor units. `again` where it was so already."""

    credit_id: UUID
    amount_minor: int
    currency: str
    again: bool = False


def assign_credit(step: Step, *, bank_id: str, statement_line: str, shop_id: str, order_id: str) -> Assigned:
    """
    Confirm an order by a credit that lies in suspense, as if the credit carried the order's reference.

    The amount and the currency have to be the order's: part of the money confirms nothing. Locks the
    credit before the payment, as matching does.

    Raises:
        CannotAssign: there is no such credit or order, either is settled otherwise, or the amounts differ.
    """
    credit = step.connection.execute(
        text("""
            SELECT credit_id, bank_reference, amount_minor, currency, payment_id, taken_back_at
            FROM bank_credits WHERE bank_id = :bank AND statement_line = :line FOR UPDATE
        """),
        {"bank": bank_id, "line": statement_line},
    ).one_or_none()
    payment = step.connection.execute(
        text("""
            SELECT payment_id, state, bank_reference, amount_minor, currency, funded_at, charged_back_at
            FROM payments WHERE shop_id = :shop AND order_id = :order FOR UPDATE
        """),
        {"shop": shop_id, "order": order_id},
    ).one_or_none()
    if credit is None:
        raise CannotAssign(f"bank {bank_id} has reported no credit {statement_line}")
    if payment is None or payment.state != "received":
        raise CannotAssign(f"shop {shop_id} has no accepted order {order_id}")
    if credit.payment_id == payment.payment_id:
        return Assigned(credit.credit_id, credit.amount_minor, credit.currency, again=True)
    if credit.payment_id is not None:
        raise CannotAssign(f"credit {statement_line} confirms another order already")
    if credit.taken_back_at is not None:
        raise CannotAssign(f"the bank has taken credit {statement_line} back")
    if payment.funded_at is not None:
        raise CannotAssign(f"order {order_id} is confirmed by another credit already")
    if (credit.amount_minor, credit.currency) != (payment.amount_minor, payment.currency):
        raise CannotAssign(
            f"the credit is {credit.amount_minor} {credit.currency}, the order {payment.amount_minor}"
            f" {payment.currency} (minor units): have the bank send it back, and the buyer pay anew"
        )
    step.connection.execute(
        text("UPDATE bank_credits SET assigned_payment_id = :payment WHERE credit_id = :credit"),
        {"payment": payment.payment_id, "credit": credit.credit_id},
    )
    match = Match(
        OpenCredit(credit.credit_id, credit.bank_reference, credit.amount_minor, credit.currency),
        UnfundedPayment(
            payment.payment_id,
            shop_id,
            order_id,
            payment.bank_reference,
            payment.amount_minor,
            payment.currency,
            payment.charged_back_at is not None,
        ),
    )
    confirm_matches(step, [match])
    return Assigned(credit.credit_id, credit.amount_minor, credit.currency)

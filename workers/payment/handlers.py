"""The payment worker's steps: book what shops announce, confirm it by what banks report."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import structlog
from msgspec.structs import replace

from infra.postgres.step import Step, Steps, milliseconds_until
from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.topology import ESCROW_HOLD, ESCROW_RELEASE, PAYMENT_MATCH, PAYOUT_BANK
from ledger.accounts import HOUSE, NO_SELLER
from ledger.ids import derive_id, new_id, new_ids, order_answer_id, order_answer_ids
from ledger.postings import Posting, PostingKind
from schemas.bank_credited import BankCredited
from schemas.bank_debited import BankDebited
from schemas.commands import HoldFunds, MatchCredits, ReleaseHold, SettleClaims, SubmitRefund
from schemas.one_pass import UsualOrder
from schemas.order_paid import OrderPaid
from schemas.outgoing import OrderFunded, OrderRejected
from schemas.reasons import Reason
from workers.intake import conflict_id, refuse, refuse_conflicts, take_in
from workers.payment import store
from workers.payment.decisions import (
    Accepted,
    Match,
    OpenDebit,
    Refused,
    decide_matches,
    decide_payment,
    decide_take_backs,
)
from workers.rounds import in_rounds

log = structlog.get_logger(__name__)

_RECEIVED = PostingKind.PAYMENT_RECEIVED
# A payment and its credit may commit at the same moment without seeing each other; this much later
# both are visible, and matching is tried once more. The sweep does the same for anything older.
_MATCH_AGAIN_MS = 1000
# A credit whose commit races with the alarm wakes the hold itself: holds due within this time of it.
_WAKE_WINDOW = timedelta(seconds=60)
# An order that has been read, either way.
_ORDERS = (UsualOrder, OrderPaid)


class LostRace(Exception):
    """Another transaction took the same key between two statements; the batch is tried again."""


def receive_orders(steps: Steps, events: Sequence[InboundEvent]) -> None:
    """Book `order.paid` events: accepted ones go on to be held, repeats and refusals are answered."""

    def book(step: Step) -> None:
        for round_ in in_rounds(events, _order_keys):
            _receive_round(step, round_)

    steps.carry_out("receive_orders", book)


def receive_bank_events(steps: Steps, events: Sequence[InboundEvent]) -> None:
    """
    Book `bank.credited` and `bank.debited` events.

    A credit confirms its payment or lies in suspense; a debit takes a credit back, with what it confirmed.
    """
    with steps.begin("receive_bank_events") as step:
        for round_ in in_rounds(events, _line_keys):
            fresh = take_in(step, round_, answer_ids=_no_answers, rejection=_no_reply)
            _receive_credits(step, [event for event in fresh if isinstance(event.data, BankCredited)])
            _receive_debits(step, [event for event in fresh if isinstance(event.data, BankDebited)])


def match_credits(steps: Steps, commands: Sequence[MatchCredits]) -> None:
    """Try again to find the payments of credits in suspense, and the debits that came before their credit."""
    with steps.begin("match_credits") as step:
        credit_ids = [credit_id for command in commands for credit_id in command.credit_ids]
        references = store.find_references(step.connection, credit_ids)
        _take_back(step, references, arrived_now=frozenset())
        _match(step, references, arrived_now=frozenset())


def _order_keys(event: InboundEvent) -> tuple[object, ...]:
    if isinstance(event.data, _ORDERS):
        return event.key, (event.sender_id, event.data.order_id)
    return (event.key,)


def _order_rejection(event: InboundEvent, reason: Reason, detail: str) -> OrderRejected:
    order_id = event.data.order_id if isinstance(event.data, _ORDERS) else event.subject_id
    return OrderRejected(order_id=order_id, event_id=event.envelope.id, reason=reason, detail=detail)


def _answers_of_orders(events: Sequence[InboundEvent]) -> list[UUID]:
    return order_answer_ids([(event.sender_id, _order(event).order_id) for event in events])


def _order(event: InboundEvent) -> OrderPaid | UsualOrder:
    if not isinstance(event.data, _ORDERS):
        raise TypeError(f"{event.envelope.type} is no order.paid")
    return event.data


def _receive_round(step: Step, events: Sequence[InboundEvent]) -> None:
    fresh = take_in(step, events, answer_ids=_answers_of_orders, rejection=_order_rejection)
    if not fresh:
        return
    shops = store.find_shop_terms(step.connection, {event.sender_id for event in fresh})
    booked = [
        _judge_order(payment_id, event, shops[event.sender_id], step.now)
        for payment_id, event in zip(new_ids(len(fresh)), fresh, strict=True)
    ]
    refused_rows: list[store.NewPayment] = []
    known = store.insert_payments(step.connection, booked, all_new=step.all_new)
    if known:
        left_out = [(event, row) for event, row in zip(fresh, booked, strict=True) if row.payment_id in known]
        booked = [row for row in booked if row.payment_id not in known]
        refused_rows = _settle_left_out(step, left_out)
    for row in [*booked, *refused_rows]:
        if row.reason is not None:
            _reject_order(step, row)
    _follow_up(step, [row for row in booked if row.reason is None])


def _judge_order(
    payment_id: UUID, event: InboundEvent, shop: store.ShopTerms, now: datetime
) -> store.NewPayment:
    order = _order(event)
    decision = decide_payment(
        shop_active=shop.active,
        shop_protection_days=shop.protection_days,
        asked_protection_days=order.protection_days,
    )
    reason: Reason | None = None
    match decision:
        case Accepted(protection_days):
            pass
        case Refused(reason=reason):
            protection_days = order.protection_days or shop.protection_days
        case _:
            assert_never(decision)
    # In the order of its fields: by position is quicker, for every order.
    return store.NewPayment(
        payment_id,
        event.sender_id,
        order.order_id,
        event.envelope.id,
        event.content_hash,
        "received" if reason is None else "rejected",
        reason,
        order.buyer_id,
        order.amount,
        order.currency,
        order.bank_reference,
        order.splits_json(),
        protection_days,
        order.paid_at,
        now,
    )


def _settle_left_out(
    step: Step, left_out: Sequence[tuple[InboundEvent, store.NewPayment]]
) -> list[store.NewPayment]:
    """Answer orders that met a unique key; return those refused for their bank reference, now booked so."""
    known = store.find_contents(step.connection, ((row.shop_id, row.order_id) for _, row in left_out))
    conflicts: list[InboundEvent] = []
    reference_taken: list[store.NewPayment] = []
    for event, row in left_out:
        content = known.get((row.shop_id, row.order_id))
        if content is None:
            reference_taken.append(_rejected(row, Reason.INVALID_DATA))
        elif content == row.content_hash:
            step.emit_again([order_answer_id(row.shop_id, row.order_id)])
        else:
            conflicts.append(event)
    refuse_conflicts(step, conflicts, _order_rejection)
    if store.insert_payments(step.connection, reference_taken):
        raise LostRace("an order was booked by another worker at this moment")
    return reference_taken


def _rejected(row: store.NewPayment, reason: Reason) -> store.NewPayment:
    return replace(row, state="rejected", reason=reason)


def _reject_order(step: Step, row: store.NewPayment) -> None:
    details = {
        Reason.SHOP_SUSPENDED: "the shop is suspended",
        Reason.INVALID_DATA: "bank_reference: another order of the shop has it",
    }
    reason = Reason(row.reason or "")
    step.emit(
        order_answer_id(row.shop_id, row.order_id),
        row.shop_id,
        OrderRejected(order_id=row.order_id, event_id=row.event_id, reason=reason, detail=details[reason]),
    )


def _follow_up(step: Step, booked: Sequence[store.NewPayment]) -> None:
    if not booked:
        return
    step.post(
        [
            Posting(_RECEIVED, row.payment_id, row.shop_id, NO_SELLER, row.currency, row.amount_minor)
            for row in booked
        ]
    )
    step.command_for_each(
        ESCROW_HOLD, [row.payment_id for row in booked], lambda ids: HoldFunds(payment_ids=ids)
    )
    # The bank may have been faster than the shop.
    _match(step, {row.bank_reference for row in booked}, arrived_now=frozenset())


def _line_keys(event: InboundEvent) -> tuple[object, ...]:
    line = _line(event)
    return event.key, (event.envelope.type, event.sender_id, line.statement_line)


def _line(event: InboundEvent) -> BankCredited | BankDebited:
    if not isinstance(event.data, BankCredited | BankDebited):
        raise TypeError(f"{event.envelope.type} is no line of a statement")
    return event.data


def _no_answers(events: Sequence[InboundEvent]) -> list[None]:
    return [None] * len(events)


def _no_reply(_event: InboundEvent, _reason: Reason, _detail: str) -> None:
    return None


def _receive_credits(step: Step, fresh: Sequence[InboundEvent]) -> None:
    if not fresh:
        return
    rows = {row.credit_id: (event, row) for event in fresh for row in [_credit_row(event, step.now)]}
    written = store.insert_credits(step.connection, [row for _, row in rows.values()])
    left_out = [pair for credit_id, pair in rows.items() if credit_id not in written]
    if left_out:
        known = store.find_credit_contents(
            step.connection, ((row.bank_id, row.statement_line) for _, row in left_out)
        )
        _refuse_other_lines(step, [event for event, _ in left_out], known)
    arrived = [row for credit_id, (_, row) in rows.items() if credit_id in written]
    if not arrived:
        return
    references = {row.bank_reference for row in arrived}
    _take_back(step, references, arrived_now=frozenset())
    matched = _match(step, references, arrived_now=frozenset(written))
    suspended = [row for row in arrived if row.credit_id not in matched]
    step.post(
        Posting(PostingKind.CREDIT_SUSPENDED, row.credit_id, HOUSE, NO_SELLER, row.currency, row.amount_minor)
        for row in suspended
    )
    step.command_for_each(
        PAYMENT_MATCH,
        [row.credit_id for row in suspended],
        lambda ids: MatchCredits(credit_ids=ids),
        delay_ms=_MATCH_AGAIN_MS,
    )


def _refuse_other_lines(
    step: Step, events: Sequence[InboundEvent], known: dict[tuple[str, str], bytes]
) -> None:
    for event in events:
        if known[event.sender_id, _line(event).statement_line] != event.content_hash:
            refuse(
                step,
                event,
                conflict_id(event),
                Reason.CONFLICTING_DUPLICATE,
                "the statement line came before with other content",
                rejection=_no_reply,
            )


def _receive_debits(step: Step, fresh: Sequence[InboundEvent]) -> None:
    if not fresh:
        return
    rows = {row.debit_id: (event, row) for event in fresh for row in [_debit_row(event, step.now)]}
    written = store.insert_debits(step.connection, [row for _, row in rows.values()])
    left_out = [event for debit_id, (event, _) in rows.items() if debit_id not in written]
    if left_out:
        known = store.find_debit_contents(
            step.connection, ((event.sender_id, _line(event).statement_line) for event in left_out)
        )
        _refuse_other_lines(step, left_out, known)
    arrived = [row for debit_id, (_, row) in rows.items() if debit_id in written]
    taken = _take_back(step, {row.bank_reference for row in arrived}, arrived_now=frozenset(written))
    for row in arrived:
        if row.debit_id not in taken:
            # Its credit may be on its way: no order among messages is promised. Until then suspense owes it.
            log.error("bank_took_back_unknown_credit", debit_id=str(row.debit_id))
            step.post([_posting(PostingKind.CREDIT_TAKEN_BACK, row, HOUSE)])


def _take_back(step: Step, references: set[str], *, arrived_now: frozenset[UUID]) -> set[UUID]:
    """
    Void the credits that debits of these references take back; return those debits.

    `arrived_now` are debits of this same transaction. An older one came before its credit and lies as a
    debt in suspense, which the credit makes good. Locks debits, then credits, then payments,
    the latter two as matching does, so that they cannot deadlock.
    """
    debits = store.lock_open_debits(step.connection, references)
    if not debits:
        return set()
    pairs = decide_take_backs(debits, store.lock_standing_credits(step.connection, references))
    if not pairs:
        return set()
    payment_ids = [pair.payment_id for pair in pairs if pair.payment_id is not None]
    store.lock_payments(step.connection, payment_ids)
    store.mark_taken_back(step.connection, pairs, now=step.now)
    shops = store.find_shops_of(step.connection, payment_ids)
    for pair in pairs:
        is_new = pair.debit.debit_id in arrived_now
        if pair.payment_id is not None:
            step.post([_posting(PostingKind.PAYMENT_UNFUNDED, pair.debit, shops[pair.payment_id])])
            if not is_new:
                step.post([_posting(PostingKind.DEBIT_EXPLAINED, pair.debit, HOUSE)])
        elif is_new:
            step.post([_posting(PostingKind.CREDIT_TAKEN_BACK, pair.debit, HOUSE)])
    store.hold_back_refunds(step.connection, payment_ids, now=step.now)
    step.command_for_each(ESCROW_RELEASE, payment_ids, lambda ids: SettleClaims(payment_ids=ids))
    return {pair.debit.debit_id for pair in pairs}


def _posting(kind: PostingKind, debit: store.NewDebit | OpenDebit, owner: str) -> Posting:
    return Posting(kind, debit.debit_id, owner, NO_SELLER, debit.currency, debit.amount_minor)


def _debit_row(event: InboundEvent, now: datetime) -> store.NewDebit:
    debit = _line(event)
    return store.NewDebit(
        debit_id=new_id(),
        bank_id=event.sender_id,
        statement_line=debit.statement_line,
        content_hash=event.content_hash,
        bank_reference=debit.bank_reference,
        amount_minor=debit.amount,
        currency=debit.currency,
        reason=debit.reason if isinstance(debit, BankDebited) else "",
        booked_at=debit.booked_at,
        received_at=now,
    )


def _credit_row(event: InboundEvent, now: datetime) -> store.NewCredit:
    credit = _line(event)
    return store.NewCredit(
        credit_id=new_id(),
        bank_id=event.sender_id,
        statement_line=credit.statement_line,
        content_hash=event.content_hash,
        bank_reference=credit.bank_reference,
        amount_minor=credit.amount,
        currency=credit.currency,
        booked_at=credit.booked_at,
        received_at=now,
    )


def _match(step: Step, references: set[str], *, arrived_now: frozenset[UUID]) -> set[UUID]:
    """
    Confirm payments by credits of these references; return the credits that found their payment.

    Credits that did not arrive in this same transaction lie in suspense and are claimed from there.
    Locks credits before payments, each in id order, so that two matchers cannot deadlock.
    """
    open_credits = store.lock_open_credits(step.connection, references)
    if not open_credits:
        return set()
    with_credit = {credit.bank_reference for credit in open_credits}
    payments = store.lock_unfunded_payments(step.connection, with_credit)
    return confirm_matches(step, decide_matches(open_credits, payments), arrived_now=arrived_now)


def confirm_matches(
    step: Step, matches: Sequence[Match], *, arrived_now: frozenset[UUID] = frozenset()
) -> set[UUID]:
    """
    Confirm payments by credits that are theirs, all of them locked; return the credits.

    `arrived_now` are credits of this same transaction; any other lies in suspense.
    """
    if not matches:
        return set()
    store.mark_matched(
        step.connection, [(m.credit.credit_id, m.payment.payment_id) for m in matches], now=step.now
    )
    booking_times = store.find_booking_times(step.connection, [m.credit.credit_id for m in matches])
    for match in matches:
        _confirm(
            step,
            match,
            booked_at=booking_times[match.credit.credit_id],
            from_suspense=match.credit.credit_id not in arrived_now,
        )
    funded = [match.payment.payment_id for match in matches]
    _wake_due_holds(step, funded)
    step.command_for_each(
        PAYOUT_BANK,
        store.find_waiting_refunds(step.connection, funded),
        lambda ids: SubmitRefund(refund_keys=ids),
    )
    step.command_for_each(
        ESCROW_RELEASE,
        [match.payment.payment_id for match in matches if match.payment.charged_back],
        lambda ids: SettleClaims(payment_ids=ids),
    )
    return {match.credit.credit_id for match in matches}


def _confirm(step: Step, match: Match, *, booked_at: datetime, from_suspense: bool) -> None:
    credit, payment = match.credit, match.payment
    if from_suspense:
        step.post(
            [
                Posting(
                    PostingKind.CREDIT_CLAIMED,
                    credit.credit_id,
                    HOUSE,
                    NO_SELLER,
                    credit.currency,
                    credit.amount_minor,
                )
            ]
        )
    step.post(
        [
            Posting(
                PostingKind.PAYMENT_FUNDED,
                credit.credit_id,
                payment.shop_id,
                NO_SELLER,
                credit.currency,
                credit.amount_minor,
            )
        ]
    )
    step.emit(
        derive_id("order_funded", credit.credit_id),
        payment.shop_id,
        OrderFunded(
            order_id=payment.order_id,
            amount=payment.amount_minor,
            currency=payment.currency,
            booked_at=booked_at,
        ),
    )


def _wake_due_holds(step: Step, payment_ids: Sequence[UUID]) -> None:
    """
    Release what waited only for this credit; call again what is about to be due.

    An alarm that rings while this transaction commits may still find the payment unconfirmed, so holds
    of the next minute get a second call.
    """
    due = store.find_holds_due_by(step.connection, payment_ids, due_by=step.now + _WAKE_WINDOW)
    overdue = [hold.hold_id for hold in due if hold.release_at <= step.now]
    soon = [hold for hold in due if hold.release_at > step.now]
    step.command_for_each(ESCROW_RELEASE, overdue, lambda ids: ReleaseHold(hold_ids=ids))
    if soon:
        step.command_for_each(
            ESCROW_RELEASE,
            [hold.hold_id for hold in soon],
            lambda ids: ReleaseHold(hold_ids=ids),
            delay_ms=milliseconds_until(soon[-1].release_at, step.now),
        )

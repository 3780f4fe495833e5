"""First step of everything that sellers ask: book the request, refuse what needs no password."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from uuid import UUID

from infra.postgres.step import Step, Steps
from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.topology import PAYOUT_PASSWORD
from infra.security.sealed import Opener
from ledger.ids import derive_id, key_id, new_id
from schemas.commands import CheckPassword
from schemas.outgoing import OutgoingData, SellerRejected, WithdrawalRejected
from schemas.reasons import Reason
from schemas.seller_enrolled import SellerEnrolled
from schemas.seller_password_changed import SellerPasswordChanged
from schemas.withdrawal_requested import WithdrawalRequested
from workers.intake import refuse_conflicts, take_in
from workers.payout import store
from workers.payout.decisions import Proceed, Purpose, Refused, decide_request, is_locked
from workers.payout.handlers.withdrawals import other_event_ids, payout_id_of, withdrawal_answer_id
from workers.payout.sealed_requests import check_sealed
from workers.rounds import in_rounds

_SellerRequest = SellerEnrolled | SellerPasswordChanged


def receive_withdrawals(
    steps: Steps, events: Sequence[InboundEvent], *, opener: Callable[[], Opener]
) -> None:
    """Book `withdrawal.requested` events; those that may go on wait for their password to be checked."""
    with steps.begin("receive_withdrawals") as step:
        for round_ in in_rounds(events, _withdrawal_keys):
            fresh = take_in(
                step,
                round_,
                answer_ids=partial(map, _withdrawal_answer),
                rejection=_withdrawal_rejection,
                told_before=other_event_ids,
            )
            _book_withdrawals(step, fresh, opener)


def receive_seller_events(
    steps: Steps, events: Sequence[InboundEvent], *, opener: Callable[[], Opener]
) -> None:
    """Book `seller.enrolled` and `seller.password_changed` events."""
    with steps.begin("receive_seller_events") as step:
        for round_ in in_rounds(events, lambda event: (event.key,)):
            fresh = take_in(
                step, round_, answer_ids=partial(map, _seller_answer), rejection=_seller_rejection
            )
            _book_seller_requests(step, fresh, opener)


def _withdrawal_keys(event: InboundEvent) -> tuple[object, ...]:
    if isinstance(event.data, WithdrawalRequested):
        return event.key, (event.sender_id, event.data.withdrawal_id)
    return (event.key,)


def _withdrawal(event: InboundEvent) -> WithdrawalRequested:
    if not isinstance(event.data, WithdrawalRequested):
        raise TypeError(f"{event.envelope.type} is no withdrawal.requested")
    return event.data


def _withdrawal_answer(event: InboundEvent) -> UUID:
    return withdrawal_answer_id(event.sender_id, _withdrawal(event).withdrawal_id)


def _withdrawal_rejection(event: InboundEvent, reason: Reason, detail: str) -> OutgoingData:
    request = event.data if isinstance(event.data, WithdrawalRequested) else None
    return WithdrawalRejected(
        withdrawal_id=request.withdrawal_id if request else event.subject_id,
        event_id=event.envelope.id,
        seller_id=request and request.seller_id,
        amount=request and request.amount,
        currency=request and request.currency,
        reason=reason,
        detail=detail,
    )


def _book_withdrawals(step: Step, events: Sequence[InboundEvent], opener: Callable[[], Opener]) -> None:
    if not events:
        return
    shops = store.find_active_shops(step.connection, (event.sender_id for event in events))
    sellers = store.find_sellers(
        step.connection, ((event.sender_id, _withdrawal(event).seller_id) for event in events)
    )
    locked = _find_locked(step, sellers)
    destinations = store.find_destinations(step.connection, (_destination_key(event) for event in events))
    rows: dict[UUID, tuple[InboundEvent, store.NewWithdrawal, Refused | Proceed]] = {}
    left_out: list[tuple[InboundEvent, store.NewWithdrawal]] = []
    for event in events:
        request = _withdrawal(event)
        seller = sellers.get((event.sender_id, request.seller_id))
        decision = decide_request(
            shop_active=event.sender_id in shops,
            seller_known=seller is not None,
            destination_known=_destination_key(event) in destinations,
            locked=(event.sender_id, request.seller_id) in locked,
            sealed_problem=check_sealed(opener, request, shop_id=event.sender_id, event_id=event.envelope.id),
        )
        row = _withdrawal_row(step, event, decision)
        if row.payout_id in rows:
            left_out.append((event, row))
        else:
            rows[row.payout_id] = (event, row, decision)
    written = store.insert_withdrawals(step.connection, [row for _, row, _ in rows.values()])
    left_out += [(event, row) for id_, (event, row, _) in rows.items() if id_ not in written]
    _answer_left_out(step, left_out)
    attempts: list[store.NewAttempt] = []
    for payout_id in written:
        event, row, decision = rows[payout_id]
        if isinstance(decision, Refused):
            step.emit(
                _withdrawal_answer(event),
                event.sender_id,
                _withdrawal_rejection(event, decision.reason, decision.detail),
            )
        else:
            attempts.append(_withdrawal_attempt(step, event, row))
    _await_password(step, attempts)


def _answer_left_out(step: Step, left_out: Sequence[tuple[InboundEvent, store.NewWithdrawal]]) -> None:
    if not left_out:
        return
    known = store.find_contents(step.connection, ((r.shop_id, r.withdrawal_id) for _, r in left_out))
    same = [e for e, r in left_out if known[r.shop_id, r.withdrawal_id] == r.content_hash]
    for answer_id in map(_withdrawal_answer, same):
        step.emit_again([*other_event_ids(answer_id), answer_id])
    others = [e for e, r in left_out if known[r.shop_id, r.withdrawal_id] != r.content_hash]
    refuse_conflicts(step, others, _withdrawal_rejection)


def _find_locked(step: Step, sellers: Mapping[store.SellerKey, store.Seller]) -> set[store.SellerKey]:
    """
    Return the sellers who take no password now.

    A lock is set before the attempt that earns it is checked, and lifted again if that was right: while
    it is being checked nothing is final, and whoever waits behind it is judged when it is their turn.
    """
    locked = {
        key
        for key, seller in sellers.items()
        if is_locked(
            locked_until=seller.locked_until, locked_by_failures=seller.locked_by_failures, now=step.now
        )
    }
    return (
        locked - store.find_sellers_being_checked(step.connection, locked, besides=()) if locked else locked
    )


def _destination_key(event: InboundEvent) -> tuple[str, str, str]:
    request = _withdrawal(event)
    return event.sender_id, request.seller_id, request.destination_id


def _withdrawal_row(step: Step, event: InboundEvent, decision: Refused | Proceed) -> store.NewWithdrawal:
    request = _withdrawal(event)
    reason = decision.reason if isinstance(decision, Refused) else None
    return store.NewWithdrawal(
        payout_id=payout_id_of(event.sender_id, request.withdrawal_id),
        shop_id=event.sender_id,
        withdrawal_id=request.withdrawal_id,
        event_id=event.envelope.id,
        content_hash=event.content_hash,
        seller_id=request.seller_id,
        amount_minor=request.amount,
        currency=request.currency,
        destination_id=request.destination_id,
        state="checking" if reason is None else "rejected",
        reason=reason,
        requested_at=step.now,
    )


def _withdrawal_attempt(step: Step, event: InboundEvent, row: store.NewWithdrawal) -> store.NewAttempt:
    return store.NewAttempt(
        attempt_id=derive_id("password_attempt", row.payout_id),
        shop_id=row.shop_id,
        seller_id=row.seller_id,
        purpose=Purpose.WITHDRAWAL,
        event_id=row.event_id,
        answer_id=_withdrawal_answer(event),
        payout_id=row.payout_id,
        destination_id=row.destination_id,
        sealed=_withdrawal(event).sealed,
        state="waiting",
        requested_at=step.now,
    )


def _seller_request(event: InboundEvent) -> _SellerRequest:
    if not isinstance(event.data, SellerEnrolled | SellerPasswordChanged):
        raise TypeError(f"{event.envelope.type} is no request of a seller")
    return event.data


def _seller_answer(event: InboundEvent) -> UUID:
    return key_id("seller_answer", event.envelope.source, event.envelope.id)


def _seller_rejection(event: InboundEvent, reason: Reason, detail: str) -> OutgoingData:
    data = event.data
    seller_id = (
        data.seller_id if isinstance(data, SellerEnrolled | SellerPasswordChanged) else event.subject_id
    )
    return SellerRejected(seller_id=seller_id, event_id=event.envelope.id, reason=reason, detail=detail)


def _book_seller_requests(step: Step, events: Sequence[InboundEvent], opener: Callable[[], Opener]) -> None:
    if not events:
        return
    shops = store.find_active_shops(step.connection, (event.sender_id for event in events))
    sellers = store.find_sellers(
        step.connection, ((event.sender_id, _seller_request(event).seller_id) for event in events)
    )
    locked = _find_locked(step, sellers)
    attempts: list[store.NewAttempt] = []
    for event in events:
        request = _seller_request(event)
        enrolment = request if isinstance(request, SellerEnrolled) else None
        seller = sellers.get((event.sender_id, request.seller_id))
        decision = decide_request(
            shop_active=event.sender_id in shops,
            seller_known=enrolment is not None or seller is not None,
            destination_known=True,
            locked=(event.sender_id, request.seller_id) in locked,
            sealed_problem=check_sealed(opener, request, shop_id=event.sender_id, event_id=event.envelope.id),
        )
        if isinstance(decision, Refused):
            step.emit(
                _seller_answer(event),
                event.sender_id,
                _seller_rejection(event, decision.reason, decision.detail),
            )
            continue
        attempts.append(
            store.NewAttempt(
                attempt_id=new_id(),
                shop_id=event.sender_id,
                seller_id=request.seller_id,
                purpose=Purpose.ENROLMENT if enrolment else Purpose.PASSWORD_CHANGE,
                event_id=event.envelope.id,
                answer_id=_seller_answer(event),
                payout_id=None,
                destination_id=enrolment.destination_id if enrolment else None,
                sealed=request.sealed,
                state="waiting",
                requested_at=step.now,
            )
        )
    _await_password(step, attempts)


def _await_password(step: Step, attempts: Sequence[store.NewAttempt]) -> None:
    store.insert_attempts(step.connection, attempts)
    step.command_for_each(
        PAYOUT_PASSWORD,
        [attempt.attempt_id for attempt in attempts],
        lambda ids: CheckPassword(attempt_ids=ids),
    )

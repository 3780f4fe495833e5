"""
The escrow worker's steps for buyers: freeze, resolve, give back.

A release, a freeze and a refund of one hold all lock its row first, so one of them wins each cent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import structlog

from infra.postgres.inbox import change_answers
from infra.postgres.step import Step, Steps, milliseconds_until
from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.topology import ESCROW_RELEASE, PAYOUT_BANK
from ledger.ids import derive_id, key_id, new_id, refund_attempt_id, refund_part_id
from ledger.postings import Posting, PostingKind
from schemas.commands import ReleaseHold, SubmitRefund
from schemas.disputes import DisputeOpened, DisputeResolved, RefundRequested
from schemas.outgoing import (
    DisputeAccepted,
    DisputeRejected,
    HoldFrozen,
    HoldRefunded,
    HoldUnfrozen,
    OutgoingData,
    RefundAccepted,
    RefundRejected,
)
from schemas.reasons import Reason
from workers.escrow import recourse_store as store
from workers.escrow.decisions import HoldState
from workers.escrow.recourse_decisions import (
    Freeze,
    GiveBack,
    ProtectedHold,
    Refused,
    decide_dispute,
    decide_refund,
    freeze,
    give_back,
    unfreeze,
)
from workers.intake import refuse_conflicts, take_in
from workers.rounds import in_rounds

log = structlog.get_logger(__name__)


class NotHeldYet(Exception):
    """The order is received but its holds are not booked yet; tried again a moment later."""


class LostRace(Exception):
    """Another transaction took the same id between two statements; the message is tried again."""


def receive_recourse(steps: Steps, events: Sequence[InboundEvent]) -> None:
    """Book `dispute.opened`, `dispute.resolved` and `refund.requested` events."""
    with steps.begin("receive_recourse") as step:
        for round_ in in_rounds(events, _keys):
            fresh = take_in(step, round_, answer_ids=partial(map, _answer_id), rejection=_rejection)
            receive_round(step, fresh)


def _keys(event: InboundEvent) -> tuple[object, ...]:
    """One order at a time, so that the second message of an order finds what the first has done."""
    data = event.data
    keys: list[object] = [event.key]
    if isinstance(data, DisputeOpened | RefundRequested):
        keys.append(("order", event.sender_id, data.order_id))
    if isinstance(data, DisputeOpened | DisputeResolved):
        keys.append(("dispute", event.sender_id, data.dispute_id))
    if isinstance(data, RefundRequested):
        keys.append(("refund", event.sender_id, data.refund_id))
    return tuple(keys)


def refund_key_of(shop_id: str, origin: str, refund_id: str) -> UUID:
    """
    Compute, as a payout's id is, the key of a refund.

    A database that forgot it asks the bank under the same id again.
    """
    return key_id("refund", shop_id, origin, refund_id)


def _answer_id(event: InboundEvent) -> UUID:
    match event.data:
        case DisputeOpened(dispute_id=id_) | DisputeResolved(dispute_id=id_) | RefundRequested(refund_id=id_):
            return key_id(f"answer:{event.envelope.type}", event.sender_id, id_)
        case _:
            raise TypeError(f"{event.envelope.type} asks for no recourse")


def _rejection(event: InboundEvent, reason: Reason, detail: str) -> OutgoingData:
    data = event.data
    order_id = data.order_id if isinstance(data, DisputeOpened | RefundRequested) else None
    if event.envelope.type == RefundRequested.TYPE:
        refund_id = data.refund_id if isinstance(data, RefundRequested) else event.subject_id
        return RefundRejected(
            refund_id=refund_id, order_id=order_id, event_id=event.envelope.id, reason=reason, detail=detail
        )
    dispute_id = data.dispute_id if isinstance(data, DisputeOpened | DisputeResolved) else event.subject_id
    return DisputeRejected(
        dispute_id=dispute_id, order_id=order_id, event_id=event.envelope.id, reason=reason, detail=detail
    )


@dataclass(slots=True)
class _Desk:
    """What one round works on: locked disputes, the orders and their locked holds."""

    disputes: dict[tuple[str, str], store.Dispute]
    orders: dict[tuple[str, str], store.Order]
    holds: dict[UUID, dict[UUID, ProtectedHold]]
    known_refunds: dict[tuple[str, str], bytes]
    changed: dict[UUID, ProtectedHold] = field(default_factory=dict)

    def order(self, shop_id: str, order_id: str) -> store.Order | None:
        order = self.orders.get((shop_id, order_id))
        if order is not None and not self.holds[order.payment_id]:
            raise NotHeldYet(f"order {order_id} is received but not held yet")
        return order

    def holds_of(self, order: store.Order) -> list[ProtectedHold]:
        return list(self.holds[order.payment_id].values())

    def change(self, order: store.Order, hold: ProtectedHold) -> None:
        self.holds[order.payment_id][hold.hold_id] = hold
        self.changed[hold.hold_id] = hold


def receive_round(step: Step, events: Sequence[InboundEvent]) -> None:
    """Book events that are new and valid, no two of which share a key, in the caller's step."""
    if not events:
        return
    desk = _lock(step, events)
    conflicts: list[InboundEvent] = []
    for event in events:
        match event.data:
            case DisputeOpened():
                fits = _open_dispute(step, desk, event, event.data)
            case DisputeResolved():
                fits = _resolve_dispute(step, desk, event, event.data)
            case RefundRequested():
                fits = _request_refund(step, desk, event, event.data)
            case _:
                raise TypeError(f"{event.envelope.type} asks for no recourse")
        if not fits:
            conflicts.append(event)
    store.update_holds(step.connection, list(desk.changed.values()))
    refuse_conflicts(step, conflicts, _rejection)


def _lock(step: Step, events: Sequence[InboundEvent]) -> _Desk:
    """Lock disputes, then payments, then all holds, each in id order: nobody takes them in another order."""
    dispute_keys = [
        (event.sender_id, event.data.dispute_id)
        for event in events
        if isinstance(event.data, DisputeOpened | DisputeResolved)
    ]
    disputes = store.lock_disputes(step.connection, dispute_keys)
    order_keys = {
        (event.sender_id, event.data.order_id)
        for event in events
        if isinstance(event.data, DisputeOpened | RefundRequested)
    } | {(dispute.shop_id, dispute.order_id) for dispute in disputes.values()}
    orders = store.lock_orders(step.connection, order_keys)
    return _Desk(
        disputes,
        orders,
        store.lock_holds_of(step.connection, [order.payment_id for order in orders.values()]),
        store.find_refund_contents(
            step.connection,
            [
                (event.sender_id, event.data.refund_id)
                for event in events
                if isinstance(event.data, RefundRequested)
            ],
        ),
    )


def _open_dispute(step: Step, desk: _Desk, event: InboundEvent, data: DisputeOpened) -> bool:
    """Freeze what the dispute is about; False if its id is known with other content."""
    known = desk.disputes.get((event.sender_id, data.dispute_id))
    if known is not None:
        if known.content_hash != event.content_hash:
            return False
        step.emit_again([_answer_id(event)])
        return True
    order = desk.order(event.sender_id, data.order_id)
    decision = _judge_dispute(event, desk, order, data)
    dispute_key = new_id()
    frozen = decision.holds if isinstance(decision, Freeze) else ()
    row = store.NewDispute(
        dispute_key=dispute_key,
        shop_id=event.sender_id,
        dispute_id=data.dispute_id,
        order_id=data.order_id,
        event_id=event.envelope.id,
        content_hash=event.content_hash,
        complaint=data.reason,
        state="rejected" if isinstance(decision, Refused) else "open",
        reason=decision.reason if isinstance(decision, Refused) else None,
        opened_at=step.now,
    )
    if not store.insert_dispute(step.connection, row, [hold.hold_id for hold in frozen]):
        raise LostRace("the dispute was booked by another worker at this moment")
    if isinstance(decision, Refused) or order is None:
        _reject(step, event, decision)
        return True
    for hold in frozen:
        desk.change(order, freeze(hold, dispute_key))
        step.emit(
            derive_id(f"hold_frozen:{hold.hold_id}", dispute_key),
            event.sender_id,
            HoldFrozen(
                hold_id=str(hold.hold_id),
                order_id=order.order_id,
                seller_id=hold.seller_id,
                amount=hold.remaining_minor,
                currency=hold.currency,
                dispute_id=data.dispute_id,
            ),
        )
    step.emit(
        _answer_id(event),
        event.sender_id,
        DisputeAccepted(dispute_id=data.dispute_id, order_id=order.order_id, event_id=event.envelope.id),
    )
    return True


def _judge_dispute(
    event: InboundEvent, desk: _Desk, order: store.Order | None, data: DisputeOpened
) -> Freeze | Refused:
    if not event.sender_active:
        return Refused(Reason.SHOP_SUSPENDED, "the shop is suspended")
    if order is None:
        return Refused(Reason.UNKNOWN_ORDER, "order_id: no such order")
    return decide_dispute(desk.holds_of(order), data.seller_ids)


def _resolve_dispute(step: Step, desk: _Desk, event: InboundEvent, data: DisputeResolved) -> bool:
    """Give back what the resolution says, free the rest; False if it was resolved in another way."""
    dispute = desk.disputes.get((event.sender_id, data.dispute_id))
    if dispute is not None and dispute.resolution_hash is not None:
        if dispute.resolution_hash != event.content_hash:
            return False
        step.emit_again([_answer_id(event)])
        return True
    if not event.sender_active:
        _reject_resolution(step, event, Refused(Reason.SHOP_SUSPENDED, "the shop is suspended"))
        return True
    if dispute is None or dispute.state != "open":
        reason = Reason.UNKNOWN_ORDER if dispute is None else Reason.ALREADY_RESOLVED
        _reject_resolution(step, event, Refused(reason, "dispute_id: no such open dispute"))
        return True
    order = desk.order(event.sender_id, dispute.order_id)
    if order is None:
        raise NotHeldYet(f"order {dispute.order_id} of a dispute cannot be found")
    hold_ids = store.find_disputed_holds(step.connection, dispute.dispute_key)
    disputed = [hold for hold in desk.holds_of(order) if hold.hold_id in hold_ids]
    decision = decide_refund(disputed, {refund.seller_id: refund.amount for refund in data.refunds})
    if isinstance(decision, Refused):
        _reject_resolution(step, event, decision)
        return True
    if decision.parts:
        _give_back(step, desk, event, order, decision, origin="dispute", refund_id=data.dispute_id)
    store.mark_resolved(
        step.connection, dispute.dispute_key, resolution_hash=event.content_hash, now=step.now
    )
    freed: list[ProtectedHold] = []
    for hold_id in sorted(hold_ids):
        before = desk.holds[order.payment_id][hold_id]
        after = unfreeze(before, dispute.dispute_key)
        desk.change(order, after)
        if before.state is HoldState.FROZEN and after.state is HoldState.HELD:
            freed.append(after)
    _free(step, event, order, dispute, freed)
    step.emit(
        _answer_id(event),
        event.sender_id,
        DisputeAccepted(dispute_id=data.dispute_id, order_id=order.order_id, event_id=event.envelope.id),
    )
    return True


def _free(
    step: Step,
    event: InboundEvent,
    order: store.Order,
    dispute: store.Dispute,
    freed: Sequence[ProtectedHold],
) -> None:
    """Let holds go on: released at the later of now and their time. Their own alarm may be gone by now."""
    times = store.find_release_times(step.connection, [hold.hold_id for hold in freed])
    for hold in freed:
        step.emit(
            derive_id(f"hold_unfrozen:{hold.hold_id}", dispute.dispute_key),
            event.sender_id,
            HoldUnfrozen(
                hold_id=str(hold.hold_id),
                order_id=order.order_id,
                seller_id=hold.seller_id,
                amount=hold.remaining_minor,
                currency=hold.currency,
                dispute_id=dispute.dispute_id,
            ),
        )
        step.command(
            ESCROW_RELEASE,
            ReleaseHold(hold_ids=(hold.hold_id,)),
            delay_ms=milliseconds_until(times[hold.hold_id], step.now),
        )


def _request_refund(step: Step, desk: _Desk, event: InboundEvent, data: RefundRequested) -> bool:
    """Give back part of what is held; False if the refund's id is known with other content."""
    known = desk.known_refunds.get((event.sender_id, data.refund_id))
    if known is not None:
        if known != event.content_hash:
            return False
        step.emit_again([_answer_id(event)])
        return True
    order = desk.order(event.sender_id, data.order_id)
    decision: GiveBack | Refused
    if not event.sender_active:
        decision = Refused(Reason.SHOP_SUSPENDED, "the shop is suspended")
    elif order is None:
        decision = Refused(Reason.UNKNOWN_ORDER, "order_id: no such order")
    else:
        decision = decide_refund(
            desk.holds_of(order), {refund.seller_id: refund.amount for refund in data.refunds}
        )
    if isinstance(decision, Refused) or order is None:
        row = _refund_row(step, event, order, decision, origin="refund", refund_id=data.refund_id)
        if not store.insert_refund(step.connection, row, ()):
            raise LostRace("the refund was booked by another worker at this moment")
        _reject(step, event, decision)
        return True
    _give_back(step, desk, event, order, decision, origin="refund", refund_id=data.refund_id)
    step.emit(
        _answer_id(event),
        event.sender_id,
        RefundAccepted(refund_id=data.refund_id, order_id=order.order_id, event_id=event.envelope.id),
    )
    return True


def _give_back(
    step: Step,
    desk: _Desk,
    event: InboundEvent,
    order: store.Order,
    decision: GiveBack,
    *,
    origin: str,
    refund_id: str,
) -> None:
    """Move money from held to refundable and have it sent back, once the bank has confirmed that it came."""
    row = _refund_row(step, event, order, decision, origin=origin, refund_id=refund_id)
    if not store.insert_refund(step.connection, row, decision.parts):
        raise LostRace("the refund was booked by another worker at this moment")
    for part in decision.parts:
        hold = part.hold
        desk.change(order, give_back(part))
        step.post(
            [
                Posting(
                    PostingKind.REFUND_RESERVED,
                    refund_part_id(row.refund_key, hold.hold_id),
                    order.shop_id,
                    hold.seller_id,
                    hold.currency,
                    part.amount_minor,
                )
            ]
        )
        step.emit(
            derive_id(f"hold_refunded:{hold.hold_id}", row.refund_key),
            order.shop_id,
            HoldRefunded(
                hold_id=str(hold.hold_id),
                order_id=order.order_id,
                seller_id=hold.seller_id,
                amount=part.amount_minor,
                currency=hold.currency,
                dispute_id=refund_id if origin == "dispute" else None,
                refund_id=refund_id if origin == "refund" else None,
            ),
        )
    if row.state == "ready":
        step.command(PAYOUT_BANK, SubmitRefund(refund_keys=(row.refund_key,)))


def _refund_row(
    step: Step,
    event: InboundEvent,
    order: store.Order | None,
    decision: GiveBack | Refused,
    *,
    origin: str,
    refund_id: str,
) -> store.NewRefund:
    refund_key = refund_key_of(event.sender_id, origin, refund_id)
    data = event.data
    asked = data.refunds if isinstance(data, RefundRequested | DisputeResolved) else ()
    refused = isinstance(decision, Refused)
    order_id = data.order_id if isinstance(data, RefundRequested) else ""
    return store.NewRefund(
        refund_key=refund_key,
        shop_id=event.sender_id,
        origin=origin,
        refund_id=refund_id,
        order_id=order.order_id if order else order_id,
        payment_id=order.payment_id if order else None,
        event_id=event.envelope.id,
        content_hash=event.content_hash,
        state="rejected" if refused else "ready" if order and order.funded else "waiting",
        reason=decision.reason if isinstance(decision, Refused) else None,
        amount_minor=sum(part.amount for part in asked),
        currency=order.currency if order else None,
        end_to_end_id=None if refused else refund_attempt_id(refund_key, 0),
        requested_at=step.now,
        touched_at=step.now,
    )


def _reject(step: Step, event: InboundEvent, decision: object) -> None:
    if isinstance(decision, Refused):
        step.emit(_answer_id(event), event.sender_id, _rejection(event, decision.reason, decision.detail))


def _reject_resolution(step: Step, event: InboundEvent, refused: Refused) -> None:
    """
    Refuse a resolution without ending its dispute.

    The dispute stays open and needs another resolution, so this answer belongs to the message alone and
    not to the dispute's id.
    """
    answer_id = key_id("answer:dispute.resolved", event.envelope.source, event.envelope.id)
    change_answers(step.connection, {event.key: answer_id})
    step.emit(answer_id, event.sender_id, _rejection(event, refused.reason, refused.detail))

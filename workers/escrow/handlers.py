"""The escrow worker's steps: hold what was received, release what is due."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import assert_never
from uuid import UUID

import structlog

from infra.observability.metrics import HOLDS_AWAITING_CREDIT, RELEASE_LAG_SECONDS
from infra.postgres.step import Step, Steps, milliseconds_until
from infra.rabbitmq.topology import ESCROW_RELEASE
from ledger.ids import derive_ids, each_once, order_answer_ids
from ledger.postings import Posting, PostingKind
from schemas.commands import HoldFunds, ReleaseHold
from schemas.outgoing import (
    HoldReleased,
    OrderHeld,
    UsualHeldPart,
    UsualHoldReleased,
    UsualOrderHeld,
    write_usual,
)
from workers.escrow import store
from workers.escrow.claims import pay_off_debts
from workers.escrow.decisions import (
    AwaitCredit,
    LeaveAlone,
    NewHold,
    Payment,
    Release,
    Wait,
    decide_holds,
    decide_release,
    group_by_period,
)

log = structlog.get_logger(__name__)

_HELD, _RELEASED, _FEE_TAKEN = PostingKind.HELD, PostingKind.RELEASED, PostingKind.FEE_TAKEN


def hold_funds(steps: Steps, commands: Sequence[HoldFunds], *, day_seconds: int) -> None:
    """Hold received payments for their protection period and set the alarm for its end."""
    payment_ids = each_once(payment_id for command in commands for payment_id in command.payment_ids)
    booked = steps.carry_out(
        "hold_funds", lambda step: _hold_payments(step, payment_ids, day_seconds=day_seconds)
    )
    if booked:
        log.info("funds_held", orders=len(booked), holds=sum(len(holds) for _, holds in booked))


def release_hold(steps: Steps, commands: Sequence[ReleaseHold]) -> None:
    """Make due holds withdrawable; an early alarm sleeps on, a late or second one changes nothing."""
    hold_ids = each_once(hold_id for command in commands for hold_id in command.hold_ids)
    done = steps.carry_out("release_hold", lambda step: _release_due(step, hold_ids))
    for release in done.releases:
        RELEASE_LAG_SECONDS.observe((done.at - release.hold.release_at).total_seconds())
    if done.unfunded:
        HOLDS_AWAITING_CREDIT.inc(len(done.unfunded))
        log.warning("holds_await_credit", count=len(done.unfunded), first_hold_id=str(done.unfunded[0]))
    if done.releases:
        log.info("holds_released", count=len(done.releases))


def _hold_payments(
    step: Step, payment_ids: Sequence[UUID], *, day_seconds: int
) -> list[tuple[Payment, list[NewHold]]]:
    """Book the holds of payments that have none yet, and return them."""
    payments = store.find_payments(step.connection, payment_ids)
    decided = decide_holds(payments, now=step.now, day_seconds=day_seconds)
    booked = [(payment, holds) for payment, holds in zip(payments, decided, strict=True) if holds]
    known = store.insert_holds(
        step.connection, [hold for _, holds in booked for hold in holds], all_new=step.all_new
    )
    if known:
        booked = [(payment, holds) for payment, holds in booked if holds[0].hold_id not in known]
    _book_holds(step, booked)
    for days, hold_ids in group_by_period([hold for _, holds in booked for hold in holds]).items():
        step.command_for_each(
            ESCROW_RELEASE,
            hold_ids,
            lambda ids: ReleaseHold(hold_ids=ids),
            delay_ms=days * day_seconds * 1000,
        )
    return booked


@dataclass(frozen=True, slots=True)
class _Released:
    """What one step released, and what waits for its credit."""

    at: datetime
    releases: Sequence[Release]
    unfunded: Sequence[UUID]


def _release_due(step: Step, hold_ids: Sequence[UUID]) -> _Released:
    """Release what is due of these holds; arm the alarm again for what is early."""
    releases: list[Release] = []
    early: dict[UUID, datetime] = {}
    unfunded: list[UUID] = []
    for hold in store.lock_holds(step.connection, hold_ids):
        decision = decide_release(hold, now=step.now)
        match decision:
            case Release():
                releases.append(decision)
            case Wait(hold_id, until):
                early[hold_id] = until
            case AwaitCredit(hold_id):
                unfunded.append(hold_id)
            case LeaveAlone():
                pass
            case _:
                assert_never(decision)
    _release(step, releases)
    if early:
        _sleep_on(step, early)
    return _Released(step.now, releases, unfunded)


def _book_holds(step: Step, booked: Sequence[tuple[Payment, Sequence[NewHold]]]) -> None:
    step.post(
        [
            Posting(_HELD, hold.hold_id, hold.shop_id, hold.seller_id, hold.currency, hold.amount_minor)
            for _, holds in booked
            for hold in holds
        ]
    )
    event_ids = order_answer_ids((payment.shop_id, payment.order_id) for payment, _ in booked)
    for event_id, (payment, holds) in zip(event_ids, booked, strict=True):
        step.emit_text(
            event_id,
            payment.shop_id,
            OrderHeld.TYPE,
            write_usual(
                UsualOrderHeld(
                    payment.order_id,
                    payment.event_id,
                    payment.protection_days,
                    holds[0].release_at,
                    payment.funded,
                    [
                        UsualHeldPart(hold.hold_id, hold.seller_id, hold.amount_minor, hold.currency)
                        for hold in holds
                    ],
                )
            ),
        )


def _release(step: Step, releases: Sequence[Release]) -> None:
    if not releases:
        return
    store.mark_released(step.connection, releases, now=step.now)
    pay_off_debts(step, releases)
    step.post(
        [
            Posting(kind, hold.hold_id, hold.shop_id, hold.seller_id, hold.currency, amount)
            for release in releases
            for hold in [release.hold]
            for kind, amount in ((_RELEASED, release.seller_minor), (_FEE_TAKEN, release.fee_minor))
            if amount
        ]
    )
    event_ids = derive_ids(repeat("hold_released", len(releases)), [one.hold.hold_id for one in releases])
    for event_id, release in zip(event_ids, releases, strict=True):
        hold = release.hold
        step.emit_text(
            event_id,
            hold.shop_id,
            HoldReleased.TYPE,
            write_usual(
                UsualHoldReleased(
                    hold.hold_id,
                    hold.order_id,
                    hold.seller_id,
                    release.seller_minor,
                    release.fee_minor,
                    hold.currency,
                    step.now,
                )
            ),
        )


def _sleep_on(step: Step, early: dict[UUID, datetime]) -> None:
    """Arm the alarm again for the remainder, one message for all that are due at the same moment."""
    by_moment: dict[datetime, list[UUID]] = {}
    for hold_id, until in early.items():
        by_moment.setdefault(until, []).append(hold_id)
    for until, hold_ids in by_moment.items():
        step.command_for_each(
            ESCROW_RELEASE,
            hold_ids,
            lambda ids: ReleaseHold(hold_ids=ids),
            delay_ms=milliseconds_until(until, step.now),
        )
    store.mark_rearmed(step.connection, list(early), now=step.now)

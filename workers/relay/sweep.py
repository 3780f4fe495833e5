"""
Find what has fallen off its way and put it back, through the same commands as everything else.

In a healthy system it finds nothing; `holdfast_swept_total` counts what it does find. It adds nothing
to a queue that still has messages waiting: those are merely queued, not lost.
"""

from collections.abc import Callable, Sequence

import structlog

from infra.observability.metrics import (
    PAYOUT_PAUSES,
    STALE_DISPUTES,
    SWEPT,
    WITHDRAWALS_IN_REVIEW,
    begin_at_zero,
)
from infra.postgres.step import Step, Steps
from infra.rabbitmq.topology import (
    ESCROW_HOLD,
    ESCROW_RELEASE,
    PAYMENT_MATCH,
    PAYOUT_BANK,
    PAYOUT_PASSWORD,
)
from schemas.commands import (
    CheckPassword,
    CheckRefund,
    CheckTransfer,
    CollectReturns,
    HoldFunds,
    MatchCredits,
    ReleaseHold,
    ResumeWithdrawal,
    SettleClaims,
    SubmitRefund,
    SubmitTransfer,
)
from workers.relay import store

log = structlog.get_logger(__name__)

# At most this many of a kind at once; the next round takes the rest.
_LIMIT = 5_000
# The bank is asked at growing intervals up to an hour; only silence far beyond that is a lost question.
_SUBMITTED_GRACE_SECONDS = 2 * 3_600

begin_at_zero(
    SWEPT,
    (
        "unheld_payments",
        "overdue_holds",
        "unsettled_claims",
        "matchable_credits",
        "resting_attempts",
        "resting_transfers",
        "cooled_off_withdrawals",
        "resting_refunds",
    ),
)

QueueDepth = Callable[[str], int]


def sweep(steps: Steps, *, grace_seconds: float, queue_depth: QueueDepth) -> dict[str, int]:
    """Put back what is overdue by more than the grace; return how much of each kind."""
    found: dict[str, int] = {}
    with steps.begin("sweep") as step:
        if not store.try_sweep_lock(step.connection):
            return {}

        def quiet(queue: str) -> bool:
            return queue_depth(queue) == 0

        if quiet(ESCROW_HOLD):
            found["unheld_payments"] = _sweep_payments(step, grace_seconds)
        if quiet(ESCROW_RELEASE):
            found["overdue_holds"] = _sweep_holds(step, grace_seconds)
            found["unsettled_claims"] = _sweep_claims(step, grace_seconds)
        if quiet(PAYMENT_MATCH):
            found["matchable_credits"] = _sweep_credits(step, grace_seconds)
        if quiet(PAYOUT_PASSWORD):
            found["resting_attempts"] = _sweep_attempts(step, grace_seconds)
        if quiet(PAYOUT_BANK):
            found["resting_transfers"] = _sweep_transfers(step, grace_seconds)
            found["cooled_off_withdrawals"] = _sweep_cooled_off(step, grace_seconds)
            found["resting_refunds"] = _sweep_refunds(step, grace_seconds)
    for what, count in found.items():
        if count:
            SWEPT.labels(what=what).inc(count)
            log.warning("swept", what=what, count=count)
    return found


def report_what_waits_for_people(steps: Steps, *, dispute_alarm_seconds: float) -> int:
    """
    Say what is never decided by itself; return how many disputes nobody has resolved for so long.

    Disputes that are open for too long are an alarm; withdrawals in review and pauses of payouts are told.
    """
    with steps.begin("report_disputes") as step:
        count = store.count_stale_disputes(step.connection, older_than_seconds=dispute_alarm_seconds)
        WITHDRAWALS_IN_REVIEW.set(store.count_withdrawals_in_review(step.connection))
        PAYOUT_PAUSES.set(store.count_payout_pauses(step.connection))
    STALE_DISPUTES.set(count)
    if count:
        log.error("disputes_unresolved", count=count, older_than_seconds=dispute_alarm_seconds)
    return count


def ask_for_returns(steps: Steps) -> None:
    """Have the payout worker ask the bank which settled transfers came back."""
    with steps.begin("ask_for_returns") as step:
        step.command(PAYOUT_BANK, CollectReturns())


def _sweep_payments(step: Step, grace_seconds: float) -> int:
    ids = store.find_unheld_payments(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    step.command_for_each(ESCROW_HOLD, ids, lambda chunk: HoldFunds(payment_ids=chunk))
    return len(ids)


def _sweep_holds(step: Step, grace_seconds: float) -> int:
    ids = store.find_overdue_holds(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    if ids:
        store.mark_rearmed(step.connection, ids, now=step.now)
        step.command_for_each(ESCROW_RELEASE, ids, lambda chunk: ReleaseHold(hold_ids=chunk))
    return len(ids)


def _sweep_credits(step: Step, grace_seconds: float) -> int:
    ids = store.find_matchable_credits(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    ids += store.find_credits_of_open_debits(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    step.command_for_each(PAYMENT_MATCH, ids, lambda chunk: MatchCredits(credit_ids=chunk))
    return len(ids)


def _sweep_attempts(step: Step, grace_seconds: float) -> int:
    ids = store.find_resting_attempts(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    step.command_for_each(PAYOUT_PASSWORD, ids, lambda chunk: CheckPassword(attempt_ids=chunk))
    return len(ids)


def _sweep_transfers(step: Step, grace_seconds: float) -> int:
    stuck = store.find_resting_transfers(
        step.connection,
        grace_seconds=grace_seconds,
        submitted_grace_seconds=_SUBMITTED_GRACE_SECONDS,
        limit=_LIMIT,
    )
    if stuck:
        store.touch_transfers(step.connection, [transfer.payout_id for transfer in stuck], now=step.now)
        _send_again(step, stuck)
    return len(stuck)


def _sweep_cooled_off(step: Step, grace_seconds: float) -> int:
    ids = store.find_cooled_off(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    step.command_for_each(PAYOUT_BANK, ids, lambda chunk: ResumeWithdrawal(payout_ids=chunk))
    return len(ids)


def _sweep_claims(step: Step, grace_seconds: float) -> int:
    ids = store.find_unsettled_claims(step.connection, grace_seconds=grace_seconds, limit=_LIMIT)
    step.command_for_each(ESCROW_RELEASE, ids, lambda chunk: SettleClaims(payment_ids=chunk))
    return len(ids)


def _sweep_refunds(step: Step, grace_seconds: float) -> int:
    stuck = store.find_resting_refunds(
        step.connection,
        grace_seconds=grace_seconds,
        submitted_grace_seconds=_SUBMITTED_GRACE_SECONDS,
        limit=_LIMIT,
    )
    if stuck:
        store.touch_refunds(step.connection, [refund.refund_key for refund in stuck], now=step.now)
        unsent = [refund.refund_key for refund in stuck if not refund.sent]
        sent = [refund.refund_key for refund in stuck if refund.sent]
        step.command_for_each(PAYOUT_BANK, unsent, lambda chunk: SubmitRefund(refund_keys=chunk))
        step.command_for_each(PAYOUT_BANK, sent, lambda chunk: CheckRefund(refund_keys=chunk))
    return len(stuck)


def _send_again(step: Step, stuck: Sequence[store.StuckTransfer]) -> None:
    unsent = [transfer.payout_id for transfer in stuck if not transfer.sent]
    sent = [transfer.payout_id for transfer in stuck if transfer.sent]
    step.command_for_each(PAYOUT_BANK, unsent, lambda chunk: SubmitTransfer(payout_ids=chunk))
    step.command_for_each(PAYOUT_BANK, sent, lambda chunk: CheckTransfer(payout_ids=chunk))

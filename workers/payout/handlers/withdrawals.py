"""
What becomes of a withdrawal after its password: it goes to the bank, waits, or is given up.

The money is set aside as soon as the password was right, also while a withdrawal waits, so that what waits
can't be spent twice and needs no second look at the balance when it goes on. See docs/adr/0012.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from uuid import UUID

from infra.postgres.ledger_store import SellerCurrency, lock_available
from infra.postgres.step import Step, Steps, milliseconds_until
from infra.rabbitmq.topology import PAYOUT_BANK
from ledger.ids import derive_id, key_id
from ledger.postings import Posting, PostingKind
from schemas.commands import ResumeWithdrawal, SubmitTransfer
from schemas.outgoing import WithdrawalAccepted, WithdrawalPending, WithdrawalRejected
from schemas.reasons import Reason
from workers.payout import store, withdrawal_store
from workers.payout.debts import pay_debts_first
from workers.payout.decisions import (
    UNKNOWN_DESTINATION,
    UNKNOWN_SELLER,
    Limit,
    Limits,
    Pend,
    Refused,
    Reserve,
    Usage,
    WaitForPeople,
    WaitUntil,
    cooling_off_until,
    decide_resumption,
    decide_withdrawal,
    find_exceeded,
)

_PENDING_REASONS = (Reason.OVER_LIMIT, Reason.COOLING_OFF)


def withdrawal_answer_id(shop_id: str, withdrawal_id: str) -> UUID:
    """Return the id of the one event that answers a withdrawal for good: accepted or rejected."""
    return key_id("withdrawal_answer", shop_id, withdrawal_id)


def other_event_ids(answer_id: UUID) -> list[UUID]:
    """Return the ids of what may have been told besides that answer."""
    pending = [_pending_event_id(answer_id, reason) for reason in _PENDING_REASONS]
    return [*pending, adoption_event_id(answer_id)]


def adoption_event_id(answer_id: UUID) -> UUID:
    """Return the id of what is told where the answer was a refusal and the bank had paid all the same."""
    return derive_id("withdrawal_adopted", answer_id)


def _pending_event_id(answer_id: UUID, reason: Reason) -> UUID:
    return derive_id(f"withdrawal_pending:{reason}", answer_id)


def payout_id_of(shop_id: str, withdrawal_id: str) -> UUID:
    """
    Compute, not draw, the id of a payout.

    Where a restored database has forgotten a withdrawal and its event comes again, the bank hears of it
    under the id that it knows, and pays nothing twice.
    """
    return key_id("payout", shop_id, withdrawal_id)


def end_to_end_id_of(payout_id: UUID) -> str:
    """Return what the bank calls a transfer: 32 characters, ISO 20022 allows 35."""
    return payout_id.hex


def judge_withdrawals(
    step: Step,
    withdrawals: Sequence[store.Withdrawal],
    *,
    right: Collection[UUID],
    known_sellers: Collection[store.SellerKey],
    cooling_off_seconds: int,
) -> dict[UUID, Reserve | Pend | Refused]:
    """
    Judge locked withdrawals, no seller twice, whose password was checked; `right` are the payouts for
    which it was right. The sellers must be locked: their limits are counted here.
    """
    checked = [w for w in withdrawals if w.payout_id in right]
    changes = withdrawal_store.find_changes(step.connection, withdrawals)
    spending = withdrawal_store.lock_spending(step.connection, map(balance_key, checked), now=step.now)
    balances = lock_available(step.connection, map(balance_key, checked))
    used_by_shops = dict(spending.used_by_shops)
    decisions: dict[UUID, Reserve | Pend | Refused] = {}
    for withdrawal in withdrawals:
        key = balance_key(withdrawal)
        shop = (withdrawal.shop_id, withdrawal.currency)
        changed = changes.get((withdrawal.shop_id, withdrawal.seller_id, withdrawal.destination_id))
        if changed is None:
            known = (withdrawal.shop_id, withdrawal.seller_id) in known_sellers
            decisions[withdrawal.payout_id] = UNKNOWN_DESTINATION if known else UNKNOWN_SELLER
            continue
        decision = decide_withdrawal(
            password_ok=withdrawal.payout_id in right,
            amount_minor=withdrawal.amount_minor,
            available_minor=balances.get(key, 0),
            over_limit=_find_exceeded(spending, used_by_shops, withdrawal),
            cooling_until=cooling_off_until(
                enrolled_at=changed.enrolled_at,
                password_changed_at=changed.password_changed_at,
                destination_added_at=changed.destination_added_at,
                cooling_off=timedelta(seconds=cooling_off_seconds),
            ),
            now=step.now,
        )
        if shop in spending.of_shops and not (
            isinstance(decision, Refused) or (isinstance(decision, Pend) and decision.over_limit)
        ):
            used = used_by_shops.get(shop, Usage())
            used_by_shops[shop] = used.with_one_more(withdrawal.amount_minor)
        decisions[withdrawal.payout_id] = decision
    return decisions


def _find_exceeded(
    spending: withdrawal_store.Spending,
    used_by_shops: dict[withdrawal_store.ShopCurrency, Usage],
    withdrawal: store.Withdrawal,
) -> Limit | None:
    key, shop = balance_key(withdrawal), (withdrawal.shop_id, withdrawal.currency)
    of_seller = spending.of_sellers.get(key, Limits())
    of_shop = spending.of_shops.get(shop, Limits())
    amount = withdrawal.amount_minor
    return find_exceeded(of_seller, spending.used_by_sellers.get(key, Usage()), amount) or find_exceeded(
        of_shop, used_by_shops.get(shop, Usage()), amount
    )


def reserve(step: Step, withdrawals: Iterable[store.Withdrawal]) -> None:
    """Set the money aside, once for each withdrawal, whatever becomes of it then."""
    step.post(_posting(PostingKind.PAYOUT_RESERVED, withdrawal) for withdrawal in withdrawals)


def accept(step: Step, accepted: Sequence[store.Withdrawal]) -> None:
    """Write the one bank instruction of each withdrawal, whose money is set aside, and send it on."""
    if not accepted:
        return
    payout_ids = [withdrawal.payout_id for withdrawal in accepted]
    withdrawal_store.mark_accepted(step.connection, payout_ids, now=step.now)
    store.insert_transfers(
        step.connection, [(id_, end_to_end_id_of(id_)) for id_ in payout_ids], now=step.now
    )
    for withdrawal in accepted:
        step.emit(_answer_id(withdrawal), withdrawal.shop_id, WithdrawalAccepted(**_facts(withdrawal)))
    step.command_for_each(PAYOUT_BANK, payout_ids, lambda ids: SubmitTransfer(payout_ids=ids))


def pend(step: Step, waiting: Sequence[tuple[store.Withdrawal, Pend]]) -> None:
    """Let withdrawals wait whose money is set aside; those that only cool off get their alarm."""
    if not waiting:
        return
    withdrawal_store.mark_pending(step.connection, waiting, now=step.now)
    for withdrawal, decision in waiting:
        if decision.over_limit is None and decision.until is not None:
            _tell_cooling_off(step, withdrawal, WaitUntil(decision.until))
        else:
            _tell_pending(
                step, withdrawal, Reason.OVER_LIMIT, "above what may leave without review; people decide"
            )


def _tell_cooling_off(step: Step, withdrawal: store.Withdrawal, wait: WaitUntil) -> None:
    _tell_pending(
        step,
        withdrawal,
        Reason.COOLING_OFF,
        "the password or the destination was changed; it goes on by itself",
        wait,
    )
    _set_alarm(step, withdrawal, wait)


def _set_alarm(step: Step, withdrawal: store.Withdrawal, wait: WaitUntil) -> None:
    step.command(
        PAYOUT_BANK,
        ResumeWithdrawal(payout_ids=(withdrawal.payout_id,)),
        delay_ms=milliseconds_until(wait.until, step.now),
    )


def _tell_pending(
    step: Step, withdrawal: store.Withdrawal, reason: Reason, detail: str, wait: WaitUntil | None = None
) -> None:
    step.emit(
        _pending_event_id(_answer_id(withdrawal), reason),
        withdrawal.shop_id,
        WithdrawalPending(
            **_facts(withdrawal), reason=reason, detail=detail, until=wait.until if wait else None
        ),
    )


def reject(step: Step, withdrawal: store.Withdrawal, refused: Refused) -> None:
    """Refuse a locked withdrawal for good."""
    store.mark_withdrawals_rejected(step.connection, [(withdrawal.payout_id, refused.reason)], now=step.now)
    step.emit(
        _answer_id(withdrawal),
        withdrawal.shop_id,
        WithdrawalRejected(**_facts(withdrawal), reason=refused.reason, detail=refused.detail),
    )


def resume_withdrawals(steps: Steps, commands: Sequence[ResumeWithdrawal]) -> None:
    """
    Let go on what has cooled off; an alarm that rings early goes back to sleep for the remainder.

    Money, password and limits were judged when it was set aside: nothing is judged again.
    """
    payout_ids = {payout_id for command in commands for payout_id in command.payout_ids}
    with steps.begin("resume_withdrawals") as step:
        ready: list[store.Withdrawal] = []
        for pending in withdrawal_store.lock_pending(step.connection, payout_ids):
            decision = decide_resumption(
                reason=pending.reason, until=pending.until, in_review=pending.in_review, now=step.now
            )
            match decision:
                case Reserve():
                    ready.append(pending.withdrawal)
                case WaitUntil():
                    _set_alarm(step, pending.withdrawal, decision)
                case WaitForPeople():
                    pass
        accept(step, ready)


def carry_out_approval(step: Step, pending: withdrawal_store.PendingWithdrawal) -> bool:
    """Let a locked withdrawal go on that two operators approved; False while it still has to cool off."""
    decision = decide_resumption(
        reason=Reason.COOLING_OFF, until=pending.until or step.now, in_review=False, now=step.now
    )
    if isinstance(decision, WaitUntil):
        withdrawal_store.mark_reviewed(step.connection, pending.withdrawal.payout_id)
        _tell_cooling_off(step, pending.withdrawal, decision)
        return False
    accept(step, [pending.withdrawal])
    return True


def carry_out_rejection(step: Step, pending: withdrawal_store.PendingWithdrawal) -> None:
    """Give up a locked withdrawal that two operators rejected: its money pays debts, or is withdrawable."""
    withdrawal = pending.withdrawal
    step.post([_posting(PostingKind.PAYOUT_CANCELLED, withdrawal)])
    pay_debts_first(step, [(withdrawal.payout_id, balance_key(withdrawal), withdrawal.amount_minor)])
    reject(step, withdrawal, Refused(pending.reason, "refused in review"))


def _answer_id(withdrawal: store.Withdrawal) -> UUID:
    return withdrawal_answer_id(withdrawal.shop_id, withdrawal.withdrawal_id)


def _facts(withdrawal: store.Withdrawal) -> dict[str, str | int]:
    return {
        "withdrawal_id": withdrawal.withdrawal_id,
        "event_id": withdrawal.event_id,
        "seller_id": withdrawal.seller_id,
        "amount": withdrawal.amount_minor,
        "currency": withdrawal.currency,
    }


def balance_key(withdrawal: store.Withdrawal) -> SellerCurrency:
    return SellerCurrency(withdrawal.shop_id, withdrawal.seller_id, withdrawal.currency)


def _posting(kind: PostingKind, withdrawal: store.Withdrawal) -> Posting:
    return Posting(
        kind,
        withdrawal.payout_id,
        withdrawal.shop_id,
        withdrawal.seller_id,
        withdrawal.currency,
        withdrawal.amount_minor,
    )

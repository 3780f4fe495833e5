"""
Check withdrawal passwords: count first, check outside any transaction, then act.

One attempt of a seller at a time, so that concurrent guesses are counted one by one and a right
password never meets a lock that only its neighbours in the queue have caused.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

import structlog

from infra.crash_points import reach
from infra.observability.metrics import PASSWORD_CHECKS
from infra.postgres.ledger_store import SellerCurrency, lock_available
from infra.postgres.step import Step, Steps
from infra.rabbitmq.topology import PAYOUT_BANK, PAYOUT_PASSWORD
from infra.security.destinations import destination_context, mask_destination
from infra.security.encryption import Vault
from infra.security.passwords import Passwords
from infra.security.sealed import Opener
from ledger.postings import Posting, PostingKind
from schemas.commands import CheckPassword, SubmitTransfer
from schemas.outgoing import SellerAccepted, SellerRejected, WithdrawalAccepted, WithdrawalRejected
from schemas.reasons import Reason
from schemas.seller_enrolled import SealedEnrolment
from schemas.seller_password_changed import SealedPasswordChange
from schemas.withdrawal_requested import SealedWithdrawal
from workers.payout import store
from workers.payout.decisions import (
    Count,
    Proceed,
    Purpose,
    Refused,
    Reserve,
    decide_count,
    decide_withdrawal,
)
from workers.payout.sealed_requests import SealedContent, SealedProblem, open_sealed

log = structlog.get_logger(__name__)

# A seller whose password another worker is checking gets the next turn this much later.
_NEXT_TURN_MS = 1000

_CONTENT: dict[Purpose, type[SealedContent]] = {
    Purpose.ENROLMENT: SealedEnrolment,
    Purpose.PASSWORD_CHANGE: SealedPasswordChange,
    Purpose.WITHDRAWAL: SealedWithdrawal,
}


@dataclass(frozen=True, slots=True)
class PasswordTools:
    """What checking needs; `opener` is asked at each use, so that a rotated key takes effect."""

    passwords: Passwords
    vault: Vault
    opener: Callable[[], Opener]
    pool: ThreadPoolExecutor


@dataclass(frozen=True, slots=True)
class _Turn:
    """One attempt whose turn it is; no seller yet means a first enrolment."""

    attempt: store.Attempt
    stored_hash: str | None


@dataclass(frozen=True, slots=True)
class _Checked:
    turn: _Turn
    ok: bool
    content: SealedContent | None
    new_hash: str | None = None
    problem: str = ""


def check_passwords(steps: Steps, commands: Sequence[CheckPassword], *, tools: PasswordTools) -> None:
    """Decide the password attempts named by these commands."""
    left = {attempt_id for command in commands for attempt_id in command.attempt_ids}
    while left:
        turns, done = _count(steps, left)
        reach("password: before check")
        checked = list(tools.pool.map(lambda turn: _check(turn, tools), turns))
        reach("password: checked")
        done |= _decide(steps, checked, tools)
        left -= done
        if not turns and not done:
            break


def _count(steps: Steps, attempt_ids: Iterable[UUID]) -> tuple[list[_Turn], set[UUID]]:
    """
    Commit that these attempts are being made; return whose turn it is, and which are done with.

    An attempt that was counted before, by a worker that died, is not counted again.
    """
    ids = set(attempt_ids)
    turns: list[_Turn] = []
    with steps.begin("count_password") as step:
        keys = store.find_sellers_of_attempts(step.connection, ids)
        sellers = store.lock_sellers(step.connection, keys)
        attempts = store.lock_open_attempts(step.connection, ids)
        # Not open any more: decided by an earlier delivery of the same command.
        done = ids - {attempt.attempt_id for attempt in attempts}
        busy = store.find_sellers_being_checked(step.connection, sellers, besides=ids)
        counts: list[tuple[store.Attempt, Count]] = []
        later: list[UUID] = []
        taken: set[store.SellerKey] = set()
        for attempt in sorted(attempts, key=lambda attempt: not attempt.counted):
            if attempt.seller_key in taken:
                continue
            seller = sellers.get(attempt.seller_key)
            if attempt.seller_key in busy and not attempt.counted:
                later.append(attempt.attempt_id)
                continue
            taken.add(attempt.seller_key)
            if seller is None or attempt.counted:
                turns.append(_Turn(attempt, seller.password_hash if seller else None))
                continue
            decision = decide_count(
                failed_attempts=seller.failed_attempts,
                locked_until=seller.locked_until,
                locked_by_failures=seller.locked_by_failures,
                now=step.now,
            )
            if isinstance(decision, Refused):
                _refuse(step, attempt, decision)
                done.add(attempt.attempt_id)
            else:
                counts.append((attempt, decision))
                turns.append(_Turn(attempt, seller.password_hash))
        if counts:
            store.mark_counted(step.connection, counts, now=step.now)
        step.command_for_each(
            PAYOUT_PASSWORD, later, lambda ids_: CheckPassword(attempt_ids=ids_), delay_ms=_NEXT_TURN_MS
        )
    return turns, done | set(later)


def _check(turn: _Turn, tools: PasswordTools) -> _Checked:
    """Open the seal and try the password; no transaction is open, and this takes its time."""
    attempt = turn.attempt
    try:
        content = open_sealed(tools.opener(), attempt.sealed, _CONTENT[attempt.purpose])
    except SealedProblem as problem:
        return _Checked(turn, ok=False, content=None, problem=str(problem))
    match content:
        case SealedEnrolment() | SealedWithdrawal():
            password = content.password.get_secret_value()
        case SealedPasswordChange():
            password = content.old_password.get_secret_value()
    if turn.stored_hash is None:
        if attempt.purpose is not Purpose.ENROLMENT:
            return _Checked(turn, ok=False, content=content)
        return _Checked(turn, ok=True, content=content, new_hash=tools.passwords.hash(password))
    check = tools.passwords.verify(turn.stored_hash, password)
    new_hash = None
    if check.ok and isinstance(content, SealedPasswordChange):
        new_hash = tools.passwords.hash(content.new_password.get_secret_value())
    elif check.ok and check.needs_rehash:
        new_hash = tools.passwords.hash(password)
    return _Checked(turn, ok=check.ok, content=content, new_hash=new_hash)


def _decide(steps: Steps, checked: Sequence[_Checked], tools: PasswordTools) -> set[UUID]:
    """Act on what the checks found; return the attempts that are decided."""
    if not checked:
        return set()
    by_id = {result.turn.attempt.attempt_id: result for result in checked}
    decided: set[UUID] = set()
    with steps.begin("decide_password") as step:
        store.lock_sellers(step.connection, (result.turn.attempt.seller_key for result in checked))
        still_open = store.lock_open_attempts(step.connection, by_id)
        decided |= set(by_id) - {attempt.attempt_id for attempt in still_open}
        results = [by_id[attempt.attempt_id] for attempt in still_open]
        right = [result for result in results if result.ok and result.turn.stored_hash is not None]
        if right:
            store.clear_failures(step.connection, [result.turn.attempt.seller_key for result in right])
        withdrawals = [r for r in results if r.turn.attempt.purpose is Purpose.WITHDRAWAL]
        _decide_withdrawals(step, withdrawals)
        decided |= {result.turn.attempt.attempt_id for result in withdrawals}
        for result in results:
            if result.turn.attempt.purpose is not Purpose.WITHDRAWAL and _decide_seller(step, result, tools):
                decided.add(result.turn.attempt.attempt_id)
    for result in results:
        PASSWORD_CHECKS.labels(result="right" if result.ok else "wrong").inc()
    log.info("passwords_checked", count=len(results), right=sum(result.ok for result in results))
    return decided


def _decide_withdrawals(step: Step, results: Sequence[_Checked]) -> None:
    if not results:
        return
    payout_ids = [result.turn.attempt.payout_id for result in results]
    withdrawals = store.lock_withdrawals(step.connection, [id_ for id_ in payout_ids if id_ is not None])
    balances = lock_available(step.connection, (_balance_key(w) for w in withdrawals.values()))
    reserved: list[store.Withdrawal] = []
    for result in results:
        attempt = result.turn.attempt
        if attempt.payout_id is None or attempt.payout_id not in withdrawals:
            continue
        withdrawal = withdrawals[attempt.payout_id]
        decision = (
            Refused(Reason.INVALID_DATA, result.problem)
            if result.content is None
            else decide_withdrawal(
                password_ok=result.ok,
                amount_minor=withdrawal.amount_minor,
                available_minor=balances[_balance_key(withdrawal)],
            )
        )
        match decision:
            case Refused():
                _refuse(step, attempt, decision, withdrawal, accepted_password=result.ok)
            case Reserve():
                balances[_balance_key(withdrawal)] -= withdrawal.amount_minor
                reserved.append(withdrawal)
                store.mark_decided(step.connection, [attempt.attempt_id], accepted=True, now=step.now)
                step.emit(attempt.answer_id, attempt.shop_id, _accepted(withdrawal))
    _reserve(step, reserved)


def _reserve(step: Step, reserved: Sequence[store.Withdrawal]) -> None:
    if not reserved:
        return
    store.mark_withdrawals_decided(
        step.connection, [(withdrawal.payout_id, "accepted", None) for withdrawal in reserved], now=step.now
    )
    store.insert_transfers(
        step.connection, [(w.payout_id, end_to_end_id_of(w.payout_id)) for w in reserved], now=step.now
    )
    step.post(
        Posting(PostingKind.PAYOUT_RESERVED, w.payout_id, w.shop_id, w.seller_id, w.currency, w.amount_minor)
        for w in reserved
    )
    step.command_for_each(
        PAYOUT_BANK, [w.payout_id for w in reserved], lambda ids: SubmitTransfer(payout_ids=ids)
    )


def end_to_end_id_of(payout_id: UUID) -> str:
    """Return what the bank calls a transfer: 32 characters, ISO 20022 allows 35."""
    return payout_id.hex


def _balance_key(withdrawal: store.Withdrawal) -> SellerCurrency:
    return SellerCurrency(withdrawal.shop_id, withdrawal.seller_id, withdrawal.currency)


def _accepted(withdrawal: store.Withdrawal) -> WithdrawalAccepted:
    return WithdrawalAccepted(
        withdrawal_id=withdrawal.withdrawal_id,
        event_id=withdrawal.event_id,
        seller_id=withdrawal.seller_id,
        amount=withdrawal.amount_minor,
        currency=withdrawal.currency,
    )


def _decide_seller(step: Step, result: _Checked, tools: PasswordTools) -> bool:
    """Enrol, add a destination or change the password; False if the seller enrolled meanwhile."""
    attempt = result.turn.attempt
    if result.content is None:
        _refuse(step, attempt, Refused(Reason.INVALID_DATA, result.problem))
        return True
    if not result.ok:
        _refuse(step, attempt, Refused(Reason.WRONG_PASSWORD, "the withdrawal password is wrong"))
        return True
    enrols_first = result.turn.stored_hash is None
    if enrols_first and not store.insert_seller(
        step.connection,
        attempt.shop_id,
        attempt.seller_id,
        password_hash=result.new_hash or "",
        now=step.now,
    ):
        return False
    if isinstance(result.content, SealedEnrolment):
        problem = _add_destination(step, result.content, tools.vault)
        if isinstance(problem, Refused):
            _refuse(step, attempt, problem, accepted_password=True)
            return True
    if result.new_hash is not None and not enrols_first:
        store.change_password(
            step.connection, attempt.shop_id, attempt.seller_id, password_hash=result.new_hash, now=step.now
        )
    store.mark_decided(step.connection, [attempt.attempt_id], accepted=True, now=step.now)
    step.emit(
        attempt.answer_id,
        attempt.shop_id,
        SellerAccepted(seller_id=attempt.seller_id, event_id=attempt.event_id),
    )
    return True


def _add_destination(step: Step, content: SealedEnrolment, vault: Vault) -> Refused | Proceed:
    key = (content.shop_id, content.seller_id, content.destination_id)
    context = destination_context(*key)
    details = content.destination.model_dump_json().encode()
    known = store.find_destinations(step.connection, [key]).get(key)
    if known is not None:
        if vault.decrypt(known, context) == details:
            return Proceed()
        return Refused(Reason.CONFLICTING_DUPLICATE, "destination_id: known with other details")
    store.insert_destination(
        step.connection,
        key,
        details_encrypted=vault.encrypt(details, context),
        masked=mask_destination(content.destination.model_dump()),
        now=step.now,
    )
    return Proceed()


def _refuse(
    step: Step,
    attempt: store.Attempt,
    refused: Refused,
    withdrawal: store.Withdrawal | None = None,
    *,
    accepted_password: bool = False,
) -> None:
    store.mark_decided(step.connection, [attempt.attempt_id], accepted=accepted_password, now=step.now)
    if attempt.payout_id is None:
        step.emit(
            attempt.answer_id,
            attempt.shop_id,
            SellerRejected(
                seller_id=attempt.seller_id,
                event_id=attempt.event_id,
                reason=refused.reason,
                detail=refused.detail,
            ),
        )
        return
    if withdrawal is None:
        withdrawal = store.lock_withdrawals(step.connection, [attempt.payout_id])[attempt.payout_id]
    store.mark_withdrawals_decided(
        step.connection, [(withdrawal.payout_id, "rejected", refused.reason)], now=step.now
    )
    accepted = _accepted(withdrawal).model_dump()
    step.emit(
        attempt.answer_id,
        attempt.shop_id,
        WithdrawalRejected(**{**accepted, "reason": refused.reason, "detail": refused.detail}),
    )

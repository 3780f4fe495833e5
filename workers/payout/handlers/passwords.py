"""
Check withdrawal passwords: count first, check outside any transaction, then act.

One attempt of a seller at a time, so that concurrent guesses are counted one by one and a right
password never meets a lock that only its neighbours in the queue have caused.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import structlog

from infra.crash_points import reach
from infra.observability.metrics import PASSWORD_CHECKS, PASSWORD_LOCKS, begin_at_zero
from infra.postgres.step import Step, Steps
from infra.rabbitmq.topology import PAYOUT_PASSWORD
from infra.security.destinations import destination_context, mask_destination
from infra.security.encryption import Vault
from infra.security.passwords import Passwords, StoredHashUnusable
from infra.security.sealed import Opener
from schemas.commands import CheckPassword
from schemas.outgoing import SellerAccepted, SellerRejected
from schemas.reasons import Reason
from schemas.seller_enrolled import SealedEnrolment
from schemas.seller_password_changed import SealedPasswordChange
from schemas.withdrawal_requested import SealedWithdrawal
from workers.payout import store
from workers.payout.decisions import (
    LOCK_NAMES,
    UNKNOWN_SELLER,
    Count,
    Pend,
    Proceed,
    Purpose,
    Refused,
    Reserve,
    decide_count,
    may_enrol_anew,
    name_lock,
)
from workers.payout.handlers.withdrawals import accept, judge_withdrawals, pend, reject, reserve
from workers.payout.sealed_requests import SealedContent, SealedProblem, open_sealed

log = structlog.get_logger(__name__)

# A seller whose password another worker is checking gets the next turn this much later.
_NEXT_TURN_MS = 1000
# So many attempts are counted at once: a worker that dies leaves no more behind, and whoever waits for this
# thread waits for no more than these.
_ROUND = 8
# A flood of attempts gives way to whatever else waits for this thread: the rest goes to the end of the queue.
_PATIENCE_SECONDS = 0.25

begin_at_zero(PASSWORD_CHECKS, ("right", "wrong"))
begin_at_zero(PASSWORD_LOCKS, LOCK_NAMES)

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
    cooling_off_seconds: int


@dataclass(frozen=True, slots=True)
class _Turn:
    """
    One attempt whose turn it is, and what its password is held against.

    None of a seller who is not known, and of one whose old password is good no more.
    """

    attempt: store.Attempt
    seller_known: bool
    stored_hash: str | None

    @property
    def sets_password(self) -> bool:
        """The first enrolment, or the one that operators have let happen anew."""
        return self.stored_hash is None and self.attempt.purpose is Purpose.ENROLMENT


@dataclass(frozen=True, slots=True)
class _Checked:
    turn: _Turn
    ok: bool
    content: SealedContent | None
    new_hash: str | None = None
    problem: str = ""


def check_passwords(steps: Steps, commands: Sequence[CheckPassword], *, tools: PasswordTools) -> None:
    """
    Decide the password attempts named by these commands, a few at a time, each shop in its turn.

    So a shop's flood of attempts stands before its own sellers only, and guesses at a seller before that
    seller. What is not reached within a moment goes back to the queue, behind what others have asked.
    """
    left = list(dict.fromkeys(id_ for command in commands for id_ in command.attempt_ids))
    began = time.monotonic()
    while left:
        impatient = time.monotonic() - began > _PATIENCE_SECONDS
        turns, done = _count(steps, left, put_back=impatient)
        reach("password: before check")
        checked = [one for one in tools.pool.map(lambda turn: _check(turn, tools), turns) if one is not None]
        reach("password: checked")
        done |= _decide(steps, checked, tools)
        done |= {turn.attempt.attempt_id for turn in turns} - {c.turn.attempt.attempt_id for c in checked}
        left = [id_ for id_ in left if id_ not in done]
        if not (turns or done):
            break


def _count(
    steps: Steps, attempt_ids: Sequence[UUID], *, put_back: bool = False
) -> tuple[list[_Turn], set[UUID]]:
    """
    Commit that the next few attempts are being made; return whose turn it is, and which are done with.

    `put_back` sends those that come after them to the end of the queue, and so is done with them too.
    An attempt that was counted before, by a worker that died, is not counted again.
    """
    turns: list[_Turn] = []
    with steps.begin("count_password") as step:
        in_turn = store.find_open_attempts_in_turn(step.connection, attempt_ids)
        ids = {attempt_id for attempt_id, _ in in_turn[:_ROUND]}
        others = [attempt_id for attempt_id, _ in in_turn[_ROUND:]]
        sellers = store.lock_sellers(step.connection, {key for _, key in in_turn[:_ROUND]})
        attempts = store.lock_open_attempts(step.connection, ids)
        # Not open any more: decided by an earlier delivery of the same command.
        done = set(attempt_ids).difference((attempt.attempt_id for attempt in attempts), others)
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
                turns.append(_turn(attempt, seller, now=step.now))
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
                turns.append(_turn(attempt, seller, now=step.now))
        if counts:
            store.mark_counted(step.connection, counts, now=step.now)
        step.command_for_each(
            PAYOUT_PASSWORD, later, lambda ids_: CheckPassword(attempt_ids=ids_), delay_ms=_NEXT_TURN_MS
        )
        if put_back:
            step.command_for_each(PAYOUT_PASSWORD, others, lambda ids_: CheckPassword(attempt_ids=ids_))
            done.update(others)
    return turns, done.union(later)


def _turn(attempt: store.Attempt, seller: store.Seller | None, *, now: datetime) -> _Turn:
    if seller is None:
        return _Turn(attempt, seller_known=False, stored_hash=None)
    anew = may_enrol_anew(password_reset_until=seller.password_reset_until, now=now)
    return _Turn(attempt, seller_known=True, stored_hash=None if anew else seller.password_hash)


def _check(turn: _Turn, tools: PasswordTools) -> _Checked | None:
    """
    Open the seal and try the password; no transaction is open, and this takes its time.

    None where the stored hash can't be used: that is nobody's guess, and the attempt waits for its pepper.
    """
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
    if turn.sets_password:
        return _Checked(turn, ok=True, content=content, new_hash=tools.passwords.hash(password))
    try:
        check = tools.passwords.verify(turn.stored_hash, password)
    except StoredHashUnusable as error:
        log.error(  # noqa: TRY400 - a trace-back says nothing more
            "password_hash_unusable",
            shop_id=attempt.shop_id,
            seller_id=attempt.seller_id,
            attempt_id=str(attempt.attempt_id),
            problem=str(error),
        )
        return None
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
        sellers = store.lock_sellers(step.connection, (result.turn.attempt.seller_key for result in checked))
        still_open = store.lock_open_attempts(step.connection, by_id)
        decided |= set(by_id) - {attempt.attempt_id for attempt in still_open}
        results = [
            _as_things_stand(by_id[attempt.attempt_id], sellers, now=step.now) for attempt in still_open
        ]
        right = [result for result in results if result.ok and result.turn.seller_known]
        if right:
            store.clear_failures(step.connection, [result.turn.attempt.seller_key for result in right])
            _rehash(step, right)
        # It opened when it was booked, so our key has ended since: nobody has guessed.
        unread = [r.turn.attempt.seller_key for r in results if r.content is None and r.turn.seller_known]
        if unread:
            store.take_back_count(step.connection, unread)
        withdrawals = [r for r in results if r.turn.attempt.purpose is Purpose.WITHDRAWAL]
        _decide_withdrawals(step, withdrawals, sellers, tools)
        decided |= {result.turn.attempt.attempt_id for result in withdrawals}
        for result in results:
            if result.turn.attempt.purpose is not Purpose.WITHDRAWAL and _decide_seller(
                step, result, tools, known=result.turn.attempt.seller_key in sellers
            ):
                decided.add(result.turn.attempt.attempt_id)
    for result in results:
        PASSWORD_CHECKS.labels(result="right" if result.ok else "wrong").inc()
        _report_lock(result, sellers.get(result.turn.attempt.seller_key))
    log.info("passwords_checked", count=len(results), right=sum(result.ok for result in results))
    return decided


def _as_things_stand(
    result: _Checked, sellers: Mapping[store.SellerKey, store.Seller], *, now: datetime
) -> _Checked:
    """Call wrong what was held against a password that operators have let be replaced meanwhile."""
    turn = result.turn
    if result.ok and turn.seller_known:
        today = _turn(turn.attempt, sellers.get(turn.attempt.seller_key), now=now)
        return replace(result, ok=today.stored_hash == turn.stored_hash)
    return result


def _report_lock(result: _Checked, seller: store.Seller | None) -> None:
    """Say so when a wrong password has locked a seller; the row says it already."""
    lock = (
        None if result.ok or result.content is None or seller is None else name_lock(seller.failed_attempts)
    )
    if lock is not None and seller is not None:
        PASSWORD_LOCKS.labels(until=lock).inc()
        log.warning(
            "seller_locked",
            shop_id=seller.shop_id,
            seller_id=seller.seller_id,
            failed_attempts=seller.failed_attempts,
            until=lock,
        )


def _rehash(step: Step, right: Sequence[_Checked]) -> None:
    """Take on today's parameters and pepper where the password was just proven right."""
    outdated = [
        (result.turn.attempt.seller_key, result.turn.stored_hash, result.new_hash)
        for result in right
        if result.turn.stored_hash is not None
        and result.new_hash is not None
        and result.turn.attempt.purpose is not Purpose.PASSWORD_CHANGE
    ]
    if outdated:
        store.replace_hashes(step.connection, outdated)
        log.info("passwords_rehashed", count=len(outdated))


def _decide_withdrawals(
    step: Step,
    results: Sequence[_Checked],
    sellers: Mapping[store.SellerKey, store.Seller],
    tools: PasswordTools,
) -> None:
    if not results:
        return
    by_payout = {id_: result for result in results if (id_ := result.turn.attempt.payout_id) is not None}
    locked = store.lock_withdrawals(step.connection, by_payout)
    by_payout = {id_: result for id_, result in by_payout.items() if id_ in locked}
    decisions = judge_withdrawals(
        step,
        [locked[id_] for id_, result in by_payout.items() if result.content is not None],
        right={id_ for id_, result in by_payout.items() if result.ok},
        known_sellers=sellers,
        cooling_off_seconds=tools.cooling_off_seconds,
    )
    accepted: list[store.Withdrawal] = []
    waiting: list[tuple[store.Withdrawal, Pend]] = []
    for payout_id, result in by_payout.items():
        withdrawal = locked[payout_id]
        decision = decisions.get(payout_id, Refused(Reason.INVALID_DATA, result.problem))
        match decision:
            case Refused():
                reject(step, withdrawal, decision)
            case Reserve():
                accepted.append(withdrawal)
            case Pend():
                waiting.append((withdrawal, decision))
    for ok in (True, False):
        attempts = [r.turn.attempt.attempt_id for r in by_payout.values() if r.ok is ok]
        store.mark_decided(step.connection, attempts, accepted=ok, now=step.now)
    reserve(step, [*accepted, *(withdrawal for withdrawal, _ in waiting)])
    accept(step, accepted)
    pend(step, waiting)


def _decide_seller(step: Step, result: _Checked, tools: PasswordTools, *, known: bool) -> bool:
    """Enrol (anew), add a destination or change the password; False if the seller enrolled meanwhile."""
    attempt = result.turn.attempt
    if result.content is None:
        _refuse(step, attempt, Refused(Reason.INVALID_DATA, result.problem))
        return True
    if not result.ok:
        wrong = Refused(Reason.WRONG_PASSWORD, "the withdrawal password is wrong")
        _refuse(step, attempt, wrong if known else UNKNOWN_SELLER)
        return True
    if not result.turn.seller_known and not store.insert_seller(
        step.connection,
        attempt.shop_id,
        attempt.seller_id,
        password_hash=result.new_hash or "",
        now=step.now,
    ):
        return False
    sets_anew = result.turn.sets_password and result.turn.seller_known
    if isinstance(result.content, SealedEnrolment):
        problem = _add_destination(step, result.content, tools.vault)
        if isinstance(problem, Refused):
            _refuse(step, attempt, problem, accepted_password=not sets_anew)
            return True
    if result.new_hash is not None and (sets_anew or attempt.purpose is Purpose.PASSWORD_CHANGE):
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


def _refuse(step: Step, attempt: store.Attempt, refused: Refused, *, accepted_password: bool = False) -> None:
    store.mark_decided(step.connection, [attempt.attempt_id], accepted=accepted_password, now=step.now)
    if attempt.payout_id is not None:
        reject(step, store.lock_withdrawals(step.connection, [attempt.payout_id])[attempt.payout_id], refused)
        return
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

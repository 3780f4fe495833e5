"""
Send buyers' money back through the bank, as the return of the credit that it came with.

The same life as a payout's: committed first, sent outside any transaction, asked for when the bank is
silent. A refund that the bank refuses stays in `refundable`: the hold that it came from may be closed by
now, so what becomes of it is for people to decide.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from uuid import UUID

import structlog

from infra.crash_points import reach
from infra.postgres.step import Step, Steps
from infra.rabbitmq.topology import PAYOUT_BANK
from ledger.ids import attempt_suffix, derive_id, refund_part_id
from ledger.postings import Posting, PostingKind
from schemas.commands import CheckRefund, SubmitRefund
from schemas.outgoing import RefundFailed, RefundSettled
from workers.payout import refund_store as store
from workers.payout.decisions import (
    OPEN_STATES,
    SENT_STATES,
    TransferState,
    check_delay_ms,
    decide_transfer,
)
from workers.payout.handlers.transfers import TransferTools
from workers.payout.transfers import BankWord, TransferAnswer, TransferInstruction
from workers.payout.withdrawal_store import find_paused_shops

log = structlog.get_logger(__name__)

# What a payout's posting is for a refund; a refused refund moves nothing.
_POSTINGS = {
    PostingKind.PAYOUT_SETTLED: PostingKind.REFUND_SETTLED,
    PostingKind.PAYOUT_RETURNED: PostingKind.REFUND_RETURNED,
}


def submit_refunds(steps: Steps, commands: Sequence[SubmitRefund], *, tools: TransferTools) -> None:
    """Hand refunds to the bank; one that may have been handed over before is asked for."""
    keys = {key for command in commands for key in command.refund_keys}
    with steps.begin("send_refund") as step:
        refunds = [r for r in store.lock_refunds(step.connection, keys) if r.state in OPEN_STATES]
        paused = find_paused_shops(step.connection, (r.shop_id for r in refunds))
        refunds = [r for r in refunds if r.state is not TransferState.READY or r.shop_id not in paused]
        ready = [refund for refund in refunds if refund.state is TransferState.READY]
        if ready:
            store.mark_refunds(
                step.connection, [(r.refund_key, TransferState.SENDING, None) for r in ready], now=step.now
            )
    never_sent = {refund.refund_key for refund in ready}
    answers = _ask_all(
        refunds,
        lambda r: (
            tools.bank.submit(_instruction(r))
            if r.refund_key in never_sent
            else _find_or_submit(r, tools, paused=paused)
        ),
        tools,
    )
    _book_answers(steps, answers, tries=0)


def check_refunds(steps: Steps, commands: Sequence[CheckRefund], *, tools: TransferTools) -> None:
    """
    Ask the bank what became of refunds that have not ended.

    One that is ready is left to `submit_refunds`, which marks it first: a question about the attempt before
    may still be on its way, and must not send a new one that a chargeback could still hold back.
    """
    for tries in sorted({command.tries for command in commands}):
        keys = {key for command in commands if command.tries == tries for key in command.refund_keys}
        with steps.begin("ask_refund") as step:
            refunds = [r for r in store.lock_refunds(step.connection, keys) if r.state in SENT_STATES]
            store.touch_refunds(step.connection, [r.refund_key for r in refunds], now=step.now)
            paused = find_paused_shops(step.connection, (r.shop_id for r in refunds))
        answers = _ask_all(refunds, partial(_find_or_submit, tools=tools, paused=paused), tools)
        _book_answers(steps, answers, tries=tries + 1)


def book_refund_answers(step: Step, answers: Mapping[str, TransferAnswer]) -> list[UUID]:
    """
    Book the bank's words, by the id that each is about; return the refunds that still wait for its last one.

    A word about an attempt that was begun anew meanwhile is no word about the new one, and changes nothing.
    """
    changes: list[tuple[UUID, TransferState, str | None]] = []
    still_open: list[UUID] = []
    known = store.find_refund_keys(step.connection, list(answers))
    for refund in store.lock_refunds(step.connection, known.values()):
        # Looked for again: an operator may have begun another attempt before we had the lock.
        answer = answers.get(refund.end_to_end_id)
        if answer is None:
            continue
        change = decide_transfer(refund.state, answer)
        if change is not None:
            changes.append((refund.refund_key, change.state, answer.reason))
            _post(step, refund, change.postings)
            _tell(step, refund, change.state, answer)
        if (change.state if change else refund.state) in OPEN_STATES:
            still_open.append(refund.refund_key)
    if changes:
        store.mark_refunds(step.connection, changes, now=step.now)
    return still_open


def _ask_all(
    refunds: Sequence[store.Refund], ask: Callable[[store.Refund], TransferAnswer], tools: TransferTools
) -> dict[str, TransferAnswer]:
    reach("refund: before bank")
    answers = list(tools.pool.map(ask, refunds))
    reach("refund: bank answered")
    return {refund.end_to_end_id: answer for refund, answer in zip(refunds, answers, strict=True)}


def _instruction(refund: store.Refund) -> TransferInstruction:
    return TransferInstruction(
        end_to_end_id=refund.end_to_end_id,
        amount_minor=refund.amount_minor,
        currency=refund.currency,
        destination_id=f"return {refund.bank_reference}",
        destination={"type": "return_of_credit", "bank_reference": refund.bank_reference},
    )


def _find_or_submit(refund: store.Refund, tools: TransferTools, *, paused: Collection[str]) -> TransferAnswer:
    answer = tools.bank.find(refund.end_to_end_id)
    if answer.word is not BankWord.NEVER_SEEN:
        return answer
    if refund.state is TransferState.SUBMITTED:
        log.error("bank_forgot_refund", end_to_end_id=refund.end_to_end_id)
        return TransferAnswer(BankWord.UNKNOWN)
    if not refund.funded:
        # It never reached the bank, and the bank has taken the credit back since: nothing to return.
        return TransferAnswer(BankWord.UNKNOWN)
    if refund.shop_id in paused:
        return TransferAnswer(BankWord.UNKNOWN)
    return tools.bank.submit(_instruction(refund))


def _book_answers(steps: Steps, answers: Mapping[str, TransferAnswer], *, tries: int) -> None:
    if not answers:
        return
    with steps.begin("book_refund") as step:
        still_open = book_refund_answers(step, answers)
        step.command_for_each(
            PAYOUT_BANK,
            still_open,
            lambda ids: CheckRefund(refund_keys=ids, tries=tries),
            delay_ms=check_delay_ms(tries),
        )


def _post(step: Step, refund: store.Refund, kinds: Sequence[PostingKind]) -> None:
    for kind in kinds:
        if kind in _POSTINGS:
            step.post(
                Posting(
                    _POSTINGS[kind],
                    refund_part_id(refund.refund_key, part.hold_id, refund.attempt),
                    refund.shop_id,
                    part.seller_id,
                    refund.currency,
                    part.amount_minor,
                )
                for part in refund.parts
            )


def _tell(step: Step, refund: store.Refund, state: TransferState, answer: TransferAnswer) -> None:
    if state is TransferState.SETTLED:
        event_type: type[RefundSettled | RefundFailed] = RefundSettled
    elif state in {TransferState.FAILED, TransferState.RETURNED}:
        event_type = RefundFailed
        log.error("refund_failed", end_to_end_id=refund.end_to_end_id, reason=answer.reason)
    else:
        return
    step.emit(
        derive_id(f"{event_type.TYPE}:{state.value}{attempt_suffix(refund.attempt)}", refund.refund_key),
        refund.shop_id,
        event_type(
            refund_id=refund.refund_id,
            order_id=refund.order_id,
            event_id=refund.event_id,
            reason=answer.reason if event_type is RefundFailed else None,
        ),
    )

"""
Pay out through the bank, which is called between two transactions and never inside one.

The instruction and its id are committed before the bank hears of them. Whatever the bank says, or
fails to say, is then judged by `decide_transfer` and booked.
"""

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import structlog

from infra.crash_points import reach
from infra.observability.metrics import PAYOUTS, begin_at_zero
from infra.postgres.ledger_store import SellerCurrency
from infra.postgres.step import Step, Steps
from infra.rabbitmq.topology import PAYOUT_BANK
from infra.security.destinations import destination_context
from infra.security.encryption import Vault
from ledger.ids import derive_id
from ledger.postings import Posting, PostingKind
from schemas.commands import CheckTransfer, CollectReturns, SubmitTransfer
from schemas.outgoing import OUTGOING
from workers.payout import store
from workers.payout.bank import Bank, BankUnavailable
from workers.payout.debts import pay_debts_first
from workers.payout.decisions import (
    OPEN_STATES,
    SENT_STATES,
    Source,
    TransferChange,
    TransferState,
    check_delay_ms,
    contradicts,
    decide_transfer,
    own_kind,
)
from workers.payout.refund_store import find_refund_keys
from workers.payout.transfers import BankWord, ReturnedTransfer, TransferAnswer, TransferInstruction
from workers.payout.withdrawal_store import find_paused_shops

log = structlog.get_logger(__name__)

# Takes the bank's words by end-to-end id.
BookRefunds = Callable[[Step, Mapping[str, TransferAnswer]], object]

_RETURNS_FEED = "returns"
_RETURNS_PAGE = 500

# What the bank's last word is called in the metric, by what was booked for it.
_RESULTS = {
    PostingKind.PAYOUT_SETTLED: "settled",
    PostingKind.PAYOUT_FAILED: "failed",
    PostingKind.PAYOUT_RETURNED: "returned",
}
# Its money is the seller's again.
_BACK = frozenset({TransferState.FAILED, TransferState.RETURNED})
begin_at_zero(PAYOUTS, _RESULTS.values())


@dataclass(frozen=True, slots=True)
class TransferTools:
    bank: Bank
    vault: Vault
    pool: ThreadPoolExecutor
    # So that the log has one line when the bank goes away and one when it is back.
    bank_is_away: threading.Event = field(default_factory=threading.Event)


def submit_transfers(steps: Steps, commands: Sequence[SubmitTransfer], *, tools: TransferTools) -> None:
    """
    Hand reserved withdrawals to the bank; one that may have been handed over before is asked for.

    While a shop's payouts are paused nothing of it is handed over: what is ready stays ready.
    """
    payout_ids = {payout_id for command in commands for payout_id in command.payout_ids}
    with steps.begin("send_transfer") as step:
        transfers = [t for t in store.lock_transfers(step.connection, payout_ids) if t.state in OPEN_STATES]
        paused = find_paused_shops(step.connection, (t.shop_id for t in transfers))
        transfers = [t for t in transfers if t.state is not TransferState.READY or t.shop_id not in paused]
        ready = [t for t in transfers if t.state is TransferState.READY]
        if ready:
            store.mark_transfers(
                step.connection, [(t.payout_id, TransferState.SENDING, None) for t in ready], now=step.now
            )
    # `ready` was read before it was marked: only these have certainly never left this house.
    never_sent = {transfer.payout_id for transfer in ready}
    answers = _ask_all(
        transfers,
        lambda t: (
            _submit(t, tools) if t.payout_id in never_sent else _find_or_submit(t, tools, paused=paused)
        ),
        tools,
    )
    _book_answers(steps, answers, tries=0)


def check_transfers(steps: Steps, commands: Sequence[CheckTransfer], *, tools: TransferTools) -> None:
    """
    Ask the bank what became of transfers that it has not settled, or of which it said nothing.

    One that is ready is left to `submit_transfers`, which marks it before it is sent.
    """
    for tries in sorted({command.tries for command in commands}):
        payout_ids = {id_ for command in commands if command.tries == tries for id_ in command.payout_ids}
        with steps.begin("ask_transfer") as step:
            transfers = [
                t for t in store.lock_transfers(step.connection, payout_ids) if t.state in SENT_STATES
            ]
            store.touch_transfers(step.connection, [t.payout_id for t in transfers], now=step.now)
            paused = find_paused_shops(step.connection, (t.shop_id for t in transfers))
        answers = _ask_all(transfers, partial(_find_or_submit, tools=tools, paused=paused), tools)
        _book_answers(steps, answers, tries=tries + 1)


def collect_returns(
    steps: Steps, _commands: Sequence[CollectReturns], *, tools: TransferTools, book_refunds: BookRefunds
) -> None:
    """
    Book transfers that came back after they had settled; the money goes to available, never to held.

    The bank's list does not tell payouts from refunds; `book_refunds` takes the latter.

    A bank that is away uses up no attempt: the relay asks again within seconds anyway, and a retry of
    each question would only pile up until the bank is back.
    """
    while True:
        with steps.begin("read_returns") as step:
            position = store.read_cursor(step.connection, _RETURNS_FEED)
        try:
            page = tools.bank.returns_after(position, _RETURNS_PAGE)
        except BankUnavailable as error:
            if not tools.bank_is_away.is_set():
                log.warning("bank_away", error=str(error))
                tools.bank_is_away.set()
            return
        if tools.bank_is_away.is_set():
            log.info("bank_back")
            tools.bank_is_away.clear()
        reach("returns: bank answered")
        if not page:
            return
        _book_returns(steps, page, book_refunds)


def _book_returns(steps: Steps, page: Sequence[ReturnedTransfer], book_refunds: BookRefunds) -> None:
    with steps.begin("book_returns") as step:
        payouts = store.find_payouts(step.connection, [entry.end_to_end_id for entry in page])
        answers = {
            payouts[entry.end_to_end_id]: TransferAnswer(BankWord.RETURNED, entry.reason)
            for entry in page
            if entry.end_to_end_id in payouts
        }
        refunds = find_refund_keys(step.connection, [entry.end_to_end_id for entry in page])
        refund_answers = {
            entry.end_to_end_id: TransferAnswer(BankWord.RETURNED, entry.reason)
            for entry in page
            if entry.end_to_end_id in refunds
        }
        for entry in page:
            if entry.end_to_end_id not in payouts and entry.end_to_end_id not in refunds:
                log.error("unknown_transfer_returned", end_to_end_id=entry.end_to_end_id, reason=entry.reason)
        _, ended = _book(step, answers)
        book_refunds(step, refund_answers)
        store.advance_cursor(step.connection, _RETURNS_FEED, max(entry.position for entry in page))
    _count(ended)


def _ask_all(
    transfers: Sequence[store.Transfer],
    ask: Callable[[store.Transfer], TransferAnswer],
    tools: TransferTools,
) -> dict[UUID, TransferAnswer]:
    reach("transfer: before bank")
    answers = list(tools.pool.map(ask, transfers))
    reach("transfer: bank answered")
    return {transfer.payout_id: answer for transfer, answer in zip(transfers, answers, strict=True)}


def _submit(transfer: store.Transfer, tools: TransferTools) -> TransferAnswer:
    context = destination_context(transfer.shop_id, transfer.seller_id, transfer.destination_id)
    return tools.bank.submit(
        TransferInstruction(
            end_to_end_id=transfer.end_to_end_id,
            amount_minor=transfer.amount_minor,
            currency=transfer.currency,
            destination_id=transfer.destination_id,
            destination=json.loads(tools.vault.decrypt(transfer.details_encrypted, context)),
        )
    )


def _find_or_submit(
    transfer: store.Transfer, tools: TransferTools, *, paused: Collection[str]
) -> TransferAnswer:
    """Ask first. Only what the bank has certainly never seen is sent again, under its one id."""
    answer = tools.bank.find(transfer.end_to_end_id)
    if answer.word is not BankWord.NEVER_SEEN:
        return answer
    if transfer.state is TransferState.SUBMITTED:
        # The bank accepted it once and denies it now: nothing that software should settle.
        log.error("bank_forgot_transfer", end_to_end_id=transfer.end_to_end_id)
        return TransferAnswer(BankWord.UNKNOWN)
    if transfer.shop_id in paused:
        return TransferAnswer(BankWord.UNKNOWN)
    return _submit(transfer, tools)


def _book_answers(steps: Steps, answers: dict[UUID, TransferAnswer], *, tries: int) -> None:
    if not answers:
        return
    with steps.begin("book_transfer") as step:
        still_open, ended = _book(step, answers)
        step.command_for_each(
            PAYOUT_BANK,
            still_open,
            lambda ids: CheckTransfer(payout_ids=ids, tries=tries),
            delay_ms=check_delay_ms(tries),
        )
    _count(ended)


def _count(ended: Sequence[PostingKind]) -> None:
    """After the commit: what was rolled back, or had been booked before, is no payout more."""
    for kind in ended:
        PAYOUTS.labels(result=_RESULTS[kind]).inc()


def _book(step: Step, answers: dict[UUID, TransferAnswer]) -> tuple[list[UUID], list[PostingKind]]:
    """Book the bank's words; return what still waits for its last one, and how others have ended."""
    changes: list[tuple[UUID, TransferState, str | None]] = []
    still_open: list[UUID] = []
    ended: list[PostingKind] = []
    back: list[tuple[UUID, SellerCurrency, int]] = []
    contradicted: list[tuple[store.Transfer, TransferAnswer]] = []
    for transfer in store.lock_transfers(step.connection, answers):
        answer = answers[transfer.payout_id]
        change = decide_transfer(transfer.state, answer)
        if contradicts(transfer.state, answer):
            contradicted.append((transfer, answer))
        state = change.state if change else transfer.state
        if change is not None:
            changes.append((transfer.payout_id, change.state, answer.reason))
            ended += change.postings
            _follow(step, transfer, change, answer)
            if transfer.source is Source.SELLER and change.state in _BACK:
                back.append((transfer.payout_id, transfer.balance_key, transfer.amount_minor))
        if state in OPEN_STATES:
            still_open.append(transfer.payout_id)
    if changes:
        store.mark_transfers(step.connection, changes, now=step.now)
    if back:
        pay_debts_first(step, back)
    for transfer, answer in contradicted:
        log.error(
            "bank_contradicts_itself",
            end_to_end_id=transfer.end_to_end_id,
            state=transfer.state,
            word=answer.word,
        )
    return still_open, ended


def _follow(step: Step, transfer: store.Transfer, change: TransferChange, answer: TransferAnswer) -> None:
    step.post(
        Posting(
            own_kind(transfer.source, kind),
            transfer.payout_id,
            transfer.shop_id,
            transfer.seller_id,
            transfer.currency,
            transfer.amount_minor,
        )
        for kind in change.postings
    )
    # Of its own money a shop hears from whoever paid it out: no event of the contract is about it.
    for type_ in change.events if transfer.source is Source.SELLER else ():
        step.emit(
            derive_id(type_, transfer.payout_id),
            transfer.shop_id,
            OUTGOING[type_].model_validate(
                {
                    "withdrawal_id": transfer.reference,
                    "seller_id": transfer.seller_id,
                    "amount": transfer.amount_minor,
                    "currency": transfer.currency,
                    "end_to_end_id": transfer.end_to_end_id,
                    "reason": answer.reason if type_ in {"payout.failed", "payout.returned"} else None,
                }
            ),
        )

"""The payout worker's actors: each validates and calls one handler."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.topology import PAYOUT_BANK, PAYOUT_PASSWORD, PAYOUT_SELLER, PAYOUT_WITHDRAWAL
from infra.security.passwords import Passwords
from schemas.commands import (
    CheckPassword,
    CheckRefund,
    CheckTransfer,
    CollectReturns,
    ResumeWithdrawal,
    SubmitRefund,
    SubmitTransfer,
)
from workers.payout.bank import Bank
from workers.payout.handlers import passwords, refunds, requests, transfers, withdrawals
from workers.process import WorkerProcess, declare_command_actor, declare_event_actor

# Password checks cost memory by design, bank calls cost waiting; both are bounded apart from each other.
_BANK_THREADS = 8


def declare_actors(process: WorkerProcess, *, passwords_: Passwords, bank: Bank) -> None:
    settings, steps, opener = process.settings, process.steps, process.keys.opener
    password_tools = passwords.PasswordTools(
        passwords_,
        process.vault,
        opener,
        ThreadPoolExecutor(settings.password_threads, "password"),
        settings.cooling_off_seconds,
    )
    transfer_tools = transfers.TransferTools(bank, process.vault, ThreadPoolExecutor(_BANK_THREADS, "bank"))

    def withdrawal_requested(events: Sequence[InboundEvent]) -> None:
        requests.receive_withdrawals(steps, events, opener=opener)

    def seller_changed(events: Sequence[InboundEvent]) -> None:
        requests.receive_seller_events(steps, events, opener=opener)

    def check_password(commands: Sequence[CheckPassword]) -> None:
        passwords.check_passwords(steps, commands, tools=password_tools)

    def resume_withdrawal(commands: Sequence[ResumeWithdrawal]) -> None:
        withdrawals.resume_withdrawals(steps, commands)

    def submit_transfer(commands: Sequence[SubmitTransfer]) -> None:
        transfers.submit_transfers(steps, commands, tools=transfer_tools)

    def check_transfer(commands: Sequence[CheckTransfer]) -> None:
        transfers.check_transfers(steps, commands, tools=transfer_tools)

    def collect_returns(commands: Sequence[CollectReturns]) -> None:
        transfers.collect_returns(
            steps, commands, tools=transfer_tools, book_refunds=refunds.book_refund_answers
        )

    def submit_refund(commands: Sequence[SubmitRefund]) -> None:
        refunds.submit_refunds(steps, commands, tools=transfer_tools)

    def check_refund(commands: Sequence[CheckRefund]) -> None:
        refunds.check_refunds(steps, commands, tools=transfer_tools)

    declare_event_actor(
        process, queue=PAYOUT_WITHDRAWAL, name="withdrawal_requested", handle=withdrawal_requested
    )
    declare_event_actor(process, queue=PAYOUT_SELLER, name="seller_changed", handle=seller_changed)
    declare_command_actor(process, queue=PAYOUT_PASSWORD, command=CheckPassword, handle=check_password)
    declare_command_actor(process, queue=PAYOUT_BANK, command=ResumeWithdrawal, handle=resume_withdrawal)
    declare_command_actor(process, queue=PAYOUT_BANK, command=SubmitTransfer, handle=submit_transfer)
    declare_command_actor(process, queue=PAYOUT_BANK, command=CheckTransfer, handle=check_transfer)
    declare_command_actor(process, queue=PAYOUT_BANK, command=CollectReturns, handle=collect_returns)
    declare_command_actor(process, queue=PAYOUT_BANK, command=SubmitRefund, handle=submit_refund)
    declare_command_actor(process, queue=PAYOUT_BANK, command=CheckRefund, handle=check_refund)

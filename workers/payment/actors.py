"""The payment worker's actors: each validates and calls one handler."""

from collections.abc import Sequence

from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.topology import PAYMENT_BANK, PAYMENT_INTAKE, PAYMENT_MATCH
from schemas.commands import MatchCredits
from workers.payment import handlers
from workers.process import WorkerProcess, declare_command_actor, declare_event_actor


def declare_actors(process: WorkerProcess) -> None:
    steps = process.steps

    def order_paid(events: Sequence[InboundEvent]) -> None:
        handlers.receive_orders(steps, events)

    def bank_credited(events: Sequence[InboundEvent]) -> None:
        handlers.receive_bank_events(steps, events)

    def match_credits(commands: Sequence[MatchCredits]) -> None:
        handlers.match_credits(steps, commands)

    declare_event_actor(process, queue=PAYMENT_INTAKE, name="order_paid", handle=order_paid)
    declare_event_actor(process, queue=PAYMENT_BANK, name="bank_credited", handle=bank_credited)
    declare_command_actor(process, queue=PAYMENT_MATCH, command=MatchCredits, handle=match_credits)

"""The escrow worker's actors: each validates and calls one handler."""

from collections.abc import Sequence

from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.topology import ESCROW_DISPUTE, ESCROW_HOLD, ESCROW_RELEASE
from schemas.commands import HoldFunds, ReleaseHold, SettleClaims
from workers.escrow import claims, handlers, recourse_handlers
from workers.process import WorkerProcess, declare_command_actor, declare_event_actor


def declare_actors(process: WorkerProcess) -> None:
    steps = process.steps
    day_seconds = process.settings.protection_day_seconds

    def hold_funds(commands: Sequence[HoldFunds]) -> None:
        handlers.hold_funds(steps, commands, day_seconds=day_seconds)

    def release_hold(commands: Sequence[ReleaseHold]) -> None:
        handlers.release_hold(steps, commands)

    def settle_claims(commands: Sequence[SettleClaims]) -> None:
        claims.settle_claims(steps, commands)

    def recourse_asked(events: Sequence[InboundEvent]) -> None:
        recourse_handlers.receive_recourse(steps, events)

    declare_event_actor(process, queue=ESCROW_DISPUTE, name="recourse_asked", handle=recourse_asked)
    declare_command_actor(process, queue=ESCROW_HOLD, command=HoldFunds, handle=hold_funds)
    declare_command_actor(process, queue=ESCROW_RELEASE, command=ReleaseHold, handle=release_hold)
    declare_command_actor(process, queue=ESCROW_RELEASE, command=SettleClaims, handle=settle_claims)

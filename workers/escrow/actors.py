"""The escrow worker's actors: each validates and calls one handler."""

from collections.abc import Sequence

from infra.rabbitmq.topology import ESCROW_HOLD, ESCROW_RELEASE
from schemas.commands import HoldFunds, ReleaseHold
from workers.escrow import handlers
from workers.process import WorkerProcess, declare_command_actor


def declare_actors(process: WorkerProcess) -> None:
    steps = process.steps
    day_seconds = process.settings.protection_day_seconds

    def hold_funds(commands: Sequence[HoldFunds]) -> None:
        handlers.hold_funds(steps, commands, day_seconds=day_seconds)

    def release_hold(commands: Sequence[ReleaseHold]) -> None:
        handlers.release_hold(steps, commands)

    declare_command_actor(process, queue=ESCROW_HOLD, command=HoldFunds, handle=hold_funds)
    declare_command_actor(process, queue=ESCROW_RELEASE, command=ReleaseHold, handle=release_hold)

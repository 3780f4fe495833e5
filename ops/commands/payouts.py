"""`holdfast payouts`: hand nothing new to the bank for a while."""

import typer

from infra.postgres.step import Steps
from infra.rabbitmq.topology import PAYOUT_BANK
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.options import JsonOption, OperatorOption, OptionalShopOption, RequiredReasonOption
from ops.output import print_json, print_table, say
from ops.store.actions import Action, record_actions
from ops.store.payouts import delete_pause, find_pauses, insert_pause, touch_waiting
from ops.store.senders import is_shop
from schemas.commands import CheckRefund, CheckTransfer, SubmitRefund, SubmitTransfer
from workers.payout.withdrawal_store import lock_pauses

app = typer.Typer(help="Stop handing payouts and refunds to the bank, and go on.", no_args_is_help=True)

_EVERYBODY = "all shops"


@app.command("pause")
def pause(why: RequiredReasonOption, operator: OperatorOption, shop: OptionalShopOption = None) -> None:
    """
    Hand nothing new to the bank, of one shop or of all; withdrawals are still taken and judged.

    What was handed over before is still asked for and booked.
    """
    with Environment(Need.DATABASE).changing() as connection:
        if shop is not None and not is_shop(connection, shop):
            raise unknown("shop", shop)
        lock_pauses(connection)
        is_new = insert_pause(connection, shop, by=operator, why=why)
        if is_new:
            record_actions(connection, [Action(operator, "payouts_paused", shop or _EVERYBODY, why)])
    say(f"payouts of {shop or _EVERYBODY} are paused" + ("" if is_new else " already; nothing is changed"))


@app.command("resume")
def resume(why: RequiredReasonOption, operator: OperatorOption, shop: OptionalShopOption = None) -> None:
    """
    Hand payouts to the bank again: what has waited goes first.

    Without --shop it lifts the pause of all shops; one that is paused on its own account stays so.
    """
    with Environment(Need.DATABASE).engine() as engine:
        # The relay publishes what follows.
        steps = Steps(engine, after_commit=lambda _rows: None, grace_seconds=0)
        with steps.begin("resume_payouts") as step:
            if shop is not None and not is_shop(step.connection, shop):
                raise unknown("shop", shop)
            was_paused = delete_pause(step.connection, shop)
            waiting = touch_waiting(step.connection, shop, now=step.now) if was_paused else {}
            step.command_for_each(
                PAYOUT_BANK, waiting.get("ready_transfers", []), lambda ids: SubmitTransfer(payout_ids=ids)
            )
            step.command_for_each(
                PAYOUT_BANK, waiting.get("unknown_transfers", []), lambda ids: CheckTransfer(payout_ids=ids)
            )
            step.command_for_each(
                PAYOUT_BANK, waiting.get("ready_refunds", []), lambda ids: SubmitRefund(refund_keys=ids)
            )
            step.command_for_each(
                PAYOUT_BANK, waiting.get("unknown_refunds", []), lambda ids: CheckRefund(refund_keys=ids)
            )
            counts = {what: len(ids) for what, ids in waiting.items()}
            if was_paused:
                record_actions(
                    step.connection, [Action(operator, "payouts_resumed", shop or _EVERYBODY, why, counts)]
                )
    if was_paused:
        say(f"payouts of {shop or _EVERYBODY} go on: {sum(counts.values())} go to the bank now")
    else:
        say(f"payouts of {shop or _EVERYBODY} were not paused; nothing is changed")


@app.command("status")
def status(*, json: JsonOption = False) -> None:
    """Show what is paused, since when, by whom and why."""
    with Environment(Need.DATABASE).reading() as connection:
        pauses = find_pauses(connection)
    if json:
        print_json(pauses)
    elif not pauses:
        say("nothing is paused")
    else:
        print_table(
            ("paused", "since (UTC)", "by", "why"),
            [
                (one["shop"] or _EVERYBODY, one["paused_at"], one["paused_by"], one["reason"])
                for one in pauses
            ],
        )

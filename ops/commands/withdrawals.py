"""`holdfast withdrawal`: those that wait, and what two operators decide about them."""

import typer

from infra.postgres.step import Step, Steps
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import (
    JsonOption,
    OperatorOption,
    OptionalShopOption,
    RequiredReasonOption,
    ShopArgument,
    WithdrawalArgument,
)
from ops.output import money, print_json, print_table, say
from ops.store.actions import Action, record_actions
from ops.store.payouts import find_pending, find_withdrawal_state
from schemas.reasons import Reason
from workers.payout.decisions import Proposal, ReviewStep, Verdict, decide_review
from workers.payout.handlers.withdrawals import carry_out_approval, carry_out_rejection
from workers.payout.withdrawal_store import PendingWithdrawal, lock_pending, mark_decided_by, write_proposal

app = typer.Typer(help="Withdrawals that wait for a time, or for people.", no_args_is_help=True)

_DONE = {Verdict.APPROVE: "approved", Verdict.REJECT: "rejected"}


@app.command("list")
def list_withdrawals(shop: OptionalShopOption = None, *, json: JsonOption = False) -> None:
    """Show withdrawals that wait; their money is set aside."""
    with Environment(Need.DATABASE).reading() as connection:
        waiting = find_pending(connection, shop)
    if json:
        print_json(waiting)
        return
    if not waiting:
        say("no withdrawal waits")
        return
    print_table(
        ("since (UTC)", "shop", "withdrawal", "seller", "amount#", "to", "waits for", "said so far"),
        [
            (
                row["since"],
                row["shop"],
                row["withdrawal"],
                row["seller"],
                money(row["amount"], row["currency"]),
                row["destination"],
                f"review ({row['over_limit']})"
                if row["reason"] == Reason.OVER_LIMIT
                else f"{row['until']:%Y-%m-%d %H:%M:%S} UTC",
                f"{row['proposed_by']}: {row['proposed']}" if row["proposed"] else "",
            )
            for row in waiting
        ],
    )


@app.command("approve")
def approve(
    shop: ShopArgument, withdrawal: WithdrawalArgument, why: RequiredReasonOption, operator: OperatorOption
) -> None:
    """
    Say that a withdrawal may go on; with the second name it does.

    What still has to cool off goes on when that is over.
    """
    _review(shop, withdrawal, Verdict.APPROVE, why, operator)


@app.command("reject")
def reject(
    shop: ShopArgument, withdrawal: WithdrawalArgument, why: RequiredReasonOption, operator: OperatorOption
) -> None:
    """
    Say that a withdrawal shall not be paid; with the second name its money is withdrawable again.

    The first name already keeps one that only cools off from going on by itself.
    """
    _review(shop, withdrawal, Verdict.REJECT, why, operator)


def _review(shop: str, withdrawal: str, verdict: Verdict, why: str, by: str) -> None:
    with Environment(Need.DATABASE).engine() as engine:
        # The relay publishes what follows.
        steps = Steps(engine, after_commit=lambda _rows: None, grace_seconds=0)
        with steps.begin("review_withdrawal") as step:
            pending = _lock(step, shop, withdrawal)
            if verdict is Verdict.APPROVE and pending.reason is Reason.COOLING_OFF and not pending.in_review:
                raise CommandFailed(
                    f"withdrawal {withdrawal} cools off until {pending.until:%Y-%m-%d %H:%M:%S} UTC and goes"
                    " on by itself then; it can only be rejected"
                )
            said = decide_review(pending.proposal, verdict=verdict, by=by)
            sentence = _carry_out(step, pending, said, verdict=verdict, why=why, by=by)
            if said is not ReviewStep.SAID_ALREADY:
                action = (
                    f"withdrawal_{_DONE[verdict]}" if said is ReviewStep.DECIDED else "withdrawal_reviewed"
                )
                record_actions(
                    step.connection,
                    [
                        Action(
                            by,
                            action,
                            f"{shop}/{withdrawal}",
                            why,
                            {
                                "verdict": verdict,
                                "first_name": pending.proposal and pending.proposal.proposed_by,
                                "payout_id": pending.withdrawal.payout_id,
                            },
                        )
                    ],
                )
    say(f"withdrawal {withdrawal} of shop {shop}: {sentence}")


def _carry_out(
    step: Step, pending: PendingWithdrawal, said: ReviewStep, *, verdict: Verdict, why: str, by: str
) -> str:
    payout_id = pending.withdrawal.payout_id
    match said:
        case ReviewStep.SAID_ALREADY:
            return f"{by} has said so already; it takes a second name to {verdict}"
        case ReviewStep.PROPOSED:
            write_proposal(step.connection, payout_id, Proposal(verdict, by), why=why, now=step.now)
            return f"{by} says {verdict}; it takes a second name"
        case ReviewStep.DECIDED:
            mark_decided_by(step.connection, payout_id, by=by, why=why, now=step.now)
            if verdict is Verdict.REJECT:
                carry_out_rejection(step, pending)
                return "rejected; its money is withdrawable again"
            if carry_out_approval(step, pending):
                return "approved; it goes to the bank"
            return f"approved; it goes on when it has cooled off, at {pending.until:%Y-%m-%d %H:%M:%S} UTC"


def _lock(step: Step, shop: str, withdrawal: str) -> PendingWithdrawal:
    found = find_withdrawal_state(step.connection, shop, withdrawal)
    if found is None:
        raise CommandFailed(f"shop {shop} has no withdrawal {withdrawal}")
    payout_id, _ = found
    locked = lock_pending(step.connection, [payout_id])
    if not locked:
        now = find_withdrawal_state(step.connection, shop, withdrawal)
        state = now[1] if now else "gone"
        raise CommandFailed(f"withdrawal {withdrawal} of shop {shop} does not wait: it is {state}")
    return locked[0]

"""`holdfast refund`: refunds, and what to do about one that the bank refused or that came back."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from infra.postgres.step import Step
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed
from ops.options import (
    JsonOption,
    LimitOption,
    OperatorOption,
    RequiredWhyOption,
    SecondOperatorOption,
    ShopOption,
    external_id,
    owner_id,
)
from ops.output import money, print_json, print_table, say
from ops.second_names import require_second_name, require_two_people
from ops.store.actions import Action, record_actions
from ops.store.remedies import find_refund_amount, find_refunds
from ops.store.senders import is_shop
from workers.payout.refund_remedies import CannotRemedy, Remedied, retry_refund, settle_refund_by_hand

app = typer.Typer(help="Refunds, and what to do about one that failed.", no_args_is_help=True)


class State(StrEnum):
    """Where a refund stands."""

    REJECTED = "rejected"
    WAITING = "waiting"
    READY = "ready"
    SENDING = "sending"
    UNKNOWN = "unknown"
    SUBMITTED = "submitted"
    SETTLED = "settled"
    FAILED = "failed"


RefundOption = Annotated[str | None, typer.Option("--refund", help="The refund's id.", callback=external_id)]
DisputeOption = Annotated[
    str | None,
    typer.Option("--dispute", help="Instead: the dispute whose resolution gave back.", callback=external_id),
]


@app.command("list")
def list_refunds(
    *,
    shop: Annotated[str | None, typer.Option("--shop", help="Only of this shop.", callback=owner_id)] = None,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """Show refunds with their state at the bank, the latest first."""
    with Environment(Need.DATABASE).reading() as connection:
        rows = find_refunds(connection, shop_id=shop, state=state and state.value, limit=limit)
    if json:
        print_json(rows)
        return
    print_table(
        ("shop", "of", "id", "order", "state", "reason", "amount#", "attempt#", "asked (UTC)", "at the bank"),
        [
            (
                row["shop_id"],
                row["origin"],
                row["refund_id"],
                row["order_id"],
                row["state"],
                row["reason"] or "",
                "" if row["currency"] is None else money(row["amount_minor"], row["currency"]),
                row["attempt"] + 1,
                row["requested_at"],
                row["end_to_end_id"] or "",
            )
            for row in rows
        ],
    )


@app.command("retry")
def retry(  # noqa: PLR0917 - typer passes options by name
    shop: ShopOption,
    why: RequiredWhyOption,
    operator: OperatorOption,
    refund: RefundOption = None,
    dispute: DisputeOption = None,
    second_operator: SecondOperatorOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Hand a failed refund to the bank once more, under a new id; its word about the old one is final."""
    remedied = _remedy(
        retry_refund,
        "refund_retried",
        shop,
        (refund, dispute),
        why=why,
        operator=operator,
        second_operator=second_operator,
    )
    goes = (
        "goes to the bank again" if remedied.state == "ready" else "waits for the bank's credit to come again"
    )
    _tell(
        remedied,
        f"{money(remedied.amount_minor, remedied.currency)} {goes} as {remedied.end_to_end_id}",
        json,
    )


@app.command("settle")
def settle(  # noqa: PLR0917 - typer passes options by name
    shop: ShopOption,
    why: RequiredWhyOption,
    operator: OperatorOption,
    refund: RefundOption = None,
    dispute: DisputeOption = None,
    second_operator: SecondOperatorOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """
    Book that a failed refund was paid in another way, and tell the shop that it is settled.

    Pay it first, from the account that Holdfast's money lies on; say in --why how, and under which id.
    """
    remedied = _remedy(
        settle_refund_by_hand,
        "refund_settled_by_hand",
        shop,
        (refund, dispute),
        why=why,
        operator=operator,
        second_operator=second_operator,
    )
    _tell(remedied, f"{money(remedied.amount_minor, remedied.currency)} is booked as paid back", json)


def _remedy(
    remedy: Callable[..., Remedied],
    action: str,
    shop: str,
    named: tuple[str | None, str | None],
    *,
    why: str,
    operator: str,
    second_operator: str | None,
) -> Remedied:
    match named:
        case (str(refund_id), None):
            origin = "refund"
        case (None, str(refund_id)):
            origin = "dispute"
        case _:
            raise BadUsage("name one: --refund R, or --dispute D")
    require_two_people(operator=operator, second_operator=second_operator)
    environment = Environment(Need.DATABASE)
    try:
        with environment.step(action) as step:
            if not is_shop(step.connection, shop):
                raise unknown("shop", shop)
            _require_names(step, environment, shop, origin, refund_id, second_operator)
            remedied = remedy(step, shop_id=shop, origin=origin, refund_id=refund_id)
            details: dict[str, Any] = {
                "shop": shop,
                "order": remedied.order_id,
                "refund_key": remedied.refund_key,
                origin: refund_id,
                "attempt": remedied.attempt,
                "end_to_end_id": remedied.end_to_end_id,
                "amount": remedied.amount_minor,
                "currency": remedied.currency,
                "second_operator": second_operator,
            }
            record_actions(
                step.connection, [Action(operator, action, f"{shop}/{remedied.order_id}", why, details)]
            )
    except CannotRemedy as error:
        raise CommandFailed(str(error)) from None
    return remedied


def _require_names(  # noqa: PLR0917 - one caller
    step: Step,
    environment: Environment,
    shop: str,
    origin: str,
    refund_id: str,
    second_operator: str | None,
) -> None:
    amount = find_refund_amount(step.connection, shop, origin, refund_id)
    if amount is not None:
        require_second_name(
            "a refund",
            *amount,
            second_operator=second_operator,
            limit_minor=environment.settings.claim_second_name_above_minor,
        )


def _tell(remedied: Remedied, sentence: str, json: bool) -> None:  # noqa: FBT001 - the command's own flag
    if json:
        print_json(
            {
                "order": remedied.order_id,
                "state": remedied.state,
                "attempt": remedied.attempt,
                "amount": remedied.amount_minor,
                "currency": remedied.currency,
                "end_to_end_id": remedied.end_to_end_id,
            }
        )
    else:
        say(sentence)

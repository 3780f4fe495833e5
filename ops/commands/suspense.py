"""`holdfast suspense`: money at the bank of which nobody knows what it is for."""

from typing import Annotated

import typer

from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import (
    BankArgument,
    JsonOption,
    LimitOption,
    OperatorOption,
    RequiredWhyOption,
    SecondOperatorOption,
    ShopOption,
    external_id,
)
from ops.output import money, print_json, print_table, say
from ops.second_names import require_second_name, require_two_people
from ops.store.actions import Action, record_actions
from ops.store.remedies import find_credit_amount, find_suspense
from ops.store.senders import is_shop
from workers.payment.assignments import CannotAssign, assign_credit

app = typer.Typer(help="Money at the bank of which nobody knows what it is for.", no_args_is_help=True)


@app.command("list")
def list_suspense(*, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """Show credits that confirm no order, and debits whose credit has not come, the oldest first."""
    with Environment(Need.DATABASE).reading() as connection:
        rows = find_suspense(connection, limit=limit)
    if json:
        print_json(rows)
        return
    print_table(
        ("kind", "bank", "statement line", "reference", "amount#", "received (UTC)", "orders of that amount"),
        [
            (
                row["kind"],
                row["bank_id"],
                row["statement_line"],
                row["bank_reference"],
                money(row["amount_minor"], row["currency"]),
                row["received_at"],
                ", ".join(row["fits"] or ()),
            )
            for row in rows
        ],
    )
    say(f"{len(rows)} lines; assign a credit with `holdfast suspense assign`, or have the bank send it back")


@app.command("assign")
def assign(  # noqa: PLR0917 - typer passes options by name
    bank: BankArgument,
    line: Annotated[
        str,
        typer.Argument(metavar="STATEMENT_LINE", help="As `suspense list` shows it.", callback=external_id),
    ],
    shop: ShopOption,
    order: Annotated[str, typer.Option("--order", help="The order that it paid.", callback=external_id)],
    why: RequiredWhyOption,
    operator: OperatorOption,
    second_operator: SecondOperatorOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """
    Confirm an order by a credit whose reference is another.

    Amount and currency must be the order's. What follows is what follows a credit that came right:
    order.funded, and the release of holds that waited for it.
    """
    require_two_people(operator=operator, second_operator=second_operator)
    environment = Environment(Need.DATABASE)
    try:
        with environment.step("assign_credit") as step:
            if not is_shop(step.connection, shop):
                raise unknown("shop", shop)
            amount = find_credit_amount(step.connection, bank, line)
            if amount is not None:
                require_second_name(
                    "an assignment",
                    *amount,
                    second_operator=second_operator,
                    limit_minor=environment.settings.claim_second_name_above_minor,
                )
            assigned = assign_credit(step, bank_id=bank, statement_line=line, shop_id=shop, order_id=order)
            if not assigned.again:
                details = {
                    "shop": shop,
                    "order": order,
                    "credit_id": assigned.credit_id,
                    "bank": bank,
                    "statement_line": line,
                    "amount": assigned.amount_minor,
                    "currency": assigned.currency,
                    "second_operator": second_operator,
                }
                record_actions(
                    step.connection, [Action(operator, "credit_assigned", f"{shop}/{order}", why, details)]
                )
    except CannotAssign as error:
        raise CommandFailed(str(error)) from None
    if json:
        print_json(
            {
                "credit_id": assigned.credit_id,
                "shop": shop,
                "order": order,
                "amount": assigned.amount_minor,
                "currency": assigned.currency,
                "again": assigned.again,
            }
        )
    else:
        confirms = "already confirms" if assigned.again else "confirms"
        say(f"{money(assigned.amount_minor, assigned.currency)} of {line} {confirms} order {order} of {shop}")

"""`holdfast seller`: locks, limits and what may be shown of a seller."""

from typing import Annotated

import typer

from ops.commands.limits import (
    ClearOption,
    CurrencyOption,
    PerDayOption,
    PerHourOption,
    PerWithdrawalOption,
    change_limits,
    print_limits,
)
from ops.commands.password_resets import reset_password
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import (
    JsonOption,
    OperatorOption,
    RequiredReasonOption,
    SellerArgument,
    ShopArgument,
    WhyOption,
    external_id,
)
from ops.output import print_json, print_table, say
from ops.store.actions import Action, record_actions
from ops.store.password_resets import find_proposals
from ops.store.sellers import LimitKey, find_seller, lock_seller, unlock_seller
from ops.store.senders import is_shop

app = typer.Typer(help="Sellers: locks, passwords, limits, what may be shown.", no_args_is_help=True)
app.command("reset-password")(reset_password)


@app.command("show")
def show_seller(shop: ShopArgument, seller: SellerArgument, *, json: JsonOption = False) -> None:
    """Show a seller: wrong passwords, lock, and destinations with their accounts masked."""
    with Environment(Need.DATABASE).reading() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        found = find_seller(connection, shop, seller)
        if found is None:
            raise _unknown_seller(shop, seller)
        found["password_resets_proposed"] = find_proposals(connection, shop, seller)
    if json:
        print_json(found)
        return
    state = "locked" if found["locked"] else "not locked"
    if found["locked"]:
        ends = found["locked_until"]
        state += f" until {ends:%Y-%m-%d %H:%M:%S} UTC" if ends else " until an operator lifts it"
    say(f"seller {seller} of {shop}: {state}; {found['failed_attempts']} wrong passwords in a row")
    if found["password_reset_until"]:
        say(f"may enrol a new password until {found['password_reset_until']:%Y-%m-%d %H:%M:%S} UTC")
    for proposal in found["password_resets_proposed"]:
        say(f"{proposal['proposed_by']} proposes to replace the password, by event {proposal['event_id']}")
    print_table(
        ("destination", "account", "added (UTC)"),
        [(one["destination_id"], one["destination"], one["added_at"]) for one in found["destinations"]],
    )


@app.command("unlock")
def unlock(
    shop: ShopArgument, seller: SellerArgument, why: RequiredReasonOption, operator: OperatorOption
) -> None:
    """Lift the lock that wrong passwords have set; make sure first with whom you speak."""
    with Environment(Need.DATABASE).changing() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        lock = lock_seller(connection, shop, seller)
        if lock is None:
            raise _unknown_seller(shop, seller)
        if not lock.is_clear:
            unlock_seller(connection, shop, seller)
            record_actions(
                connection,
                [Action(operator, "seller_unlocked", f"{shop}/{seller}", why, lock.as_details())],
            )
    if lock.is_clear:
        say(f"seller {seller} of {shop} was not locked; nothing is changed")
    else:
        say(f"seller {seller} of {shop} is unlocked; {lock.failed_attempts} wrong passwords are forgotten")


@app.command("limits")
def limits(
    shop: ShopArgument,
    operator: OperatorOption,
    seller: Annotated[
        str | None,
        typer.Argument(
            metavar="[SELLER]", help="One seller; without, each seller of the shop.", callback=external_id
        ),
    ] = None,
    *,
    currency: CurrencyOption = None,
    per_withdrawal: PerWithdrawalOption = None,
    per_day: PerDayOption = None,
    per_hour: PerHourOption = None,
    clear: ClearOption = False,
    why: WhyOption = "",
    json: JsonOption = False,
) -> None:
    """
    Show or change what one seller may withdraw without review.

    A seller's own limits stand instead of those of all sellers, in that currency. Without options it
    only shows them.
    """
    key = LimitKey(shop, "sellers") if seller is None else LimitKey(shop, "seller", seller)
    with Environment(Need.DATABASE).changing() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        standing = change_limits(
            connection,
            key,
            currency=currency,
            given=(per_withdrawal, per_day, per_hour),
            clear=clear,
            operator=operator,
            why=why,
        )
    print_limits(key, standing, json=json)


def _unknown_seller(shop: str, seller: str) -> CommandFailed:
    return CommandFailed(f"shop {shop} has no seller {seller}")

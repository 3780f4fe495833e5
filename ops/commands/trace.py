"""`holdfast trace`: all that ever happened to one order or withdrawal."""

from typing import Any

from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed
from ops.options import JsonOption, OrderOption, ShopOption, WithdrawalOption
from ops.output import money, print_json, print_table
from ops.store.history import History, find_order, find_withdrawal
from ops.store.senders import is_shop


def trace(
    shop: ShopOption,
    order: OrderOption = None,
    withdrawal: WithdrawalOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Show states with their times, ledger entries and messages, in the order in which they happened."""
    with Environment(Need.DATABASE).reading() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        match (order, withdrawal):
            case (str(id_), None):
                what, history = "order", find_order(connection, shop, id_)
            case (None, str(id_)):
                what, history = "withdrawal", find_withdrawal(connection, shop, id_)
            case _:
                raise BadUsage("name one thing to trace: --order O or --withdrawal W")
    if history.is_empty:
        raise CommandFailed(f"shop {shop} has no {what} {id_}")
    if json:
        print_json({"shop": shop, what: id_, **_as_json(history)})
    else:
        _print_for_people(f"{what} {id_} of shop {shop}", history)


def _as_json(history: History) -> dict[str, Any]:
    return {
        **history.states,
        "entries": history.entries,
        "messages": history.messages,
        "events": history.events,
        "published": history.published,
        "dead_letters": history.dead_letters,
        "actions": history.actions,
        "timeline": [
            {"at": happening.at, "what": happening.what, "detail": happening.detail}
            for happening in history.timeline()
        ],
    }


def _print_for_people(title: str, history: History) -> None:
    print_table(
        ("at (UTC)", "what", "detail"),
        [(happening.at, happening.what, happening.detail) for happening in history.timeline()],
        title=title,
    )
    print_table(
        ("booked at (UTC)", "kind", "seller", "debit", "credit", "amount#"),
        [
            (
                row["booked_at"],
                row["kind"],
                row["seller_id"],
                row["debit"],
                row["credit"],
                money(row["amount_minor"], row["currency"]),
            )
            for row in history.entries
        ],
        title="ledger entries",
    )

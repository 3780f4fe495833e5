"""`holdfast statement`: opening balance, every movement, closing balance."""

import csv
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from infra.postgres.statements import AccountStatement, read_statement
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed
from ops.options import FromOption, JsonOption, SellerOption, ShopOption, ToOption
from ops.output import money, print_json, print_table, say
from ops.store.senders import is_seller, is_shop
from schemas.fields import format_rfc3339


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]


def show_statement(
    shop: ShopOption,
    start: FromOption,
    end: ToOption,
    seller: SellerOption = None,
    *,
    format_: FormatOption = Format.TABLE,
    json: JsonOption = False,
) -> None:
    """Show what each account held, every movement with its order or withdrawal, and what it held then."""
    if end < start:
        raise BadUsage("--to lies before --from")
    with Environment(Need.DATABASE).reading() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        accounts = read_statement(connection, shop, seller, start=start, end=end)
        if seller is not None and not accounts and not is_seller(connection, shop, seller):
            raise CommandFailed(f"shop {shop} has no seller {seller}")
    if json or format_ is Format.JSON:
        print_json(
            {
                "shop": shop,
                "seller": seller,
                "from": start,
                "to": end,
                "accounts": [_as_json(account) for account in accounts],
            }
        )
    elif format_ is Format.CSV:
        _print_csv(accounts)
    else:
        _print_tables(accounts)


def _as_json(account: AccountStatement) -> dict[str, Any]:
    return {
        "seller": account.seller_id or None,
        "account": account.account,
        "currency": account.currency,
        "opening": account.opening_minor,
        "movements": [
            {
                "booked_at": movement.booked_at,
                "kind": movement.kind,
                "order_id": movement.order_id,
                "withdrawal_id": movement.withdrawal_id,
                "amount": movement.amount_minor,
                "balance": movement.balance_minor,
                "posting_id": movement.posting_id,
            }
            for movement in account.movements
        ],
        "closing": account.closing_minor,
    }


def _print_csv(accounts: Sequence[AccountStatement]) -> None:
    """One row a movement, minor units; opening and closing are rows of their own."""
    writer = csv.writer(sys.stdout)
    writer.writerow(
        [
            "seller",
            "account",
            "currency",
            "booked_at",
            "kind",
            "order_id",
            "withdrawal_id",
            "amount",
            "balance",
        ]
    )
    for account in accounts:
        key = [_no_formula(account.seller_id), account.account, account.currency]
        writer.writerow([*key, "", "opening", "", "", "", account.opening_minor])
        for movement in account.movements:
            writer.writerow(
                [
                    *key,
                    format_rfc3339(movement.booked_at),
                    movement.kind,
                    _no_formula(movement.order_id),
                    _no_formula(movement.withdrawal_id),
                    movement.amount_minor,
                    movement.balance_minor,
                ]
            )
        writer.writerow([*key, "", "closing", "", "", "", account.closing_minor])


def _no_formula(text: str | None) -> str:
    """A shop's id that begins like a formula must not become one in somebody's spreadsheet."""
    return f"'{text}" if text and text[0] in "=+-@" else text or ""


def _print_tables(accounts: Sequence[AccountStatement]) -> None:
    if not accounts:
        say("nothing has moved")
    for account in accounts:
        owner = f"seller {account.seller_id}" if account.seller_id else "shop"
        currency = account.currency
        rows: list[Sequence[object]] = [
            (None, "opening", None, None, money(account.opening_minor, currency)),
            *(
                (
                    movement.booked_at,
                    movement.kind,
                    movement.order_id or movement.withdrawal_id,
                    money(movement.amount_minor, currency),
                    money(movement.balance_minor, currency),
                )
                for movement in account.movements
            ),
            (None, "closing", None, None, money(account.closing_minor, currency)),
        ]
        print_table(
            ("booked at", "kind", "order or withdrawal", "amount#", "balance#"),
            rows,
            title=f"{owner} · {account.account} · {currency}",
        )

"""`holdfast balances`: what each seller has, by the ledger."""

from collections.abc import Sequence
from typing import Any

from infra.postgres.ledger_store import SellerBalance, read_seller_balances, read_seller_balances_at
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import AsOfOption, JsonOption, SellerOption, ShopOption
from ops.output import money, print_json, print_table
from ops.store.senders import is_seller, is_shop

_PARTS = ("held", "available", "in_payout", "paid_out")


def show_balances(
    shop: ShopOption, seller: SellerOption = None, as_of: AsOfOption = None, *, json: JsonOption = False
) -> None:
    """Show per currency what is held, available, on its way out, and paid out."""
    with Environment(Need.DATABASE).reading() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        rows = (
            read_seller_balances(connection, shop, seller)
            if as_of is None
            else read_seller_balances_at(connection, shop, seller, at=as_of)
        )
        if seller is not None and not rows and not is_seller(connection, shop, seller):
            raise CommandFailed(f"shop {shop} has no seller {seller}")
    if not json:
        print_table(
            ("seller", *(f"{part.replace('_', ' ')}#" for part in _PARTS)),
            [(row.seller_id, *(money(getattr(row, part), row.currency) for part in _PARTS)) for row in rows],
        )
    elif seller is not None:
        print_json(_as_json(shop, seller, rows))
    else:
        by_seller: dict[str, list[SellerBalance]] = {}
        for row in rows:
            by_seller.setdefault(row.seller_id, []).append(row)
        print_json([_as_json(shop, name, its_rows) for name, its_rows in by_seller.items()])


def _as_json(shop: str, seller: str, rows: Sequence[SellerBalance]) -> dict[str, Any]:
    return {
        "shop": shop,
        "seller": seller,
        "balances": {row.currency: {part: getattr(row, part) for part in _PARTS} for row in rows},
    }

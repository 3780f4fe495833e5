"""SQL about who may write to us: shops with their terms, banks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed with a shop."""

    protection_days: int
    funding: str
    fee_bps: int

    def as_details(self) -> Mapping[str, object]:
        return asdict(self)


def lock_terms(connection: Connection, shop_id: str) -> Terms | None:
    """Lock a shop and return its terms; None if it is not registered."""
    row = connection.execute(
        text("SELECT protection_days, funding, fee_bps FROM shops WHERE shop_id = :shop FOR UPDATE"),
        {"shop": shop_id},
    ).one_or_none()
    return None if row is None else Terms(row.protection_days, row.funding, row.fee_bps)


def insert_shop(connection: Connection, shop_id: str, terms: Terms) -> bool:
    """Register a shop; False if somebody else has done so at this moment."""
    return (
        connection.execute(
            text("""
                INSERT INTO shops (shop_id, protection_days, funding, fee_bps)
                VALUES (:shop, :days, :funding, :fee) ON CONFLICT (shop_id) DO NOTHING
            """),
            _terms(shop_id, terms),
        ).rowcount
        == 1
    )


def change_terms(connection: Connection, shop_id: str, terms: Terms) -> None:
    """Agree on other terms; holds that are booked keep theirs."""
    connection.execute(
        text("""
            UPDATE shops SET protection_days = :days, funding = :funding, fee_bps = :fee
            WHERE shop_id = :shop
        """),
        _terms(shop_id, terms),
    )


def change_state(connection: Connection, shop_id: str, state: str) -> str | None:
    """Set a shop's state; return the one before, None if the shop is not registered."""
    before: str | None = connection.execute(
        text("SELECT state FROM shops WHERE shop_id = :shop FOR UPDATE"), {"shop": shop_id}
    ).scalar_one_or_none()
    if before is not None and before != state:
        connection.execute(
            text("UPDATE shops SET state = :state WHERE shop_id = :shop"), {"shop": shop_id, "state": state}
        )
    return before


def find_shops(connection: Connection) -> list[dict[str, Any]]:
    """Return all shops with their terms, by id."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT shop_id AS shop, state, protection_days, funding, fee_bps, created_at
                FROM shops ORDER BY shop_id
            """)
        ).mappings()
    ]


def is_shop(connection: Connection, shop_id: str) -> bool:
    """Tell whether a shop is registered."""
    return bool(
        connection.execute(
            text("SELECT EXISTS (SELECT FROM shops WHERE shop_id = :id)"), {"id": shop_id}
        ).scalar_one()
    )


def is_bank(connection: Connection, bank_id: str) -> bool:
    """Tell whether a bank is registered."""
    return bool(
        connection.execute(
            text("SELECT EXISTS (SELECT FROM banks WHERE bank_id = :id)"), {"id": bank_id}
        ).scalar_one()
    )


def is_seller(connection: Connection, shop_id: str, seller_id: str) -> bool:
    """Tell whether a seller has enrolled with a shop."""
    return bool(
        connection.execute(
            text("SELECT EXISTS (SELECT FROM sellers WHERE shop_id = :shop AND seller_id = :seller)"),
            {"shop": shop_id, "seller": seller_id},
        ).scalar_one()
    )


def ensure_bank(connection: Connection, bank_id: str) -> bool:
    """Register a bank if it is new; tell whether it was."""
    return (
        connection.execute(
            text("INSERT INTO banks (bank_id) VALUES (:bank) ON CONFLICT (bank_id) DO NOTHING"),
            {"bank": bank_id},
        ).rowcount
        == 1
    )


def _terms(shop_id: str, terms: Terms) -> dict[str, object]:
    return {
        "shop": shop_id,
        "days": terms.protection_days,
        "funding": terms.funding,
        "fee": terms.fee_bps,
    }

"""SQL about a shop's own money, for operators: its destinations, its payouts, its currencies."""

from typing import Any

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.tables import destinations
from ledger.accounts import NO_SELLER


def insert_shop_destination(
    connection: Connection, shop_id: str, destination_id: str, *, details_encrypted: bytes, masked: str
) -> bool:
    """Register an account of the shop's own; False if the id is known."""
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return bool(
        insert_rows(
            connection,
            destinations,
            [
                {
                    "shop_id": shop_id,
                    "seller_id": NO_SELLER,
                    "destination_id": destination_id,
                    "details_encrypted": details_encrypted,
                    "masked": masked,
                    "added_at": now,
                }
            ],
            skip_existing=True,
            returning=("destination_id",),
        )
    )


def find_encrypted_destination(connection: Connection, shop_id: str, destination_id: str) -> bytes:
    """Return the encrypted details of an account of the shop's own, which must be known."""
    details: bytes = connection.execute(
        text("""
            SELECT details_encrypted FROM destinations
            WHERE (shop_id, seller_id, destination_id) = (:shop, :nobody, :destination)
        """),
        {"shop": shop_id, "nobody": NO_SELLER, "destination": destination_id},
    ).scalar_one()
    return bytes(details)


def find_shop_destinations(connection: Connection, shop_id: str) -> list[dict[str, Any]]:
    """Return the shop's own accounts as they may be shown."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT destination_id, masked AS destination, added_at FROM destinations
                WHERE (shop_id, seller_id) = (:shop, :nobody) ORDER BY added_at, destination_id
            """),
            {"shop": shop_id, "nobody": NO_SELLER},
        ).mappings()
    ]


def find_own_currencies(connection: Connection, shop_id: str) -> list[str]:
    """Return the currencies in which a shop has ever had money of its own."""
    return list(
        connection.execute(
            text("""
                SELECT DISTINCT currency FROM balance_lines
                WHERE shop_id = :shop AND account IN ('fees', 'recovered') ORDER BY currency
            """),
            {"shop": shop_id},
        ).scalars()
    )


def find_shop_payouts(connection: Connection, shop_id: str) -> list[dict[str, Any]]:
    """Return the payouts of a shop's own money with what the bank has said, the latest first."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT p.reference, p.source, p.amount_minor AS amount, p.currency, p.destination_id,
                       d.masked AS destination, p.state, p.proposed_by, p.proposed_why, p.proposed_at,
                       p.decided_by, p.decided_why, p.decided_at, t.state AS transfer, t.end_to_end_id,
                       t.reason, t.settled_at
                FROM shop_payouts AS p
                LEFT JOIN transfers AS t ON t.payout_id = p.payout_id
                LEFT JOIN destinations AS d ON (d.shop_id, d.seller_id, d.destination_id)
                                             = (p.shop_id, :nobody, p.destination_id)
                WHERE p.shop_id = :shop ORDER BY p.proposed_at DESC, p.reference
            """),
            {"shop": shop_id, "nobody": NO_SELLER},
        ).mappings()
    ]

"""SQL about sellers, for operators: locks, destinations as they may be shown, and limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from workers.payout.decisions import Limits


@dataclass(frozen=True, slots=True)
class Lock:
    """How often in a row a seller's password was wrong, and what that has locked; since when it stands."""

    failed_attempts: int
    locked_until: object
    locked_for_good: bool
    password_changed_at: datetime

    @property
    def is_clear(self) -> bool:
        return not self.failed_attempts and self.locked_until is None and not self.locked_for_good

    def as_details(self) -> Mapping[str, object]:
        return {
            "failed_attempts": self.failed_attempts,
            "locked_until": self.locked_until,
            "locked_for_good": self.locked_for_good,
        }


def lock_seller(connection: Connection, shop_id: str, seller_id: str) -> Lock | None:
    """Lock a seller's row and return what locks the seller; None if there is no such seller."""
    row = connection.execute(
        text("""
            SELECT failed_attempts, locked_until, locked_by_failures, password_changed_at FROM sellers
            WHERE (shop_id, seller_id) = (:shop, :seller) FOR UPDATE
        """),
        {"shop": shop_id, "seller": seller_id},
    ).one_or_none()
    if row is None:
        return None
    return Lock(row.failed_attempts, row.locked_until, row.locked_by_failures, row.password_changed_at)


def unlock_seller(connection: Connection, shop_id: str, seller_id: str) -> None:
    """Set the count of wrong passwords back and lift what it has locked."""
    connection.execute(
        text("""
            UPDATE sellers SET failed_attempts = 0, locked_until = NULL, locked_by_failures = false
            WHERE (shop_id, seller_id) = (:shop, :seller)
        """),
        {"shop": shop_id, "seller": seller_id},
    )


def find_seller(connection: Connection, shop_id: str, seller_id: str) -> dict[str, Any] | None:
    """Return what may be shown of a seller: no hash, no account."""
    row = (
        connection.execute(
            text("""
                SELECT shop_id AS shop, seller_id AS seller, enrolled_at, password_changed_at,
                       failed_attempts,
                       locked_by_failures OR coalesce(locked_until > clock_timestamp(), false) AS locked,
                       CASE WHEN NOT locked_by_failures THEN locked_until END AS locked_until,
                       CASE WHEN password_reset_until > clock_timestamp() THEN password_reset_until
                       END AS password_reset_until
                FROM sellers WHERE (shop_id, seller_id) = (:shop, :seller)
            """),
            {"shop": shop_id, "seller": seller_id},
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    destinations = connection.execute(
        text("""
            SELECT destination_id, masked AS destination, added_at FROM destinations
            WHERE (shop_id, seller_id) = (:shop, :seller) ORDER BY added_at, destination_id
        """),
        {"shop": shop_id, "seller": seller_id},
    ).mappings()
    return {**row, "destinations": [dict(one) for one in destinations]}


@dataclass(frozen=True, slots=True)
class LimitKey:
    """Whose limits: of the shop as a whole, of each of its sellers, or of one of them."""

    shop_id: str
    scope: str
    seller_id: str = ""


def find_limits(connection: Connection, key: LimitKey) -> dict[str, Limits]:
    """Return the limits by currency."""
    return {
        row.currency: Limits(row.per_withdrawal_minor, row.per_day_minor, row.per_hour_count)
        for row in connection.execute(
            text("""
                SELECT currency, per_withdrawal_minor, per_day_minor, per_hour_count FROM withdrawal_limits
                WHERE (shop_id, scope, seller_id) = (:shop, :scope, :seller) ORDER BY currency
            """),
            _values(key),
        )
    }


def write_limits(connection: Connection, key: LimitKey, currency: str, limits: Limits) -> None:
    """Set the limits of one currency; the next withdrawal that is decided counts by them."""
    connection.execute(
        text("""
            INSERT INTO withdrawal_limits (shop_id, scope, seller_id, currency, per_withdrawal_minor,
                                           per_day_minor, per_hour_count)
            VALUES (:shop, :scope, :seller, :currency, :per_withdrawal, :per_day, :per_hour)
            ON CONFLICT (shop_id, scope, seller_id, currency) DO UPDATE
            SET per_withdrawal_minor = excluded.per_withdrawal_minor,
                per_day_minor = excluded.per_day_minor, per_hour_count = excluded.per_hour_count,
                changed_at = clock_timestamp()
        """),
        _values(key)
        | {
            "currency": currency,
            "per_withdrawal": limits.per_withdrawal_minor,
            "per_day": limits.per_day_minor,
            "per_hour": limits.per_hour_count,
        },
    )


def delete_limits(connection: Connection, key: LimitKey, currency: str) -> None:
    connection.execute(
        text("""
            DELETE FROM withdrawal_limits
            WHERE (shop_id, scope, seller_id, currency) = (:shop, :scope, :seller, :currency)
        """),
        _values(key) | {"currency": currency},
    )


def _values(key: LimitKey) -> dict[str, str]:
    return {"shop": key.shop_id, "scope": key.scope, "seller": key.seller_id}

"""The escrow worker's SQL: holds. Every statement takes the whole batch."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from msgspec.json import Decoder
from sqlalchemy import Connection, text

from infra.postgres.arrays import array_of, uuid_array
from infra.postgres.bulk import columns_of, insert_unless_known
from infra.postgres.tables import holds
from ledger.ids import each_once
from workers.escrow.decisions import Funding, Hold, HoldState, NewHold, Part, Payment, Release

# Finding a member by its value costs more than making the row that it stands in.
_STATES = {state.value: state for state in HoldState}
_FUNDINGS = {funding.value: funding for funding in Funding}
_SPLITS = Decoder(list[tuple[Part, ...]])


def find_payments(connection: Connection, payment_ids: Sequence[UUID]) -> list[Payment]:
    """Read received payments with their shop's terms; ids that are unknown or rejected are left out."""
    rows = connection.execute(
        text("""
            SELECT p.payment_id, p.shop_id, order_id, event_id, currency, p.protection_days,
                   CAST(splits AS text), funded_at IS NOT NULL, fee_bps
            FROM unnest(CAST(:ids AS uuid[])) AS given(id)
            -- By key, row by row: asked for all at once, a table that grows faster than its statistics is
            -- planned to be read whole.
            CROSS JOIN LATERAL (SELECT * FROM payments WHERE payment_id = given.id LIMIT 1) AS p
            JOIN shops AS s ON s.shop_id = p.shop_id
            WHERE p.state = 'received'
        """),
        {"ids": uuid_array(payment_ids)},
    ).all()
    # One text of all splits: reading it at once costs a fraction of reading each by itself.
    splits = _SPLITS.decode(f"[{','.join([row[6] for row in rows])}]")
    return [
        Payment(
            payment_id,
            shop_id,
            order_id,
            event_id,
            currency,
            protection_days,
            parts,
            funded,
            fee_bps,
        )
        for parts, (
            payment_id,
            shop_id,
            order_id,
            event_id,
            currency,
            protection_days,
            _,
            funded,
            fee_bps,
        ) in zip(splits, rows, strict=True)
    ]


def insert_holds(connection: Connection, rows: Sequence[NewHold], *, all_new: bool = False) -> set[UUID]:
    """
    Insert holds that are not booked yet; return the ids of those that were. A repeat writes nothing.

    With `all_new` a repeat fails the transaction, see `Steps.carry_out`.
    """
    ordered = sorted(rows, key=lambda row: row.hold_id.int)
    return {
        row.hold_id
        for row in insert_unless_known(
            connection,
            holds,
            columns_of(NewHold, ordered),
            key=("hold_id",),
            all_new=all_new,
            often_equal=(
                "shop_id",
                "seller_id",
                "fee_bps",
                "currency",
                "protection_days",
                "day_seconds",
                "held_at",
                "release_at",
            ),
        )
    }


def lock_holds(connection: Connection, hold_ids: Sequence[UUID]) -> list[Hold]:
    """Lock holds in id order until the transaction ends, and read what a release depends on."""
    ids = uuid_array(each_once(hold_ids))
    connection.execute(
        # By key, in the order given; see `find_payments`.
        text("""
            SELECT 1 FROM unnest(CAST(:ids AS uuid[])) AS given(id)
            CROSS JOIN LATERAL (SELECT 1 FROM holds WHERE hold_id = given.id LIMIT 1 FOR UPDATE) AS locked
        """),
        {"ids": ids},
    )
    # A statement of its own: it sees what was committed while we waited for the locks.
    return [
        Hold(
            hold_id,
            shop_id,
            order_id,
            seller_id,
            currency,
            _STATES[state],
            remaining_minor,
            fee_bps,
            release_at,
            _FUNDINGS[funding],
            funded,
            charged_back,
        )
        for (
            hold_id,
            shop_id,
            order_id,
            seller_id,
            currency,
            state,
            remaining_minor,
            fee_bps,
            release_at,
            funding,
            funded,
            charged_back,
        ) in connection.execute(
            text("""
                SELECT h.hold_id, h.shop_id, h.order_id, h.seller_id, h.currency, h.state,
                       h.amount_minor - h.refunded_minor, h.fee_bps, h.release_at, s.funding,
                       p.funded_at IS NOT NULL, p.charged_back_at IS NOT NULL
                FROM unnest(CAST(:ids AS uuid[])) AS given(id)
                CROSS JOIN LATERAL (SELECT * FROM holds WHERE hold_id = given.id LIMIT 1) AS h
                CROSS JOIN LATERAL (SELECT * FROM payments WHERE payment_id = h.payment_id LIMIT 1) AS p
                JOIN shops AS s ON s.shop_id = h.shop_id
                ORDER BY h.hold_id
            """),
            {"ids": ids},
        )
    ]


def mark_released(connection: Connection, releases: Sequence[Release], *, now: datetime) -> None:
    """Close locked holds. The table's own constraint refuses a time before `release_at`."""
    connection.execute(
        text("""
            UPDATE holds SET state = 'released', released_at = :now, fee_minor = given.fee_minor
            FROM unnest(CAST(:ids AS uuid[]), CAST(:fees AS bigint[])) AS given(hold_id, fee_minor)
            WHERE holds.hold_id = given.hold_id AND holds.state = 'held'
        """),
        {
            "ids": uuid_array(release.hold.hold_id for release in releases),
            "fees": array_of([release.fee_minor for release in releases]),
            "now": now,
        },
    )


def mark_rearmed(connection: Connection, hold_ids: Sequence[UUID], *, now: datetime) -> None:
    """Note that an alarm is on its way again, so that the sweep leaves these alone for a while."""
    connection.execute(
        text("UPDATE holds SET rearmed_at = :now WHERE hold_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": uuid_array(hold_ids), "now": now},
    )

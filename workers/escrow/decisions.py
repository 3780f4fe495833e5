"""When money is held and when it is let go: pure rules, judged by a time that is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from ledger.ids import derive_ids
from ledger.money import fee_minor


class HoldState(StrEnum):
    HELD = "held"
    FROZEN = "frozen"  # a dispute is open
    RELEASED = "released"
    REFUNDED = "refunded"  # all of it went back to the buyer


class Funding(StrEnum):
    """What a release needs: the bank's word, or the shop's alone."""

    CONFIRMED = "confirmed"
    ANNOUNCED = "announced"


class Part(Struct, frozen=True, gc=False, rename={"amount_minor": "amount"}):
    """One seller's share of a payment, minor units; in JSON as an order's splits call it."""

    seller_id: str
    amount_minor: int


class Payment(Struct, frozen=True, gc=False):
    """A received payment as the escrow worker reads it, with its shop's terms of this moment."""

    payment_id: UUID
    shop_id: str
    order_id: str
    event_id: str
    currency: str
    protection_days: int
    parts: tuple[Part, ...]
    funded: bool
    fee_bps: int


class NewHold(Struct, frozen=True, gc=False):
    """A hold to be booked; it keeps the terms of this moment whatever the shop agrees later."""

    hold_id: UUID
    payment_id: UUID
    shop_id: str
    order_id: str
    seller_id: str
    amount_minor: int
    fee_bps: int
    currency: str
    protection_days: int
    day_seconds: int
    held_at: datetime
    release_at: datetime


def decide_holds(payments: Sequence[Payment], *, now: datetime, day_seconds: int) -> list[list[NewHold]]:
    """
    Of each payment, one hold for each of its sellers.

    The period is whole days of a stored length from now; seconds, not calendar days, so that no time
    zone can shorten it.
    """
    ends = {
        days: now + timedelta(seconds=days * day_seconds)
        for days in {payment.protection_days for payment in payments}
    }
    ids = iter(
        derive_ids(
            [f"hold:{part.seller_id}" for payment in payments for part in payment.parts],
            [payment.payment_id for payment in payments for _ in payment.parts],
        )
    )
    # By position, which is quicker, for every order.
    return [
        [
            NewHold(
                next(ids),
                payment.payment_id,
                payment.shop_id,
                payment.order_id,
                part.seller_id,
                part.amount_minor,
                payment.fee_bps,
                payment.currency,
                payment.protection_days,
                day_seconds,
                now,
                ends[payment.protection_days],
            )
            for part in payment.parts
        ]
        for payment in payments
    ]


class Hold(Struct, frozen=True, gc=False):
    """A hold as it stands, locked; `remaining_minor` is what was not refunded."""

    hold_id: UUID
    shop_id: str
    order_id: str
    seller_id: str
    currency: str
    state: HoldState
    remaining_minor: int
    fee_bps: int
    release_at: datetime
    funding: Funding
    funded: bool
    charged_back: bool = False


class Release(Struct, frozen=True, gc=False):
    hold: Hold
    fee_minor: int

    @property
    def seller_minor(self) -> int:
        return self.hold.remaining_minor - self.fee_minor


@dataclass(frozen=True, slots=True)
class Wait:
    """The alarm came early: sleep on for the remainder."""

    hold_id: UUID
    until: datetime


@dataclass(frozen=True, slots=True)
class AwaitCredit:
    """Due, but the bank has not confirmed the payment or took it back; its credit will call again."""

    hold_id: UUID


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """Released before, frozen or refunded: nothing to do."""

    hold_id: UUID


ReleaseDecision = Release | Wait | AwaitCredit | LeaveAlone


def decide_release(hold: Hold, *, now: datetime) -> ReleaseDecision:
    """Judge an alarm. Early by any amount is early; a duplicate finds nothing left to do."""
    if hold.state is not HoldState.HELD:
        return LeaveAlone(hold.hold_id)
    if now < hold.release_at:
        return Wait(hold.hold_id, until=hold.release_at)
    if hold.charged_back or (hold.funding is Funding.CONFIRMED and not hold.funded):
        return AwaitCredit(hold.hold_id)
    return Release(hold, fee_minor(hold.remaining_minor, hold.fee_bps))


def group_by_period(holds: Sequence[NewHold]) -> dict[int, list[UUID]]:
    """Collect hold ids by protection days: one alarm message for each period."""
    periods: dict[int, list[UUID]] = {}
    for hold in holds:
        periods.setdefault(hold.protection_days, []).append(hold.hold_id)
    return periods

"""The events that Holdfast publishes, one model a type. Readers ignore fields that they do not know."""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from msgspec import Struct
from msgspec.json import Encoder
from pydantic import BaseModel, ConfigDict

from schemas.fields import Moment


class OutgoingData(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    TYPE: ClassVar[str]


class HeldPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    hold_id: str
    seller_id: str
    amount: int
    currency: str


class OrderHeld(OutgoingData):
    TYPE: ClassVar[str] = "order.held"
    order_id: str
    event_id: str
    protection_days: int
    release_at: Moment
    funded: bool
    holds: tuple[HeldPart, ...]


class OrderFunded(OutgoingData):
    TYPE: ClassVar[str] = "order.funded"
    order_id: str
    amount: int
    currency: str
    booked_at: Moment


class OrderRejected(OutgoingData):
    TYPE: ClassVar[str] = "order.rejected"
    order_id: str
    event_id: str
    reason: str
    detail: str


class HoldReleased(OutgoingData):
    """`amount` is what became withdrawable; `fee` was kept."""

    TYPE: ClassVar[str] = "hold.released"
    hold_id: str
    order_id: str
    seller_id: str
    amount: int
    fee: int
    currency: str
    released_at: Moment


class _Answer(OutgoingData):
    event_id: str
    reason: str | None = None
    detail: str | None = None


class SellerAccepted(_Answer):
    TYPE: ClassVar[str] = "seller.accepted"
    seller_id: str


class SellerRejected(SellerAccepted):
    TYPE: ClassVar[str] = "seller.rejected"


class WithdrawalAccepted(_Answer):
    TYPE: ClassVar[str] = "withdrawal.accepted"
    withdrawal_id: str
    # Absent only where the request was too broken to read them.
    seller_id: str | None = None
    amount: int | None = None
    currency: str | None = None


class WithdrawalPending(WithdrawalAccepted):
    """The money is set aside; `until` where it goes on by itself, none where people decide."""

    TYPE: ClassVar[str] = "withdrawal.pending"
    until: Moment | None = None


class WithdrawalRejected(WithdrawalAccepted):
    TYPE: ClassVar[str] = "withdrawal.rejected"


class PayoutSubmitted(OutgoingData):
    TYPE: ClassVar[str] = "payout.submitted"
    withdrawal_id: str
    seller_id: str
    amount: int
    currency: str
    end_to_end_id: str
    reason: str | None = None


class PayoutSettled(PayoutSubmitted):
    TYPE: ClassVar[str] = "payout.settled"


class PayoutFailed(PayoutSubmitted):
    TYPE: ClassVar[str] = "payout.failed"


class PayoutReturned(PayoutSubmitted):
    TYPE: ClassVar[str] = "payout.returned"


class HoldFrozen(OutgoingData):
    """`amount` is what the event is about: frozen, freed, or given back to the buyer."""

    TYPE: ClassVar[str] = "hold.frozen"
    hold_id: str
    order_id: str
    seller_id: str
    amount: int
    currency: str
    dispute_id: str | None = None
    refund_id: str | None = None


class HoldUnfrozen(HoldFrozen):
    TYPE: ClassVar[str] = "hold.unfrozen"


class HoldRefunded(HoldFrozen):
    TYPE: ClassVar[str] = "hold.refunded"


class DisputeAccepted(_Answer):
    TYPE: ClassVar[str] = "dispute.accepted"
    dispute_id: str
    order_id: str | None = None


class DisputeRejected(DisputeAccepted):
    TYPE: ClassVar[str] = "dispute.rejected"


class RefundAccepted(_Answer):
    TYPE: ClassVar[str] = "refund.accepted"
    refund_id: str
    order_id: str | None = None


class RefundRejected(RefundAccepted):
    TYPE: ClassVar[str] = "refund.rejected"


class RefundSettled(RefundAccepted):
    TYPE: ClassVar[str] = "refund.settled"


class RefundFailed(RefundAccepted):
    TYPE: ClassVar[str] = "refund.failed"


# What every order has is not made as a model first: its values come from rows that were validated on their
# way in. A test holds each of these to the model of its name.


class UsualHeldPart(Struct, frozen=True, gc=False):
    """What `HeldPart` says."""

    hold_id: UUID
    seller_id: str
    amount: int
    currency: str


class UsualOrderHeld(Struct, frozen=True, gc=False):
    """What `OrderHeld` says; `release_at` is in UTC."""

    order_id: str
    event_id: str
    protection_days: int
    release_at: datetime
    funded: bool
    holds: Sequence[UsualHeldPart]


class UsualHoldReleased(Struct, frozen=True, gc=False):
    """What `HoldReleased` says; `released_at` is in UTC."""

    hold_id: UUID
    order_id: str
    seller_id: str
    amount: int
    fee: int
    currency: str
    released_at: datetime


_ENCODER = Encoder()


def write_usual(data: UsualOrderHeld | UsualHoldReleased) -> str:
    """Write the JSON text that the model would dump."""
    return _ENCODER.encode(data).decode()


OUTGOING: dict[str, type[OutgoingData]] = {
    model.TYPE: model
    for model in (
        OrderHeld,
        OrderFunded,
        OrderRejected,
        HoldReleased,
        SellerAccepted,
        SellerRejected,
        WithdrawalAccepted,
        WithdrawalPending,
        WithdrawalRejected,
        PayoutSubmitted,
        PayoutSettled,
        PayoutFailed,
        PayoutReturned,
        HoldFrozen,
        HoldUnfrozen,
        HoldRefunded,
        DisputeAccepted,
        DisputeRejected,
        RefundAccepted,
        RefundRejected,
        RefundSettled,
        RefundFailed,
    )
}

"""The events that Holdfast publishes, one model a type. Readers ignore fields that they do not know."""

from collections.abc import Sequence
from datetime import datetime
from json.encoder import encode_basestring_ascii as _text
from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from schemas.fields import Moment, format_rfc3339


class OutgoingData(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    TYPE: ClassVar[str]


class HeldPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    hold_id: str
    seller_id: str
    amount: int
    currency: str

    @staticmethod
    def write(*, hold_id: UUID, seller_id: str, amount: int, currency: str) -> str:
        """Write the JSON text of such a part; see `OrderHeld.write`."""
        return (
            f'{{"hold_id":"{hold_id}","seller_id":{_text(seller_id)},"amount":{amount:d},'
            f'"currency":{_text(currency)}}}'
        )


class OrderHeld(OutgoingData):
    TYPE: ClassVar[str] = "order.held"
    order_id: str
    event_id: str
    protection_days: int
    release_at: Moment
    funded: bool
    holds: tuple[HeldPart, ...]

    @staticmethod
    def write(
        *,
        order_id: str,
        event_id: str,
        protection_days: int,
        release_at: datetime,
        funded: bool,
        holds: Sequence[str],
    ) -> str:
        """
        Write the JSON text that the model would dump, without making the model.

        Every order has one, and its values come from rows that were validated on their way in. A test holds
        the two together.
        """
        return (
            f'{{"order_id":{_text(order_id)},"event_id":{_text(event_id)},'
            f'"protection_days":{protection_days:d},"release_at":"{format_rfc3339(release_at)}",'
            f'"funded":{"true" if funded else "false"},"holds":[{",".join(holds)}]}}'
        )


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

    @staticmethod
    def write(
        *,
        hold_id: UUID,
        order_id: str,
        seller_id: str,
        amount: int,
        fee: int,
        currency: str,
        released_at: datetime,
    ) -> str:
        """Write the JSON text that the model would dump; see `OrderHeld.write`."""
        return (
            f'{{"hold_id":"{hold_id}","order_id":{_text(order_id)},"seller_id":{_text(seller_id)},'
            f'"amount":{amount:d},"fee":{fee:d},"currency":{_text(currency)},'
            f'"released_at":"{format_rfc3339(released_at)}"}}'
        )


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

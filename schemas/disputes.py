"""`dispute.opened`, `dispute.resolved` and `refund.requested`: the buyers' platform asks for recourse."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

from annotated_types import Len
from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from schemas.event_data import EventData, Strict
from schemas.fields import MAX_SPLITS, AmountMinor, ExternalId, JsonArray, OneLine, given


class RefundPart(Strict):
    """What goes back to the buyer of one seller's part; minor units."""

    seller_id: ExternalId
    amount: AmountMinor


def _refuse_repeats(sellers: Sequence[str], field: str) -> None:
    if len(set(sellers)) != len(sellers):
        raise PydanticCustomError("repeat", "{field}: each seller may stand only once", {"field": field})


class DisputeOpened(EventData):
    TYPE: ClassVar[str] = "dispute.opened"
    SCOPE: ClassVar[str | None] = "orders"
    SUBJECT: ClassVar[str] = "dispute_id"
    REJECTED: ClassVar[str | None] = "dispute.rejected"

    dispute_id: ExternalId
    order_id: ExternalId
    reason: Annotated[OneLine, Len(1, 200)]
    seller_ids: Annotated[
        Annotated[tuple[ExternalId, ...], Len(1, MAX_SPLITS), JsonArray] | None, BeforeValidator(given)
    ] = None

    @model_validator(mode="after")
    def _each_seller_once(self) -> Self:
        _refuse_repeats(self.seller_ids or (), "seller_ids")
        return self


class DisputeResolved(EventData):
    TYPE: ClassVar[str] = "dispute.resolved"
    SCOPE: ClassVar[str | None] = "orders"
    SUBJECT: ClassVar[str] = "dispute_id"
    REJECTED: ClassVar[str | None] = "dispute.rejected"

    dispute_id: ExternalId
    refunds: Annotated[tuple[RefundPart, ...], Len(0, MAX_SPLITS), JsonArray]

    @model_validator(mode="after")
    def _each_seller_once(self) -> Self:
        _refuse_repeats([refund.seller_id for refund in self.refunds], "refunds")
        return self


class RefundRequested(EventData):
    TYPE: ClassVar[str] = "refund.requested"
    SCOPE: ClassVar[str | None] = "orders"
    SUBJECT: ClassVar[str] = "refund_id"
    REJECTED: ClassVar[str | None] = "refund.rejected"

    refund_id: ExternalId
    order_id: ExternalId
    refunds: Annotated[tuple[RefundPart, ...], Len(1, MAX_SPLITS), JsonArray]

    @model_validator(mode="after")
    def _each_seller_once(self) -> Self:
        _refuse_repeats([refund.seller_id for refund in self.refunds], "refunds")
        return self

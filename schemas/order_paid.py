"""`order.paid`: a buyer has paid for an order, says the shop."""

import json
from typing import Annotated, ClassVar, Self

from annotated_types import Len
from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from schemas.event_data import EventData, Strict
from schemas.fields import (
    MAX_SPLITS,
    AmountMinor,
    BankReference,
    CurrencyCode,
    ExternalId,
    Instant,
    JsonArray,
    ProtectionDays,
    given,
)


class Split(Strict):
    seller_id: ExternalId
    amount: AmountMinor


class OrderPaid(EventData):
    """Amounts are minor units; the splits add up to the amount, each seller once."""

    TYPE: ClassVar[str] = "order.paid"
    SCOPE: ClassVar[str | None] = "orders"
    SUBJECT: ClassVar[str] = "order_id"
    REJECTED: ClassVar[str | None] = "order.rejected"

    order_id: ExternalId
    buyer_id: ExternalId
    amount: AmountMinor
    currency: CurrencyCode
    paid_at: Instant
    bank_reference: BankReference
    splits: Annotated[tuple[Split, ...], Len(1, MAX_SPLITS), JsonArray]
    protection_days: Annotated[ProtectionDays | None, BeforeValidator(given)] = None

    @model_validator(mode="after")
    def _splits_make_the_amount(self) -> Self:
        splits = self.splits
        if len(splits) > 1 and len({split.seller_id for split in splits}) != len(splits):
            raise PydanticCustomError("splits", "splits: each seller may stand only once")
        total = sum([split.amount for split in splits])
        if total != self.amount:
            raise PydanticCustomError(
                "splits",
                "splits: they add up to {total}, not to the amount {amount}",
                {"total": total, "amount": self.amount},
            )
        return self

    def splits_json(self) -> str:
        """Write the splits as they are kept, compact JSON."""
        return json.dumps([split.model_dump() for split in self.splits], separators=(",", ":"))

"""`bank.debited`: the bank took a credit back."""

from typing import Annotated, ClassVar

from annotated_types import Len

from schemas.event_data import EventData
from schemas.fields import AmountMinor, BankReference, CurrencyCode, ExternalId, Instant, OneLine


class BankDebited(EventData):
    TYPE: ClassVar[str] = "bank.debited"
    SCOPE: ClassVar[str | None] = None
    SUBJECT: ClassVar[str] = "statement_line"
    REJECTED: ClassVar[str | None] = None

    bank_reference: BankReference
    amount: AmountMinor
    currency: CurrencyCode
    booked_at: Instant
    statement_line: ExternalId
    reason: Annotated[OneLine, Len(1, 200)]

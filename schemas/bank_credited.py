"""`bank.credited`: money arrived at the bank, says the bank."""

from typing import ClassVar

from schemas.event_data import EventData
from schemas.fields import AmountMinor, BankReference, CurrencyCode, ExternalId, Instant


class BankCredited(EventData):
    """One line of a statement; `statement_line` is unique per bank."""

    TYPE: ClassVar[str] = "bank.credited"
    SCOPE: ClassVar[str | None] = None
    SUBJECT: ClassVar[str] = "statement_line"
    REJECTED: ClassVar[str | None] = None

    bank_reference: BankReference
    amount: AmountMinor
    currency: CurrencyCode
    booked_at: Instant
    statement_line: ExternalId

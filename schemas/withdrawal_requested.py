"""`withdrawal.requested`: a seller takes money out, with the withdrawal password."""

from typing import ClassVar

from schemas.event_data import EventData, Strict
from schemas.fields import AmountMinor, CurrencyCode, ExternalId, OwnerId, Password, SealedToken


class WithdrawalRequested(EventData):
    TYPE: ClassVar[str] = "withdrawal.requested"
    SCOPE: ClassVar[str | None] = "sellers"
    SUBJECT: ClassVar[str] = "withdrawal_id"
    REJECTED: ClassVar[str | None] = "withdrawal.rejected"

    withdrawal_id: ExternalId
    seller_id: ExternalId
    amount: AmountMinor
    currency: CurrencyCode
    destination_id: ExternalId
    sealed: SealedToken


class SealedWithdrawal(Strict):
    """Inside `sealed`: the whole request again, so a sealed password is good for exactly this one."""

    shop_id: OwnerId
    event_id: ExternalId
    withdrawal_id: ExternalId
    seller_id: ExternalId
    amount: AmountMinor
    currency: CurrencyCode
    destination_id: ExternalId
    password: Password

"""`seller.password_changed`: the seller replaces the withdrawal password, knowing the old one."""

from typing import ClassVar

from schemas.event_data import EventData, Strict
from schemas.fields import ExternalId, OwnerId, Password, SealedToken


class SellerPasswordChanged(EventData):
    TYPE: ClassVar[str] = "seller.password_changed"
    SCOPE: ClassVar[str | None] = "sellers"
    SUBJECT: ClassVar[str] = "seller_id"
    REJECTED: ClassVar[str | None] = "seller.rejected"

    seller_id: ExternalId
    sealed: SealedToken


class SealedPasswordChange(Strict):
    """Inside `sealed`; what also stands outside must be equal."""

    shop_id: OwnerId
    event_id: ExternalId
    seller_id: ExternalId
    old_password: Password
    new_password: Password

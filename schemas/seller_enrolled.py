"""`seller.enrolled`: a seller gets a withdrawal password and a destination, or one more destination."""

from typing import Annotated, ClassVar, Literal

from annotated_types import Len
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from schwifty import IBAN
from schwifty.exceptions import SchwiftyException

from schemas.event_data import EventData, Strict
from schemas.fields import ExternalId, OneLine, OwnerId, Password, SealedToken


def _valid_iban(text: str) -> str:
    try:
        return str(IBAN(text).compact)
    except (SchwiftyException, ValueError):
        # `from None`: the library's error repeats the account.
        raise PydanticCustomError("iban", "Input should be a valid IBAN") from None


HolderName = Annotated[OneLine, Len(1, 140)]  # ISO 20022's Max140Text


class IbanDestination(Strict):
    type: Literal["iban"]
    iban: Annotated[str, Field(strict=True, max_length=50), AfterValidator(_valid_iban)]
    holder_name: HolderName


class BankAccountDestination(Strict):
    type: Literal["bank_account"]
    country: Annotated[str, Field(strict=True, pattern=r"^[A-Z]{2}$")]
    bank_code: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9-]{1,35}$")]
    account_number: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9-]{1,34}$")]
    holder_name: HolderName


Destination = Annotated[IbanDestination | BankAccountDestination, Field(discriminator="type")]


class SellerEnrolled(EventData):
    TYPE: ClassVar[str] = "seller.enrolled"
    SCOPE: ClassVar[str | None] = "sellers"
    SUBJECT: ClassVar[str] = "seller_id"
    REJECTED: ClassVar[str | None] = "seller.rejected"

    seller_id: ExternalId
    destination_id: ExternalId
    sealed: SealedToken


class SealedEnrolment(Strict):
    """Inside `sealed`; what also stands outside must be equal."""

    shop_id: OwnerId
    event_id: ExternalId
    seller_id: ExternalId
    destination_id: ExternalId
    password: Password
    destination: Destination

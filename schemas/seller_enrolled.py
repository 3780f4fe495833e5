"""`seller.enrolled`: a seller gets a withdrawal password and a destination, or one more destination."""

import re
from typing import Annotated, ClassVar, Literal

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from schwifty import IBAN
from schwifty.exceptions import SchwiftyException

from schemas.event_data import EventData, Strict
from schemas.fields import ExternalId, OneLine, OwnerId, Password, SealedToken

# An IBAN as people write it. schwifty would also swallow line breaks and other space.
_IBAN_TEXT = re.compile(r"[A-Za-z0-9 ]+")


def _valid_iban(text: str) -> str:
    if _IBAN_TEXT.fullmatch(text) is not None:
        try:
            return str(IBAN(text).compact)
        except (SchwiftyException, ValueError):
            pass  # its sentence repeats the account, so it must not even be our error's context
    raise PydanticCustomError("iban", "Input should be a valid IBAN")


HolderName = Annotated[OneLine, Len(1, 140)]  # ISO 20022's Max140Text


class IbanDestination(Strict):
    type: Literal["iban"]
    iban: Annotated[str, Field(strict=True, max_length=50, repr=False), AfterValidator(_valid_iban)]
    holder_name: HolderName


class BankAccountDestination(Strict):
    type: Literal["bank_account"]
    country: Annotated[str, Field(strict=True, pattern=r"^[A-Z]{2}$")]
    bank_code: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9-]{1,35}$")]
    account_number: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9-]{1,34}$", repr=False)]
    holder_name: HolderName


def _known_type(value: object) -> object:
    # Pydantic's own sentence about an unknown type repeats the sealed value.
    if not isinstance(value, dict) or value.get("type") not in ("iban", "bank_account"):
        raise PydanticCustomError("destination_type", "Input should have the type iban or bank_account")
    return value


Destination = Annotated[
    IbanDestination | BankAccountDestination, Field(discriminator="type"), BeforeValidator(_known_type)
]


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

"""What the bank accepts over HTTP, checked field by field, and how it says no."""

import hashlib
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len
from pydantic import Field, TypeAdapter, ValidationError

from schemas.event_data import Strict
from schemas.fields import AmountMinor, BankReference, CurrencyCode, ExternalId, OneLine
from schemas.seller_enrolled import BankAccountDestination, IbanDestination

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_LINES = 10_000
_MAX_DELAY_SECONDS = 30 * 86_400

# The bank's codes are ISO 20022's: closed account, blocked account, and a debit on the debtor's request.
ACCOUNT_CLOSED = "AC04"
ACCOUNT_BLOCKED = "AC06"
REFUND_REQUESTED = "MD06"

# ISO 20022's Max35Text, in the characters that every payment system takes.
EndToEndId = BankReference
ReasonCode = Annotated[OneLine, Len(1, 35)]


class Behaviour(StrEnum):
    """What happens to a transfer that comes in."""

    SETTLE = "settle"
    REJECT = "reject"
    LATE = "late"
    TIME_OUT_AFTER_ACCEPTING = "time_out_after_accepting"
    RETURN_AFTER_SETTLING = "return_after_settling"


class ReturnOfCredit(Strict):
    """Where money goes that a buyer gets back: to the account that the credit came from."""

    type: Literal["return_of_credit"]
    bank_reference: BankReference


class TransferRequest(Strict):
    end_to_end_id: EndToEndId
    amount: AmountMinor
    currency: CurrencyCode
    destination_id: ExternalId
    destination: Annotated[
        IbanDestination | BankAccountDestination | ReturnOfCredit, Field(discriminator="type")
    ]

    def content_hash(self) -> str:
        """Return SHA-256 of the values: the same transfer asked for again has the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def destination_names(self) -> tuple[str, ...]:
        """All that a behaviour may be set for: our client's name of the account, and the account."""
        match self.destination:
            case IbanDestination(iban=account) | BankAccountDestination(account_number=account):
                return self.destination_id, account
            case ReturnOfCredit(bank_reference=reference):
                return self.destination_id, reference


class BehaviourRequest(Strict):
    """`destination` is a destination_id, an IBAN or an account number; without it, all others."""

    behaviour: Behaviour
    destination: Annotated[OneLine, Len(1, 64)] | None = None
    delay_seconds: Annotated[float, Field(ge=0, le=_MAX_DELAY_SECONDS, strict=False)] = 2.0
    reason: ReasonCode | None = None

    @property
    def reason_code(self) -> str:
        return self.reason or (ACCOUNT_CLOSED if self.behaviour is Behaviour.REJECT else ACCOUNT_BLOCKED)


class CreditRequest(Strict):
    bank_reference: BankReference
    amount: AmountMinor
    currency: CurrencyCode


class DebitRequest(CreditRequest):
    reason: Annotated[OneLine, Len(1, 200)] = REFUND_REQUESTED


class Refused(Exception):
    """The bank did not do what it was asked for."""

    def __init__(self, status: HTTPStatus, error: str, reason: str, **facts: str) -> None:
        super().__init__(f"{error}: {reason}")
        self.status = status
        self.body = {"error": error, "reason": reason, **facts}


RequestT = TypeVar("RequestT")

TRANSFER: TypeAdapter[TransferRequest] = TypeAdapter(TransferRequest)
BEHAVIOUR: TypeAdapter[BehaviourRequest] = TypeAdapter(BehaviourRequest)
CREDITS: TypeAdapter[list[CreditRequest]] = TypeAdapter(Annotated[list[CreditRequest], Len(1, MAX_LINES)])
DEBITS: TypeAdapter[list[DebitRequest]] = TypeAdapter(Annotated[list[DebitRequest], Len(1, MAX_LINES)])


def read_request(kind: TypeAdapter[RequestT], body: bytes) -> RequestT:
    """
    Read a request's JSON.

    Raises:
        Refused: 400; names the field and says what is wrong with it.
    """
    try:
        return kind.validate_json(body)
    except ValidationError as error:
        problem: Any = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "body"
        raise invalid(field, problem["msg"]) from None


def invalid(field: str, reason: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "invalid_request", reason, field=field)

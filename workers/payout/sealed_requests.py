"""Open what sellers sealed, and hold it against what stands outside the seal."""

from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from infra.security.sealed import Opener, SealedRefused
from schemas.event_data import Strict
from schemas.seller_enrolled import SealedEnrolment, SellerEnrolled
from schemas.seller_password_changed import SealedPasswordChange, SellerPasswordChanged
from schemas.withdrawal_requested import SealedWithdrawal, WithdrawalRequested

SealedRequest = SellerEnrolled | SellerPasswordChanged | WithdrawalRequested
SealedContent = SealedEnrolment | SealedPasswordChange | SealedWithdrawal

_CONTENT: dict[type[SealedRequest], type[SealedContent]] = {
    SellerEnrolled: SealedEnrolment,
    SellerPasswordChanged: SealedPasswordChange,
    WithdrawalRequested: SealedWithdrawal,
}

ContentT = TypeVar("ContentT", bound=Strict)


class SealedProblem(ValueError):
    """What is sealed can't be used; the sentence names the field and never the content."""


def check_sealed(
    opener: Callable[[], Opener], request: SealedRequest, *, shop_id: str, event_id: str
) -> str | None:
    """Return what is wrong with the sealed part of a request, None if nothing is."""
    try:
        content = open_sealed(opener(), request.sealed, _CONTENT[type(request)])
    except SealedProblem as problem:
        return str(problem)
    outside = {"shop_id": shop_id, "event_id": event_id, **request.model_dump(exclude={"sealed"})}
    inside = content.model_dump(include=set(outside))
    for name, value in outside.items():
        if inside.get(name) != value:
            return f"sealed.{name}: differs from what stands outside"
    return None


def open_sealed(opener: Opener, token: str, kind: type[ContentT]) -> ContentT:
    """
    Decrypt and read sealed content.

    Raises:
        SealedProblem: it does not open, or is not of that kind.
    """
    try:
        plaintext = opener.open(token)
    except SealedRefused as error:
        raise SealedProblem(f"sealed: {error.detail}") from None
    try:
        return kind.model_validate_json(plaintext)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"] if part in kind.model_fields)
        raise SealedProblem(f"sealed.{path}: {first['msg']}" if path else f"sealed: {first['msg']}") from None

"""From an envelope's raw `data` to the model of its type, or to what is wrong with it."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from schemas.bank_credited import BankCredited
from schemas.bank_debited import BankDebited
from schemas.disputes import DisputeOpened, DisputeResolved, RefundRequested
from schemas.envelope import AmbiguousData
from schemas.event_data import EventData
from schemas.fields import EXTERNAL_ID_PATTERN
from schemas.order_paid import OrderPaid
from schemas.seller_enrolled import SellerEnrolled
from schemas.seller_password_changed import SellerPasswordChanged
from schemas.withdrawal_requested import WithdrawalRequested

INBOUND: dict[str, type[EventData]] = {
    model.TYPE: model
    for model in (
        OrderPaid,
        BankCredited,
        BankDebited,
        SellerEnrolled,
        SellerPasswordChanged,
        WithdrawalRequested,
        DisputeOpened,
        DisputeResolved,
        RefundRequested,
    )
}

_EXTERNAL_ID = re.compile(EXTERNAL_ID_PATTERN.removesuffix("$") + r"\Z")
_MAX_DETAIL = 300


@dataclass(frozen=True, slots=True)
class InvalidData:
    """
    `data` that its type's schema refuses.

    `detail` names the field and the reason and never repeats the value; `subject_id` is the id that a
    reply can name, None where even that can't be read.
    """

    detail: str
    subject_id: str | None


def validate_data(type_: str, data: object) -> EventData | InvalidData:
    """
    Judge an event's `data` by its type's schema.

    Raises:
        KeyError: no such type; ask `INBOUND` first.
    """
    model = INBOUND[type_]
    if isinstance(data, AmbiguousData):
        keys = tuple(sorted(data.repeated))
        subject = None if model.SUBJECT in data.repeated else _subject(model, data)
        return InvalidData(_detail(keys[:1], "Key stands twice in one object"), subject)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        return InvalidData(_detail(first["loc"], first["msg"]), _subject(model, data))
    except RecursionError:
        return InvalidData("data: nested too deeply", _subject(model, data))


def hash_of_raw(type_: str, data: object) -> bytes:
    """Return a hash of data that has no validated content, so that a repeat is known as one."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"raw:{type_}\n{canonical}".encode()).digest()


def _detail(location: tuple[int | str, ...], message: str) -> str:
    # An extra field's name is the sender's own text: show it as printable ASCII only.
    path = ".".join(str(part) for part in location)
    safe = path.encode("ascii", "backslashreplace").decode()
    safe = "".join(character if character.isprintable() else "?" for character in safe)[:128]
    text = f"{safe}: {message}" if safe else message
    return text[:_MAX_DETAIL]


def _subject(model: type[EventData], data: Any) -> str | None:  # noqa: ANN401 - any JSON value
    value = data.get(model.SUBJECT) if isinstance(data, dict) else None
    return value if isinstance(value, str) and _EXTERNAL_ID.match(value) else None

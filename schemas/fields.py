"""
The kinds of value that messages are made of.

Each type checks on its own, whatever model it stands in: an integer is never a float, a string or a
boolean, and a string is never anything else.
"""

import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    Strict,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from schemas.currencies import CURRENCY_DIGITS

MAX_AMOUNT_MINOR: Final = 10**15
MAX_SPLITS: Final = 64
MIN_PROTECTION_DAYS: Final = 3
MAX_PROTECTION_DAYS: Final = 7
MIN_PASSWORD_LENGTH: Final = 8
MAX_PASSWORD_LENGTH: Final = 128
# NFC shortens text, by a few code points to one at most; what is longer than this is not worth normalising.
_MAX_PASSWORD_INPUT: Final = 8 * MAX_PASSWORD_LENGTH
MAX_SEALED_LENGTH: Final = 16_384

EXTERNAL_ID_PATTERN: Final = r"^[ -~]{1,64}$"
OWNER_ID_PATTERN: Final = r"^[a-z0-9-]{1,64}$"

BANK_REFERENCE_PATTERN: Final = r"^[A-Za-z0-9/?:().,'+ -]{1,35}$"
RFC_3339_PATTERN: Final = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_RFC_3339 = re.compile(RFC_3339_PATTERN)


def unanchored(pattern: str) -> str:
    """Return a pattern without its ends, to be a part of a larger one."""
    return pattern.removeprefix("^").removesuffix("$")


def parse_rfc3339(text: str) -> datetime:
    """
    Read an RFC 3339 time as an instant in UTC; digits below the microsecond are cut off.

    Raises:
        ValueError: no such form, no offset, no such date, or outside the years 1 to 9999.
    """
    if _RFC_3339.fullmatch(text) is None:
        raise ValueError("not an RFC 3339 time with an offset")
    try:
        return instant_of(text)
    except OverflowError as error:
        raise ValueError("outside the years 1 to 9999 in UTC") from error


def instant_of(text: str) -> datetime:
    """
    Return the instant in UTC that a text of RFC 3339's form names.

    Raises:
        ValueError: there is no such date or time.
        OverflowError: it is outside the years 1 to 9999.
    """
    instant = datetime.fromisoformat(text.upper())
    return instant if instant.tzinfo is UTC else instant.astimezone(UTC)


def _instant(value: object) -> datetime:
    if isinstance(value, str):
        try:
            return parse_rfc3339(value)
        except ValueError:
            pass
    raise PydanticCustomError("rfc3339", "Input should be an RFC 3339 time with an offset")


def _in_utc(value: datetime) -> datetime:
    if value.utcoffset() is None:
        raise PydanticCustomError("naive_time", "Input should have an offset")
    return value.astimezone(UTC)


@lru_cache(maxsize=4096)
def format_rfc3339(instant: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC. A batch says the same few times again and again."""
    return _in_utc(instant).isoformat().replace("+00:00", "Z")


def _known_currency(code: str) -> str:
    if code not in CURRENCY_DIGITS:
        raise PydanticCustomError(
            "currency", "Input should be an ISO 4217 code of a currency with a minor unit"
        )
    return code


def _one_line(text: str) -> str:
    # Control characters and line separators forge log lines and statement rows; PostgreSQL refuses NUL.
    # A lone surrogate (Cs), which JSON's escapes can spell, has no UTF-8: nothing could hash or store it.
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text):
        raise PydanticCustomError("one_line", "Input should hold no control characters or line breaks")
    return text


def _password(value: object) -> SecretStr:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        raise PydanticCustomError("password_type", "Input should be a string")
    if len(value) > _MAX_PASSWORD_INPUT:
        raise PydanticCustomError("password_length", "Input should have 8 to 128 characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        # `from None`: the codec's error holds the password.
        raise PydanticCustomError("password_text", "Input should be Unicode text") from None
    normalised = unicodedata.normalize("NFC", value)
    if not MIN_PASSWORD_LENGTH <= len(normalised) <= MAX_PASSWORD_LENGTH:
        raise PydanticCustomError("password_length", "Input should have 8 to 128 characters")
    return SecretStr(normalised)


def given(value: object) -> object:
    """Refuse null where a field may be left out: absent is the one way to say nothing."""
    if value is None:
        raise PydanticCustomError("null", "Input should not be null; leave the field out")
    return value


ExternalId = Annotated[str, Field(strict=True, pattern=EXTERNAL_ID_PATTERN)]
OwnerId = Annotated[str, Field(strict=True, pattern=OWNER_ID_PATTERN)]
AmountMinor = Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT_MINOR)]
CurrencyCode = Annotated[str, Field(strict=True, pattern=r"^[A-Z]{3}$"), AfterValidator(_known_currency)]
BankReference = Annotated[str, Field(strict=True, pattern=BANK_REFERENCE_PATTERN)]
ProtectionDays = Annotated[int, Field(strict=True, ge=MIN_PROTECTION_DAYS, le=MAX_PROTECTION_DAYS)]
# Many validators take `format` as a remark only; the pattern holds everybody to it.
INSTANT_SCHEMA: Final[dict[str, str]] = {
    "type": "string",
    "format": "date-time",
    "pattern": f"^{RFC_3339_PATTERN}$",
}
# An instant: RFC 3339 text with an offset on the way in, a UTC datetime inside, RFC 3339 on the way out.
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(format_rfc3339, return_type=str),
    WithJsonSchema(INSTANT_SCHEMA),
]
# The same for what we build ourselves from the database's times.
Moment = Annotated[
    datetime,
    AfterValidator(_in_utc),
    PlainSerializer(format_rfc3339, return_type=str),
    WithJsonSchema(INSTANT_SCHEMA),
]
SealedToken = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]+$", max_length=MAX_SEALED_LENGTH)]
OneLine = Annotated[str, Field(strict=True), AfterValidator(_one_line)]
Password = Annotated[
    SecretStr,
    # Plain: in JSON mode a strict SecretStr would refuse the SecretStr that this makes.
    PlainValidator(_password),
    WithJsonSchema({"type": "string", "minLength": MIN_PASSWORD_LENGTH, "maxLength": MAX_PASSWORD_LENGTH}),
]
# JSON has arrays only: a list becomes the tuple that a frozen model keeps. Its items stay strict.
JsonArray = Strict(strict=False)

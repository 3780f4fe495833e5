"""Options and arguments that several commands share, with the checks that make a wrong value bad usage."""

import getpass
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from infra.security.signatures import InvalidKey, Scheme, parse_ed25519_public, parse_hmac_secret
from ledger.names import person
from ops.failures import BadUsage
from schemas.currencies import CURRENCY_DIGITS
from schemas.fields import EXTERNAL_ID_PATTERN, OWNER_ID_PATTERN, parse_rfc3339

_STANDARD_INPUT = "-"
_MAX_FILE_CHARACTERS = 4096
_OWNER_ID = re.compile(OWNER_ID_PATTERN.removesuffix("$") + r"\Z")
_EXTERNAL_ID = re.compile(EXTERNAL_ID_PATTERN.removesuffix("$") + r"\Z")


def owner_id(value: str | None) -> str | None:
    """Check a shop's or bank's id; a wrong one is bad usage."""
    if value is not None and not _OWNER_ID.match(value):
        raise typer.BadParameter("1 to 64 characters a-z, 0-9 and '-'")
    return value


def external_id(value: str | None) -> str | None:
    """Check an id that a shop has made; for options and arguments of a command's own."""
    if value is not None and not _EXTERNAL_ID.match(value):
        raise typer.BadParameter("1 to 64 printable ASCII characters")
    return value


def currency_code(value: str | None) -> str | None:
    """Check an ISO 4217 code; for options of a command's own."""
    if value is not None and value not in CURRENCY_DIGITS:
        raise typer.BadParameter("an ISO 4217 code such as EUR")
    return value


def parse_instant(value: str) -> datetime:
    """Read an RFC 3339 time; a wrong one is bad usage."""
    try:
        return parse_rfc3339(value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, such as 2026-11-23T08:00:00Z") from None


def current_operator() -> str:
    """Return who acts, where nobody is named: the user of this shell."""
    return os.environ.get("USER") or getpass.getuser()


def _given_text(value: str) -> str:
    if not value.strip():
        raise typer.BadParameter("must not be empty")
    return value.strip()


def _given_name(value: str) -> str:
    if not person(value):
        raise typer.BadParameter("must be somebody's name")
    return value.strip()


def _given_second_name(value: str | None) -> str | None:
    return None if value is None else _given_name(value)


ShopArgument = Annotated[str, typer.Argument(metavar="SHOP", help="The shop's id.", callback=owner_id)]
SellerArgument = Annotated[
    str, typer.Argument(metavar="SELLER", help="The seller's id.", callback=external_id)
]
WithdrawalArgument = Annotated[
    str, typer.Argument(metavar="WITHDRAWAL", help="The withdrawal's id.", callback=external_id)
]
OptionalShopOption = Annotated[str | None, typer.Option("--shop", help="Only this shop.", callback=owner_id)]
ShopOption = Annotated[str, typer.Option("--shop", help="The shop's id.", callback=owner_id)]
BankArgument = Annotated[str, typer.Argument(metavar="BANK", help="The bank's id.", callback=owner_id)]
SellerOption = Annotated[
    str | None, typer.Option("--seller", help="One seller of the shop.", callback=external_id)
]
OrderOption = Annotated[str | None, typer.Option("--order", help="An order's id.", callback=external_id)]
WithdrawalOption = Annotated[
    str | None, typer.Option("--withdrawal", help="A withdrawal's id.", callback=external_id)
]
SinceOption = Annotated[
    datetime,
    typer.Option(
        "--since", help="From this time on (RFC 3339 with an offset).", parser=parse_instant, metavar="T"
    ),
]
FromOption = Annotated[
    datetime,
    typer.Option("--from", help="From this time on, included (RFC 3339).", parser=parse_instant, metavar="T"),
]
ToOption = Annotated[
    datetime,
    typer.Option("--to", help="Up to this time, excluded (RFC 3339).", parser=parse_instant, metavar="T"),
]
AsOfOption = Annotated[
    datetime | None,
    typer.Option("--as-of", help="By what was booked before this time.", parser=parse_instant, metavar="T"),
]
NotBeforeOption = Annotated[
    datetime | None,
    typer.Option("--not-before", help="Good from then on (RFC 3339).", parser=parse_instant, metavar="T"),
]
NotAfterOption = Annotated[
    datetime | None,
    typer.Option("--not-after", help="Good until this time (RFC 3339).", parser=parse_instant, metavar="T"),
]
EndOption = Annotated[
    datetime,
    typer.Option("--at", help="Good until this time (RFC 3339).", parser=parse_instant, metavar="T"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
OperatorOption = Annotated[
    str,
    typer.Option(
        "--operator",
        "--by",
        help="Who acts; kept on record.",
        default_factory=current_operator,
        show_default="$USER",
        callback=_given_name,
    ),
]
WhyOption = Annotated[str, typer.Option("--why", help="Why; kept on record.")]
RequiredWhyOption = Annotated[str, typer.Option("--why", help="Why; kept on record.", callback=_given_text)]
# For commands in which `--reason` can mean nothing else.
RequiredReasonOption = Annotated[
    str, typer.Option("--why", "--reason", help="Why; kept on record.", callback=_given_text)
]
SecondOperatorOption = Annotated[
    str | None,
    typer.Option(
        "--second-operator",
        help="Who else agreed; needed above the limit.",
        callback=_given_second_name,
    ),
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")]
Ed25519Option = Annotated[
    str | None,
    typer.Option("--ed25519", metavar="BASE64", help="The raw public key in base64; - reads standard input."),
]
HmacFileOption = Annotated[
    str | None,
    typer.Option("--hmac-file", metavar="FILE", help="A file that holds whsec_...; - reads standard input."),
]


def read_key(ed25519: str | None, hmac_file: str | None) -> tuple[Scheme, bytes]:
    """
    Read key material from the two options, of which exactly one is given.

    Raises:
        BadUsage: none or both, an unreadable file, or no usable key. Never repeats the material.
    """
    try:
        match (ed25519, hmac_file):
            case (str(text), None):
                if text == _STANDARD_INPUT:
                    text = sys.stdin.read(_MAX_FILE_CHARACTERS)
                return Scheme.ED25519, parse_ed25519_public(text)
            case (None, str(path)):
                return Scheme.HMAC_SHA256, parse_hmac_secret(read_text_file(path))
            case _:
                raise BadUsage("give one key: --ed25519 BASE64 or --hmac-file FILE")
    except InvalidKey as error:
        raise BadUsage(str(error)) from None


def read_text_file(path: str) -> str:
    """
    Read a small file, or standard input where the path is `-`.

    Raises:
        BadUsage: it can't be read, or is no text.
    """
    if path == _STANDARD_INPUT:
        return sys.stdin.read(_MAX_FILE_CHARACTERS)
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(_MAX_FILE_CHARACTERS)
    except OSError as error:
        raise BadUsage(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise BadUsage(f"{path} is no text") from None

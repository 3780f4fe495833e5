"""
The commands that our own queues carry.

A command names rows that are committed and says nothing else about them: a forged one can do nothing
that the rows do not already allow.
"""

from typing import Annotated, ClassVar, TypeVar
from uuid import UUID

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_IDS = 512

Ids = Annotated[tuple[UUID, ...], Len(1, MAX_IDS)]

# Bounded, because whoever computes a wait from it must not be handed a number of a thousand digits.
Tries = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]


class MalformedCommand(ValueError):
    """A message on one of our own queues is none of our commands; another try cannot help."""


class Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    NAME: ClassVar[str]


class HoldFunds(Command):
    NAME: ClassVar[str] = "hold_funds"
    payment_ids: Ids


class ReleaseHold(Command):
    NAME: ClassVar[str] = "release_hold"
    hold_ids: Ids


class MatchCredits(Command):
    NAME: ClassVar[str] = "match_credits"
    credit_ids: Ids


class CheckPassword(Command):
    NAME: ClassVar[str] = "check_password"
    attempt_ids: Ids


class ResumeWithdrawal(Command):
    """Let withdrawals go on that have waited for their cooling-off."""

    NAME: ClassVar[str] = "resume_withdrawal"
    payout_ids: Ids


class SubmitTransfer(Command):
    NAME: ClassVar[str] = "submit_transfer"
    payout_ids: Ids


class CheckTransfer(Command):
    """Ask the bank; `tries` says how often it was asked already, which sets the next wait."""

    NAME: ClassVar[str] = "check_transfer"
    payout_ids: Ids
    tries: Tries = 0


class SubmitRefund(Command):
    NAME: ClassVar[str] = "submit_refund"
    refund_keys: Ids


class CheckRefund(Command):
    """Ask the bank what became of a refund; `tries` as for transfers."""

    NAME: ClassVar[str] = "check_refund"
    refund_keys: Ids
    tries: Tries = 0


class SettleClaims(Command):
    """Claim from sellers what was released of payments that the bank took back, or give it back to them."""

    NAME: ClassVar[str] = "settle_claims"
    payment_ids: Ids


class CollectReturns(Command):
    """Ask the bank which settled transfers came back."""

    NAME: ClassVar[str] = "collect_returns"


COMMANDS: dict[str, type[Command]] = {
    command.NAME: command
    for command in (
        HoldFunds,
        ReleaseHold,
        MatchCredits,
        CheckPassword,
        ResumeWithdrawal,
        SubmitTransfer,
        CheckTransfer,
        SettleClaims,
        SubmitRefund,
        CheckRefund,
        CollectReturns,
    )
}


CommandT = TypeVar("CommandT", bound=Command)


def decode_command(kind: type[CommandT], body: bytes) -> CommandT:
    """
    Read a command's JSON.

    Raises:
        MalformedCommand: it is none of that kind; the sentence names the field.
    """
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # An extra field's name, and a character of a bad id, are somebody's own: one bounded line of ASCII.
        where = ".".join(str(part) for part in first["loc"])[:128] or "body"
        shown = ascii(f"{where}: {first['msg']}")[1:-1][:300]
        raise MalformedCommand(f"{kind.NAME}: {shown}") from None

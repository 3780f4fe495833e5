"""`holdfast seller reset-password`: a forgotten withdrawal password, replaced on two operators' word."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy import Connection, text

from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed
from ops.options import OperatorOption, RequiredReasonOption, SellerArgument, ShopArgument, external_id
from ops.output import say
from ops.store.actions import Action, record_actions
from ops.store.password_resets import (
    ASKED_WITHIN,
    Asked,
    Reset,
    cancel_resets,
    count_waiting,
    find_asked,
    find_reset,
    open_reset,
    propose_reset,
)
from ops.store.sellers import Lock, lock_seller
from ops.store.senders import is_shop
from schemas.reasons import Reason
from schemas.seller_enrolled import SellerEnrolled
from schemas.seller_password_changed import SellerPasswordChanged
from workers.payout.decisions import Proposal, ReviewStep, Verdict, decide_review

_ASKING_TYPES = {SellerEnrolled.TYPE, SellerPasswordChanged.TYPE}
_ASKING_REASONS = {Reason.WRONG_PASSWORD, Reason.LOCKED}


@dataclass(frozen=True, slots=True)
class _Word:
    """What one operator says about one seller, in one transaction."""

    connection: Connection
    shop: str
    seller: str
    why: str
    by: str
    now: datetime

    def record(self, action: str, details: Mapping[str, object]) -> None:
        subject = f"{self.shop}/{self.seller}"
        record_actions(self.connection, [Action(self.by, action, subject, self.why, details)])


EventOption = Annotated[
    str | None,
    typer.Option(
        "--event",
        metavar="ID",
        help="The platform's own event that asks: a seller.enrolled with the new password, refused.",
        callback=external_id,
    ),
]


def reset_password(
    shop: ShopArgument,
    seller: SellerArgument,
    why: RequiredReasonOption,
    operator: OperatorOption,
    event: EventOption = None,
    *,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End what was proposed, or is open; one name is enough.")
    ] = False,
) -> None:
    """
    Let a seller who has forgotten the withdrawal password enrol anew.

    It takes two names, and an event by which the seller's platform has asked. From the second name on the old
    password is good for nothing, and the next seller.enrolled sets a new one, which cools off. Make sure,
    outside Holdfast, that the seller is who asks.
    """
    if cancel == (event is not None):
        raise BadUsage("give either --event ID or --cancel")
    with Environment(Need.DATABASE).changing() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        lock = lock_seller(connection, shop, seller)
        if lock is None:
            raise CommandFailed(f"shop {shop} has no seller {seller}")
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        word = _Word(connection, shop, seller, why, operator, now)
        sentence = _cancel(word) if event is None else _agree(word, event, lock)
    say(f"seller {seller} of {shop}: {sentence}")


def judge_asking(asked: Asked | None, *, seller: str, lock: Lock, now: datetime) -> str | None:
    """Return why an event does not show that the platform has asked for this; None if it does."""
    if asked is None:
        return "no such event has come from that shop"
    if asked.type not in _ASKING_TYPES or asked.seller_id != seller or asked.reason not in _ASKING_REASONS:
        return (
            "that is no event of this seller's platform that was refused for its password: the platform"
            " publishes seller.enrolled with the new one, and tells you its id"
        )
    if asked.received_at <= lock.password_changed_at:
        return "the password was changed since that event: the platform has to ask again"
    if asked.received_at < now - ASKED_WITHIN:
        return f"that event is more than {ASKED_WITHIN.days} days old: the platform has to ask again"
    return None


def _agree(word: _Word, event: str, lock: Lock) -> str:
    problem = judge_asking(
        find_asked(word.connection, word.shop, event), seller=word.seller, lock=lock, now=word.now
    )
    reset = find_reset(word.connection, word.shop, event)
    if reset is not None and (reset.cancelled or reset.valid_until is not None):
        problem = "that event has been decided already: the platform has to ask again"
    if problem is not None:
        raise CommandFailed(f"event {event}: {problem}")
    proposal = None if reset is None else Proposal(Verdict.APPROVE, reset.proposed_by)
    said = decide_review(proposal, verdict=Verdict.APPROVE, by=word.by)
    if said is ReviewStep.SAID_ALREADY:
        return f"{word.by} has said so already; it takes a second name"
    if reset is None:
        propose_reset(word.connection, word.shop, word.seller, event, by=word.by, why=word.why, now=word.now)
        word.record("password_reset_proposed", {"event_id": event})
        return f"{word.by} says that the password may be replaced; it takes a second name"
    return _open(word, event, lock, reset)


def _open(word: _Word, event: str, lock: Lock, reset: Reset) -> str:
    until = open_reset(
        word.connection, word.shop, word.seller, reset.reset_id, by=word.by, why=word.why, now=word.now
    )
    word.record(
        "password_reset_opened",
        {
            "event_id": event,
            "first_name": reset.proposed_by,
            "valid_until": until,
            "was": lock.as_details(),
        },
    )
    waiting = count_waiting(word.connection, word.shop, word.seller)
    still = f"; {waiting} of its withdrawals wait on (`holdfast withdrawal list`)" if waiting else ""
    return (
        f"the old password is good for nothing, and the platform may enrol a new one until"
        f" {until:%Y-%m-%d %H:%M:%S} UTC{still}"
    )


def _cancel(word: _Word) -> str:
    ended = cancel_resets(word.connection, word.shop, word.seller, now=word.now)
    if not ended:
        return "nothing was proposed, and nothing is open; nothing is changed"
    word.record("password_reset_cancelled", {"ended": ended})
    return "the reset is cancelled; the old password is good as before"

"""`holdfast recover adopt`: take back into the books what the bank has made and this database forgot."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from infra.postgres.step import Step
from infra.settings import Settings
from ops.bank_transfers import list_transfers
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import (
    JsonOption,
    OperatorOption,
    RequiredWhyOption,
    SecondOperatorOption,
    ShopOption,
    external_id,
)
from ops.output import money, print_json, say
from ops.second_names import require_second_name, require_two_people
from ops.store.actions import Action, record_actions
from ops.store.senders import is_shop
from workers.escrow import adoptions as refunds
from workers.escrow.recourse_handlers import refund_key_of
from workers.payout import adoptions as payouts
from workers.payout.handlers.withdrawals import end_to_end_id_of, payout_id_of
from workers.payout.transfers import BankWord, ListedTransfer

app = typer.Typer(
    help="Take back into the books what the bank has made and this database forgot.", no_args_is_help=True
)

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be booked; change nothing.")]


class _OnlyTried(Exception):
    """A dry run ends here, and all that it has written is rolled back."""


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who wants it, and why."""

    shop: str
    why: str
    operator: str
    second_operator: str | None
    dry_run: bool


@app.command("payout")
def adopt_payout(  # noqa: PLR0917 - typer passes options by name
    shop: ShopOption,
    withdrawal: Annotated[
        str, typer.Option("--withdrawal", help="The withdrawal's id.", callback=external_id)
    ],
    seller: Annotated[str, typer.Option("--seller", help="Whose it was.", callback=external_id)],
    destination: Annotated[
        str, typer.Option("--destination", help="Where it was paid to.", callback=external_id)
    ],
    why: RequiredWhyOption,
    operator: OperatorOption,
    second_operator: SecondOperatorOption = None,
    *,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """
    Take back a payout that `recover report` names and nobody says again.

    Amount and state are the bank's. What is not withdrawable, the seller owes; later releases pay it off.
    Nothing is sent to the bank.
    """
    asking = _Asking(shop, why, operator, second_operator, dry_run)
    environment, made = _find(
        asking, end_to_end_id_of(payout_id_of(shop, withdrawal)), f"withdrawal {withdrawal}"
    )
    lost = payouts.LostPayout(
        shop, withdrawal, made.end_to_end_id, seller, destination, made.amount_minor, made.currency
    )
    told: dict[str, Any] = {}

    def book(step: Step) -> None:
        adopted = payouts.adopt_payout(step, lost)
        told.update(again=adopted.again, owed=adopted.advanced_minor)
        if not adopted.again:
            details: dict[str, object] = {
                "payout_id": lost.payout_id,
                "seller": seller,
                "owed": adopted.advanced_minor,
            }
            action = _action(asking, "payout_adopted", f"{shop}/{withdrawal}", made, details)
            record_actions(step.connection, [action])

    _carry_out(environment, asking, book)
    _tell(asking, made, told, f"payout of {withdrawal} by seller {seller}", json=json)


@app.command("refund")
def adopt_refund(  # noqa: PLR0917 - typer passes options by name
    shop: ShopOption,
    refund: Annotated[str, typer.Option("--refund", help="The refund's id.", callback=external_id)],
    order: Annotated[str, typer.Option("--order", help="The order that it was of.", callback=external_id)],
    parts: Annotated[
        list[str],
        typer.Option("--part", metavar="SELLER=AMOUNT", help="Of whose part how much; minor units. Several."),
    ],
    why: RequiredWhyOption,
    operator: OperatorOption,
    second_operator: SecondOperatorOption = None,
    *,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """
    Take back a refund that `recover report` names and nobody says again, from what is still held.

    Nothing is sent to the bank. Best before the workers start: what is released is not refundable.
    """
    asking = _Asking(shop, why, operator, second_operator, dry_run)
    by_seller = _read_parts(parts)
    key = refund_key_of(shop, "refund", refund)
    environment, made = _find(asking, key.hex, f"refund {refund}")
    lost = refunds.LostRefund(shop, refund, order, by_seller, made.amount_minor, made.currency)
    told: dict[str, Any] = {}

    def book(step: Step) -> None:
        new = refunds.adopt_refund(step, lost)
        told.update(again=not new, owed=0)
        if new:
            details: dict[str, object] = {"refund_key": key, "order": order, "parts": by_seller}
            action = _action(asking, "refund_adopted", f"{shop}/{order}", made, details)
            record_actions(step.connection, [action])

    _carry_out(environment, asking, book)
    _tell(asking, made, told, f"refund {refund} of order {order}", json=json)


def _read_parts(parts: list[str]) -> dict[str, int]:
    by_seller: dict[str, int] = {}
    for part in parts:
        seller, equals, amount = part.rpartition("=")
        external_id(seller)
        if (
            not equals
            or not amount.isascii()
            or not amount.isdigit()
            or int(amount) < 1
            or seller in by_seller
        ):
            raise typer.BadParameter("--part takes SELLER=AMOUNT in minor units, each seller once")
        by_seller[seller] = int(amount)
    return by_seller


def _find(asking: _Asking, end_to_end_id: str, what: str) -> tuple[Environment, ListedTransfer]:
    """Return what the bank has under this id, after a look at who asks."""
    require_two_people(operator=asking.operator, second_operator=asking.second_operator)
    environment = Environment(Need.DATABASE)
    made = _at_bank(environment.settings, end_to_end_id)
    if made is None:
        raise CommandFailed(
            f"the bank has no transfer {end_to_end_id}, which is what it would call {what} of"
            f" shop {asking.shop}: compare both with the shop's records"
        )
    if made.word is BankWord.REJECTED:
        raise CommandFailed(
            f"the bank has rejected {end_to_end_id}: no money has moved, nothing is to be adopted"
        )
    require_second_name(
        "an adoption",
        made.amount_minor,
        made.currency,
        second_operator=asking.second_operator,
        limit_minor=environment.settings.claim_second_name_above_minor,
    )
    return environment, made


def _at_bank(settings: Settings, end_to_end_id: str) -> ListedTransfer | None:
    return next((one for one in list_transfers(settings) if one.end_to_end_id == end_to_end_id), None)


def _carry_out(environment: Environment, asking: _Asking, book: Callable[[Step], None]) -> None:
    try:
        with suppress(_OnlyTried), environment.step("adopt_transfer") as step:
            if not is_shop(step.connection, asking.shop):
                raise unknown("shop", asking.shop)
            book(step)
            if asking.dry_run:
                step.finish(grace_seconds=0)
                raise _OnlyTried
    except (payouts.CannotAdopt, refunds.CannotAdopt) as error:
        raise CommandFailed(str(error)) from None


def _action(
    asking: _Asking, action: str, subject: str, made: ListedTransfer, details: dict[str, object]
) -> Action:
    of_bank = {
        "end_to_end_id": made.end_to_end_id,
        "amount": made.amount_minor,
        "currency": made.currency,
        "at_bank": made.word,
        "second_operator": asking.second_operator,
    }
    return Action(asking.operator, action, subject, asking.why, details | of_bank)


def _tell(asking: _Asking, made: ListedTransfer, told: dict[str, Any], what: str, *, json: bool) -> None:
    if json:
        print_json(
            {
                "end_to_end_id": made.end_to_end_id,
                "amount": made.amount_minor,
                "currency": made.currency,
                "at_bank": made.word,
                "owed": told["owed"],
                "again": told["again"],
                "dry_run": asking.dry_run,
            }
        )
        return
    owed = f", of which the seller owes {money(told['owed'], made.currency)}" if told["owed"] else ""
    sentence = f"{money(made.amount_minor, made.currency)}, {what}, {made.word} at the bank{owed}"
    if told["again"]:
        say(f"known already, nothing is changed: {sentence}")
    elif asking.dry_run:
        say(f"would be taken into the books: {sentence}")
    else:
        say(f"taken into the books: {sentence}; the bank is asked what became of it")

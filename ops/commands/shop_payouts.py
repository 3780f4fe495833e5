"""`holdfast shop destination` and `holdfast shop payout`: a shop's own money, to an account of its own."""

from enum import StrEnum
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from infra.postgres.step import Step
from infra.security.destinations import destination_context, mask_destination
from ledger.accounts import NO_SELLER
from ledger.names import is_same_person
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed
from ops.options import (
    JsonOption,
    OperatorOption,
    RequiredReasonOption,
    ShopArgument,
    currency_code,
    external_id,
    read_text_file,
)
from ops.output import money, print_json, print_table, say
from ops.store.actions import Action, record_actions
from ops.store.senders import is_shop
from ops.store.shop_payouts import (
    find_encrypted_destination,
    find_own_currencies,
    find_shop_destinations,
    find_shop_payouts,
    insert_shop_destination,
)
from schemas.fields import MAX_AMOUNT_MINOR
from schemas.seller_enrolled import BankAccountDestination, Destination, IbanDestination
from workers.payout.decisions import Source
from workers.payout.shop_payouts import (
    CannotPayOut,
    ShopPayout,
    StandingPayout,
    carry_out_shop_payout,
    find_own_money,
    lock_shop_payout,
    propose_shop_payout,
    reject_shop_payout,
)

destination_app = typer.Typer(help="Accounts of a shop's own.", no_args_is_help=True)
payout_app = typer.Typer(help="A shop's own money: fees, and what was recovered.", no_args_is_help=True)

_DESTINATION: TypeAdapter[IbanDestination | BankAccountDestination] = TypeAdapter(Destination)


class OwnSource(StrEnum):
    """Which money of the shop's own."""

    FEES = Source.FEES
    RECOVERED = Source.RECOVERED


DestinationArgument = Annotated[
    str, typer.Argument(metavar="DESTINATION", help="An id for the account.", callback=external_id)
]
ReferenceArgument = Annotated[
    str,
    typer.Argument(
        metavar="REFERENCE", help="Your own id for the payout; it is paid once.", callback=external_id
    ),
]


@destination_app.command("add")
def add_destination(
    shop: ShopArgument,
    destination: DestinationArgument,
    file: Annotated[
        str,
        typer.Option(
            "--file",
            metavar="FILE",
            help="JSON as in seller.enrolled: {type, iban, holder_name}; - reads standard input.",
        ),
    ],
    why: RequiredReasonOption,
    operator: OperatorOption,
) -> None:
    """Register an account that the shop's own money may go to; it never changes under its id."""
    try:
        details = _DESTINATION.validate_json(read_text_file(file))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise BadUsage(f"--file: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None
    environment = Environment(Need.DATABASE | Need.VAULT)
    context = destination_context(shop, NO_SELLER, destination)
    text = details.model_dump_json().encode()
    masked = mask_destination(details.model_dump())
    with environment.changing() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        added = insert_shop_destination(
            connection,
            shop,
            destination,
            details_encrypted=environment.vault.encrypt(text, context),
            masked=masked,
        )
        if added:
            what = {"destination_id": destination, "account": masked}
            record_actions(connection, [Action(operator, "shop_destination_added", shop, why, what)])
        else:
            known = find_encrypted_destination(connection, shop, destination)
            if environment.vault.decrypt(known, context) != text:
                raise CommandFailed(f"destination {destination} of shop {shop} is another account")
    say(f"shop {shop} has the destination {destination}: {masked}")


@destination_app.command("list")
def list_destinations(shop: ShopArgument, *, json: JsonOption = False) -> None:
    """Show the accounts of a shop's own, masked."""
    with Environment(Need.DATABASE).reading() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        found = find_shop_destinations(connection, shop)
    if json:
        print_json(found)
        return
    print_table(
        ("destination", "account", "added (UTC)"),
        [(one["destination_id"], one["destination"], one["added_at"]) for one in found],
    )


@payout_app.command("list")
def list_payouts(shop: ShopArgument, *, json: JsonOption = False) -> None:
    """Show a shop's own money, how much of it may leave, and its payouts so far."""
    with Environment(Need.DATABASE).reading() as connection:
        if not is_shop(connection, shop):
            raise unknown("shop", shop)
        own = {one: find_own_money(connection, shop, one) for one in find_own_currencies(connection, shop)}
        payouts = find_shop_payouts(connection, shop)
    if json:
        balances = {
            currency: {
                "fees": one.fees_minor,
                "recovered": one.recovered_minor,
                "payable_fees": one.payable_minor(Source.FEES),
                "payable_recovered": one.payable_minor(Source.RECOVERED),
            }
            for currency, one in own.items()
        }
        print_json({"shop": shop, "own_money": balances, "payouts": payouts})
        return
    print_table(
        ("own money", "in the books#", "may leave#"),
        [
            (source.value, money(in_books, currency), money(one.payable_minor(source), currency))
            for currency, one in own.items()
            for source, in_books in (
                (Source.FEES, one.fees_minor),
                (Source.RECOVERED, one.recovered_minor),
            )
        ],
    )
    print_table(
        ("payout", "of", "amount#", "to", "state", "said by", "bank"),
        [
            (
                row["reference"],
                row["source"],
                money(row["amount"], row["currency"]),
                row["destination"],
                row["state"],
                ", ".join(filter(None, (row["proposed_by"], row["decided_by"]))),
                " ".join(filter(None, (row["transfer"], row["reason"]))),
            )
            for row in payouts
        ],
    )


@payout_app.command("propose")
def propose(  # noqa: PLR0917 - typer passes options by name
    shop: ShopArgument,
    reference: ReferenceArgument,
    source: Annotated[OwnSource, typer.Option("--from", help="Which money of the shop's own.")],
    amount: Annotated[
        int, typer.Option("--amount", min=1, max=MAX_AMOUNT_MINOR, help="Minor units (cents).")
    ],
    currency: Annotated[str, typer.Option("--currency", callback=currency_code, help="ISO 4217.")],
    destination: Annotated[
        str, typer.Option("--to", metavar="DESTINATION", help="The shop's own.", callback=external_id)
    ],
    why: RequiredReasonOption,
    operator: OperatorOption,
) -> None:
    """Say that so much of a shop's own money shall be paid to it; nothing moves before a second name."""
    payout = ShopPayout(shop, reference, Source(source.value), amount, currency, destination)
    with Environment(Need.DATABASE).step("propose_shop_payout") as step:
        if not is_shop(step.connection, shop):
            raise unknown("shop", shop)
        try:
            is_new = propose_shop_payout(step, payout, by=operator, why=why)
        except CannotPayOut as refused:
            raise CommandFailed(str(refused)) from None
        if is_new:
            _record(step, "shop_payout_proposed", payout, why, operator)
    said = f"{operator} proposes" if is_new else "proposed before:"
    say(
        f"payout {reference} of shop {shop}: {said} {money(amount, currency)} of {source.value} to"
        f" {destination}; it takes a second name"
    )


@payout_app.command("approve")
def approve(
    shop: ShopArgument, reference: ReferenceArgument, why: RequiredReasonOption, operator: OperatorOption
) -> None:
    """Agree, as the second name: the money is set aside and goes to the bank."""
    with Environment(Need.DATABASE).step("approve_shop_payout") as step:
        standing = _lock(step, shop, reference)
        payout = standing.payout
        if standing.state == "rejected":
            raise CommandFailed(f"payout {reference} of shop {shop} was rejected by {standing.decided_by}")
        if standing.state == "proposed":
            if is_same_person(standing.proposed_by, operator):
                raise CommandFailed(f"{operator} has proposed payout {reference}; it takes a second name")
            try:
                carry_out_shop_payout(step, payout, by=operator, why=why)
            except CannotPayOut as refused:
                raise CommandFailed(str(refused)) from None
            _record(step, "shop_payout_approved", payout, why, operator, first_name=standing.proposed_by)
    by = operator if standing.state == "proposed" else standing.decided_by
    say(
        f"payout {reference} of shop {shop}: {money(payout.amount_minor, payout.currency)} approved by {by};"
        " `holdfast shop payout list` shows what the bank says"
    )


@payout_app.command("reject")
def reject(
    shop: ShopArgument, reference: ReferenceArgument, why: RequiredReasonOption, operator: OperatorOption
) -> None:
    """Give up what was proposed; one name is enough, since nothing has moved."""
    with Environment(Need.DATABASE).step("reject_shop_payout") as step:
        standing = _lock(step, shop, reference)
        if standing.state == "approved":
            raise CommandFailed(f"payout {reference} of shop {shop} was approved by {standing.decided_by}")
        if standing.state == "proposed":
            reject_shop_payout(step, standing.payout, by=operator, why=why)
            _record(step, "shop_payout_rejected", standing.payout, why, operator)
    say(f"payout {reference} of shop {shop} is rejected")


def _lock(step: Step, shop: str, reference: str) -> StandingPayout:
    if not is_shop(step.connection, shop):
        raise unknown("shop", shop)
    standing = lock_shop_payout(step.connection, shop, reference)
    if standing is None:
        raise CommandFailed(f"shop {shop} has no payout {reference}")
    return standing


def _record(
    step: Step,
    action: str,
    payout: ShopPayout,
    why: str,
    by: str,
    *,
    first_name: str | None = None,
) -> None:
    details = {
        "payout_id": payout.payout_id,
        "source": payout.source,
        "amount": payout.amount_minor,
        "currency": payout.currency,
        "destination_id": payout.destination_id,
        "first_name": first_name,
    }
    subject = f"{payout.shop_id}/{payout.reference}"
    record_actions(step.connection, [Action(by, action, subject, why, details)])

"""`holdfast claim`: take back from a seller what was released and has to be returned."""

from typing import Annotated

import typer

from ledger.ids import new_id
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import (
    JsonOption,
    OperatorOption,
    RequiredWhyOption,
    SecondOperatorOption,
    ShopOption,
    currency_code,
)
from ops.output import money, print_json, say
from ops.second_names import require_second_name, require_two_people
from ops.store.actions import Action, record_actions
from ops.store.senders import is_seller, is_shop
from schemas.fields import MAX_AMOUNT_MINOR
from workers.escrow.claims import Claim, make_claims

app = typer.Typer(help="Claims against sellers for money that was released.", no_args_is_help=True)


@app.command("add")
def add_claim(  # noqa: PLR0917 - typer passes options by name
    shop: ShopOption,
    seller: Annotated[str, typer.Option("--seller", help="The seller who owes it.")],
    amount: Annotated[
        int, typer.Option("--amount", min=1, max=MAX_AMOUNT_MINOR, help="Minor units (cents).")
    ],
    currency: Annotated[str, typer.Option("--currency", callback=currency_code, help="ISO 4217.")],
    why: RequiredWhyOption,
    operator: OperatorOption,
    second_operator: SecondOperatorOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Claim an amount: taken from what is withdrawable; later releases pay the rest first."""
    require_two_people(operator=operator, second_operator=second_operator)
    environment = Environment(Need.DATABASE)
    require_second_name(
        "a claim",
        amount,
        currency,
        second_operator=second_operator,
        limit_minor=environment.settings.claim_second_name_above_minor,
    )
    claim = Claim(
        claim_id=new_id(),
        shop_id=shop,
        seller_id=seller,
        currency=currency,
        amount_minor=amount,
        cause="operator",
        reason=why,
        operator=operator,
        second_operator=second_operator,
    )
    with environment.step("add_claim") as step:
        if not is_shop(step.connection, shop):
            raise unknown("shop", shop)
        if not is_seller(step.connection, shop, seller):
            raise CommandFailed(f"shop {shop} has no seller {seller}")
        make_claims(step, [claim])
        details = {
            "claim_id": claim.claim_id,
            "amount": amount,
            "currency": currency,
            "second_operator": second_operator,
        }
        record_actions(step.connection, [Action(operator, "claim_added", f"{shop}/{seller}", why, details)])
    if json:
        print_json({"claim_id": claim.claim_id, "shop": shop, "seller": seller, "amount": amount})
    else:
        say(f"claimed {money(amount, currency)} from seller {seller} of {shop}: {claim.claim_id}")

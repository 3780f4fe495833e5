"""`holdfast shop`: who sells through us, on which terms, and with which keys they sign."""

from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer

from infra.rabbitmq.access import shop_user, user_definitions
from infra.rabbitmq.topology import declare_shop_queue
from ops.broker_passwords import DEFAULT_VHOST, PasswordFileOption, VhostOption, read_password
from ops.commands import sender_keys
from ops.commands.limits import (
    ClearOption,
    CurrencyOption,
    PerDayOption,
    PerHourOption,
    PerWithdrawalOption,
    change_limits,
    print_limits,
)
from ops.commands.shop_payouts import destination_app, payout_app
from ops.environment import Environment, Need
from ops.failures import CommandFailed, broker_failures
from ops.options import (
    Ed25519Option,
    EndOption,
    HmacFileOption,
    JsonOption,
    NotAfterOption,
    NotBeforeOption,
    OperatorOption,
    RequiredWhyOption,
    ShopArgument,
    WhyOption,
    read_key,
)
from ops.output import print_json, print_table, say
from ops.store import senders
from ops.store.actions import Action, record_actions
from ops.store.sellers import LimitKey
from ops.store.senders import Terms
from schemas.fields import MAX_PROTECTION_DAYS, MIN_PROTECTION_DAYS
from workers.escrow.decisions import Funding

# Where nothing is said: the longest protection, the bank's word before any release, no fee.
_DEFAULT_TERMS = Terms(MAX_PROTECTION_DAYS, Funding.CONFIRMED.value, 0)
_MAX_FEE_BPS = 10_000

app = typer.Typer(help="Shops, their terms and their keys.", no_args_is_help=True)
key_app = typer.Typer(help="The keys that a shop signs with.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.add_typer(destination_app, name="destination")
app.add_typer(payout_app, name="payout")


class Scope(StrEnum):
    """What a shop's key is good for."""

    ORDERS = "orders"
    SELLERS = "sellers"


@app.command("add")
def add_shop(
    shop: ShopArgument,
    operator: OperatorOption,
    *,
    protection_days: Annotated[
        int | None,
        typer.Option(
            min=MIN_PROTECTION_DAYS,
            max=MAX_PROTECTION_DAYS,
            help="Days of protection where an order names none.",
            show_default=str(_DEFAULT_TERMS.protection_days),
        ),
    ] = None,
    funding: Annotated[
        Funding | None,
        typer.Option(help="What a release needs: the bank's word, or the shop's.", show_default="confirmed"),
    ] = None,
    fee_bps: Annotated[
        int | None,
        typer.Option(min=0, max=_MAX_FEE_BPS, help="Fee in hundredths of a percent.", show_default="0"),
    ] = None,
    why: WhyOption = "",
    json: JsonOption = False,
) -> None:
    """
    Register a shop and declare the queue on which it reads its events.

    For a shop that is known, the options that are given change its terms; the others stay. Holds that
    are booked keep their protection period and fee; the funding policy is read when a hold is due.
    """
    environment = Environment(Need.DATABASE | Need.BROKER)
    # The queue first: a registered shop must never miss an event for want of it.
    with broker_failures(environment.settings):
        queue = declare_shop_queue(environment.broker_url, shop)
    with environment.changing() as connection:
        before = senders.lock_terms(connection, shop)
        known = before or _DEFAULT_TERMS
        terms = Terms(
            known.protection_days if protection_days is None else protection_days,
            known.funding if funding is None else funding.value,
            known.fee_bps if fee_bps is None else fee_bps,
        )
        details = {"after": terms.as_details(), "before": before and before.as_details()}
        if before is None:
            if not senders.insert_shop(connection, shop, terms):
                raise CommandFailed(
                    f"shop {shop} was registered by somebody else at this moment; look and try again"
                )
            record_actions(connection, [Action(operator, "shop_added", shop, why, details)])
        elif before != terms:
            senders.change_terms(connection, shop, terms)
            record_actions(connection, [Action(operator, "shop_terms_changed", shop, why, details)])
    if json:
        print_json({"shop": shop, **terms.as_details(), "queue": queue})
        return
    what = (
        "is registered" if before is None else "has new terms" if before != terms else "is known, unchanged"
    )
    say(
        f"shop {shop} {what}: {terms.protection_days} days, funding {terms.funding}, fee {terms.fee_bps} bps;"
        f" its events are in {queue}"
    )


@app.command("list")
def list_shops(*, json: JsonOption = False) -> None:
    """Show all shops with their terms."""
    with Environment(Need.DATABASE).reading() as connection:
        shops = senders.find_shops(connection)
    if json:
        print_json(shops)
    else:
        print_table(
            ("shop", "state", "days#", "funding", "fee bps#", "registered"),
            [tuple(row.values()) for row in shops],
        )


@app.command("suspend")
def suspend_shop(shop: ShopArgument, operator: OperatorOption, why: RequiredWhyOption) -> None:
    """Take no new orders and withdrawals of a shop; what is held goes on."""
    _change_state(shop, "suspended", operator, why)


@app.command("resume")
def resume_shop(shop: ShopArgument, operator: OperatorOption, why: RequiredWhyOption) -> None:
    """Take a suspended shop's orders and withdrawals again."""
    _change_state(shop, "active", operator, why)


def _change_state(shop: str, state: str, operator: str, why: str) -> None:
    with Environment(Need.DATABASE).changing() as connection:
        before = senders.change_state(connection, shop, state)
        if before is None:
            raise sender_keys.unknown("shop", shop)
        if before != state:
            action = "shop_suspended" if state == "suspended" else "shop_resumed"
            record_actions(connection, [Action(operator, action, shop, why)])
    say(f"shop {shop} is {state}" + (" already" if before == state else ""))


@app.command("broker-user")
def print_broker_user(
    shop: ShopArgument,
    password_file: PasswordFileOption,
    *,
    scope: Annotated[list[Scope], typer.Option(help="Which events it may publish; give it once for each.")],
    vhost: VhostOption = DEFAULT_VHOST,
    json: JsonOption = True,  # noqa: ARG001 - what RabbitMQ imports is JSON, whether one says so or not
) -> None:
    """
    Print a shop's RabbitMQ user, with its rights, as RabbitMQ imports it; needs neither broker nor database.

    It may write events of these scopes to holdfast.inbound and read the shop's queue, nothing else.
    """
    Environment(Need.NOTHING)
    user = shop_user(shop, {one.value for one in scope})
    print_json(user_definitions([user], vhost, {user.name: read_password(password_file)}))


@app.command("limits")
def limits(
    shop: ShopArgument,
    operator: OperatorOption,
    *,
    currency: CurrencyOption = None,
    per_withdrawal: PerWithdrawalOption = None,
    per_day: PerDayOption = None,
    per_hour: PerHourOption = None,
    clear: ClearOption = False,
    why: WhyOption = "",
    json: JsonOption = False,
) -> None:
    """
    Show or change what may be withdrawn from a shop as a whole without review.

    What a seller may withdraw is `holdfast seller limits`; both hold. Without options it only shows them.
    """
    key = LimitKey(shop, "shop")
    with Environment(Need.DATABASE).changing() as connection:
        if not senders.is_shop(connection, shop):
            raise sender_keys.unknown("shop", shop)
        standing = change_limits(
            connection,
            key,
            currency=currency,
            given=(per_withdrawal, per_day, per_hour),
            clear=clear,
            operator=operator,
            why=why,
        )
    print_limits(key, standing, json=json)


@key_app.command("add")
def add_key(
    shop: ShopArgument,
    operator: OperatorOption,
    *,
    scope: Annotated[list[Scope], typer.Option(help="What the key is good for; give it once for each.")],
    ed25519: Ed25519Option = None,
    hmac_file: HmacFileOption = None,
    not_before: NotBeforeOption = None,
    not_after: NotAfterOption = None,
    why: WhyOption = "",
    json: JsonOption = False,
) -> None:
    """Register a key; several may be active, so that a new one can overlap with the old."""
    scheme, material = read_key(ed25519, hmac_file)
    scopes = sorted({one.value for one in scope})
    environment = Environment(Need.DATABASE | Need.VAULT)
    with environment.changing() as connection:
        if not senders.is_shop(connection, shop):
            raise sender_keys.unknown("shop", shop)
        key_id = sender_keys.add_key(
            connection,
            environment.vault,
            kind="shop",
            sender_id=shop,
            scheme=scheme,
            material=material,
            scopes=scopes,
            not_before=not_before,
            not_after=not_after,
            operator=operator,
            why=why,
        )
    sender_keys.print_added(
        kind="shop", sender_id=shop, key_id=key_id, scheme=scheme, scopes=scopes, json=json
    )


@key_app.command("list")
def list_keys(shop: ShopArgument, *, json: JsonOption = False) -> None:
    """Show a shop's keys; never a secret."""
    with Environment(Need.DATABASE).reading() as connection:
        if not senders.is_shop(connection, shop):
            raise sender_keys.unknown("shop", shop)
        keys = sender_keys.find_keys(connection, "shop", shop)
    sender_keys.print_keys(keys, json=json)


@key_app.command("expire")
def expire_key(
    shop: ShopArgument,
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="As `key list` shows it.")],
    at: EndOption,
    operator: OperatorOption,
    why: WhyOption = "",
) -> None:
    """Let a key end at a time to come, so that an old one overlaps with the new."""
    with Environment(Need.DATABASE).changing() as connection:
        if not senders.is_shop(connection, shop):
            raise sender_keys.unknown("shop", shop)
        sender_keys.expire_key(
            connection,
            kind="shop",
            sender_id=shop,
            key_id=key_id,
            not_after=at,
            operator=operator,
            why=why,
        )
    say(f"key {key_id} of shop {shop} is good until {at.isoformat()}")


@key_app.command("revoke")
def revoke_key(
    shop: ShopArgument,
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="As `key list` shows it.")],
    operator: OperatorOption,
    why: WhyOption = "",
) -> None:
    """Revoke a key; every running worker refuses it within a second."""
    with Environment(Need.DATABASE).changing() as connection:
        if not senders.is_shop(connection, shop):
            raise sender_keys.unknown("shop", shop)
        sender_keys.revoke_key(
            connection, kind="shop", sender_id=shop, key_id=key_id, operator=operator, why=why
        )
    say(f"key {key_id} of shop {shop} is revoked")

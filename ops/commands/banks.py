"""`holdfast bank`: bank connectors and the keys that they sign their statements with."""

from typing import Annotated
from uuid import UUID

import typer

from infra.rabbitmq.access import bank_user, user_definitions
from ops.broker_passwords import DEFAULT_VHOST, PasswordFileOption, VhostOption, read_password
from ops.commands import sender_keys
from ops.environment import Environment, Need
from ops.options import (
    BankArgument,
    Ed25519Option,
    EndOption,
    HmacFileOption,
    JsonOption,
    NotAfterOption,
    NotBeforeOption,
    OperatorOption,
    WhyOption,
    read_key,
)
from ops.output import print_json, say
from ops.store import senders
from ops.store.actions import Action, record_actions

app = typer.Typer(help="Bank connectors and their keys.", no_args_is_help=True)
key_app = typer.Typer(help="The keys that a bank connector signs with.", no_args_is_help=True)
app.add_typer(key_app, name="key")


@app.command("broker-user")
def print_broker_user(
    bank: BankArgument,
    password_file: PasswordFileOption,
    *,
    vhost: VhostOption = DEFAULT_VHOST,
    json: JsonOption = True,  # noqa: ARG001 - what RabbitMQ imports is JSON, whether one says so or not
) -> None:
    """
    Print a bank connector's RabbitMQ user, with its rights, as RabbitMQ imports it.

    It may write the bank's statements to holdfast.inbound and nothing else. Needs no broker and no database.
    """
    Environment(Need.NOTHING)
    user = bank_user(bank)
    print_json(user_definitions([user], vhost, {user.name: read_password(password_file)}))


@key_app.command("add")
def add_key(
    bank: BankArgument,
    operator: OperatorOption,
    *,
    ed25519: Ed25519Option = None,
    hmac_file: HmacFileOption = None,
    not_before: NotBeforeOption = None,
    not_after: NotAfterOption = None,
    why: WhyOption = "",
    json: JsonOption = False,
) -> None:
    """Register a key, and the bank too if it is new."""
    scheme, material = read_key(ed25519, hmac_file)
    environment = Environment(Need.DATABASE | Need.VAULT)
    with environment.changing() as connection:
        if senders.ensure_bank(connection, bank):
            record_actions(connection, [Action(operator, "bank_added", bank, why)])
        key_id = sender_keys.add_key(
            connection,
            environment.vault,
            kind="bank",
            sender_id=bank,
            scheme=scheme,
            material=material,
            scopes=(),
            not_before=not_before,
            not_after=not_after,
            operator=operator,
            why=why,
        )
    sender_keys.print_added(kind="bank", sender_id=bank, key_id=key_id, scheme=scheme, scopes=(), json=json)


@key_app.command("list")
def list_keys(bank: BankArgument, *, json: JsonOption = False) -> None:
    """Show a bank's keys; never a secret."""
    with Environment(Need.DATABASE).reading() as connection:
        if not senders.is_bank(connection, bank):
            raise sender_keys.unknown("bank", bank)
        keys = sender_keys.find_keys(connection, "bank", bank)
    sender_keys.print_keys(keys, json=json)


@key_app.command("expire")
def expire_key(
    bank: BankArgument,
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="As `key list` shows it.")],
    at: EndOption,
    operator: OperatorOption,
    why: WhyOption = "",
) -> None:
    """Let a key end at a time to come, so that an old one overlaps with the new."""
    with Environment(Need.DATABASE).changing() as connection:
        if not senders.is_bank(connection, bank):
            raise sender_keys.unknown("bank", bank)
        sender_keys.expire_key(
            connection,
            kind="bank",
            sender_id=bank,
            key_id=key_id,
            not_after=at,
            operator=operator,
            why=why,
        )
    say(f"key {key_id} of bank {bank} is good until {at.isoformat()}")


@key_app.command("revoke")
def revoke_key(
    bank: BankArgument,
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="As `key list` shows it.")],
    operator: OperatorOption,
    why: WhyOption = "",
) -> None:
    """Revoke a key; every running worker refuses it within a second."""
    with Environment(Need.DATABASE).changing() as connection:
        if not senders.is_bank(connection, bank):
            raise sender_keys.unknown("bank", bank)
        sender_keys.revoke_key(
            connection, kind="bank", sender_id=bank, key_id=key_id, operator=operator, why=why
        )
    say(f"key {key_id} of bank {bank} is revoked")

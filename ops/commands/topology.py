"""`holdfast topology`: the broker's exchanges, queues and bindings."""

from dataclasses import asdict

import typer

from infra.rabbitmq import access
from infra.rabbitmq.management import ManagementUnavailable
from infra.rabbitmq.topology import apply, topology
from infra.rabbitmq.verification import judge_broker
from ops.broker_passwords import DEFAULT_VHOST, PasswordsOption, VhostOption, read_passwords
from ops.environment import Environment, Need
from ops.failures import NO, CommandFailed, broker_failures
from ops.options import JsonOption
from ops.output import print_json, print_table, say

_AS_NEEDED = "the broker is as this version needs it"

app = typer.Typer(help="The broker's exchanges, queues and bindings.", no_args_is_help=True)


@app.command("apply")
def apply_topology(*, json: JsonOption = False) -> None:
    """Declare everything that this version needs; what is there already stays as it is."""
    environment = Environment(Need.BROKER)
    day_seconds = environment.settings.protection_day_seconds
    with broker_failures(environment.settings):
        apply(environment.broker_url, day_seconds)
    wanted = topology(day_seconds)
    counts = {
        "exchanges": len(wanted.exchanges),
        "queues": len(wanted.queues),
        "bindings": len(wanted.bindings),
    }
    if json:
        print_json(counts)
    else:
        say(", ".join(f"{count} {what}" for what, count in counts.items()) + " are in place")


@app.command("definitions")
def print_definitions(
    *,
    vhost: VhostOption = DEFAULT_VHOST,
    passwords_file: PasswordsOption = None,
    json: JsonOption = True,  # noqa: ARG001 - what RabbitMQ imports is JSON, whether one says so or not
) -> None:
    """
    Print what RabbitMQ imports to have it all: virtual host, users with their rights, exchanges, queues.

    Users without a password can't log in until they are given one; importing again without passwords
    takes them away again. Needs no broker.
    """
    environment = Environment(Need.NOTHING)
    users = {user.name for user in access.installation_users()}
    print_json(
        access.installation_definitions(
            environment.settings.protection_day_seconds, vhost, read_passwords(passwords_file, users)
        )
    )


@app.command("verify")
def verify_topology(*, json: JsonOption = False) -> None:
    """Compare the broker with what this version needs, changing nothing; exits 1 if it differs."""
    environment = Environment(Need.BROKER)
    day_seconds = environment.settings.protection_day_seconds
    with broker_failures(environment.settings):
        try:
            verdict = judge_broker(environment.broker_url, environment.management_url, day_seconds)
        except ManagementUnavailable as error:
            raise CommandFailed(str(error)) from error
    if json:
        print_json(
            {
                "ok": verdict.ok,
                "findings": [asdict(finding) for finding in verdict.findings],
                "not_checked": list(verdict.not_checked),
            }
        )
    elif verdict.ok:
        say("what was checked is as this version needs it" if verdict.not_checked else _AS_NEEDED)
    else:
        print_table(
            ("what", "name", "detail"),
            [(found.drift, found.name, found.detail) for found in verdict.findings],
        )
        say("`holdfast topology apply` declares what is missing; what differs must be deleted, empty, before")
    if not json:
        for sentence in verdict.not_checked:
            say(f"not checked: {sentence}")
    if not verdict.ok:
        raise typer.Exit(NO)

"""`holdfast topology`: the broker's exchanges, queues and bindings."""

from dataclasses import asdict

import typer

from infra.rabbitmq.topology import apply, topology, verify
from ops.environment import Environment, Need
from ops.failures import NO, broker_failures
from ops.options import JsonOption
from ops.output import print_json, print_table, say

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


@app.command("verify")
def verify_topology(*, json: JsonOption = False) -> None:
    """Compare the broker with what this version needs, changing nothing; exits 1 if it differs."""
    environment = Environment(Need.BROKER)
    with broker_failures(environment.settings):
        findings = verify(environment.broker_url, environment.settings.protection_day_seconds)
    if json:
        print_json({"ok": not findings, "findings": [asdict(finding) for finding in findings]})
    elif findings:
        print_table(
            ("what", "name", "detail"), [(found.drift, found.name, found.detail) for found in findings]
        )
        say("`holdfast topology apply` declares what is missing; what differs must be deleted, empty, before")
    else:
        say("the broker is as this version needs it")
    if findings:
        raise typer.Exit(NO)

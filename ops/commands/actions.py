"""`holdfast actions`: who changed what, when and why."""

from datetime import datetime
from typing import Annotated

import typer

from ops.environment import Environment, Need
from ops.options import JsonOption, LimitOption, parse_instant
from ops.output import print_json, print_table, say
from ops.store.actions import find_actions

app = typer.Typer(help="Who changed what, when and why.", no_args_is_help=True)


@app.callback()
def _actions() -> None:
    """Keep `list` a command of a group, however few there are."""


@app.command("list")
def list_actions(
    *,
    by: Annotated[str | None, typer.Option("--operator", help="Only what this person did.")] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only this kind, such as claim_added.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only what was done to this, such as acme or acme/s-1.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--since", help="From this time on (RFC 3339).", parser=parse_instant, metavar="T"),
    ] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """Show what operators did, the latest first."""
    with Environment(Need.DATABASE).reading() as connection:
        rows = find_actions(connection, operator=by, action=action, subject=subject, since=since, limit=limit)
    if json:
        print_json(rows)
        return
    print_table(
        ("at (UTC)", "operator", "login", "second", "action", "subject", "why"),
        [
            (
                row["acted_at"],
                row["operator"],
                row["database_login"] or "",
                row["details"].get("second_operator") or "",
                row["action"],
                row["subject"],
                row["reason"],
            )
            for row in rows
        ],
    )
    if len(rows) == limit:
        say(f"the latest {limit}; more with --limit")

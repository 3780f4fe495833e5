"""`holdfast migrate`: the schema, the length of a day, our first keys, and the rights of each role."""

from typing import Annotated

import typer

from infra.postgres.key_store import ensure_own_keys
from infra.postgres.migrate import current_revision, migrate, pending_contraction
from infra.postgres.roles import NotGranted, grant_roles, grant_statements, role_statements
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed, database_failures
from ops.options import JsonOption
from ops.output import print_json, say
from ops.store.deployment import ensure_day_length


def migrate_database(
    *,
    contract: Annotated[
        bool,
        typer.Option(
            "--contract",
            help="Also take away what only older releases use; run it when none of their processes is left.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Bring the database's schema up to date; run before every deployment, as often as you like."""
    environment = Environment(Need.DATABASE | Need.VAULT)
    settings = environment.settings
    with database_failures(settings):
        migrate(str(settings.database_url), contract=contract)
    with environment.changing() as connection:
        stored = ensure_day_length(connection, settings.protection_day_seconds)
        if stored != settings.protection_day_seconds:
            raise BadUsage(
                f"this database was created with a day of {stored} seconds, HOLDFAST_PROTECTION_DAY_SECONDS"
                f" says {settings.protection_day_seconds}: set it to {stored}, or use a new database"
            )
        ensure_own_keys(connection, environment.vault)
        revision, waiting = current_revision(connection), pending_contraction(connection)
    roles_problem = _grant_roles(environment)
    if json:
        print_json(
            {
                "revision": revision,
                "protection_day_seconds": stored,
                "contraction_waiting": waiting,
                "roles_granted": roles_problem is None,
            }
        )
        return
    say(f"the schema is at revision {revision}; a day has {stored} seconds")
    if roles_problem is not None:
        say(roles_problem)
    if waiting is not None:
        say(f"revision {waiting} takes away what older releases use; when none runs any more:")
        say("holdfast migrate --contract")


app = typer.Typer(help="Who may do what in the database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `roles` a command of a group, though it is the only one."""


@app.command("roles")
def grant_database_roles(
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Only print the SQL that makes the group roles, for who may run it.")
    ] = False,
) -> None:
    """Make a group role for each kind of process and grant it what it needs; `migrate` does it too."""
    if sql:
        for statement in (*role_statements(), *grant_statements()):
            say(f"{statement};")
        return
    problem = _grant_roles(Environment(Need.DATABASE))
    if problem is not None:
        raise CommandFailed(problem)
    say("each group role has what docs/database-roles.md shows, and nothing else")


def _grant_roles(environment: Environment) -> str | None:
    """Grant; return why it can't be done, if so."""
    with environment.changing() as connection:
        try:
            grant_roles(connection)
        except NotGranted as error:
            return str(error)
    return None

"""`holdfast migrate`: the schema, the length of a day, and our first keys."""

from typing import Annotated

import typer

from infra.postgres.key_store import ensure_own_keys
from infra.postgres.migrate import current_revision, migrate, pending_contraction
from ops.environment import Environment, Need
from ops.failures import BadUsage, database_failures
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
    if json:
        print_json({"revision": revision, "protection_day_seconds": stored, "contraction_waiting": waiting})
        return
    say(f"the schema is at revision {revision}; a day has {stored} seconds")
    if waiting is not None:
        say(f"revision {waiting} takes away what older releases use; when none runs any more:")
        say("holdfast migrate --contract")

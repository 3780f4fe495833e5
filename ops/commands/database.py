"""`holdfast migrate`: the schema, the length of a day, and our first keys."""

from infra.postgres.key_store import ensure_own_keys
from infra.postgres.migrate import head_revision, migrate
from ops.environment import Environment, Need
from ops.failures import BadUsage, database_failures
from ops.options import JsonOption
from ops.output import print_json, say
from ops.store.deployment import ensure_day_length


def migrate_database(*, json: JsonOption = False) -> None:
    """Bring the database's schema up to date; run before every deployment, as often as you like."""
    environment = Environment(Need.DATABASE | Need.VAULT)
    settings = environment.settings
    with database_failures(settings):
        migrate(str(settings.database_url))
    with environment.changing() as connection:
        stored = ensure_day_length(connection, settings.protection_day_seconds)
        if stored != settings.protection_day_seconds:
            raise BadUsage(
                f"this database was created with a day of {stored} seconds, HOLDFAST_PROTECTION_DAY_SECONDS"
                f" says {settings.protection_day_seconds}: set it to {stored}, or use a new database"
            )
        ensure_own_keys(connection, environment.vault)
    if json:
        print_json({"revision": head_revision(), "protection_day_seconds": stored})
    else:
        say(f"the schema is at revision {head_revision()}; a day has {stored} seconds")

"""
Bring a database's schema to a revision, and tell whether this code can work on the one that it is at.

Migrations come in two kinds, told apart by their file names. Most *expand*: they add, and the release before
keeps running on what they leave. A `NNNN_contract_….py` takes away what no running code uses any more, and is
carried out apart, when every process of older releases has ended. See docs/changing.md.
"""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, create_engine, text

_MIGRATIONS = Path(__file__).parent / "migrations"

# Any number; the same one for everybody who migrates this database.
_MIGRATION_LOCK = 7_203_111_407
LOCK_TIMEOUT_MS = 5_000


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _scripts() -> tuple[Script, ...]:
    """All migrations, oldest first."""
    return _scripts_in(_MIGRATIONS)


@cache
def _scripts_in(folder: Path) -> tuple[Script, ...]:
    """They are files of this release, so reading them once is enough."""
    return tuple(ScriptDirectory(str(folder)).walk_revisions())[::-1]


def _contracts(script: Script) -> bool:
    return Path(script.path).name.startswith(f"{script.revision}_contract_")


def migrate(
    database_url: str,
    *,
    contract: bool = False,
    to: str | None = None,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> None:
    """
    Run missing migrations, one transaction each; two at once wait for each other.

    Stops before the first migration that contracts, unless `contract` is given or the database is new; `to`
    names another revision to stop at. A migration that can't get its lock within `lock_timeout_ms` fails
    and changes nothing, instead of stopping the workers behind it; run it again.
    """
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    try:
        with engine.connect() as connection:
            connection.execute(text("SET timezone = 'UTC'"))
            connection.execute(text(f"SET lock_timeout = {int(lock_timeout_ms)}"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
            connection.commit()
            try:
                target = to or (
                    "head" if contract else _stop_before_contracting(current_revision(connection))
                )
                connection.rollback()
                command.upgrade(_config(connection), target)
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
                connection.commit()
    finally:
        engine.dispose()


def _stop_before_contracting(current: str) -> str:
    """Name the last revision that can be reached by expanding alone; a new database has no old code."""
    if not current:
        return "head"
    target = current
    for script in _pending(current):
        if _contracts(script):
            break
        target = script.revision
    return target


def _pending(current: str) -> tuple[Script, ...]:
    scripts = _scripts()
    position = next((i for i, script in enumerate(scripts) if script.revision == current), None)
    return () if position is None else scripts[position + 1 :]


def pending_contraction(connection: Connection) -> str | None:
    """Return the first migration that waits for the last process of an older release to end, if any."""
    return next(
        (script.revision for script in _pending(current_revision(connection)) if _contracts(script)), None
    )


def head_revision() -> str:
    """Return the newest revision that this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def needed_revision() -> str:
    """Return the oldest revision that this code can work on: all that expands must have been carried out."""
    return next(script.revision for script in reversed(_scripts()) if not _contracts(script))


def current_revision(connection: Connection) -> str:
    """Return the revision that the database is at; empty for a database without our schema."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def schema_problem(connection: Connection) -> str | None:
    """
    Say why this code cannot work on the database's schema, and what to do; None if it can.

    A schema that is newer than this code is fine, as long as it has only expanded: that is how a new release
    is rolled out. What contracts names the oldest code that it leaves running.
    """
    current = current_revision(connection)
    known = [script.revision for script in _scripts()]
    if current in known:
        if known.index(current) >= known.index(needed_revision()):
            return None
        return f"the database is at {current}, this code needs {needed_revision()}: run `holdfast migrate`"
    if not current:
        return f"the database has no schema, this code needs {needed_revision()}: run `holdfast migrate`"
    oldest_code = connection.execute(text("SELECT oldest_code FROM deployment")).scalar_one_or_none()
    if oldest_code is not None and oldest_code not in known:
        return (
            f"the database is at revision {current} and needs code that knows {oldest_code}; this code knows"
            f" {known[-1]}: run the newer release"
        )
    return None

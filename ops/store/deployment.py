"""What this database was created for: one row, written once."""

from sqlalchemy import Connection, text


def ensure_day_length(connection: Connection, day_seconds: int) -> int:
    """Store the length of a day if none is stored; return the one that counts."""
    stored = find_day_length(connection)
    if stored is not None:
        # Nothing is written, so that who may only look finds everything as it should be.
        return stored
    connection.execute(
        text("""
            INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, :seconds)
            ON CONFLICT (deployment_id) DO NOTHING
        """),
        {"seconds": day_seconds},
    )
    return int(connection.execute(text("SELECT protection_day_seconds FROM deployment")).scalar_one())


def find_day_length(connection: Connection) -> int | None:
    """Return the stored length of a day, if any."""
    return connection.execute(text("SELECT protection_day_seconds FROM deployment")).scalar_one_or_none()

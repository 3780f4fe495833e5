"""The connection to PostgreSQL: one engine a process, the same session rules for everyone."""

from sqlalchemy import Engine, create_engine

# Before any engine is made: SQLAlchemy copies what psycopg knows of types when it makes one.
import infra.postgres.arrays  # noqa: F401 - teaches psycopg to send our arrays
from infra.settings import Settings


def create_database_engine(settings: Settings, *, application_name: str) -> Engine:
    """
    Build the process's engine; connects on first use.

    Every session runs in UTC, so that no server default decides what a day is, and with time-outs, so
    that no statement or lock can hold a batch for ever. Isolation is READ COMMITTED: every rule that
    needs more takes its row locks, in key order.
    """
    options = " ".join(
        f"-c {name}={value}"
        for name, value in {
            "timezone": "UTC",
            # `infra.postgres.arrays` packs text itself.
            "client_encoding": "UTF8",
            "statement_timeout": settings.statement_timeout_ms,
            "lock_timeout": settings.lock_timeout_ms,
            "idle_in_transaction_session_timeout": settings.statement_timeout_ms,
            # Compiling a statement takes longer than any of ours does, and estimates decide when.
            "jit": "off",
        }.items()
    )
    return create_engine(
        settings.sqlalchemy_url,
        pool_size=settings.database_pool_size,
        max_overflow=2,
        pool_pre_ping=True,
        pool_timeout=10,
        isolation_level="READ COMMITTED",
        connect_args={
            "application_name": application_name,
            "options": options,
            "connect_timeout": 5,
            # A peer that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )

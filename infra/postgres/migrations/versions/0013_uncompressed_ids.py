"""
Keep long lists of ids and hashes as they are.

PostgreSQL compresses what is over 2 kB, and tried so on every command, batch of event ids and link of the
chain: some per cent of its processor time, for random digits that hardly shrink. Rows that are there stay
readable.
"""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    # Only the catalogue changes, so the lock is held for a moment.
    for table, column in (
        ("outbox", "arguments"),
        ("outbox", "event_ids"),
        ("chain_links", "posting_ids"),
        ("chain_links", "row_hashes"),
    ):
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")

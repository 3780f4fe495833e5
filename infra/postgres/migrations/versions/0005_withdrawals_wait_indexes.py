"""
Indexes for withdrawals that wait, built while workers go on writing.

A statement that fails half-way leaves an index that is not valid; it is dropped and built again.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

_INDEXES = {
    "withdrawals_of_seller_idx": "(shop_id, seller_id, reserved_at) WHERE reserved_at IS NOT NULL",
    "withdrawals_of_shop_idx": "(shop_id, reserved_at) WHERE reserved_at IS NOT NULL",
    "withdrawals_pending_idx": "(pending_until) WHERE state = 'pending'",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, definition in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON withdrawals {definition}")
        op.execute("ALTER TABLE withdrawals VALIDATE CONSTRAINT withdrawals_pending_check")

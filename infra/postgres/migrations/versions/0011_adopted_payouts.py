"""Payouts that the bank has made and a restored database had forgotten, taken back into the books."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    # May be null, so nothing is rewritten, and older code need not know of it.
    op.add_column("withdrawals", sa.Column("adopted_at", sa.DateTime(timezone=True), nullable=True))

"""Remedies of operators: a refund begun anew, a credit assigned by hand."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # A constant default and a column that may be null rewrite nothing, and older code need not know of them.
    op.add_column("refunds", sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("bank_credits", sa.Column("assigned_payment_id", sa.Uuid(), nullable=True))

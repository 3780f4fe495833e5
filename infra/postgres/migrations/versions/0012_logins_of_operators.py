"""Which database login an operator's action came by: the name is only said, this is proven."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    # Null of what was done before; older code need not know of it.
    op.add_column("operator_actions", sa.Column("database_login", sa.Text(), nullable=True))

"""The hash chain over postings, and its signed heads."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

# What is in the chain, or signed, never changes. `refuse_change` is that of the postings.
_INSERT_ONLY = """
    CREATE TRIGGER {table}_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""


def upgrade() -> None:
    op.create_table(
        "chain_links",
        sa.Column("link_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("total_postings", sa.BigInteger(), nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("posting_ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("row_hashes", postgresql.ARRAY(sa.LargeBinary()), nullable=False),
        sa.CheckConstraint("link_id > 0", name=op.f("chain_links_link_id_check")),
        sa.CheckConstraint(
            "cardinality(posting_ids) = cardinality(row_hashes)", name=op.f("chain_links_members_check")
        ),
        sa.PrimaryKeyConstraint("link_id", name=op.f("chain_links_pkey")),
    )
    # Hashes and ids don't compress; trying costs time.
    op.execute("ALTER TABLE chain_links ALTER posting_ids SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE chain_links ALTER row_hashes SET STORAGE EXTERNAL")
    op.create_table(
        "chain_heads",
        sa.Column("link_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("total_postings", sa.BigInteger(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("link_id", name=op.f("chain_heads_pkey")),
    )
    op.execute("""
        CREATE TABLE chain_progress (
            chain_id smallint CONSTRAINT chain_progress_pkey PRIMARY KEY
                CONSTRAINT chain_progress_one_row_check CHECK (chain_id = 1),
            chained_below xid8 NOT NULL
        )
    """)
    for table in ("chain_links", "chain_heads"):
        op.execute(_INSERT_ONLY.format(table=table))
    op.execute("INSERT INTO chain_progress (chain_id, chained_below) VALUES (1, '0')")

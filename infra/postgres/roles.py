"""
Who may do what in the database: one group role for each kind of process, with only what it needs.

The one place where rights stand. `holdfast migrate` grants them, docs/database-roles.md shows them, and tests
compare both with the database and try what each role must not do. Nobody, not even the owner, may change or
delete what was posted or chained.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, text

from infra.postgres.tables import metadata

_PREFIX: Final = "holdfast_"

_LETTERS: Final = {"r": "SELECT", "i": "INSERT", "u": "UPDATE", "d": "DELETE"}
_INSERT_ONLY: Final = ("postings", "chain_links", "chain_heads")

# What every process needs to start, to know who speaks, and to pass on what follows.
_ALL_WORKERS: Final = {
    "alembic_version": "r",
    "deployment": "r",
    "shops": "r",
    "banks": "r",
    "sender_keys": "r",
    "holdfast_keys": "r",
    "events": "ri",
    "outbox": "riu",
}
_EVENTS_IN: Final = {"inbox": "riu", "trace_contexts": "ri"}
_LEDGER: Final = {"postings": "ri", "available_balances": "riu"}

# Letters: r SELECT, i INSERT, u UPDATE (which locking a row needs too), d DELETE.
GRANTS: Final[Mapping[str, Mapping[str, str]]] = {
    "payment": {
        **_ALL_WORKERS,
        **_EVENTS_IN,
        "postings": "ri",
        "payments": "riu",
        "bank_credits": "riu",
        "bank_debits": "riu",
        "recorded_messages": "riu",
        "holds": "r",
        "refunds": "ru",
    },
    "escrow": {
        **_ALL_WORKERS,
        **_EVENTS_IN,
        **_LEDGER,
        "payments": "ru",
        "holds": "riu",
        "disputes": "riu",
        "dispute_holds": "ri",
        "refunds": "ri",
        "refund_parts": "ri",
        "claims": "riu",
        "receivables": "riu",
        "bank_debits": "r",
    },
    "payout": {
        **_ALL_WORKERS,
        **_EVENTS_IN,
        **_LEDGER,
        "sellers": "riu",
        "destinations": "ri",
        "password_attempts": "riu",
        "withdrawals": "riu",
        "withdrawal_limits": "r",
        "withdrawal_reviews": "r",
        "payout_pauses": "r",
        "payouts": "r",
        "transfers": "riu",
        "refunds": "ru",
        "refund_parts": "r",
        "payments": "r",
        "bank_cursors": "riu",
        "receivables": "ru",
    },
    "relay": {
        **_ALL_WORKERS,
        "outbox": "riud",
        "trace_contexts": "rd",
        "recorded_messages": "riud",
        "quarantine_overflow": "riu",
        "payments": "r",
        "bank_credits": "r",
        "bank_debits": "r",
        "holds": "ru",
        "disputes": "r",
        "refunds": "ru",
        "claims": "r",
        "password_attempts": "r",
        "withdrawals": "r",
        "withdrawal_reviews": "r",
        "payout_pauses": "r",
        "payouts": "r",
        "transfers": "ru",
        "sweep_marks": "riu",
        "postings": "r",
        "subtotals": "riu",
        "seal": "ru",
        "chain_links": "ri",
        "chain_heads": "ri",
        "chain_progress": "ru",
    },
    # The `holdfast` command, except `migrate` and `recover`: they belong to the owner.
    "operator": {
        **dict.fromkeys(("alembic_version", *metadata.tables), "r"),
        "entries": "r",
        "balance_lines": "r",
        "payouts": "r",
        "shops": "riu",
        "banks": "ri",
        "sender_keys": "riu",
        "holdfast_keys": "riu",
        "sellers": "ru",
        "password_resets": "riu",
        "destinations": "riu",
        "shop_payouts": "riu",
        "withdrawals": "ru",
        "withdrawal_limits": "riud",
        "withdrawal_reviews": "riu",
        "payout_pauses": "rid",
        "transfers": "riu",
        "refunds": "ru",
        "claims": "ri",
        "payments": "ru",
        "holds": "ru",
        "bank_credits": "ru",
        "postings": "ri",
        "available_balances": "riu",
        "receivables": "riu",
        "inbox": "ru",
        "events": "ri",
        "outbox": "riu",
        "recorded_messages": "ru",
        "operator_actions": "ri",
    },
    # Whoever only looks, as an exporter of figures or an accountant: no secrets, not even encrypted ones.
    "viewer": {
        **{
            table: "r"
            for table in ("alembic_version", *metadata.tables)
            if table not in {"sellers", "destinations", "password_attempts", "sender_keys", "holdfast_keys"}
            and table != "recorded_messages"
        },
        "entries": "r",
        "balance_lines": "r",
        "payouts": "r",
    },
}


# Columns that may be read of a table that is otherwise closed: how many messages wait, and nothing of them.
COLUMNS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "viewer": {"recorded_messages": ("kind", "state")}
}


class NotGranted(Exception):
    """Who asks may not grant rights, and nothing was granted; the sentence says what to do."""


class RolesMissing(NotGranted):
    """The group roles do not exist, and who migrates may not create them."""


class NotTheOwner(NotGranted):
    """The tables belong to somebody else."""


def role_name(process: str) -> str:
    """Name the group role that stands for a kind of process."""
    return f"{_PREFIX}{process}"


def role_statements() -> list[str]:
    """Return SQL that creates the group roles where they are missing; for whoever may create roles."""
    return [
        # Roles belong to the whole server, where two databases may be set up at once.
        f"DO $$ BEGIN CREATE ROLE {role_name(process)} NOLOGIN;"
        " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        for process in GRANTS
    ]


def grant_statements() -> list[str]:
    """Return SQL that gives each group role what it may do and takes everything else; for the owner."""
    statements = [f"REVOKE UPDATE, DELETE, TRUNCATE ON {', '.join(_INSERT_ONLY)} FROM CURRENT_USER, PUBLIC"]
    for process, tables in GRANTS.items():
        role = role_name(process)
        statements.append(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
        statements.append(f"GRANT USAGE ON SCHEMA public TO {role}")
        by_rights: dict[str, list[str]] = {}
        for table, letters in tables.items():
            by_rights.setdefault(", ".join(_LETTERS[letter] for letter in letters), []).append(table)
        statements += [
            f"GRANT {rights} ON {', '.join(sorted(names))} TO {role}" for rights, names in by_rights.items()
        ]
        statements += [
            f"GRANT SELECT ({', '.join(columns)}) ON {table} TO {role}"
            for table, columns in COLUMNS.get(process, {}).items()
        ]
    return statements


def grant_roles(connection: Connection) -> None:
    """
    Create the group roles that are missing and give each what it may do, in the caller's transaction.

    Raises:
        NotTheOwner: the tables are not this user's; nothing was granted.
        RolesMissing: a role is missing and this user may not create it; nothing was granted.
    """
    if not connection.execute(
        text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'postings'::regclass")
    ).scalar_one():
        raise NotTheOwner("rights stay as they were granted: the tables belong to another database user")
    missing = connection.execute(
        text("SELECT count(*) FROM unnest(CAST(:names AS text[])) AS name WHERE to_regrole(name) IS NULL"),
        {"names": [role_name(process) for process in GRANTS]},
    ).scalar_one()
    if missing:
        may_create = connection.execute(
            text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        ).scalar_one()
        if not may_create:
            raise RolesMissing(
                f"{missing} group roles are missing, and this user may not create roles; for a role each"
                " have what `holdfast database roles --sql` prints run by somebody who may"
            )
        for statement in role_statements():
            connection.execute(text(statement))
    for statement in grant_statements():
        connection.execute(text(statement))


def roles_page() -> str:
    """Return docs/database-roles.md: one row for each table, one column for each role."""
    tables = sorted({table for tables in GRANTS.values() for table in tables})
    lines = [
        "<!-- Made by `make contract` from infra/postgres/roles.py. Change that, not this page. -->",
        "",
        "# Rights in the database",
        "",
        (
            "What the group role of each kind of process may do: read (r), insert (i), update or lock (u),"
            " delete (d). `holdfast migrate` grants it; [how to use it]"
            "(running.md#one-database-role-for-each-process). Nobody has u or d on `postings`, `chain_links`"
            " and `chain_heads`, the owner included."
        ),
        "",
        f"| table | {' | '.join(f'`{role_name(process)}`' for process in GRANTS)} |",
        f"| --- |{' --- |' * len(GRANTS)}",
    ]
    for table in tables:
        cells = (granted.get(table, "-") for granted in GRANTS.values())
        lines.append(f"| `{table}` | {' | '.join(cells)} |")
    lines += [
        "",
        "Of a table that is otherwise closed to it, a role may read these columns:",
        "",
        *(
            f"- `{role_name(process)}`: `{table}` ({', '.join(f'`{column}`' for column in columns)})"
            for process, tables_of in COLUMNS.items()
            for table, columns in tables_of.items()
        ),
    ]
    return "\n".join(lines) + "\n"

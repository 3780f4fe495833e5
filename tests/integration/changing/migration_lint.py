"""
What a migration may not do to a database that is at work, judged by the statements that it really sends.

Each rule looks at one statement; `existing` are the tables that were there before the migration, for a table
that the same migration creates is empty and nobody waits for it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# A handful of rows, written by operators: an index or a check on them takes no time.
SMALL_TABLES = frozenset(
    {"alembic_version", "bank_cursors", "banks", "deployment", "holdfast_keys", "seal", "sender_keys"}
    | {"shops", "sweep_marks"}
)


@dataclass(frozen=True, slots=True)
class SentStatement:
    """One statement of a migration; `in_transaction` is whether others share its transaction."""

    sql: str
    in_transaction: bool


@dataclass(frozen=True, slots=True)
class Migration:
    """One revision: what it sent, and the tables that were there before."""

    revision: str
    contracts: bool
    statements: tuple[SentStatement, ...]
    existing: frozenset[str]
    # Tables whose file on disk is another one than before: every row was written again, behind a lock.
    rewritten: frozenset[str] = frozenset()


_TAKES_AWAY = re.compile(
    r"\b(DROP (TABLE|COLUMN|VIEW|FUNCTION|TRIGGER|INDEX|CONSTRAINT|TYPE|DEFAULT)|RENAME|SET NOT NULL)\b"
)
_ADDS_COLUMN = re.compile(r"\bADD COLUMN\b")
_ADDS_CONSTRAINT = re.compile(r"\bADD (CONSTRAINT \S+ )?(CHECK|FOREIGN KEY)\b")
_CHANGES = re.compile(
    r"(?:CREATE (?:UNIQUE )?INDEX (?:CONCURRENTLY )?(?:IF NOT EXISTS )?\S+ ON (?:ONLY )?"
    r"|ALTER TABLE (?:IF EXISTS )?(?:ONLY )?|DROP TABLE (?:IF EXISTS )?|UPDATE (?:ONLY )?"
    r"|DELETE FROM (?:ONLY )?|TRUNCATE (?:TABLE )?|LOCK (?:TABLE )?|CREATE TRIGGER \S+ .*? ON "
    r"|DROP TRIGGER (?:IF EXISTS )?\S+ ON )(?:public\.)?\"?(\w+)"
)
_CONSTANT_DEFAULT = re.compile(r"DEFAULT ('[^']*'|-?\d+(\.\d+)?|TRUE|FALSE|NULL)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Facts:
    """A statement on one line, and what a rule asks about it."""

    sql: str
    in_transaction: bool
    contracts: bool
    # The table that it changes: was there before; and may be large.
    on_existing: bool
    on_big: bool
    # Its transaction has added a constraint to that table already.
    constraint_added: bool


def _adds_not_null_without_default(facts: _Facts) -> bool:
    return (
        facts.on_existing
        and bool(_ADDS_COLUMN.search(facts.sql))
        and "NOT NULL" in facts.sql
        and not _CONSTANT_DEFAULT.search(facts.sql)
    )


def _adds_computed_default(facts: _Facts) -> bool:
    return (
        facts.on_existing
        and bool(_ADDS_COLUMN.search(facts.sql))
        and "NOT NULL" not in facts.sql
        and " DEFAULT " in facts.sql
        and not _CONSTANT_DEFAULT.search(facts.sql)
    )


_RULES: tuple[tuple[str, Callable[[_Facts], bool]], ...] = (
    (
        "changes a time-out that protects the workers",
        lambda facts: bool(re.search(r"\bSET\b.*\b(lock_timeout|statement_timeout)\b", facts.sql)),
    ),
    (
        "takes away or narrows what older code uses, which only a contract migration may",
        lambda facts: facts.on_existing and not facts.contracts and bool(_TAKES_AWAY.search(facts.sql)),
    ),
    (
        "an index on a big table without CONCURRENTLY stops writers while it is built",
        lambda facts: facts.on_big and bool(re.match(r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)", facts.sql)),
    ),
    (
        "CONCURRENTLY does not work inside a transaction: use op.get_context().autocommit_block()",
        lambda facts: "CONCURRENTLY" in facts.sql and facts.in_transaction,
    ),
    ("a NOT NULL column without a constant default refuses older code", _adds_not_null_without_default),
    ("a default that is no constant writes every row again", _adds_computed_default),
    (
        "another type of a column writes every row again and surprises older code",
        lambda facts: (
            facts.on_existing and bool(re.search(r"ALTER COLUMN \S+ (SET DATA )?TYPE\b", facts.sql))
        ),
    ),
    (
        "build the index CONCURRENTLY first and add the constraint USING INDEX",
        lambda facts: (
            facts.on_big
            and bool(re.search(r"ADD (CONSTRAINT \S+ )?(UNIQUE|PRIMARY KEY)\b", facts.sql))
            and "USING INDEX" not in facts.sql
        ),
    ),
    (
        "a constraint without NOT VALID reads the whole table behind a lock",
        lambda facts: (
            facts.on_big and bool(_ADDS_CONSTRAINT.search(facts.sql)) and "NOT VALID" not in facts.sql
        ),
    ),
    (
        "validates behind the lock that its own transaction took: do it in a migration of its own",
        lambda facts: "VALIDATE CONSTRAINT" in facts.sql and facts.constraint_added and facts.in_transaction,
    ),
    (
        "changes rows of a big table in one go: fill in batches, outside of migrations",
        lambda facts: facts.on_big and bool(re.match(r"(UPDATE|DELETE|TRUNCATE)\b", facts.sql)),
    ),
    (
        "locks a table on purpose",
        lambda facts: bool(re.match(r"(LOCK|VACUUM FULL|CLUSTER|REINDEX(?! .*CONCURRENTLY))\b", facts.sql)),
    ),
)


def problems_of(migration: Migration) -> list[str]:
    """Return a sentence for each thing that would stop the workers or break the release before."""
    found = [f"{table}: every row is written again" for table in sorted(migration.rewritten)]
    constrained: set[str] = set()
    for statement in migration.statements:
        sql = " ".join(statement.sql.split())
        table = _table_of(sql)
        facts = _Facts(
            sql,
            statement.in_transaction,
            migration.contracts,
            on_existing=table in migration.existing,
            on_big=table in migration.existing - SMALL_TABLES,
            constraint_added=table in constrained,
        )
        if _ADDS_CONSTRAINT.search(sql):
            constrained.add(table)
        found += [f"{problem}: {sql[:160]}" for problem, breaks in _RULES if breaks(facts)]
    if migration.contracts and not any("oldest_code" in s.sql for s in migration.statements):
        found.append("takes away without setting deployment.oldest_code to the code that does without it")
    return found


def _table_of(sql: str) -> str:
    """Return the table that a statement changes; empty where it is none."""
    found = _CHANGES.match(sql)
    return found[1] if found else ""

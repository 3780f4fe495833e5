"""
The audit: every invariant proved from the rows, in one snapshot.

What is promised and the SQL that proves it stand in `infra.postgres.invariants`. They can be run at any
time, also in the middle of the work; only what depends on time has a bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from sqlalchemy import Connection, text

from infra.postgres.invariants import (
    at_rest,
    effects,
    ledger,
    orders,
    protection,
    refunds,
    told,
    withdrawals,
)
from infra.postgres.invariants.check import Check
from infra.postgres.migrate import schema_problem

_MAX_EXAMPLES: Final = 5
CHECKS: Final[tuple[Check, ...]] = tuple(
    sorted(
        (
            *ledger.CHECKS,
            *orders.CHECKS,
            *refunds.CHECKS,
            *protection.CHECKS,
            *effects.CHECKS,
            *withdrawals.CHECKS,
            *told.CHECKS,
            *at_rest.CHECKS,
        ),
        key=attrgetter("invariant"),
    )
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; examples only where something is broken."""

    check: Check
    checked: int
    violations: int
    examples: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.violations == 0


class SchemaNotCurrent(Exception):
    """The database is at another revision than these statements were written for."""


def run_audit(connection: Connection) -> list[Finding]:
    """
    Run every check in the caller's transaction, which must be REPEATABLE READ: one snapshot for all.

    Takes as long as it takes: the statement time-out is lifted for this transaction.

    Raises:
        SchemaNotCurrent: run the migrations, or the audit of the version that fits.
    """
    problem = schema_problem(connection)
    if problem is not None:
        raise SchemaNotCurrent(problem)
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    return [_run(connection, check) for check in CHECKS]


def _run(connection: Connection, check: Check) -> Finding:
    counted = connection.execute(
        text(f"""
            SELECT count(*) AS checked, count(*) FILTER (WHERE broken IS NOT FALSE) AS violations
            FROM ({check.statement}) AS judged
        """)
    ).one()
    examples: Sequence[str] = ()
    if counted.violations:
        # The same snapshot, so it finds the same rows; only a broken ledger pays for it.
        examples = [
            str(row.example)
            for row in connection.execute(
                text(f"""
                    SELECT example FROM ({check.statement}) AS judged
                    WHERE broken IS NOT FALSE LIMIT {_MAX_EXAMPLES}
                """)
            )
        ]
    return Finding(check, counted.checked, counted.violations, tuple(examples))

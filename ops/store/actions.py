"""Who did what and why: one row for everything that an operator changes, in the same transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.tables import operator_actions


@dataclass(frozen=True, slots=True)
class Action:
    """`action` is past tense, `subject` what it was done to; details hold no secret."""

    operator: str
    action: str
    subject: str
    why: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


def record_actions(connection: Connection, actions: Sequence[Action]) -> None:
    """Write down actions in the caller's transaction, each with the login that the database has verified."""
    login: str = connection.execute(text("SELECT session_user")).scalar_one()
    insert_rows(
        connection,
        operator_actions,
        [
            {
                "operator": action.operator,
                "action": action.action,
                "subject": action.subject,
                "reason": action.why,
                "details": json.dumps(dict(action.details), default=str),
                "database_login": login,
            }
            for action in actions
        ],
    )


def find_actions(
    connection: Connection,
    *,
    operator: str | None,
    action: str | None,
    subject: str | None,
    since: datetime | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return actions, the latest first; None leaves a filter out."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT action_id, acted_at, operator, database_login, action, subject, reason, details
                FROM operator_actions
                WHERE (CAST(:operator AS text) IS NULL OR operator = :operator)
                  AND (CAST(:action AS text) IS NULL OR action = :action)
                  AND (CAST(:subject AS text) IS NULL OR subject = :subject)
                  AND (CAST(:since AS timestamptz) IS NULL OR acted_at >= :since)
                ORDER BY action_id DESC LIMIT :limit
            """),
            {"operator": operator, "action": action, "subject": subject, "since": since, "limit": limit},
        ).mappings()
    ]

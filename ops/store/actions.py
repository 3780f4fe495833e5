"""Who did what and why: one row for everything that an operator changes, in the same transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

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
    """Write down actions in the caller's transaction."""
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
            }
            for action in actions
        ],
    )

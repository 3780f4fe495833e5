"""
Which messages and orders a log line is about: bound once a batch, and so in every line written meanwhile.

A batch of hundreds names the first few and how many there are; single ids stand under their own names.
"""

from collections.abc import Sequence

from infra.rabbitmq.ingress import InboundEvent
from schemas.commands import Command

NAMED_AT_MOST = 8
_SUBJECTS = ("order_id", "withdrawal_id", "dispute_id", "refund_id")

Ids = dict[str, object]


def event_ids(events: Sequence[InboundEvent]) -> Ids:
    """Name the messages of a batch and what they are about."""
    first = events[:NAMED_AT_MOST]
    ids: Ids = {} if len(events) == 1 else {"messages": len(events)}
    _bind(ids, "event_id", [event.envelope.id for event in first])
    _bind(ids, "shop", sorted({event.sender_id for event in first}))
    for name in _SUBJECTS:
        _bind(ids, name, [id_ for event in first if (id_ := getattr(event.data, name, None)) is not None])
    return ids


def command_ids(commands: Sequence[Command]) -> Ids:
    """Name the rows that commands of one kind are about."""
    ids: Ids = {"command": commands[0].NAME}
    if len(commands) > 1:
        ids["messages"] = len(commands)
    for name in type(commands[0]).model_fields:
        named: list[str] = []
        rows = 0
        for command in commands:
            value = getattr(command, name)
            if isinstance(value, tuple):
                rows += len(value)
                named += map(str, value[: NAMED_AT_MOST - len(named)])
        if rows > len(named):
            ids["rows"] = rows
        _bind(ids, name.removesuffix("s"), named)
    return ids


def _bind(ids: Ids, name: str, values: Sequence[object]) -> None:
    if len(values) == 1:
        ids[name] = values[0]
    elif values:
        ids[f"{name}s"] = list(values)

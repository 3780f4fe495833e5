"""What has arrived before: `(source, id)` of every authentic event, remembered for ever."""

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Connection, text

from infra.postgres.bulk import columns_of, insert_unless_known
from infra.postgres.tables import inbox


class Sighting(Enum):
    FIRST = "first"
    SAME_AGAIN = "same_again"
    OTHER_CONTENT = "other_content"


class Arrival(Struct, frozen=True, gc=False):
    """One event as the inbox knows it; `answer_id` is the event that answers it, now or later."""

    source: str
    event_id: str
    type: str
    content_hash: bytes
    answer_id: UUID | None


class Seen(Struct, frozen=True, gc=False):
    sighting: Sighting
    # The answer to give: the arrival's own at first sight, the recorded one for a repeat.
    answer_id: UUID | None


def register_arrivals(
    connection: Connection, arrivals: Sequence[Arrival], *, now: datetime, all_new: bool = False
) -> list[Seen]:
    """
    Record arrivals in the caller's transaction and tell which of them are new; one result for each.

    No `(source, event_id)` may stand twice in one call. Rows are written in key order, so two
    transactions with the same events wait for each other instead of deadlocking; the second then finds
    the first's rows. With `all_new` a known one fails the transaction, see `Steps.carry_out`.
    """
    ordered = sorted(arrivals, key=lambda arrival: (arrival.source, arrival.event_id))
    left_out = {
        (row.source, row.event_id)
        for row in insert_unless_known(
            connection,
            inbox,
            {**columns_of(Arrival, ordered), "received_at": [now] * len(ordered)},
            key=("source", "event_id"),
            all_new=all_new,
            often_equal=("source", "type", "received_at"),
        )
    }
    if not left_out:
        return [Seen(Sighting.FIRST, arrival.answer_id) for arrival in arrivals]
    known = _find_known(connection, [a for a in ordered if (a.source, a.event_id) in left_out])
    return [
        _compare(arrival, known)
        if (arrival.source, arrival.event_id) in left_out
        else Seen(Sighting.FIRST, arrival.answer_id)
        for arrival in arrivals
    ]


def change_answers(connection: Connection, answers: dict[tuple[str, str], UUID | None]) -> None:
    """Point arrivals of this same transaction to another answer; keys are `(source, event_id)`."""
    if answers:
        connection.execute(
            text("""
                UPDATE inbox SET answer_id = given.answer_id
                FROM unnest(CAST(:sources AS text[]), CAST(:ids AS text[]), CAST(:answers AS uuid[]))
                    AS given(source, event_id, answer_id)
                WHERE (inbox.source, inbox.event_id) = (given.source, given.event_id)
            """),
            {
                "sources": [source for source, _ in answers],
                "ids": [event_id for _, event_id in answers],
                "answers": list(answers.values()),
            },
        )


# type, content hash, answer
_Known = tuple[str, bytes, UUID | None]


def _find_known(connection: Connection, arrivals: Sequence[Arrival]) -> dict[tuple[str, str], _Known]:
    if not arrivals:
        return {}
    return {
        (row.source, row.event_id): (row.type, bytes(row.content_hash), row.answer_id)
        for row in connection.execute(
            text("""
                SELECT source, event_id, type, content_hash, answer_id FROM inbox
                WHERE (source, event_id) IN (
                    SELECT * FROM unnest(CAST(:sources AS text[]), CAST(:ids AS text[]))
                )
            """),
            {"sources": [a.source for a in arrivals], "ids": [a.event_id for a in arrivals]},
        )
    }


def _compare(arrival: Arrival, known: dict[tuple[str, str], _Known]) -> Seen:
    type_, content_hash, answer_id = known[arrival.source, arrival.event_id]
    if (type_, content_hash) == (arrival.type, arrival.content_hash):
        return Seen(Sighting.SAME_AGAIN, answer_id)
    return Seen(Sighting.OTHER_CONTENT, None)

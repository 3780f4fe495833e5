"""
One step of the workflow: one transaction with everything that follows from it.

A step's state changes, postings and outbox rows are committed together. What a crash may lose after
that is only the publishing, which the relay makes good.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from time import monotonic
from typing import TypeVar
from uuid import UUID

from psycopg.errors import UniqueViolation
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from infra.crash_points import reach
from infra.postgres.ledger_store import record_postings
from infra.postgres.outbox import (
    CommandRow,
    OutboxRow,
    StoredEvent,
    find_events,
    group_events,
    write_events,
    write_outbox,
)
from ledger.postings import Posting
from schemas.commands import MAX_IDS, Command
from schemas.outgoing import OutgoingData

AfterCommit = Callable[[Sequence[OutboxRow]], None]
Result = TypeVar("Result")

# Repeats come in swarms: after a crash, or when a shop sends its day again.
_ASK_FIRST_SECONDS = 1.0


def milliseconds_until(moment: datetime, now: datetime) -> int:
    """Return the wait until a moment, rounded up so that it is never early; 0 if it has passed."""
    return max(0, -((now - moment) // timedelta(milliseconds=1)))


class Step:
    """
    What a handler works with inside its transaction; `now` is the database's clock, read once.

    `all_new` is the hope that every key to be written is new: writing is cheaper, and a known key fails the
    transaction, after which `Steps.carry_out` does the work again without it.
    """

    def __init__(self, connection: Connection, now: datetime, *, all_new: bool = False) -> None:
        self.connection = connection
        self.now = now
        self.all_new = all_new
        self._events: list[StoredEvent] = []
        self._again: list[UUID] = []
        self._commands: list[CommandRow] = []
        self._postings: list[Posting] = []

    def post(self, postings: Iterable[Posting]) -> None:
        """Book postings when the step ends, all in one statement."""
        self._postings.extend(postings)

    def emit(self, event_id: UUID, shop_id: str, data: OutgoingData) -> None:
        """Tell the shop; an event whose id is known already is published again as it was."""
        self.emit_text(event_id, shop_id, data.TYPE, data.model_dump_json(exclude_none=True))

    def emit_text(self, event_id: UUID, shop_id: str, type_: str, data: str) -> None:
        """Tell the shop the same with `data` as JSON text, which schemas/outgoing.py writes."""
        self._events.append(StoredEvent(event_id, shop_id, type_, self.now, data))

    def emit_again(self, event_ids: Iterable[UUID | None]) -> None:
        """Publish earlier answers again, ids unchanged; one that is not there yet will come by itself."""
        self._again.extend(event_id for event_id in event_ids if event_id is not None)

    def command(self, queue: str, command: Command, *, delay_ms: int = 0) -> None:
        self._commands.append(CommandRow(queue, command.NAME, command.model_dump_json(), delay_ms))

    def command_for_each(
        self,
        queue: str,
        ids: Sequence[UUID],
        make: Callable[[tuple[UUID, ...]], Command],
        *,
        delay_ms: int = 0,
    ) -> None:
        """Name many rows in as few commands as a command's bound allows."""
        for start in range(0, len(ids), MAX_IDS):
            self.command(queue, make(tuple(ids[start : start + MAX_IDS])), delay_ms=delay_ms)

    def finish(self, *, grace_seconds: float) -> list[OutboxRow]:
        """Write what was collected; called once, right before the commit."""
        record_postings(self.connection, self._postings, booked_at=self.now, all_new=self.all_new)
        new = list({event.event_id.int: event for event in self._events}.values())
        known = write_events(self.connection, new, all_new=self.all_new)
        # Published as it was kept, not as this step would tell it now: one id, one event for ever.
        again = find_events(self.connection, known.union(self._again))
        if known:
            new = [event for event in new if event.event_id not in known]
        rows: list[OutboxRow] = [*self._commands, *group_events([*new, *again])]
        return write_outbox(self.connection, rows, now=self.now, grace_seconds=grace_seconds)


class Steps:
    """Opens steps on one engine and hands their outbox rows on after the commit."""

    def __init__(self, engine: Engine, *, after_commit: AfterCommit, grace_seconds: float) -> None:
        self._engine = engine
        self._after_commit = after_commit
        self._grace_seconds = grace_seconds
        self._ask_first_until = 0.0

    def carry_out(self, name: str, work: Callable[[Step], Result]) -> Result:
        """
        Do `work` in one transaction in the hope that all it writes is new; else again, asking first.

        Asking whether a key is known costs a good part of every insert, and nearly always the answer is no.
        So the unique keys are left to answer: where one does, the transaction is rolled back and `work` is
        done once more with `ON CONFLICT`, and so is whatever comes in the next second. See docs/adr/0019.

        `work` may be called twice, so it keeps nothing and tells nobody anything but through its step.
        """
        if monotonic() >= self._ask_first_until:
            try:
                with self._open(name, all_new=True) as step:
                    return work(step)
            except IntegrityError as error:
                if not isinstance(error.orig, UniqueViolation):
                    raise
                self._ask_first_until = monotonic() + _ASK_FIRST_SECONDS
        with self._open(name, all_new=False) as step:
            return work(step)

    def begin(self, name: str = "step") -> AbstractContextManager[Step]:
        """
        Open a transaction; commit at the end of the block, roll back on any error.

        `name` is the step's, in the crash proof and wherever one has to be told from another.

        An error that leaves the block says nothing about the commit when the connection broke: the
        caller tries the same messages again, and every effect is keyed so that it happens once.
        """
        return self._open(name, all_new=False)

    @contextmanager
    def _open(self, name: str, *, all_new: bool) -> Iterator[Step]:
        reach(f"{name}: before begin")
        with self._engine.begin() as connection:
            now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            step = Step(connection, now, all_new=all_new)
            yield step
            rows = step.finish(grace_seconds=self._grace_seconds)
            reach(f"{name}: before commit")
        reach(f"{name}: committed")
        if rows:
            self._after_commit(rows)
        reach(f"{name}: followed up")

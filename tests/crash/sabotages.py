"""Ways to spoil the code on purpose, so that the proof can be seen to fail."""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from infra.rabbitmq.batches import BatchHandler, BatchRunner
from infra.rabbitmq.consumer import Batch
from infra.rabbitmq.messages import Delivery, Outgoing, PublishOutcome
from infra.rabbitmq.publisher import Publisher
from infra.rabbitmq.session import Session

PATIENCE_SECONDS = 20.0


def acknowledge_before_commit() -> None:
    """The broker forgets a message before its work is done; for a process that is only born to die."""
    attempt, flush = BatchRunner._attempt, Session._flush
    flushed = threading.Event()

    def flush_and_tell(session: Session, *, patient: bool = True) -> None:
        flush(session, patient=patient)
        tell_when_sent(session)

    def tell_when_sent(session: Session) -> None:
        if session._connection._get_write_buffer_size():
            session._loop.call_later(0.01, lambda: tell_when_sent(session))
        else:
            flushed.set()

    def attempt_late(runner: BatchRunner, handle: BatchHandler, batch: Batch, positions: Any) -> Any:
        def handle_late(deliveries: Sequence[Delivery]) -> None:
            flushed.clear()
            batch.settle(positions)
            assert flushed.wait(PATIENCE_SECONDS)
            handle(deliveries)

        return attempt(runner, handle_late, batch, positions)

    Session._flush = flush_and_tell  # type: ignore[method-assign]  # that is the sabotage
    BatchRunner._attempt = attempt_late  # type: ignore[method-assign]  # that is the sabotage


class CarelessPublisher(Publisher):
    """Takes everything that it has sent for delivered."""

    def publish(self, messages: Sequence[Outgoing], *, timeout_s: float = 10.0) -> list[PublishOutcome]:
        super().publish(messages, timeout_s=timeout_s)
        return [PublishOutcome.CONFIRMED] * len(messages)


@contextmanager
def without_row_locks(engine: Engine, table: str) -> Iterator[None]:
    """Every statement of this engine that locks rows of a table only reads them."""

    def rewrite(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any
    ) -> tuple[str, Any]:
        if re.search(rf"FROM\s+{table}\b", statement):
            statement = re.sub(r"\bFOR (UPDATE|SHARE|NO KEY UPDATE)\b", "", statement)
        return statement, parameters

    event.listen(engine, "before_cursor_execute", rewrite, retval=True)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", rewrite)


def without_unique_keys(table: str) -> str:
    """SQL that drops every unique key of a table but the primary one."""
    return f"""
        DO $$
        DECLARE found record;
        BEGIN
            FOR found IN SELECT c.conname FROM pg_constraint AS c
                         WHERE c.conrelid = '{table}'::regclass AND c.contype = 'u' LOOP
                EXECUTE format('ALTER TABLE {table} DROP CONSTRAINT %I CASCADE', found.conname);
            END LOOP;
            FOR found IN SELECT i.indexrelid::regclass::text AS name FROM pg_index AS i
                         WHERE i.indrelid = '{table}'::regclass AND i.indisunique AND NOT i.indisprimary LOOP
                EXECUTE 'DROP INDEX ' || found.name;
            END LOOP;
        END $$
    """

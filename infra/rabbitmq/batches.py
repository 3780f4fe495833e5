"""
Carrying out a batch: all at once, then one by one, and a way out for each message that cannot be done.

A message is acknowledged only when its work is committed, or when a confirmed copy of it rests in a retry
lane or in the dead-letter queue. Whatever else happens it stays unacknowledged, and the broker gives it to
somebody again.
"""

import random
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from infra.crash_points import reach
from infra.observability.metrics import MESSAGES
from infra.rabbitmq.availability import Availability
from infra.rabbitmq.consumer import Batch
from infra.rabbitmq.messages import (
    Delivery,
    Failure,
    Outgoing,
    PublishOutcome,
    dead_letter_message,
    retry_message,
)
from infra.rabbitmq.publisher import Publisher, PublisherClosed

log = structlog.get_logger(__name__)

BatchHandler = Callable[[Sequence[Delivery]], None]
"""Takes deliveries; when it returns they are done and acknowledged, when it raises none of them is."""

FIRST_BACK_OFF_SECONDS = 0.2
MAX_BACK_OFF_SECONDS = 15.0
MAX_RETRY_SECONDS = 600
# After so many recoveries that did not help, it is the message that takes the database away, not the weather.
RECOVERIES_BEFORE_BLAME = 10

# What becomes of a message, as the metric calls it.
_DONE, _RETRIED, _DEAD_LETTER = BECOMES = ("done", "retried", "dead_letter")


class UnknownCommand(Exception):
    """A message on one of our own queues whose type names none of the queue's commands."""


class _GivenUp(Exception):
    """Stopping, or the channel is gone: leave what is left unacknowledged."""


@dataclass(frozen=True, slots=True)
class _Failed:
    position: int
    failure: Failure
    error: Exception


class BatchRunner:
    """
    Runs handlers over batches, in any number of threads.

    Args:
        publisher: takes retries and dead letters.
        classify: what an exception calls for.
        await_recovery: blocks until the database can be reached, or the event is set.
        max_attempts: how often a message is tried in all.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        classify: Callable[[BaseException], Failure],
        await_recovery: Callable[[threading.Event], None],
        availability: Availability,
        stopping: threading.Event,
        max_attempts: int,
        publish_timeout_s: float,
    ) -> None:
        self._publisher = publisher
        self._classify = classify
        self._await_recovery = await_recovery
        self._availability = availability
        self._stopping = stopping
        self._max_attempts = max_attempts
        self._publish_timeout_s = publish_timeout_s

    def run(self, handle: BatchHandler, batch: Batch) -> None:
        """Bring every message of the batch to its end, or leave it unacknowledged when that has to wait."""
        everything = range(len(batch.deliveries))
        try:
            failed = self._attempt(handle, batch, everything)
            if failed is None:
                return
            if len(batch.deliveries) == 1:
                self._send_away(batch, [failed])
                return
            log.info(
                "batch_failed_tried_one_by_one",
                queue=batch.deliveries[0].queue_name,
                size=len(batch.deliveries),
                error=type(failed.error).__name__,
                where=_where(failed.error),
            )
            one_by_one = [self._attempt(handle, batch, [position]) for position in everything]
            self._send_away(batch, [one for one in one_by_one if one is not None])
        except _GivenUp:
            log.info(
                "batch_handed_back",
                queue=batch.deliveries[0].queue_name,
                size=len(batch.deliveries),
                abandoned=batch.abandoned,
            )

    def _attempt(self, handle: BatchHandler, batch: Batch, positions: Sequence[int]) -> _Failed | None:
        deliveries = batch.deliveries
        if len(positions) < len(deliveries):
            deliveries = [deliveries[position] for position in positions]
        recoveries = 0
        while not batch.abandoned:
            try:
                handle(deliveries)
            except Exception as error:  # noqa: BLE001 - every failure of a handler is judged, none is lost
                failure = self._judge(error)
                if failure is not Failure.UNAVAILABLE:
                    return _Failed(positions[0], failure, error)
                if recoveries == RECOVERIES_BEFORE_BLAME:
                    return _Failed(positions[0], Failure.RETRY, error)
                self._recover(recoveries, type(error).__name__)
                recoveries += 1
            else:
                reach("batch: before acknowledge")
                batch.settle(positions)
                reach("batch: acknowledged")
                MESSAGES.labels(batch.deliveries[0].queue_name, _DONE).inc(len(positions))
                return None
        raise _GivenUp

    def _judge(self, error: Exception) -> Failure:
        if isinstance(error, UnknownCommand):
            return Failure.POISON
        try:
            return self._classify(error)
        except Exception:
            log.exception("failure_not_classified", error=type(error).__name__)
            return Failure.RETRY

    def _recover(self, recoveries: int, cause: str) -> None:
        with self._availability.suspended(cause):
            self._back_off(recoveries)
            self._await_recovery(self._stopping)
        if self._stopping.is_set():
            raise _GivenUp

    def _back_off(self, rounds: int) -> None:
        ceiling = min(MAX_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2 ** min(rounds, 10))
        if self._stopping.wait(random.uniform(ceiling / 2, ceiling)):  # noqa: S311 - spreads load, no secret
            raise _GivenUp

    def _send_away(self, batch: Batch, failed: Sequence[_Failed]) -> None:
        """To a retry lane or the dead-letter queue: confirmed first, acknowledged then."""
        left = [(one.position, self._way_out(batch.deliveries[one.position], one)) for one in failed]
        rounds = 0
        while left:
            if batch.abandoned:
                raise _GivenUp
            reach("retry: before publish")
            outcomes = self._publish([message for _, message in left])
            reach("retry: confirmed")
            confirmed = [
                position
                for (position, _), outcome in zip(left, outcomes, strict=True)
                if outcome is PublishOutcome.CONFIRMED
            ]
            batch.settle(confirmed)
            left = [
                entry
                for entry, outcome in zip(left, outcomes, strict=True)
                if outcome is not PublishOutcome.CONFIRMED
            ]
            if left:
                with self._availability.suspended("broker takes no retry or dead letter"):
                    self._back_off(rounds)
                rounds += 1

    def _way_out(self, delivery: Delivery, failed: _Failed) -> Outgoing:
        error, failure = failed.error, failed.failure
        again = failure is Failure.RETRY and delivery.attempt + 1 < self._max_attempts
        becomes = _RETRIED if again else _DEAD_LETTER
        MESSAGES.labels(delivery.queue_name, becomes).inc()
        # A dead letter waits for a person.
        say = log.warning if again else log.error
        say(
            "message_failed",
            queue=delivery.queue_name,
            type=delivery.type,
            message_id=delivery.message_id,
            attempt=delivery.attempt + 1,
            becomes=becomes,
            failure=failure.value,
            error=type(error).__name__,
            where=_where(error),
        )
        if again:
            message = retry_message(delivery, delay_ms=_retry_delay_ms(delivery.attempt))
        else:
            message = dead_letter_message(delivery, reason=_reason(failed, delivery))
        return message

    def _publish(self, messages: Sequence[Outgoing]) -> list[PublishOutcome]:
        try:
            return self._publisher.publish(messages, timeout_s=self._publish_timeout_s)
        except PublisherClosed:
            raise _GivenUp from None


def _retry_delay_ms(attempt: int) -> int:
    """1-2 s, 2-4 s, ... up to 10-20 min, spread: what failed together should not return together."""
    base_ms = min(2**attempt, MAX_RETRY_SECONDS) * 1000
    return random.randint(base_ms, 2 * base_ms)  # noqa: S311 - spreads load, no secret


def _reason(failed: _Failed, delivery: Delivery) -> str:
    # Never the error's own text: a database error quotes the values that it stumbled on.
    what = f"{type(failed.error).__name__} at {_where(failed.error)}"
    if failed.failure is Failure.POISON:
        return f"poison: {what}"
    return f"gave up after {delivery.attempt + 1} attempts: {what}"


def _where(error: BaseException) -> str:
    """File and line where it was raised; says enough to find it, and nothing of what it was about."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"

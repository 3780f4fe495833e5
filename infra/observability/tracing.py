"""
One trace from a shop's message to the payout, through queues, delay lanes and days.

Imported only where `HOLDFAST_TRACING` is on; what to export to, and how much of it, is OpenTelemetry's own
business (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER` and the like).

Workers carry out batches, and a message of ours may name hundreds of rows of as many orders. So the stages
of a batch are timed once, and every order of it gets spans of its own, in its own trace. That comes from the
event that began it, kept in PostgreSQL beside the rows (`infra/postgres/trace_contexts.py`); the
`traceparent` of a command says which process sent it, and becomes a link.

The stages are those that the code names anyway, with `reach`; see infra/crash_points.py.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from infra import crash_points
from infra.postgres.outbox import CommandRow, EventsRow, OutboxRow, StoredEvent
from infra.postgres.trace_contexts import (
    Subject,
    TracedRow,
    find_traces_of_rows,
    find_traces_of_subjects,
    keep_traces,
)
from infra.rabbitmq.ingress import InboundEvent
from infra.rabbitmq.messages import TRACEPARENT_HEADER, Delivery, PublishOutcome
from schemas.commands import Command

log = structlog.get_logger(__name__)

# A batch may name a hundred thousand rows; whoever traces all of a rush should sample.
MAX_TRACED_ITEMS = 1_000
# Single statements are shown where few orders share them; else each order would repeat them all.
MAX_ITEMS_WITH_STATEMENTS = 8
MAX_LINKS = 32
FLUSH_SECONDS = 2.0

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_WRITES = re.compile(r"\b(INSERT INTO|UPDATE(?! OF)|DELETE FROM)\s+(\w+)")
_READS = re.compile(r"\b(FROM|JOIN)\s+(?!unnest\b)(\w+)")

CommandT = TypeVar("CommandT", bound=Command)
Attributes = dict[str, AttributeValue]


@dataclass(slots=True)
class _Stage:
    """What a batch did from when to when, in nanoseconds; `inside` is the position of the stage around it."""

    name: str
    kind: SpanKind
    began: int
    inside: int | None
    ended: int = 0


@dataclass(slots=True)
class _Batch:
    """The traced items of a batch, and the stages that they share."""

    spans: list[Span]
    stages: list[_Stage] = field(default_factory=list)
    open: list[int] = field(default_factory=list)
    by_trace: dict[int, SpanContext] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for span in self.spans:
            self.by_trace[span.get_span_context().trace_id] = span.get_span_context()

    @property
    def shows_statements(self) -> bool:
        return 0 < len(self.spans) <= MAX_ITEMS_WITH_STATEMENTS

    def enter(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> None:
        inside = self.open[-1] if self.open else None
        self.open.append(len(self.stages))
        self.stages.append(_Stage(name, kind, time.time_ns(), inside))

    def leave(self) -> None:
        if self.open:
            self.stages[self.open.pop()].ended = time.time_ns()


_current: ContextVar[_Batch | None] = ContextVar("holdfast_traced_batch", default=None)


def start_tracing(engine: Engine, *, process: str) -> "Tracing":
    """Trace this process and send the spans to where OpenTelemetry's variables say."""
    resource = Resource.create({"service.namespace": "holdfast", "service.name": f"holdfast-{process}"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(engine, provider)


class Tracing:
    """What workers and publishers call around their work. Nothing here ever makes work fail."""

    def __init__(self, engine: Engine, provider: TracerProvider) -> None:
        self._engine = engine
        self._provider = provider
        self._tracer = provider.get_tracer("holdfast")
        crash_points.watch(_note_stage)
        event.listen(engine, "before_cursor_execute", _statement_begins)
        event.listen(engine, "after_cursor_execute", _statement_ends)

    def close(self) -> None:
        """Send what is left, for at most two seconds: a collector that is away must not keep a worker."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)

    # --- work ---------------------------------------------------------------------------------------------

    def around_events(
        self,
        queue: str,
        admit: Callable[[Sequence[Delivery]], Sequence[InboundEvent]],
        handle: Callable[[Sequence[InboundEvent]], None],
    ) -> Callable[[Sequence[Delivery]], None]:
        """Trace the events of a queue: each under the trace that it brought, or under one of its own."""

        def traced(deliveries: Sequence[Delivery]) -> None:
            began = time.time_ns()
            events = admit(deliveries)
            if not events:
                return
            verified = time.time_ns()
            spans = [self._span_of_event(queue, one, began) for one in events[:MAX_TRACED_ITEMS]]
            self._keep(events, spans)
            with self._batch(len(events), spans) as batch:
                batch.stages.append(_Stage("verify", SpanKind.INTERNAL, began, None, verified))
                handle(events)

        return traced

    def around_commands(
        self, queue: str, handle: Callable[[Sequence[CommandT]], None]
    ) -> Callable[[Sequence[Delivery], Sequence[CommandT]], None]:
        """Trace the commands of a queue: each row that they name under the trace in which it began."""

        def traced(deliveries: Sequence[Delivery], commands: Sequence[CommandT]) -> None:
            spans = self._spans_of_commands(queue, deliveries, commands)
            with self._batch(len(commands), spans):
                handle(commands)

        return traced

    @contextmanager
    def _batch(self, size: int, spans: list[Span]) -> Iterator[_Batch]:
        for span in spans:
            span.set_attribute("messaging.batch.message_count", size)
        batch = _Batch([span for span in spans if span.is_recording()])
        token = _current.set(batch)
        traces = {trace.format_trace_id(span.get_span_context().trace_id) for span in spans}
        bound = {"trace_id": traces.pop()} if len(traces) == 1 else {}
        try:
            with structlog.contextvars.bound_contextvars(**bound):
                yield batch
        except BaseException as error:
            # Never the error's own text: a database error quotes the values that it stumbled on.
            for span in batch.spans:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            _current.reset(token)
            self._write_down(batch)

    def _write_down(self, batch: _Batch) -> None:
        ended = time.time_ns()
        for span in batch.spans:
            shown: list[Span] = []
            for stage in batch.stages:
                around = span if stage.inside is None else shown[stage.inside]
                made = self._tracer.start_span(
                    stage.name,
                    context=trace.set_span_in_context(around, Context()),
                    kind=stage.kind,
                    start_time=stage.began,
                )
                made.end(stage.ended or ended)
                shown.append(made)
            span.end(ended)

    def _span_of_event(self, queue: str, one: InboundEvent, began: int) -> Span:
        envelope = one.envelope
        attributes: Attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "process",
            "messaging.destination.name": queue,
            "cloudevents.event_id": envelope.id,
            "cloudevents.event_source": envelope.source,
            "cloudevents.event_type": envelope.type,
        }
        for name in ("order_id", "withdrawal_id", "dispute_id", "refund_id"):
            if isinstance(known_as := getattr(one.data, name, None), str):
                attributes[f"holdfast.{name}"] = known_as
        return self._tracer.start_span(
            f"receive {envelope.type}",
            context=_context_of(envelope.traceparent),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            start_time=began,
        )

    def _keep(self, events: Sequence[InboundEvent], spans: Sequence[Span]) -> None:
        traces = [
            (one.envelope.source, one.envelope.id, _traceparent_of(span.get_span_context()))
            for one, span in zip(events, spans, strict=False)
            # What a shop traces and we do not is passed on all the same.
            if span.is_recording() or one.envelope.traceparent is not None
        ]
        if not traces:
            return
        try:
            with self._engine.begin() as connection:
                keep_traces(connection, traces, now=datetime.now(UTC))
        except SQLAlchemyError as error:
            # The work itself meets the same database next and deals with it.
            log.info("traces_not_kept", count=len(traces), error=type(error).__name__)

    def _spans_of_commands(
        self, queue: str, deliveries: Sequence[Delivery], commands: Sequence[Command]
    ) -> list[Span]:
        began = time.time_ns()
        senders: dict[UUID, str] = {}
        for delivery, command in zip(deliveries, commands, strict=True):
            sent_by = delivery.headers.get(TRACEPARENT_HEADER)
            for id_ in _ids_of(command)[1]:
                senders[id_] = sent_by if isinstance(sent_by, str) else ""
        if not senders:
            return []
        named_by, _ = _ids_of(commands[0])
        spans = []
        found: dict[UUID, TracedRow] = {}
        with self._reading() as connection:
            if connection is not None:
                found = find_traces_of_rows(connection, named_by, list(senders)[:MAX_TRACED_ITEMS])
        for id_, row in found.items():
            sent_by = _span_context_of(senders[id_])
            spans.append(
                self._tracer.start_span(
                    f"receive {commands[0].NAME}",
                    context=_context_of(row.traceparent),
                    kind=SpanKind.CONSUMER,
                    links=[Link(sent_by)] if sent_by is not None else [],
                    start_time=began,
                    attributes={
                        "messaging.system": "rabbitmq",
                        "messaging.operation.type": "process",
                        "messaging.destination.name": queue,
                        "holdfast.shop_id": row.shop_id,
                        "holdfast.known_as": row.known_as,
                        "holdfast.row_id": str(id_),
                    },
                )
            )
        return spans

    @contextmanager
    def _reading(self) -> Iterator[Connection | None]:
        """Yield a connection, or None where the database cannot be read: then there is a gap, no failure."""
        try:
            connection = self._engine.connect()
        except SQLAlchemyError as error:
            log.info("traces_not_read", error=type(error).__name__)
            yield None
            return
        with connection:
            # What is read here is no part of the work, and not to be seen in its trace.
            token = _current.set(None)
            try:
                yield connection
            finally:
                _current.reset(token)

    # --- publishing -----------------------------------------------------------------------------------------

    def publishing(self, rows: Sequence[OutboxRow]) -> "Publishing":
        """Begin to publish: find each row's traces, and what its message is to carry of them."""
        try:
            with self._reading() as connection:
                if connection is None:
                    return Publishing([], {}, {})
                return self._begin_publishing(connection, rows)
        except SQLAlchemyError as error:
            log.info("traces_not_read", error=type(error).__name__)
            return Publishing([], {}, {})

    def _begin_publishing(self, connection: Connection, rows: Sequence[OutboxRow]) -> "Publishing":
        subjects = {
            one.event_id: _subject_of(one) for row in rows if isinstance(row, EventsRow) for one in row.events
        }
        traces = find_traces_of_subjects(connection, subjects.values())
        traceparents = {
            event_id: traces[subject] for event_id, subject in subjects.items() if subject in traces
        }
        spans: list[list[Span]] = []
        headers: dict[int, str] = {}
        for position, row in enumerate(rows):
            if isinstance(row, CommandRow):
                named_by, ids = _ids_in(row.arguments)
                found = find_traces_of_rows(connection, named_by, ids[:MAX_TRACED_ITEMS])
                parents = {one.traceparent for one in found.values()}
                made, header = self._spans_of_command(row, sorted(parents))
                headers |= {position: header} if header else {}
            else:
                made = [
                    self._publish_span(
                        row.type,
                        _origin_or_current(traceparents[one.event_id]),
                        {"cloudevents.event_id": str(one.event_id)},
                    )
                    for one in row.events
                    if one.event_id in traceparents
                ]
            spans.append(made)
        return Publishing(spans, headers, traceparents)

    def _spans_of_command(self, row: CommandRow, parents: Sequence[str]) -> tuple[list[Span], str | None]:
        attributes: Attributes = {
            "messaging.destination.name": row.queue,
            "holdfast.delay_ms": row.delay_ms,
            "holdfast.publish_attempts": row.attempts,
        }
        spans = [
            self._publish_span(row.command, _origin_or_current(parent), attributes) for parent in parents
        ]
        if not spans:
            return [], None
        if len(spans) == 1:
            return spans, _traceparent_of(spans[0].get_span_context())
        # One message for many orders has one header: it names a span that links to them all.
        links = [Link(span.get_span_context()) for span in spans[:MAX_LINKS]]
        together = self._tracer.start_span(
            f"publish {row.command}", context=Context(), kind=SpanKind.PRODUCER, links=links
        )
        together.set_attribute("messaging.batch.message_count", len(parents))
        return [*spans, together], _traceparent_of(together.get_span_context())

    def _publish_span(self, name: str, parent: SpanContext | None, attributes: Attributes) -> Span:
        return self._tracer.start_span(
            f"publish {name}",
            context=_context(parent),
            kind=SpanKind.PRODUCER,
            attributes={"messaging.system": "rabbitmq", "messaging.operation.type": "send"} | attributes,
        )


@dataclass(frozen=True, slots=True)
class Publishing:
    """
    Rows on their way.

    `headers` are the `traceparent` of command messages by their position, `traceparents` those of events.
    """

    spans: Sequence[Sequence[Span]]
    headers: Mapping[int, str]
    traceparents: Mapping[UUID, str]

    def done(self, outcomes: Sequence[PublishOutcome]) -> None:
        """Note what the broker answered to each row."""
        for spans, outcome in zip(self.spans, outcomes, strict=False):
            for span in spans:
                if outcome is not PublishOutcome.CONFIRMED:
                    span.set_status(Status(StatusCode.ERROR, outcome.value))
                span.end()


def _note_stage(point: str) -> None:
    """Turn a named place in the code into the beginning or the end of a stage."""
    batch = _current.get()
    if batch is None:
        return
    what, _, place = point.partition(": ")
    match place:
        case "before begin":
            batch.enter(f"decide {what}")
        case "before commit":
            batch.leave()
            batch.enter("database COMMIT", SpanKind.CLIENT)
        case "before bank" | "before check":
            batch.enter(f"{place.removeprefix('before ')} {what}")
        case "committed" | "bank answered" | "checked":
            batch.leave()


def _statement_begins(_connection: object, _cursor: object, statement: str, *_: object) -> None:
    batch = _current.get()
    if batch is not None and batch.shows_statements:
        batch.enter(f"database {_summary(statement)}", SpanKind.CLIENT)


def _summary(statement: str) -> str:
    """Say what a statement does in two words: the verb and the table."""
    writes = _WRITES.search(statement)
    if writes is not None and "FOR UPDATE" not in statement:
        return f"{writes[1].split()[0]} {writes[2]}"
    verb, reads = statement.split(maxsplit=1)[0].upper(), _READS.search(statement)
    return f"{verb} {reads[2]}" if reads else verb


def _statement_ends(*_: object) -> None:
    batch = _current.get()
    if batch is not None and batch.shows_statements:
        batch.leave()


def _origin_or_current(traceparent: str) -> SpanContext | None:
    """Return the span that works on this trace right now in this thread, else the one in which it began."""
    origin = _span_context_of(traceparent)
    batch = _current.get()
    if batch is None or origin is None:
        return origin
    return batch.by_trace.get(origin.trace_id, origin)


def _subject_of(one: StoredEvent) -> Subject:
    data = json.loads(one.data)
    # An answer belongs to what it answers, everything else to what it is about.
    for name in ("event_id", "withdrawal_id", "order_id"):
        if isinstance(id_ := data.get(name), str):
            return Subject(one.shop_id, **{name: id_})
    return Subject(one.shop_id)


def _ids_of(command: Command) -> tuple[str, tuple[UUID, ...]]:
    """Return the field that names rows, and the rows."""
    for name in type(command).model_fields:
        if isinstance(ids := getattr(command, name), tuple):
            return name, ids
    return "", ()


def _ids_in(arguments: str) -> tuple[str, list[UUID]]:
    for name, ids in json.loads(arguments).items():
        if isinstance(ids, list):
            return name, [UUID(id_) for id_ in ids]
    return "", []


def _traceparent_of(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _span_context_of(traceparent: str | None) -> SpanContext | None:
    found = _TRACEPARENT.match(traceparent or "")
    if found is None:
        return None
    context = SpanContext(
        int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(int(found[3], 16) & 1)
    )
    return context if context.is_valid else None


def _context(parent: SpanContext | None) -> Context:
    # An empty one, not None: None would take up whatever span this thread happens to be in.
    if parent is None:
        return Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


def _context_of(traceparent: str | None) -> Context:
    return _context(_span_context_of(traceparent))

"""One trace from a shop's message to the payout, read from an in-memory exporter; all services are real."""

import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dramatiq import Worker
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from workflow_support.outsider import Shop, fresh, order_data
from workflow_support.system import DAY_SECONDS, Process, System

from infra.local.bank.keys import make_signing_key
from infra.observability.tracing import Tracing
from infra.postgres.engine import create_database_engine
from infra.postgres.step import Steps
from infra.rabbitmq.publisher import Publisher
from infra.security.passwords import Passwords
from infra.settings import Settings
from workers.escrow import actors as escrow
from workers.payment import actors as payment
from workers.payment import handlers
from workers.payout import actors as payout
from workers.payout.bank import HttpBank
from workers.process import WorkerProcess, assemble
from workers.relay.loops import build_loops

Declare = Callable[[WorkerProcess], None]


class TracedSystem:
    """All workers in this process, so that a test can read their spans; shops and the bank stay outside."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.processes: list[WorkerProcess] = []
        self.spans = InMemorySpanExporter()
        self._leaving = ExitStack()
        names = {name.removeprefix("HOLDFAST_").lower(): value for name, value in system.environment.items()}
        names["outbox_grace_seconds"] = "0.3"
        settings = Settings.model_validate(
            {name: value for name, value in names.items() if name in Settings.model_fields}
        )
        engine = create_database_engine(
            settings.model_copy(update={"database_pool_size": 12}), application_name="traced"
        )
        self._leaving.callback(engine.dispose)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.tracing = Tracing(engine, provider)
        self._leaving.callback(self.tracing.close)

        def declare_payout(process: WorkerProcess) -> None:
            payout.declare_actors(
                process,
                passwords_=Passwords(memory_kib=8, iterations=1, parallelism=1),
                bank=HttpBank(system.bank_url, timeout_s=5),
            )

        declares: list[Declare] = [payment.declare_actors, escrow.declare_actors, declare_payout]
        for declare in declares:
            process = self._assemble(settings, engine)
            self.processes.append(process)
            declare(process)
            worker = Worker(process.broker, worker_threads=1, worker_timeout=100)
            self._leaving.callback(worker.stop)
            self._leaving.callback(process.broker.stop)
            worker.start()
        relay = self._assemble(settings, engine)
        stopping = threading.Event()
        threads = build_loops(relay, stopping)
        for thread in threads:
            self._leaving.callback(thread.join, 10)
            thread.start()
        self._leaving.callback(stopping.set)

    def _assemble(self, settings: Settings, engine: Any) -> WorkerProcess:
        publisher = Publisher(str(settings.broker_url))
        self._leaving.callback(publisher.close)
        return assemble(settings, engine, publisher, tracing=self.tracing)

    def close(self) -> None:
        self._leaving.close()

    def trace(self, trace_id: str, *, until: Sequence[str]) -> list[ReadableSpan]:
        """Return the spans of one trace, by their beginning, as soon as these are among them."""
        for _ in range(500):
            found = [s for s in self.spans.get_finished_spans() if f"{s.context.trace_id:032x}" == trace_id]
            if {span.name for span in found} >= set(until):
                return sorted(found, key=lambda span: span.start_time or 0)
            threading.Event().wait(0.02)
        raise AssertionError(f"not all of {until} in {sorted(span.name for span in found)}")


@pytest.fixture(scope="module")
def outside(broker_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Broker, database and bank; no worker yet."""
    folder: Path = tmp_path_factory.mktemp("traced")
    system = System(broker_url=broker_url, database_url=database_url, folder=folder)
    try:
        system.holdfast("migrate")
        system.holdfast("topology", "apply")
        system.holdfast("bank", "key", "add", "sim", "--ed25519", make_signing_key(system._key_file))
        system._holdfast_keys = system.holdfast_json("keys", "public")["keys"]
        system.processes["bank"].start()
        system.processes["bank"].wait_until_ready()
        yield system
    finally:
        system.close()


@pytest.fixture(scope="module")
def traced(outside: System) -> Iterator[TracedSystem]:
    running = TracedSystem(outside)
    yield running
    running.close()


def a_traceparent(flags: str = "01") -> tuple[str, str]:
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"


def trace_id_of(traceparent: str | None) -> str:
    assert traceparent is not None, "an event of a traced order carries its trace"
    return traceparent.split("-")[1]


def withdraws(shop: Shop, seller: str, amount: int, **attributes: Any) -> str:
    outside = {
        "withdrawal_id": fresh("w"),
        "seller_id": seller,
        "amount": amount,
        "currency": "CNY",
        "destination_id": "d-1",
    }
    event_id, data = shop.seals(outside, password="correct horse battery")
    shop.says("withdrawal.requested", data, event_id=event_id, **attributes)
    return str(outside["withdrawal_id"])


def is_one_tree(spans: Sequence[ReadableSpan], root: str) -> bool:
    """Whether every span hangs below the shop's own."""
    known = {f"{span.context.span_id:016x}" for span in spans} | {root}
    return all(span.parent is not None and f"{span.parent.span_id:016x}" in known for span in spans)


def test_one_trace_leads_from_the_shops_message_to_the_payout(traced: TracedSystem) -> None:
    shop = traced.system.a_shop()
    trace_id, traceparent = a_traceparent()
    order = order_data(splits={"s-1": 10_000})
    shop.says("order.paid", order, traceparent=traceparent)
    traced.system.buyers_pay(order)
    shop.enrols("s-1")
    assert trace_id_of(shop.hears("order.held").traceparent) == trace_id
    released = shop.hears("hold.released")
    assert trace_id_of(released.traceparent) == trace_id, "days later, and through a delay lane"
    # The sellers' platform goes on with the trace that it was told.
    withdrawal_id = withdraws(shop, "s-1", 4_000, traceparent=released.traceparent)
    settled = shop.hears("payout.settled", withdrawal_id=withdrawal_id)
    assert trace_id_of(settled.traceparent) == trace_id

    spans = traced.trace(trace_id, until=["publish payout.settled", "receive submit_transfer"])
    names = [span.name for span in spans]
    for name in (
        *("receive order.paid", "verify", "decide receive_orders", "database COMMIT", "publish hold_funds"),
        *("receive hold_funds", "decide hold_funds", "publish order.held", "publish release_hold"),
        *("receive release_hold", "decide release_hold", "publish hold.released"),
        *("receive withdrawal.requested", "receive check_password", "check password"),
        *(
            "publish withdrawal.accepted",
            "receive submit_transfer",
            "bank transfer",
            "publish payout.settled",
        ),
    ):
        assert name in names, name
    assert any(name.startswith("database INSERT payments") for name in names)
    assert is_one_tree(spans, traceparent.split("-")[2])
    by_name = {span.name: span for span in spans}
    began, alarm = by_name["receive order.paid"], by_name["receive release_hold"]
    assert (alarm.start_time or 0) - (began.start_time or 0) >= 3 * DAY_SECONDS * 1e9
    [link] = alarm.links
    assert link.context.span_id == by_name["publish release_hold"].context.span_id, "who armed the alarm"
    assert all(span.status.is_ok or span.status.is_unset for span in spans)
    # Ids, never contents: a trace goes to another system.
    told = repr([dict(span.attributes or {}) for span in spans])
    assert order["bank_reference"] not in told
    assert "DE89" not in told


def test_orders_of_one_batch_keep_their_own_traces(traced: TracedSystem) -> None:
    """One message of ours carries them all from the first step on."""
    shop = traced.system.a_shop("--funding", "announced")
    traces = [a_traceparent() for _ in range(3)]
    events = [shop.event("order.paid", order_data(), traceparent=parent) for _, parent in traces]
    shop.publish(shop.message(*events, batch=True))
    shop.hears_all(lambda event: event.type == "hold.released", 3)
    for trace_id, parent in traces:
        spans = traced.trace(trace_id, until=["publish hold.released", "receive release_hold"])
        assert [s.name for s in spans if s.name.startswith("receive")] == [
            "receive order.paid",
            "receive hold_funds",
            "receive release_hold",
        ]
        assert is_one_tree(spans, parent.split("-")[2])
    together = [
        span for span in traced.spans.get_finished_spans() if span.name == "publish hold_funds" and span.links
    ]
    assert {f"{link.context.trace_id:032x}" for span in together for link in span.links} >= {
        trace_id for trace_id, _ in traces
    }, "the one message for all of them links to each"


def test_an_answer_belongs_to_the_message_that_it_answers(traced: TracedSystem) -> None:
    shop = traced.system.a_shop()
    order = order_data()
    (first_trace, first), (second_trace, second) = a_traceparent(), a_traceparent()
    shop.says("order.paid", order, traceparent=first)
    assert trace_id_of(shop.hears("order.held").traceparent) == first_trace
    # Other content for the same order, in another trace of the shop.
    shop.says("order.paid", order | {"buyer_id": "b-2"}, traceparent=second)
    assert trace_id_of(shop.hears("order.rejected").traceparent) == second_trace


def test_a_trace_that_the_shop_does_not_sample_is_passed_on_and_not_recorded(traced: TracedSystem) -> None:
    shop = traced.system.a_shop()
    trace_id, traceparent = a_traceparent(flags="00")
    shop.says("order.paid", order_data(), traceparent=traceparent)
    held = shop.hears("order.held")
    assert (trace_id_of(held.traceparent), (held.traceparent or "")[-2:]) == (trace_id, "00")
    assert [s for s in traced.spans.get_finished_spans() if f"{s.context.trace_id:032x}" == trace_id] == []


def test_an_order_without_a_trace_gets_one(traced: TracedSystem) -> None:
    shop = traced.system.a_shop()
    order_id = order_data()["order_id"]
    shop.says("order.paid", order_data(order_id=order_id))
    trace_id = trace_id_of(shop.hears("order.held", order_id=order_id).traceparent)
    spans = traced.trace(trace_id, until=["publish order.held", "receive hold_funds"])
    [root] = [span for span in spans if span.parent is None]
    assert root.name == "receive order.paid"
    assert (root.attributes or {})["holdfast.order_id"] == order_id


def test_a_step_that_fails_shows_its_error_and_none_of_its_values(
    traced: TracedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = iter([ValueError("the buyer's secret")])
    receive = handlers.receive_orders

    def breaks_once(steps: Steps, events: Any) -> None:
        for error in failing:
            raise error
        receive(steps, events)

    monkeypatch.setattr(handlers, "receive_orders", breaks_once)
    shop = traced.system.a_shop()
    trace_id, traceparent = a_traceparent()
    shop.says("order.paid", order_data(), traceparent=traceparent)
    assert trace_id_of(shop.hears("order.held").traceparent) == trace_id
    spans = traced.trace(trace_id, until=["publish order.held", "receive hold_funds"])
    failed = [span for span in spans if not (span.status.is_ok or span.status.is_unset)]
    assert [(span.name, span.status.description) for span in failed] == [("receive order.paid", "ValueError")]
    assert "secret" not in repr([span.to_json() for span in spans])


def test_a_trace_survives_a_process_that_published_nothing(
    traced: TracedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between commit and publishing: the relay publishes, and the trace goes on."""
    for process in traced.processes:
        monkeypatch.setattr(process.steps, "_after_commit", lambda _rows: None)
    shop = traced.system.a_shop("--funding", "announced")
    trace_id, traceparent = a_traceparent()
    shop.says("order.paid", order_data(), traceparent=traceparent)
    assert trace_id_of(shop.hears("hold.released").traceparent) == trace_id
    spans = traced.trace(trace_id, until=["publish hold.released", "receive release_hold"])
    assert "receive release_hold" in [span.name for span in spans]
    assert is_one_tree(spans, traceparent.split("-")[2])


def test_a_worker_sends_its_spans_to_the_collector(
    traced: TracedSystem, outside: System, tmp_path: Path
) -> None:
    """The worker as an operator starts it: settings, exporter, and a last flush when it is told to stop."""
    received: list[ResourceSpans] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    variables = {
        "HOLDFAST_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    traced.close()
    command = [sys.executable, "-m", "workers.payment.worker"]
    process = Process("payment", command, outside.environment | variables, tmp_path)
    process.start()
    process.wait_until_ready()
    trace_id, traceparent = a_traceparent()
    shop = outside.a_shop()
    shop.says("order.paid", order_data(bank_reference="nothing else"), traceparent=traceparent)
    with psycopg.connect(outside.environment["HOLDFAST_DATABASE_URL"], autocommit=True) as database:
        while not database.execute("SELECT 1 FROM payments WHERE shop_id = %s", (shop.id,)).fetchall():
            threading.Event().wait(0.05)
    assert process.stop() == 0
    collector.shutdown()
    names = {attribute.value.string_value for spans in received for attribute in spans.resource.attributes}
    assert "holdfast-payment" in names
    spans = [one for sent in received for scope in sent.scope_spans for one in scope.spans]
    assert "receive order.paid" in {one.name for one in spans if one.trace_id.hex() == trace_id}

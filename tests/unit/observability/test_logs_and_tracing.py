"""Log lines say what they are about and repeat themselves within bounds; tracing costs nothing while off."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from sqlalchemy import create_engine

from infra import crash_points
from infra.observability import logs
from infra.observability.log_context import command_ids, event_ids
from infra.observability.logs import Sampler, configure_logs
from infra.observability.tracing import FLUSH_SECONDS, Tracing
from infra.rabbitmq.ingress import InboundEvent
from schemas.commands import HoldFunds
from schemas.envelope import Envelope
from schemas.inbound import validate_data

ORDER = {
    "order_id": "o-1",
    "buyer_id": "b-1",
    "amount": 100,
    "currency": "CNY",
    "paid_at": "2026-11-23T08:00:00Z",
    "bank_reference": "REF",
    "splits": [{"seller_id": "s-1", "amount": 100}],
}


def an_order(number: int) -> InboundEvent:
    data = validate_data("order.paid", ORDER | {"order_id": f"o-{number}"})
    envelope = Envelope(f"e-{number}", "/shops/acme", "order.paid", None, ORDER)
    return InboundEvent("shop", "acme", True, envelope, data, b"")


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Return what was logged since the last call; logging is left as it was."""
    monkeypatch.setattr(logs.atexit, "register", lambda _function: None)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def test_every_thread_names_its_process_and_the_ids_of_its_batch(written: Lines) -> None:
    configure_logs(format_="json", process="payment")

    def work() -> None:
        with structlog.contextvars.bound_contextvars(**event_ids([an_order(1)])):
            structlog.get_logger().info("order_booked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    [line] = written()
    assert (
        line.items()
        >= {
            "event": "order_booked",
            "level": "info",
            "process": "payment",
            "event_id": "e-1",
            "order_id": "o-1",
            "shop": "acme",
        }.items()
    )


def test_a_batch_names_the_first_of_its_ids_and_how_many_there_are() -> None:
    ids = event_ids([an_order(number) for number in range(300)])
    assert ids["messages"] == 300
    assert ids["event_ids"] == [f"e-{number}" for number in range(8)]
    assert ids["order_ids"] == [f"o-{number}" for number in range(8)]


def test_commands_name_the_rows_that_they_are_about() -> None:
    rows = [UUID(int=number) for number in range(1, 21)]
    assert command_ids([HoldFunds(payment_ids=(rows[0],))]) == {
        "command": "hold_funds",
        "payment_id": str(rows[0]),
    }
    ids = command_ids([HoldFunds(payment_ids=tuple(rows[:10])), HoldFunds(payment_ids=tuple(rows[10:]))])
    assert ids["rows"] == 20
    assert ids["payment_ids"] == [str(row) for row in rows[:8]]


def test_repeated_lines_are_left_out_counted_and_told_of(
    written: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setitem(Sampler.__init__.__kwdefaults__, "clock", lambda: now[0])
    configure_logs(format_="json", process="payment", sample_lines=3)
    log = structlog.get_logger()
    for _ in range(10):
        log.info("holds_released")
    log.info("funds_held")
    assert [line["event"] for line in written()] == ["holds_released"] * 3 + ["funds_held"]
    now[0] = logs.SAMPLE_SECONDS
    log.info("funds_held")
    told, line = written()
    assert told.items() >= {"event": "log_lines_left_out", "of": "holds_released", "count": 7}.items()
    assert line["event"] == "funds_held"
    log.info("holds_released")
    assert [line["event"] for line in written()] == ["holds_released"], "a new window, and a new chance"


def test_errors_are_never_left_out(written: Lines) -> None:
    configure_logs(format_="json", process="payment", sample_lines=1)
    for _ in range(5):
        structlog.get_logger().error("bank_forgot_transfer")
    assert len(written()) == 5


def test_what_was_left_out_is_told_when_the_process_ends(written: Lines) -> None:
    sampler = Sampler(2)
    configure_logs(format_="json", process="payment")
    for _ in range(3):
        if sampler._count("swept")[0] <= 2:
            structlog.get_logger().warning("swept")
    sampler.tell_the_rest()
    assert written()[-1]["count"] == 1


def test_workers_do_not_import_opentelemetry_while_tracing_is_off() -> None:
    program = (
        "import sys, workers.process, workers.payment.worker, workers.escrow.worker, workers.payout.worker,"
        " workers.relay.worker; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_places_in_the_code_are_not_watched_unless_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_points, "_at_each", None)
    crash_points.reach("step: committed")
    passed: list[str] = []
    crash_points.watch(passed.append)
    crash_points.reach("step: committed")
    assert passed == ["step: committed"]


def test_a_collector_that_hangs_does_not_keep_a_worker_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(SpanProcessor):
        def shutdown(self) -> None:
            threading.Event().wait(30)

    monkeypatch.setattr(crash_points, "_at_each", None)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Hanging())
    tracing = Tracing(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"), provider)
    began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < FLUSH_SECONDS + 2

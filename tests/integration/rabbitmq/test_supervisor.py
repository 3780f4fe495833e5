import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rabbitmq_support import Cable, depth, send, wait_until

PROGRAM = Path(__file__).parent / "worker_process.py"
CHECKOUT = Path(__file__).parents[3]


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _await_line(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"ended without {start!r}")


def _command(url: str, count: int = 1) -> None:
    send(url, "holdfast.deliver", "escrow.hold", *[b"{}"] * count, type="hold_funds")


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_what_it_has_in_hand_and_exits_0(
    url: str, signal_number: signal.Signals
) -> None:
    _command(url)
    with _process(url, "1.0") as process:
        _await_line(process, "begun")
        process.send_signal(signal_number)
        _await_line(process, "done")
        assert process.wait(10) == 0
    assert depth(url, "escrow.hold") == 0


def test_idle_it_stops_at_once(url: str) -> None:
    _command(url)
    with _process(url, "0") as process:
        _await_line(process, "done")
        began = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3


def test_a_handler_that_hangs_does_not_keep_it_from_stopping_and_its_message_is_handed_back(url: str) -> None:
    _command(url)
    with _process(url, "60") as process:
        _await_line(process, "begun")
        began = time.monotonic()
        process.terminate()
        assert process.wait(15) == 0
        assert time.monotonic() - began < 2 + 3 + 2
    wait_until(lambda: depth(url, "escrow.hold") == 1)


def test_it_stops_in_time_when_the_broker_has_fallen_silent(url: str) -> None:
    with Cable(url) as cable:
        _command(url)
        with _process(cable.url, "0") as process:
            _await_line(process, "done")
            cable.silent = True
            process.terminate()
            assert process.wait(15) == 0


def test_it_takes_no_message_before_the_database_is_there_and_stops_all_the_same(url: str) -> None:
    _command(url)
    with _process(url, "0", "database") as process:
        _await_line(process, "waiting")
        assert depth(url, "escrow.hold") == 1
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("wrong", ["thread", "worker", "consumer"])
def test_a_part_that_has_died_ends_the_process_with_an_error(url: str, wrong: str) -> None:
    """Stock Dramatiq goes on without it: the process looks alive and its queue fills."""
    _command(url)
    with _process(url, "0", wrong) as process:
        assert process.wait(20) == 1
    wait_until(lambda: depth(url, "escrow.hold") == 1)


def test_killed_outright_it_loses_nothing(url: str) -> None:
    _command(url, 20)
    with _process(url, "60") as process:
        _await_line(process, "begun")
        process.kill()
        process.wait(10)
    wait_until(lambda: depth(url, "escrow.hold") == 20)

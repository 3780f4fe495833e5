"""Whatever a stranger writes into an id, one event is one line, and says nothing that it does not mean."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from infra.observability import logs
from infra.observability.logs import configure_logs

HOSTILE = [
    'o-1\n{"event": "holds_released", "level": "info"}',
    "o-1\r\nholds_released count=9",
    "\x1b[2J\x1b[31mo-1",
    "o-1\x1b]0;title\x07",
    '"}, {"event": "forged"',
    "o-1\x00\x08\x0b\x0c\x85\u2028\u2029",
    "o-1\u202eevil",
    "event=forged level=info",
    "\\n\\u000a\ud800",
]


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs.atexit, "register", lambda _function: None)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def _raise(message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_in_json_a_hostile_string_is_one_value_of_one_line(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(format_="json", process="payment")
    structlog.get_logger("t").info("order_received", order_id=hostile)
    logging.getLogger("library").error("failed: %s", hostile)
    said = capsys.readouterr().err
    assert said.isascii()
    ours, library = said.split("\n")[:-1]
    assert json.loads(ours)["order_id"] == hostile
    assert json.loads(ours)["event"] == "order_received"
    assert json.loads(library)["event"] == f"failed: {hostile}"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_in_a_terminal_a_hostile_string_ends_no_line_and_moves_no_cursor(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(format_="console", process="payment")
    structlog.get_logger("t").info("order_received", order_id=hostile)
    logging.getLogger("library").error("failed: %s", hostile)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2
    # What is left of escapes are the colours of the line's own parts.
    for escape in said.split("\x1b")[1:]:
        assert escape.startswith("[")
        assert escape[1:].split("m")[0].replace(";", "").isdigit(), escape
    assert not any(char in said for char in "\x07\x08\x00\u2028\u202e")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_message_of_an_exception_can_not_be_taken_for_a_line(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(format_="console", process="payment")
    try:
        _raise(f"broken\nforged_event {hostile}")
    except ValueError:
        structlog.get_logger("t").exception("batch_failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert "batch_failed" in first
    assert rest
    assert all(line.startswith("    ") or not line for line in rest)

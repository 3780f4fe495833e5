"""Logs: one event name a line, identifiers as fields; JSON for machines, readable in a terminal."""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Longer text in a log line is a body or a mistake.
_MAX_FIELD = 500
# What a program says again and again tells nothing new; errors are never left out.
SAMPLE_SECONDS = 10.0
_LEFT_OUT = "log_lines_left_out"
_SAMPLED_LEVELS = frozenset({"debug", "info", "warning"})
# Event names are written in the code; more than there are would be somebody's data.
_MAX_NAMES = 1_000


class Sampler:
    """
    Lets so many lines of one event name pass in ten seconds, and counts the rest.

    The count is logged, as `log_lines_left_out`, with the first line of any name after the ten seconds, or
    when the process ends. A structlog processor; 0 lets everything pass.
    """

    def __init__(self, at_most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_most = at_most
        self._clock = clock
        self._lock = threading.Lock()
        self._window_ends = 0.0
        self._seen: dict[str, int] = {}

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        name = event.get("event")
        if (
            method not in _SAMPLED_LEVELS
            or not self._at_most
            or not isinstance(name, str)
            or name == _LEFT_OUT
        ):
            return event
        times, left_out = self._count(name)
        self._tell(left_out)
        if times > self._at_most:
            raise structlog.DropEvent
        return event

    def tell_the_rest(self) -> None:
        """Log what was left out so far."""
        with self._lock:
            left_out = self._end_window()
        self._tell(left_out)

    def _tell(self, left_out: dict[str, int]) -> None:
        for name, count in left_out.items():
            structlog.get_logger(__name__).warning(_LEFT_OUT, of=name, count=count, seconds=SAMPLE_SECONDS)

    def _count(self, name: str) -> tuple[int, dict[str, int]]:
        """Count a line; return how many of its name there were in this window, and what the last left out."""
        with self._lock:
            left_out: dict[str, int] = {}
            now = self._clock()
            if now >= self._window_ends:
                left_out = self._end_window()
                self._window_ends = now + SAMPLE_SECONDS
            times = self._seen.get(name, 0) + 1
            if name in self._seen or len(self._seen) < _MAX_NAMES:
                self._seen[name] = times
            return times, left_out

    def _end_window(self) -> dict[str, int]:
        left_out = {
            name: count - self._at_most for name, count in self._seen.items() if count > self._at_most
        }
        self._seen.clear()
        return left_out


def _bounded(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_FIELD:
            event[name] = value[:_MAX_FIELD] + "…"
    return event


def _escaped(value: str) -> str:
    """Show what a terminal would act on, or take for the end of a line, as Python writes it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leave nothing in a console's line that could end it, or colour or move what follows."""
    for name, value in list(event.items()):
        if name == "exception" and isinstance(value, str):
            # Many lines by nature; indented, none of them can be taken for a line of its own.
            event[name] = "\n".join(f"    {_escaped(line)}" for line in value.splitlines())
        elif isinstance(value, str):
            event[name] = _escaped(value)
    return event


def configure_logs(*, format_: str = "auto", process: str, sample_lines: int = 0) -> None:
    """
    Set up structlog, and the standard library's logging behind it, for this process.

    `format_` is `json`, `console`, or `auto`: console on a terminal, JSON elsewhere. Values are escaped
    in both, so no message can forge a line. `sample_lines` is how many lines of one event name may pass in
    ten seconds; 0 lets all pass.
    """

    def of_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        # Not a context variable: threads start without those of the thread that started them.
        event.setdefault("process", process)
        return event

    as_console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    sampler = Sampler(sample_lines)
    if sample_lines:
        atexit.register(sampler.tell_the_rest)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        of_process,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _bounded,
    ]
    if as_console:
        shared += [structlog.processors.format_exc_info, _printable]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
        if as_console
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    structlog.configure(
        processors=[sampler, *shared, structlog.processors.format_exc_info, renderer]
        if not as_console
        else [sampler, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        foreign_pre_chain=shared,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    # Pika tells of every connection attempt; our own lines say what matters of them.
    logging.getLogger("pika").setLevel(logging.CRITICAL)

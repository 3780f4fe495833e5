"""Logs: one event name a line, identifiers as fields; JSON for machines, readable in a terminal."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Longer text in a log line is a body or a mistake.
_MAX_FIELD = 500


def _bounded(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_FIELD:
            event[name] = value[:_MAX_FIELD] + "…"
    return event


def configure_logs(*, format_: str = "auto", process: str) -> None:
    """
    Set up structlog, and the standard library's logging behind it, for this process.

    `format_` is `json`, `console`, or `auto`: console on a terminal, JSON elsewhere. Values are escaped
    in both, so no message can forge a line.
    """
    as_console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _bounded,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=True)
        if as_console
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer]
        if not as_console
        else [*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
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

"""How a log line looks: JSON for machines, aligned text for a person at a terminal."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper

import structlog

from lifecycle.domain.events import Event


def configure_logs(*, console: bool, level: str = "info", to_stderr: bool = False) -> None:
    """Send every event to standard output, one a line.

    Args:
        console: text for a person instead of JSON.
        level: the least level that is shown.
        to_stderr: leave standard output to something else, such as a report.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A path or a service's text may have characters that no encoding knows; they end no program.
            stream.reconfigure(errors="backslashreplace")
    out = sys.stderr if to_stderr else sys.stdout
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )


def log_event(event: Event) -> None:
    """Log an event that a pure function returned."""
    getattr(structlog.get_logger(), event.level)(event.name, **event.fields)

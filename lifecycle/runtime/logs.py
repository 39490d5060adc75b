"""Write log lines: JSON for machines, or aligned text for a terminal."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog

from lifecycle.domain.events import Event
from lifecycle.domain.text import printable, printable_json
from lifecycle.runtime.output import LineOutput, standard_stream

# A value that needs no quotes on a terminal.
_UNQUOTED_VALUE = re.compile(r"[^\s\"'=]+")

_outputs: dict[str, LineOutput] = {}
_listeners: list[Callable[[Event], None]] = []


def configure_logs(*, console: bool, level: str = "info", to_stderr: bool = False) -> None:
    """Configure structlog to write each event as a line to standard output.

    Args:
        console: write text for a terminal instead of JSON.
        level: the lowest level to log.
        to_stderr: write to standard error; for commands that print their result to standard output.
    """
    name = "stderr" if to_stderr else "stdout"
    stream = standard_stream(name)
    renderers: list[structlog.typing.Processor] = [lambda _logger, _method, event: printable_json(event)]
    if console:
        renderers = [_with_printable_traceback, _console_renderer(colors=stream is not None and stream.isatty())]
    if name not in _outputs:
        _outputs[name] = LineOutput(stream)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _with_json_values,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda: _Logger(_outputs[name]),
        cache_logger_on_first_use=False,
    )


@contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call the listener for each event that the block passes to `log_event`, even if LOG_LEVEL suppresses its line.

    The listener must neither raise an exception nor wait.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def log_event(event: Event) -> None:
    """Log an event, and pass it to the listeners."""
    for listener in _listeners:
        listener(event)
    getattr(structlog.get_logger(), event.level)(event.name, **event.fields)


def flush_logs(timeout_s: float) -> None:
    """Wait until all lines are written, or until the time-out."""
    for output in _outputs.values():
        output.flush(timeout_s)


def dropped_lines() -> int:
    """Return how many lines could not be written since the process started."""
    return sum(output.dropped for output in _outputs.values())


class _Logger:
    def __init__(self, output: LineOutput) -> None:
        self.debug = self.info = self.warning = self.error = output.write_line


def _with_json_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    leading = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    return {key: _json_value(value) for key, value in (leading | dict(event)).items()}


def _with_printable_traceback(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if "exception" in event:
        event["exception"] = "\n".join(map(printable, event["exception"].splitlines()))
    return event


def _json_value(value: Any) -> Any:
    """Return a value that JSON can represent; times are RFC 3339 in UTC."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case Mapping():
            return {str(key): _json_value(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_json_value(item) for item in value]
    return str(value)


def _console_renderer(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    styles = structlog.dev.ConsoleRenderer.get_default_column_styles(colors)
    renderer = structlog.dev.ConsoleRenderer(colors=colors)
    renderer.columns = [
        *(column for column in renderer.columns if column.key),
        structlog.dev.Column(
            "",
            structlog.dev.KeyValueColumnFormatter(
                key_style=styles.kv_key,
                value_style=styles.kv_value,
                reset_style=styles.reset,
                value_repr=_console_text,
            ),
        ),
    ]
    return renderer


def _console_text(value: object) -> str:
    """Return a value as text on one line. Control characters, which a record's comment can contain, are escaped."""
    text = printable(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if _UNQUOTED_VALUE.fullmatch(text) else f'"{text}"'

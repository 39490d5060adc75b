"""Write log lines: JSON for machines, or aligned text for a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog

from lifecycle.domain.events import Event
from lifecycle.domain.text import printable, printable_json
from lifecycle.runtime.output import LineOutput, standard_stream

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
        renderers = [_with_printable_text, structlog.dev.ConsoleRenderer(colors=stream is not None and stream.isatty())]
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


def _with_printable_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn each value into text, and escape control characters, which for example a record's comment can contain."""
    for key, value in event.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        lines = text.splitlines() if key == "exception" else [text]
        event[key] = "\n".join(map(printable, lines))
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

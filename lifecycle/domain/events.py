"""Represent log events as values, so that pure functions can return them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One log line.

    Attributes:
        name: such as "record.created".
        fields: the other keys and values of the line.
    """

    level: Level
    name: str
    fields: Mapping[str, Any]


def debug(name: str, **fields: Any) -> Event:
    """Return an event of level debug."""
    return Event("debug", name, fields)


def info(name: str, **fields: Any) -> Event:
    """Return an event of level info."""
    return Event("info", name, fields)


def warning(name: str, **fields: Any) -> Event:
    """Return an event of level warning."""
    return Event("warning", name, fields)


def error(name: str, **fields: Any) -> Event:
    """Return an event of level error."""
    return Event("error", name, fields)

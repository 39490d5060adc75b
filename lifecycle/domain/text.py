"""Format values as text that is safe to show on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

# json.dumps escapes only the control characters up to U+001F. Terminals also interpret the following characters, or
# start a new line at them.
_UNESCAPED = re.compile("[\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """Return the text on one line, with backslash escapes for characters that are not printable."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_values(values: Mapping[str, str | None]) -> list[str]:
    """Return one line for each name and value, with the values in one column. None means that reading it failed."""
    width = max(map(len, values))
    return [
        f"{name.replace('_', ' '):<{width}}  {printable(value or 'could not be read')}"
        for name, value in values.items()
    ]


def printable_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in which every control character is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def timestamp(instant: datetime) -> str:
    """Return a timezone-aware datetime as RFC 3339 text in UTC, in whole seconds."""
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

"""Prepare text from a response for a message."""

from __future__ import annotations

import re

_MAX_LENGTH = 300

# Only the start of a longer text is processed: processing megabytes takes long, and most of it would be cut anyway.
_MAX_PROCESSED = 10_000

# Text of this length is treated as a key or token. Words are shorter.
_SECRET = re.compile(r"[\w+=-]{32,}")


def excerpt(text: str, *, secret: str | None = None) -> str:
    """Return the start of the text as one line of printable characters, without secrets.

    Args:
        secret: a text to remove. Everything that looks like a key or token is removed, too.
    """
    text = text[:_MAX_PROCESSED]
    if secret:
        text = text.replace(secret, "…")
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = _SECRET.sub("…", " ".join(printable.split()))
    return line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]}…"

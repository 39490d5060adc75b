"""Prepare text from an upstream for a message."""

from __future__ import annotations

import re

_MAX_LENGTH = 300

# Processing a text of megabytes takes long, and most of it would be cut anyway.
_MAX_PROCESSED = 10_000

# Keys and tokens are longer than words.
_SECRET = re.compile(r"[\w+=-]{32,}")


def excerpt(text: str, *, secret: str | None = None) -> str:
    """Return the start of the text as one line of printable characters, without secrets.

    Args:
        secret: is removed, in addition to everything that looks like a secret.
    """
    text = text[:_MAX_PROCESSED]
    if secret:
        text = text.replace(secret, "…")
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = _SECRET.sub("…", " ".join(printable.split()))
    return line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]}…"

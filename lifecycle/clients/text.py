"""Text from upstreams, as it may be part of a message."""

from __future__ import annotations

import re

_MAX_LENGTH = 300

# The rest of a long text is not even processed.
_MAX_PROCESSED = 10_000

# Keys and tokens of all kinds are longer than any word.
_SECRET = re.compile(r"[\w+=-]{32,}")


def excerpt(text: str, *, secret: str | None = None) -> str:
    """Return one line of printable text, without secrets and cut.

    Args:
        secret: removed wherever it occurs, in addition to all that looks like a secret.
    """
    text = text[:_MAX_PROCESSED]
    if secret:
        text = text.replace(secret, "…")
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = _SECRET.sub("…", " ".join(printable.split()))
    return line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]}…"

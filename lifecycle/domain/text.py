"""Text from others, made safe to show on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text on one line, with control characters and terminal escapes spelled out."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )

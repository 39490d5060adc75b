"""Secrets that can be rotated while the program runs."""

from __future__ import annotations

from collections.abc import Callable


class Credential:
    """A secret that is read again after it was refused: tokens are rotated in their files.

    Args:
        read: returns the current secret; raises an error of `domain.errors`.
        name: the setting that it comes from, for messages.
    """

    def __init__(self, read: Callable[[], str], *, name: str) -> None:
        self.name = name
        self._read = read
        self._value: str | None = None

    def __repr__(self) -> str:
        return f"Credential({self.name})"

    @property
    def value(self) -> str:
        """The secret, as it was last read."""
        if self._value is None:
            self._value = self._read()
        return self._value

    def reload(self) -> None:
        """Read the secret again. It stays as it was if it cannot be read."""
        self._value = self._read()

    def renew(self, refused: str) -> bool:
        """Read the secret again if this one is still in use. Return True if it differs now."""
        if self._value == refused:
            self._value = self._read()
        return self._value != refused

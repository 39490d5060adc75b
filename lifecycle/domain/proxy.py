"""An HTTP proxy through which requests are sent."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        url: `http://[user:password@]host[:port]`.
        setting: the name of the setting with the URL, for messages.
    """

    url: str = field(repr=False)
    setting: str

    @property
    def address(self) -> str:
        """The URL without credentials."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"

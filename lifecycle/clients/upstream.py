"""What the clients have to know about an upstream, apart from its API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lifecycle.clients.response import Response
from lifecycle.domain.errors import ApiError

Explain = Callable[[str, Response], ApiError | None]


@dataclass(frozen=True, slots=True)
class Upstream:
    """An upstream.

    Attributes:
        name: as in messages.
        url_setting: the setting that its address comes from.
        ca_setting: the setting that names a file with further certificate authorities.
        explain: explains a response without success; it gets the request, for the message. None = the status is
            sufficient.
        is_own: returns True if a refusal has the form of the upstream's own, and not that of a proxy's.
        health_path: below the base address; answers without credentials whether the upstream works. None = there
            is no such path.
    """

    name: str
    url_setting: str
    ca_setting: str
    explain: Explain = lambda _what, _response: None
    is_own: Callable[[Response], bool] = lambda response: response.json is not None
    health_path: str | None = None

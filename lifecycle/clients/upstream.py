"""What differs between upstreams for the HTTP clients: names for messages, refusals and time-outs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lifecycle.clients.response import Response
from lifecycle.domain.errors import ApiError


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server that this program uses: Headscale, Cloudflare or the Kubernetes API.

    Attributes:
        name: the name for messages.
        url_setting: the setting with its address.
        ca_setting: the setting with the path of a file of additional certificate authorities.
        explain: returns the error for a request and the refusal of it; None to choose the error by the status.
        is_own: returns True if an error response is the upstream's own, and not a proxy's.
        response_timeouts: the time for a whole request, as a multiple of HTTP_TIMEOUT.
        health_path: path of the health endpoint, which needs no credentials; None if the upstream has none.
    """

    name: str
    url_setting: str
    ca_setting: str
    explain: Callable[[str, Response], ApiError | None] = lambda _what, _response: None
    is_own: Callable[[Response], bool] = lambda response: response.json is not None
    response_timeouts: int = 1
    health_path: str | None = None

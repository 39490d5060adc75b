"""Describe what the HTTP clients need to know about Headscale, Cloudflare and the Kubernetes API."""

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
        url_setting: the setting with the URL.
        ca_setting: the setting with the path of a file of additional certificate authorities.
        explain: called with a refused request, such as "GET /zones", and its response; returns the error to raise, or
            None if the HTTP status alone decides which error is raised.
        is_from_upstream: returns True if an error response is from the upstream itself, and not from a proxy.
        timeout_factor: the time limit of a whole request, as a multiple of HTTP_TIMEOUT.
        health_path: the path of the health endpoint, which needs no credentials; None if there is none.
    """

    name: str
    url_setting: str
    ca_setting: str
    explain: Callable[[str, Response], ApiError | None] = lambda _what, _response: None
    is_from_upstream: Callable[[Response], bool] = lambda response: response.json is not None
    timeout_factor: int = 1
    health_path: str | None = None

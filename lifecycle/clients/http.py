"""Send HTTP requests to Headscale, Cloudflare or the Kubernetes API, each within one time budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import httpcore
import httpx

from lifecycle.clients.failure import Endpoint, explain_failure
from lifecycle.clients.response import ObjectHook, Response, parse_response
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ResponseError
from lifecycle.domain.proxy import Proxy
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.deadline import time_budget

# The largest valid response is a list of nodes, which Headscale itself limits to about 4 MiB.
MAX_RESPONSE_BYTES: Final = 32 * 1024 * 1024

_UNCOMPRESSED = frozenset({"", "identity"})

# What Go's net/http, nginx and Apache respond to plain HTTP on a port for HTTPS.
_HTTPS_EXPECTED = re.compile(r"HTTP request (was sent )?to (an )?HTTPS |plain HTTP to an SSL-enabled server")


class HttpClient:
    """A client of an upstream (Headscale, Cloudflare or the Kubernetes API).

    Args:
        http: a client of httpx that has the base address and follows no redirects.
        timeout: the limit for opening a connection. A whole request, from resolving the name to the end of the
            response, may take this time multiplied by `Upstream.timeout_factor`.
        proxy: the proxy that `http` uses, for messages.
        now: returns the current time as a timezone-aware datetime in UTC.

    Attributes:
        clock_skew: how far the upstream's clock was ahead of this machine's clock at the last response; None if
            unknown.
    """

    def __init__(
        self,
        http: httpx.Client,
        *,
        upstream: Upstream,
        timeout: timedelta,
        proxy: Proxy | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        url = http.base_url
        self.endpoint = Endpoint(upstream, str(httpx.URL(scheme=url.scheme, host=url.host, port=url.port)), proxy)
        self.clock_skew: timedelta | None = None
        self._http = http
        self._connect_timeout_s = timeout.total_seconds()
        self._timeout_s = self._connect_timeout_s * upstream.timeout_factor
        # `network.Network` ignores the other time-outs of httpx.
        self._httpx_timeout = httpx.Timeout(None, connect=self._connect_timeout_s)
        self._now = now

    def send(
        self,
        method: str,
        path: str,
        *,
        object_hook: ObjectHook | None = None,
        **request: Any,
    ) -> Response:
        """Send a request once, and return the response, whatever its status.

        Args:
            path: the path below the base address, starting with a slash.
            object_hook: see `read`.
            request: `params`, `headers` and `content`, as for `stream`.

        Raises:
            TransientError: there was no complete response.
            ResponseError: the response is too large or compressed, or does not seem to come from the upstream.
        """
        what = f"{method} {path}"
        with self.stream(method, path, what=what, **request) as streamed:
            return self.read(streamed, what, object_hook=object_hook)

    def read(self, streamed: httpx.Response, what: str, *, object_hook: ObjectHook | None = None) -> Response:
        """Read and parse the body of a response. The token in the request must not appear in a message.

        Args:
            object_hook: called with each JSON object; its result replaces the object, as for `json.loads`.

        Raises:
            ResponseError: the response is too large, or the upstream expects HTTPS.
        """
        body = bytearray()
        for chunk in streamed.iter_raw():
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                raise self._unusable(what, f"is larger than {MAX_RESPONSE_BYTES >> 20} MiB", streamed.status_code)
        token = streamed.request.headers.get("authorization", "").partition(" ")[2]
        response = parse_response(streamed.status_code, streamed.headers, body, secret=token, object_hook=object_hook)
        if response.date is not None:
            self.clock_skew = response.date - self._now()
        is_bad_request = response.status == httpx.codes.BAD_REQUEST
        if is_bad_request and self.endpoint.is_plain_http and _HTTPS_EXPECTED.search(response.text):
            raise self.endpoint.https_required_error(what)
        return response

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, str | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Iterator[httpx.Response]:
        """Send a request, and close the response at the end of the block. The block is part of the time budget.

        Args:
            what: the request, for messages.
            params: the query; a sequence is a parameter that occurs several times.
            headers: headers in addition to those that every request has.

        Raises:
            TransientError, ResponseError: as for `send`; also if reading the response in the block fails.
        """
        # Compression is refused, because some kilobytes can decompress to gigabytes.
        headers = {**(headers or {}), "Accept-Encoding": "identity"}
        try:
            with (
                time_budget(self._timeout_s),
                self._http.stream(
                    method, path, params=params, headers=headers, content=content, timeout=self._httpx_timeout
                ) as streamed,
            ):
                encodings = streamed.headers.get("content-encoding", "").lower().replace(" ", "").split(",")
                if not _UNCOMPRESSED.issuperset(encodings):
                    reason = "is compressed, although the request forbids compression"
                    raise self._unusable(what, reason, streamed.status_code)
                yield streamed
        # `kubernetes.exec` reads from the connection itself, so it raises the errors of httpcore.
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            UnicodeError,
            httpcore.NetworkError,
            httpcore.TimeoutException,
        ) as error:
            is_connecting = isinstance(error, httpx.ConnectTimeout)
            timeout_s = self._connect_timeout_s if is_connecting else self._timeout_s
            # The exception is not chained, because its text can contain a URL with a password.
            raise explain_failure(error, what=what, endpoint=self.endpoint, timeout_s=timeout_s) from None

    def _unusable(self, what: str, reason: str, status: int) -> ResponseError:
        name = self.endpoint.upstream.name
        return ResponseError(f"{name}: the response to {what} {reason}.", upstream=name, status=status)

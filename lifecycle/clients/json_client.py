"""Send requests to a JSON API with a bearer token. Each refusal becomes an error of `domain.errors`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import httpx

from lifecycle.clients.http import HttpClient
from lifecycle.clients.response import ObjectHook, Response
from lifecycle.domain.errors import ApiError, AuthError, ConfigError, ResponseError, TransientError

# Statuses with which a proxy for plain HTTP can refuse a request in place of the upstream.
_PROXY_REFUSALS = frozenset({401, 403, 407})


class JsonClient:
    """A JSON API with a bearer token.

    Args:
        read_token: returns the current token; raises an error of `domain.errors`. It is called again after the upstream
            has refused the token, because tokens in files can be rotated.
        on_outcome: called after each request with ok, no_answer, throttled, server_error or refused.
    """

    def __init__(
        self, http: HttpClient, *, read_token: Callable[[], str], on_outcome: Callable[[str], None] = lambda _: None
    ) -> None:
        self.http = http
        self._upstream = http.endpoint.upstream
        self._read_token = read_token
        self._token: str | None = None
        self._on_outcome = on_outcome

    def reload_token(self) -> str:
        """Read the token again, and return it.

        Raises:
            AuthError: the token cannot be read. Unlike a ConfigError, an AuthError does not end dns-watch: the failure
                can be temporary, because the token could be read when the program started.
        """
        try:
            self._token = self._read_token()
        except ConfigError as error:
            raise AuthError(str(error), upstream=self._upstream.name) from error
        return self._token

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        authorized: bool = True,
        object_hook: ObjectHook | None = None,
    ) -> Response:
        """Send a request. If its token was refused and another token can be read, send it a second time.

        Args:
            path: the path below the base address, starting with a slash.
            body: a JSON value; None = no body.
            authorized: True if the token is sent.
            object_hook: called with each JSON object; its result replaces the object, as for `json.loads`.

        Raises:
            ApiError: the request was refused, or got no response. The subclass depends on the reason.
        """
        send = partial(self._send, method, path, params=params, body=body, object_hook=object_hook)
        if not authorized:
            return send(token=None)
        token = self._token or self.reload_token()
        try:
            return self._send_with_token(send, token)
        except AuthError as refusal:
            self._check_health(refusal)
            raise

    def _send_with_token(self, send: Callable[..., Response], token: str) -> Response:
        try:
            return send(token=token)
        except AuthError:
            # Another thread may have read the token again already.
            current = self.reload_token() if self._token == token else self._token
            if current == token:
                raise
            # A refused request had no effect, so it is safe to send it again.
            return send(token=current)

    def _check_health(self, refusal: AuthError) -> None:
        """Check that the upstream is healthy, because Headscale also refuses valid API keys while its database is down.

        Raises:
            TransientError: the upstream is unhealthy.
        """
        if self._upstream.health_path is None:
            return
        try:
            self._send("GET", self._upstream.health_path, token=None)
        except TransientError as error:
            if error.status is None or httpx.codes.is_server_error(error.status):
                raise TransientError(
                    f"{self._upstream.name} refused the credentials, but is unhealthy, so they may be valid. {error}",
                    upstream=error.upstream,
                    status=error.status,
                    retry_after=error.retry_after,
                ) from refusal
        except ApiError:
            # Any other error does not show that the upstream is unhealthy: a proxy may forward only the API.
            return

    def _send(self, method: str, path: str, *, token: str | None, body: Any = None, **options: Any) -> Response:
        headers = {"Accept": "application/json"}
        content = None
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        try:
            response = self.http.send(method, path, headers=headers, content=content, **options)
        except ApiError:
            self._on_outcome("no_answer")
            raise
        error = self._error(f"{method} {path}", response)
        self._on_outcome(_outcome(error))
        if error is not None:
            raise error
        return response

    def _error(self, what: str, response: Response) -> ApiError | None:
        """Return the error for a refused request; None for a successful one."""
        status, endpoint, name = response.status, self.http.endpoint, self._upstream.name
        if httpx.codes.is_success(status):
            return None
        may_be_proxy = status in _PROXY_REFUSALS and not self._upstream.is_from_upstream(response)
        if endpoint.is_plain_http and endpoint.proxy and may_be_proxy:
            text = (
                f"The proxy {endpoint.proxy.address}, or another one between it and {name}, refused {what} ({status}). "
                f"Check {endpoint.proxy.setting}.{response.reason}"
            )
        elif error := self._upstream.explain(what, response):
            return error
        elif status == httpx.codes.TOO_MANY_REQUESTS or httpx.codes.is_server_error(status):
            text = (
                f"{name}: {what} was rate-limited ({status})."
                if status == httpx.codes.TOO_MANY_REQUESTS
                else f"{name}, or a proxy in front of it, returned {status} for {what}{endpoint.via}. Check its log or "
                "status page."
            )
            return TransientError(
                f"{text}{response.reason}", upstream=name, status=status, retry_after=response.retry_after
            )
        elif httpx.codes.is_redirect(status):
            text = (
                f"{name} at {endpoint.url} redirects {what} ({status}). Redirects are not followed, since the "
                f"credentials would be sent along. Set {self._upstream.url_setting} to the new address."
            )
        else:
            text = f"{name} refused {what} ({status}).{response.reason}"
        return ResponseError(text, upstream=name, status=status)


def _outcome(error: ApiError | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, TransientError):
        return "throttled" if error.throttled else "server_error"
    return "refused"

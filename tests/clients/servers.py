"""Send requests to servers on loopback, some of which send malformed responses or none."""

from __future__ import annotations

import socket
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import pytest

from lifecycle.clients.http import HttpClient
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ApiError
from lifecycle.domain.proxy import Proxy
from tests.simulators.messages import Request, Response, json_response, text_response
from tests.simulators.upstream import Upstream as UpstreamSimulator

API = Upstream("Api", url_setting="API_URL", ca_setting="API_CA_FILE")


def send(
    url: str,
    method: str = "GET",
    *,
    upstream: Upstream = API,
    trust: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
    timeout_s: float = 10.0,
    **request: Any,
) -> Any:
    """Send a request, and return the JSON of the response.

    Args:
        upstream: the server's name in error messages, and how its error responses are recognized.
        trust: the trusted certificate authorities; None = the public ones.
    """
    with open_http(url, trust=trust or public_trust(), proxy=proxy) as http:
        http_client = HttpClient(http, upstream=upstream, timeout=timedelta(seconds=timeout_s), proxy=proxy)
        return JsonClient(http_client, read_token=lambda: "token").send(method, "/thing", **request).json


def failure(url: str, method: str = "GET", **options: Any) -> ApiError:
    """Return the error of a request. The arguments are those of `send`."""
    with pytest.raises(ApiError) as raised:
        send(url, method, **options)
    return raised.value


class StaticApi(UpstreamSimulator):
    """An API with the same response to each request: `{"ok": true}`, or an error.

    Args:
        status: the HTTP status of the responses.
        delay_s: the time before each response.

    Attributes:
        proxy_authorizations: the header Proxy-Authorization of each request.
    """

    def __init__(self, status: int = 200, *, delay_s: float = 0.0) -> None:
        super().__init__()
        self._status = status
        self._delay_s = delay_s
        self.proxy_authorizations: list[str | None] = []

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        self.proxy_authorizations.append(request.headers.get("proxy-authorization"))
        time.sleep(self._delay_s)
        return json_response({"ok": True}) if self._status == 200 else text_response("Unauthorized", self._status)


@contextmanager
def serve_connection(handle: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen on loopback, and pass the first connection to a function.

    After the block, fail unless the function returns within 30 seconds.

    Yields:
        The address, as HOST:PORT.
    """
    returned = Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                handle(connection)
            returned.set()

        Thread(target=serve_one, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        assert returned.wait(30), "the client did not close the connection"


def send_nothing(connection: socket.socket) -> None:
    """Read until the client closes the connection, and send nothing."""
    while connection.recv(65536):
        pass


def respond(raw: bytes, *, stay_open: bool = False) -> Callable[[socket.socket], None]:
    """Return a function for `serve_connection` that waits for data from the client, and then sends these bytes.

    Args:
        stay_open: whether to wait afterwards until the client closes the connection.
    """

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(raw)
        if stay_open:
            send_nothing(connection)

    return handle


def all_texts_of(error: BaseException) -> str:
    """Return every text that a log can show of an error and its causes, including suppressed causes."""
    texts = traceback.format_exception(error)
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{cause} {cause!r} {vars(cause)}")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(texts)

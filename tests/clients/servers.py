"""Servers on loopback, also ones that misbehave, and what the errors of their clients reveal."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from tests.simulators.messages import Request, Response, json_response, text_response
from tests.simulators.upstream import Upstream


class Api(Upstream):
    """An API that responds to each request with `{"ok": true}`, or with an error.

    Args:
        status: of the responses.
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
def peer(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """Serve one connection with a function, and return the address. At the end, the connection must be closed."""
    closed = Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                behave(connection)
            closed.set()

        Thread(target=serve_one, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        assert closed.wait(30), "the client did not close the connection"


def ignore(connection: socket.socket) -> None:
    """Read until the client closes the connection, and send nothing."""
    while connection.recv(65536):
        pass


def respond(raw: bytes, *, stay_open: bool = False) -> Callable[[socket.socket], None]:
    """Return a function for `peer` that sends bytes after the first data from the client.

    Args:
        stay_open: leave it to the client to close the connection.
    """

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(raw)
        if stay_open:
            ignore(connection)

    return behave


def revealed_by(error: BaseException) -> str:
    """Return every text that a log can show of an error and its causes, including suppressed ones."""
    texts = traceback.format_exception(error)
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{cause} {cause!r} {vars(cause)}")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(texts)

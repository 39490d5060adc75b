"""Serve a simulator over HTTP on loopback, for clients that need a real connection."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from wsgiref.types import WSGIApplication

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from tests.simulators.upstream import Upstream

POLL_S = 0.02
"""The interval at which the server checks whether it should shut down."""


class _QuietHandler(WSGIRequestHandler):
    """Handles the requests of one connection until a fault breaks the connection. Logs only errors."""

    protocol_version = "HTTP/1.1"
    # Send small packets without waiting for the acknowledgement of earlier ones, as servers in Go do.
    disable_nagle_algorithm = True

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's signature
        """Log only errors. An error is a bug of a simulator."""
        if type == "error":
            super().log(type, message, *args)

    def connection_dropped(self, error: BaseException, environ: dict[str, Any] | None = None) -> None:
        """Mark the connection as closed, so that no further request is read from it."""
        super().connection_dropped(error, environ)
        self.close_connection = True


class _Server(ThreadedWSGIServer):
    """A server that can close its open connections."""

    # The server waits for the threads of its requests when it closes.
    daemon_threads = False

    def __init__(self, host: str, port: int, app: WSGIApplication, tls: ssl.SSLContext | None) -> None:
        self._open_connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(host, port, app, handler=_QuietHandler, ssl_context=tls)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open_connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open_connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Close the open connections."""
        with self._guard:
            for connection in self._open_connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(
    app: WSGIApplication, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve an application until the block ends.

    Args:
        app: any WSGI application. If it is a simulator, its requests with the fault `hang` end with the block.
        host: the address to listen on.
        port: the port to listen on; 0 = a free one.
        tls: a context with the server's certificate; None = no TLS.

    Yields:
        The base URL, without a slash at the end.
    """
    server = _Server(host, port, app, tls)
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), name="simulator", daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://{host}:{server.server_port}"
    finally:
        if isinstance(app, Upstream):
            app.faults.release()
        server.shutdown()
        server.close_connections()
        thread.join()

"""The health port: /livez, /readyz, /nodez and /metrics."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

import structlog

from lifecycle.dns_watch.status import Status
from lifecycle.health.metrics import render_metrics

log = structlog.get_logger()

ENDPOINTS = {
    "/livez": "200 while the main loop makes progress, even if Headscale or Cloudflare is unavailable",
    "/readyz": "200 if the record was right when it was last read, at most three `VERIFY_INTERVAL`s ago. Otherwise "
    "503, with the reason in the body. For people and alerts, not for a readiness probe",
    "/nodez": "503 if a restart of the tailscale container brings the node back: the node is confirmed gone or "
    "expired, no later pod owns the name, and the key file has a usable key. Otherwise 200. The body has the node's "
    "state",
    "/metrics": "200, the metrics in the format of Prometheus",
}

# A client that neither sends nor reads for this long is disconnected.
_CLIENT_TIMEOUT_S = 5.0
# If there are more clients, the oldest is disconnected.
_MAX_CLIENTS = 16


def serve(status: Status, *, address: str | None, port: int) -> Callable[[], None]:
    """Serve the status in threads of their own, and return a function that closes the port.

    Args:
        address: the address to listen on; None = all addresses, IPv4 and IPv6.
        port: the port to listen on; 0 = none. If the port is in use, an error is logged, and nothing is served.
    """
    if port == 0:
        return lambda: None
    try:
        server = _Server(address, port, partial(_Handler, status))
    except OSError as error:
        log.error(
            "health_port.unavailable",
            address=address,
            port=port,
            error=error.strerror or str(error),
            advice="set HEALTH_PORT to a free port, or HEALTH_ADDRESS to one of the pod's addresses",
        )
        return lambda: None
    closed = Event()

    def run() -> None:
        # Not `serve_forever`, which wakes up twice a second.
        while not closed.is_set():
            server.handle_request()

    Thread(target=run, name="health", daemon=True).start()

    def close() -> None:
        closed.set()
        # Wakes up the thread that waits for a connection.
        with suppress(OSError):
            server.socket.shutdown(socket.SHUT_RDWR)
        server.server_close()

    return close


class _Server(ThreadingHTTPServer):
    """A server with one thread for each client and a limited number of clients, so that no client can block a probe."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: str | None, port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self._clients: dict[socket.socket, None] = {}
        self._clients_lock = Lock()
        if address is None and socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            family = socket.AF_INET6 if ":" in (address or "") else socket.AF_INET
            listener = socket.create_server((address or "", port), family=family)
        super().__init__(("", port), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def process_request(self, request: Any, client_address: Any) -> None:
        """Disconnect the oldest client if there are too many, and this client if the system refuses a new thread."""
        with self._clients_lock:
            self._clients[request] = None
            if len(self._clients) > _MAX_CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Forget a client that was served or has disconnected."""
        with self._clients_lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """Ignore an error of the connection. Any other error is a bug: raise it, so that its traceback is printed."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            raise error


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_TIMEOUT_S
    protocol_version = "HTTP/1.0"
    server_version = "tailscale-lifecycle"
    sys_version = ""

    def __init__(self, status: Status, *arguments: Any) -> None:
        self._status = status
        super().__init__(*arguments)

    def do_GET(self) -> None:  # the library's name
        status = self._status
        match self.path.partition("?")[0]:
            case "/livez":
                self._respond_json({"alive": status.alive}, "alive")
            case "/readyz":
                self._respond_json(status.readiness(), "ready")
            case "/nodez":
                self._respond_json(status.node(), "restart_helps", expected=False)
            case "/metrics":
                content_type, body = render_metrics(status, accept=self.headers.get("Accept", ""))
                self._respond(HTTPStatus.OK, content_type, body)
            case _:
                self._respond(HTTPStatus.NOT_FOUND, "text/plain", f"endpoints: {', '.join(ENDPOINTS)}\n".encode())

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log nothing: probes arrive every few seconds."""

    def _respond_json(self, body: dict[str, Any], key: str, *, expected: bool = True) -> None:
        # The body decides, because a pass can change the state in another thread after the body was made.
        status = HTTPStatus.OK if body[key] is expected else HTTPStatus.SERVICE_UNAVAILABLE
        self._respond(status, "application/json", json.dumps(body).encode() + b"\n")

    def _respond(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

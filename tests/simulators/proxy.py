"""A simulated HTTP proxy. It forwards requests only for known hostnames, which DNS does not need to resolve."""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


@dataclass(slots=True)
class ProxySimulator:
    """A proxy, by default on loopback.

    Attributes:
        servers: the address to connect to, for each `host:port` that clients may request.
        credentials: the `user:password` that each request must have; None = it must have none.
        url: the URL of the proxy, without credentials. It is empty until `serve` is called.
        requested: the `host:port` of each request, oldest first.
    """

    servers: Mapping[str, str]
    credentials: str | None = None
    url: str = ""
    requested: list[str] = field(default_factory=list)

    @contextmanager
    def serve(
        self, *, address: str = "127.0.0.1", network_namespace: AbstractContextManager[None] | None = None
    ) -> Iterator[str]:
        """Listen until the block ends, and yield the URL.

        Args:
            address: the address to listen on.
            network_namespace: a context manager that enters the namespace in which the proxy listens; None = that of
                this process. The proxy connects to the servers in the namespace of this process.
        """
        with network_namespace or nullcontext():
            server = ThreadingHTTPServer((address, 0), partial(_Handler, self))
        server.daemon_threads = True
        self.url = f"http://{address}:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            server.shutdown()
            server.server_close()

    def refusal(self, target: str, authorization: str | None) -> int | None:
        """Record a request, and decide if the proxy forwards it.

        Args:
            target: the requested `host:port`.
            authorization: the Proxy-Authorization header; None = there is none.

        Returns:
            The HTTP status of the response if the request is refused; None if it is forwarded.
        """
        self.requested.append(target)
        expected = self.credentials and f"Basic {base64.b64encode(self.credentials.encode()).decode()}"
        if authorization != expected:
            return 407
        return None if target in self.servers else 403

    def server_of(self, target: str) -> tuple[str, int]:
        """Return the address of the server to which a request is forwarded."""
        host, _, port = self.servers[target].rpartition(":")
        return host, int(port)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: ProxySimulator, *arguments: object) -> None:
        self._proxy = proxy
        super().__init__(*arguments)  # type: ignore[arg-type]  # passed by the server

    def do_CONNECT(self) -> None:
        if status := self._proxy.refusal(self.path, self.headers.get("Proxy-Authorization")):
            self.send_error(status)
            return
        with socket.create_connection(self._proxy.server_of(self.path)) as upstream:
            self.send_response(200)
            self.end_headers()
            responses = Thread(target=_copy, args=[upstream, self.connection], daemon=True)
            responses.start()
            _copy(self.connection, upstream)
            responses.join()
        self.close_connection = True

    def _forward(self) -> None:
        url = urlsplit(self.path)
        target = f"{url.hostname}:{url.port or 80}"
        if status := self._proxy.refusal(target, self.headers.get("Proxy-Authorization")):
            self.send_error(status)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(*self._proxy.server_of(target))
        headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
        connection.request(self.command, f"{url.path}?{url.query}".rstrip("?"), body or None, headers)
        response = connection.getresponse()
        content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "server", "date"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _forward  # noqa: N815 - the names of http.server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of http.server
        """Log nothing."""


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

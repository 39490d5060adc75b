"""The base class of the simulators: it injects faults, records requests, and serves HTTP.

An upstream is a server to which the program sends requests: Headscale, Cloudflare or the Kubernetes API.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from wsgiref.types import StartResponse, WSGIEnvironment

import httpx

from tests.simulators.faults import Fault, FaultQueue, apply_fault, reset
from tests.simulators.messages import READ_METHODS, Request, Response

REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its response.

    Attributes:
        query: the query without the question mark; empty if there is none.
        status: the status of the response; None if the connection was broken.
        response_body: the body of the response before a fault changed it; empty if the request was not executed.
        size: the length of `response_body`, even if it is not recorded.
        fault: the injected fault; None = there was none.
    """

    method: str
    path: str
    query: str
    body: bytes
    status: int | None
    response_body: bytes = field(repr=False)
    size: int
    fault: Fault | None

    @property
    def is_write(self) -> bool:
        """True if the request can change something."""
        return self.method not in READ_METHODS


class Upstream(ABC):
    """A simulated server. A test calls `handle` directly, or serves the object as a WSGI application.

    Attributes:
        lock: protects the state of the server.
        faults: the faults to inject.
        requests: the requests and their responses, oldest first.
        keep_bodies: True if the bodies of requests and responses are recorded. Long tests set False to save memory.
    """

    def __init__(self) -> None:
        """Create a server without faults."""
        self.lock = threading.RLock()
        self.faults: FaultQueue[Fault] = FaultQueue()
        self.requests: list[Exchange] = []
        self.keep_bodies = True

    @property
    def writes(self) -> list[Exchange]:
        """The requests that can change something, executed or not."""
        with self.lock:
            return [exchange for exchange in self.requests if exchange.is_write]

    @abstractmethod
    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        """Execute a request, and return the response. The caller holds the lock.

        Args:
            from_previous_state: True if the response must have the state before the last change (the fault `stale`).
        """

    def handle(self, request: Request) -> Response:
        """Execute a request, unless a fault prevents this, and record it.

        Raises:
            httpx.TransportError: a fault broke the connection.
        """
        body = b""

        def execute(from_previous_state: bool) -> Response:
            nonlocal body
            with self.lock:
                response = self.answer(request, from_previous_state=from_previous_state)
            body = response.body
            return response

        status: int | None = None
        fault = self.faults.take(request.method, request.target)
        try:
            response = execute(False) if fault is None else apply_fault(fault, self.faults, request, execute)
            status = response.status
            return response
        finally:
            self.record(request, status, body, fault)

    def record(
        self, request: Request, status: int | None, response_body: bytes = b"", fault: Fault | None = None
    ) -> None:
        """Record a request."""
        with self.lock:
            self.requests.append(
                Exchange(
                    method=request.method,
                    path=request.path,
                    query=request.query,
                    body=request.body if self.keep_bodies else b"",
                    status=status,
                    response_body=response_body if self.keep_bodies else b"",
                    size=len(response_body),
                    fault=fault,
                )
            )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request over HTTP."""
        request = from_wsgi(environ)
        try:
            response = self.handle(request)
        except httpx.TransportError as error:
            # Without an HTTP server, the caller gets the exception.
            if request.connection is None:
                raise
            reset(request.connection)
            raise ConnectionAbortedError("the simulator reset the connection") from error
        start_response(
            f"{response.status} {REASONS.get(response.status, 'Unknown')}", [*response.all_headers().items()]
        )
        return response.content()


def from_wsgi(environ: WSGIEnvironment) -> Request:
    """Convert the request of a WSGI server."""
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in {"CONTENT_TYPE", "CONTENT_LENGTH"}
    }
    return Request(
        method=environ["REQUEST_METHOD"],
        # WSGI decodes the bytes of a path as Latin-1.
        path=environ["PATH_INFO"].encode("latin-1").decode(errors="replace"),
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        body=environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)),
        connection=environ.get("werkzeug.socket"),
    )

"""The base of all simulated upstreams: faults, a record of the traffic, and a lock."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from wsgiref.types import StartResponse, WSGIEnvironment

import httpx

from tests.simulators.faults import FaultQueue, play, reset
from tests.simulators.messages import READS, Request, Response

REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its response.

    Attributes:
        query: without the question mark; empty if there is none.
        status: None if the connection was broken instead.
        response: the response before a fault changed it; empty if the request was not executed.
        size: the length of that response.
    """

    method: str
    path: str
    query: str
    body: bytes
    status: int | None
    response: bytes
    size: int

    @property
    def is_write(self) -> bool:
        """Return True if the request asked for a change."""
        return self.method not in READS


class Upstream(ABC):
    """A server with faults and a record of its traffic.

    `handle` is the server itself. Called as a WSGI application, it serves HTTP.

    Attributes:
        faults: the faults to inject.
        requests: the traffic, oldest first.
        keep_bodies: whether the bodies of requests and responses are kept; off for long runs.
    """

    def __init__(self, *, lock: threading.RLock | None = None) -> None:
        """Start without faults and traffic, and with this lock or a new one."""
        self.lock = lock or threading.RLock()
        self.faults = FaultQueue()
        self.requests: list[Exchange] = []
        self.keep_bodies = True

    @property
    def writes(self) -> list[Exchange]:
        """The requests that asked for a change, executed or not."""
        with self.lock:
            return [exchange for exchange in self.requests if exchange.is_write]

    @abstractmethod
    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        """Execute one request; called with the lock held.

        Args:
            request: the request.
            from_previous_state: respond with the state before the last change.
        """

    def handle(self, request: Request) -> Response:
        """Execute one request, or inject a fault.

        Raises:
            httpx.TransportError: the connection fails.
        """
        answered = b""

        def execute(from_previous_state: bool) -> Response:
            nonlocal answered
            with self.lock:
                response = self.answer(request, from_previous_state=from_previous_state)
            answered = response.body
            return response

        status: int | None = None
        try:
            fault = self.faults.take(request.method, request.target)
            response = execute(False) if fault is None else play(fault, self.faults, request, execute)
            status = response.status
            return response
        finally:
            self.record(request, status, answered)

    def record(self, request: Request, status: int | None, answered: bytes = b"") -> None:
        """Add a request to the traffic."""
        with self.lock:
            self.requests.append(
                Exchange(
                    method=request.method,
                    path=request.path,
                    query=request.query,
                    body=request.body if self.keep_bodies else b"",
                    status=status,
                    response=answered if self.keep_bodies else b"",
                    size=len(answered),
                )
            )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request over HTTP."""
        request = from_wsgi(environ)
        try:
            response = self.handle(request)
        except httpx.TransportError as error:
            # After the request was recorded, so that the client does not see the effect first.
            if request.connection is None:
                raise
            reset(request.connection)
            raise ConnectionAbortedError("the simulator reset the connection") from error
        start_response(
            f"{response.status} {REASONS.get(response.status, 'Unknown')}", [*response.all_headers().items()]
        )
        return response.content()


def from_wsgi(environ: WSGIEnvironment) -> Request:
    """Read a request as a WSGI server passes it."""
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

"""What both simulated services share: faults, a list of the requests, one lock."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug import Request, Response

from tests.simulators.faults import FaultQueue, Play

READS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and what was answered."""

    method: str
    path: str
    query: str
    """Without the question mark; empty when there is none."""
    body: bytes
    status: int | None
    """None when the connection was broken instead."""
    response: bytes
    """What the service answered before a fault spoilt it; empty when it executed nothing."""
    size: int
    """How many bytes that was."""

    @property
    def is_write(self) -> bool:
        """Whether the request asked for a change."""
        return self.method not in READS


class Service(ABC):
    """A WSGI application with faults and a record of its traffic.

    Attributes:
        faults: what goes wrong next.
        requests: the traffic, oldest first.
        keep_bodies: whether the bodies of requests and answers are kept; off for long runs.
    """

    def __init__(self, *, lock: threading.RLock | None = None) -> None:
        """Start with no faults and no traffic, guarded by this lock or by a new one."""
        self.lock = lock or threading.RLock()
        self.faults = FaultQueue()
        self.requests: list[Exchange] = []
        self.keep_bodies = True

    @property
    def writes(self) -> list[Exchange]:
        """The requests that asked for a change, whatever became of them."""
        with self.lock:
            return [exchange for exchange in self.requests if exchange.is_write]

    @abstractmethod
    def answer(self, request: Request, *, stale: bool) -> Response:
        """Execute one request; called with the lock held.

        Args:
            request: its body was read already.
            stale: answer from the state before the last change.
        """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request, or spoil it."""
        request = Request(environ)
        body = request.get_data(cache=True)
        query = request.query_string.decode()
        target = f"{request.path}?{query}" if query else request.path
        answered = b""

        def execute(stale: bool) -> Response:
            nonlocal answered
            with self.lock:
                response = self.answer(request, stale=stale)
            answered = response.get_data()
            return response

        status: int | None = None
        try:
            fault = self.faults.take(request.method, target)
            if fault is not None:
                status, chunks = Play(fault, self.faults, environ, start_response, execute)()
                return chunks
            response = execute(False)
            status = response.status_code
            return response(environ, start_response)
        finally:
            with self.lock:
                self.requests.append(
                    Exchange(
                        method=request.method,
                        path=request.path,
                        query=query,
                        body=body if self.keep_bodies else b"",
                        status=status,
                        response=answered if self.keep_bodies else b"",
                        size=len(answered),
                    )
                )

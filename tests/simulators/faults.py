"""Faults between a client and an upstream.

A fault is an effect (`html(502)`, `drop()`, `hang()`). A `FaultQueue` selects the requests that it affects. In this
process, a fault raises the matching exception of httpx. Over loopback, it breaks the connection.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import httpx

from tests.simulators.messages import Request, Response

CHUNK = 64 * 1024
TIMED_OUT = "The read operation timed out"

HTML_PAGE = "<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"

TITLES = {
    200: "Welcome",
    502: "502 Bad Gateway",
    503: "503 Service Temporarily Unavailable",
    504: "504 Gateway Time-out",
}


class Kind(Enum):
    """What a fault does to a request."""

    ANSWER = auto()
    REFUSE = auto()
    DROP = auto()
    HANG = auto()
    TRUNCATE = auto()
    DRIP = auto()
    OVERSIZE = auto()
    STALE = auto()
    LACKING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, as created by the functions of this module."""

    kind: Kind
    committed: bool = False
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    lacks: str = ""
    limit_s: float = 60.0
    interval_s: float = 0.2


def answer(
    status: int,
    body: bytes | str = b"",
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Fault:
    """Send this response without executing the request."""
    data = body.encode() if isinstance(body, str) else body
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    return Fault(kind=Kind.ANSWER, status=status, body=data, content_type=content_type, headers=lowered)


def html(status: int = 502) -> Fault:
    """Send an HTML page, as a proxy does if its upstream is down."""
    page = HTML_PAGE.format(title=TITLES.get(status, str(status)))
    return answer(status, page, content_type="text/html; charset=UTF-8")


def wrong_content_type(*, committed: bool = False) -> Fault:
    """Send an HTML page with status 200, like a captive portal, or after execution a proxy that lost the response."""
    return replace(html(200), committed=committed)


def too_many_requests(retry_after: int | str | None = None, *, body: bytes | str = b"") -> Fault:
    """Send a 429, with `Retry-After` if one is given (seconds, or an HTTP date)."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return answer(429, body, headers=headers)


def malformed_json() -> Fault:
    """Send status 200 and the content type of JSON, with a body that is not JSON."""
    return answer(200, b'{"nodes": [{"id": ')


def refuse() -> Fault:
    """Refuse the connection. Over loopback, where it is already open, reset it."""
    return Fault(kind=Kind.REFUSE)


def drop(*, committed: bool = False) -> Fault:
    """Reset the connection before the request is executed, or afterwards (`committed`), which loses the response."""
    return Fault(kind=Kind.DROP, committed=committed)


def hang(*, committed: bool = False, limit_s: float = 60.0) -> Fault:
    """Send nothing until the client gives up, the queue is released or `limit_s` has passed."""
    return Fault(kind=Kind.HANG, committed=committed, limit_s=limit_s)


def truncate() -> Fault:
    """Execute the request, announce the whole body, send half of it and close the connection."""
    return Fault(kind=Kind.TRUNCATE, committed=True)


def drip(*, interval_s: float = 0.2, limit_s: float = 60.0) -> Fault:
    """Execute the request, then send the body byte by byte. After `limit_s`, the rest is sent in one piece."""
    return Fault(kind=Kind.DRIP, committed=True, interval_s=interval_s, limit_s=limit_s)


def oversize(size: int) -> Fault:
    """Send status 200 and `size` bytes of white space, which JSON allows, without executing the request."""
    return Fault(kind=Kind.OVERSIZE, size=size)


def stale() -> Fault:
    """Respond with the state before the last change."""
    return Fault(kind=Kind.STALE)


def omit_items(text: str) -> Fault:
    """Omit list items that contain this text, ignoring case, from an otherwise correct response."""
    return Fault(kind=Kind.LACKING, lacks=text.casefold())


@dataclass(slots=True, kw_only=True)
class _Order:
    """A fault, the requests it applies to, and how often."""

    fault: Fault
    method: str | None
    path: re.Pattern[str] | None
    times: int | None
    after: int

    def matches(self, method: str, target: str) -> bool:
        if self.method is not None and self.method != method:
            return False
        return self.path is None or self.path.search(target) is not None


class FaultQueue:
    """The faults to inject. The first that matches a request is used."""

    def __init__(self) -> None:
        """Create an empty queue."""
        self._orders: list[_Order] = []
        self._lock = threading.Lock()
        self._released = threading.Event()

    def add(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str | None = None,
        times: int | None = 1,
        after: int = 0,
    ) -> None:
        """Add a fault.

        Args:
            fault: what happens.
            method: HTTP method it applies to; any if omitted.
            path: regular expression searched in the path, followed by `?` and the query where there is
                one (`[?&]page=2` hits the second page).
            times: how often it fires; None = until cleared.
            after: how many matching requests pass unharmed before.
        """
        pattern = None if path is None else re.compile(path)
        with self._lock:
            self._released.clear()
            self._orders.append(_Order(fault=fault, method=method, path=pattern, times=times, after=after))

    def take(self, method: str, target: str) -> Fault | None:
        """Return the fault for this request, and count its use."""
        with self._lock:
            for order in self._orders:
                if not order.matches(method, target):
                    continue
                if order.after > 0:
                    order.after -= 1
                    continue
                if order.times is not None:
                    order.times -= 1
                    if order.times <= 0:
                        self._orders.remove(order)
                return order.fault
        return None

    @property
    def pending(self) -> int:
        """The number of faults that are not used up."""
        with self._lock:
            return len(self._orders)

    def clear(self) -> None:
        """Remove all faults, and release the requests that hang."""
        with self._lock:
            self._orders.clear()
        self.release()

    def release(self) -> None:
        """Release the requests that hang or send slowly."""
        self._released.set()

    def wait(self, seconds: float) -> bool:
        """Wait until released or timed out, and return True if released."""
        return self._released.wait(seconds)


def play(fault: Fault, queue: FaultQueue, request: Request, execute: Callable[[bool], Response]) -> Response:
    """Apply a fault to a request.

    Args:
        fault: what happens.
        queue: where the fault came from; its release ends a hang.
        request: a served one has its socket.
        execute: executes the request; True = from the state before the last change.

    Raises:
        httpx.TransportError: the connection fails.
    """
    if fault.kind in {Kind.REFUSE, Kind.DROP, Kind.HANG}:
        if fault.committed:
            execute(False)
        if fault.kind is Kind.HANG and request.connection is not None:
            queue.wait(fault.limit_s)
        raise _failure(fault.kind)
    if fault.kind is Kind.ANSWER:
        if fault.committed:
            execute(False)
        return Response(fault.body, fault.status, fault.content_type, dict(fault.headers))
    if fault.kind is Kind.OVERSIZE:
        return Response(content_type=fault.content_type, chunks=_whitespace(fault.size), length=fault.size)
    response = execute(fault.kind is Kind.STALE)
    if fault.kind is Kind.LACKING:
        return _lacking(response, fault.lacks)
    if fault.kind is Kind.TRUNCATE:
        response.chunks = _truncated(response.body, served=request.connection is not None)
    elif fault.kind is Kind.DRIP:
        response.chunks = _dripping(queue, fault, response.body, served=request.connection is not None)
    return response


def _failure(kind: Kind) -> httpx.TransportError:
    match kind:
        case Kind.REFUSE:
            return httpx.ConnectError("[Errno 111] Connection refused")
        case Kind.HANG:
            return httpx.ReadTimeout(TIMED_OUT)
        case _:
            return httpx.ReadError("[Errno 104] Connection reset by peer")


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    # Linger 0 makes close() send a reset. The descriptor itself is closed: the server's two
    # file objects on the socket would delay close() until after its polite shutdown().
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


def _whitespace(size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK):
        yield b" " * min(CHUNK, size - start)


def _truncated(body: bytes, *, served: bool) -> Iterator[bytes]:
    half = body[: len(body) // 2]
    yield half
    if served:
        raise ConnectionAbortedError("the simulator closed the connection in the middle of a body")
    raise httpx.RemoteProtocolError(
        f"peer closed connection without sending complete message body (received {len(half)} bytes)"
    )


def _dripping(queue: FaultQueue, fault: Fault, body: bytes, *, served: bool) -> Iterator[bytes]:
    if not served:
        raise httpx.ReadTimeout(TIMED_OUT)
    sent = 0
    spent_s = 0.0
    while sent < len(body) and spent_s < fault.limit_s:
        yield body[sent : sent + 1]
        sent += 1
        spent_s += fault.interval_s
        if queue.wait(fault.interval_s):
            break
    yield body[sent:]


def _lacking(response: Response, text: str) -> Response:
    if response.status == 200:
        body = json.loads(response.body)
        for name, value in body.items():
            if isinstance(value, list):
                body[name] = [item for item in value if text not in json.dumps(item).casefold()]
        response.body = json.dumps(body).encode()
    return response

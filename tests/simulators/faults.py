"""Faults that a simulator injects into its responses, such as `html(502)`, `drop()` and `hang()`.

A `FaultQueue` selects the requests that a fault affects. If the client calls the simulator in the same process, a
broken connection is an exception of httpx. If the simulator is served on loopback, the connection is really broken.
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
from http import HTTPStatus
from typing import Generic, TypeVar

import httpcore
import httpx

from tests.simulators.messages import Request, Response

# The number of bytes in each part of a large body.
CHUNK = 64 * 1024
TIMED_OUT = "The read operation timed out"

HTML_PAGE = "<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"


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
    OMIT_ITEMS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. Functions of this module, such as `html` and `drop`, create faults.

    Attributes:
        after_execution: True if the request is executed before the fault.
        status, body, content_type, headers: parts of the response that `answer` sends.
        size: the number of bytes that `oversize` sends.
        omitted_text: the text of the list items that `omit_items` removes.
        limit_s: the longest duration of `hang` and `drip`.
        interval_s: the time between two bytes of `drip`.
        name: an optional name, by which a test recognizes the fault.
    """

    kind: Kind
    after_execution: bool = False
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    omitted_text: str = ""
    limit_s: float = 60.0
    interval_s: float = 0.2
    name: str = ""


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
    page = HTML_PAGE.format(title=f"{status} {HTTPStatus(status).phrase}")
    return answer(status, page, content_type="text/html; charset=UTF-8")


def wrong_content_type(*, after_execution: bool = False) -> Fault:
    """Send an HTML page with status 200, as a captive portal does.

    With `after_execution`, the simulator executes the request first, as if a proxy had lost the real response.
    """
    return replace(html(200), after_execution=after_execution)


def too_many_requests(retry_after: int | str | None = None, *, body: bytes | str = b"") -> Fault:
    """Send status 429.

    Args:
        retry_after: the header Retry-After, in seconds or as an HTTP date; None = the header is not sent.
    """
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return answer(429, body, headers=headers)


def malformed_json() -> Fault:
    """Send status 200 and the content type of JSON, with a body that is not JSON."""
    return answer(200, b'{"nodes": [{"id": ')


def refuse() -> Fault:
    """Refuse the connection. If the simulator is served on loopback, the connection is already open and is reset."""
    return Fault(kind=Kind.REFUSE)


def drop(*, after_execution: bool = False) -> Fault:
    """Reset the connection without a response. With `after_execution`, the simulator executes the request first."""
    return Fault(kind=Kind.DROP, after_execution=after_execution)


def hang(*, after_execution: bool = False, limit_s: float = 60.0) -> Fault:
    """Send nothing until the client gives up, `FaultQueue.release` is called, or `limit_s` has passed."""
    return Fault(kind=Kind.HANG, after_execution=after_execution, limit_s=limit_s)


def truncate() -> Fault:
    """Execute the request. Send the length of the whole body, but only half of it, and close the connection."""
    return Fault(kind=Kind.TRUNCATE, after_execution=True)


def drip(*, interval_s: float = 0.2, limit_s: float = 60.0) -> Fault:
    """Execute the request, and send the body byte by byte. After `limit_s`, send the rest in one piece.

    If the client is in this process, it gets a time-out instead.
    """
    return Fault(kind=Kind.DRIP, after_execution=True, interval_s=interval_s, limit_s=limit_s)


def oversize(size: int) -> Fault:
    """Do not execute the request. Send status 200 and `size` bytes of white space, which JSON allows."""
    return Fault(kind=Kind.OVERSIZE, size=size)


def stale() -> Fault:
    """Respond with the state before the last change."""
    return Fault(kind=Kind.STALE)


def omit_items(text: str) -> Fault:
    """Omit list items that contain this text, ignoring case, from an otherwise correct response."""
    return Fault(kind=Kind.OMIT_ITEMS, omitted_text=text.casefold())


FaultType = TypeVar("FaultType")


@dataclass(slots=True, kw_only=True)
class _QueuedFault(Generic[FaultType]):
    """A fault, the requests that it affects, and how often. The attributes are described at `FaultQueue.add`."""

    fault: FaultType
    method: str | None
    path: re.Pattern[str] | None
    times: int | None
    after: int

    def matches(self, method: str, target: str) -> bool:
        if self.method is not None and self.method != method:
            return False
        return self.path is None or self.path.search(target) is not None


class FaultQueue(Generic[FaultType]):
    """The faults to inject. If several match a request, the one that was added first is used."""

    def __init__(self) -> None:
        """Create an empty queue."""
        self._queue: list[_QueuedFault[FaultType]] = []
        self._lock = threading.Lock()
        self._released = threading.Event()

    def add(
        self,
        fault: FaultType,
        *,
        method: str | None = None,
        path: str | None = None,
        times: int | None = 1,
        after: int = 0,
    ) -> None:
        """Add a fault.

        Args:
            method: HTTP method of the affected requests; any if omitted.
            path: regular expression that is searched in the path and query of a request. For example, the pattern
                `[?&]page=2` matches requests for the second page.
            times: how many requests are affected; None = all until `clear`.
            after: how many matching requests get their normal response before the fault begins.
        """
        pattern = None if path is None else re.compile(path)
        with self._lock:
            self._released.clear()
            self._queue.append(_QueuedFault(fault=fault, method=method, path=pattern, times=times, after=after))

    def take(self, method: str, target: str) -> FaultType | None:
        """Return the fault for this request, and count its use; None if there is none."""
        with self._lock:
            for queued in self._queue:
                if not queued.matches(method, target):
                    continue
                if queued.after > 0:
                    queued.after -= 1
                    continue
                if queued.times is not None:
                    queued.times -= 1
                    if queued.times <= 0:
                        self._queue.remove(queued)
                return queued.fault
        return None

    @property
    def pending(self) -> int:
        """Return the number of faults that still affect requests."""
        with self._lock:
            return len(self._queue)

    def clear(self) -> None:
        """Remove all faults, and release the requests that hang."""
        with self._lock:
            self._queue.clear()
        self.release()

    def release(self) -> None:
        """End the requests that wait because of the faults `hang` and `drip`."""
        self._released.set()

    def wait(self, seconds: float) -> bool:
        """Wait until `release` is called or the time has passed. Return True if it was called."""
        return self._released.wait(seconds)


def apply_fault(
    fault: Fault, queue: FaultQueue[Fault], request: Request, execute: Callable[[bool], Response]
) -> Response:
    """Return the response to a request with a fault.

    Args:
        queue: the queue of the fault. Its method `release` ends the waiting of `hang` and `drip`.
        execute: executes the request. With the argument True, the response has the state before the last change.

    Raises:
        httpx.TransportError: the fault breaks the connection.
    """
    is_served = request.connection is not None
    if fault.kind in {Kind.REFUSE, Kind.DROP, Kind.HANG}:
        if fault.after_execution:
            execute(False)
        if fault.kind is Kind.HANG and is_served:
            queue.wait(fault.limit_s)
        raise _failure(fault.kind)
    if fault.kind is Kind.ANSWER:
        if fault.after_execution:
            execute(False)
        return Response(fault.body, fault.status, fault.content_type, dict(fault.headers))
    if fault.kind is Kind.OVERSIZE:
        return Response(content_type=fault.content_type, chunks=_whitespace(fault.size), length=fault.size)
    response = execute(fault.kind is Kind.STALE)
    if fault.kind is Kind.OMIT_ITEMS:
        return _without_items(response, fault.omitted_text)
    if fault.kind is Kind.TRUNCATE:
        response.chunks = _truncated(response.body, is_served=is_served)
    elif fault.kind is Kind.DRIP:
        response.chunks = _byte_by_byte(queue, fault, response.body, is_served=is_served)
    return response


def _failure(kind: Kind) -> httpx.TransportError:
    match kind:
        case Kind.REFUSE:
            # In tests/pod, this module is in a container without the package `lifecycle`.
            from lifecycle.clients.network import UnreachableError  # noqa: PLC0415

            error = httpx.ConnectError("[Errno 111] Connection refused")
            error.__cause__ = httpcore.ConnectError(UnreachableError("Connection refused"))
            return error
        case Kind.HANG:
            return httpx.ReadTimeout(TIMED_OUT)
        case _:
            return httpx.ReadError("[Errno 104] Connection reset by peer")


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    # With a linger time of 0, closing the descriptor sends a reset. `connection.close()` would not close the
    # descriptor, because the server has two file objects of the socket. The connection would end without a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


def _whitespace(size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK):
        yield b" " * min(CHUNK, size - start)


def _truncated(body: bytes, *, is_served: bool) -> Iterator[bytes]:
    half = body[: len(body) // 2]
    yield half
    if is_served:
        raise ConnectionAbortedError("the simulator closed the connection in the middle of a body")
    raise httpx.RemoteProtocolError(
        f"peer closed connection without sending complete message body (received {len(half)} bytes)"
    )


def _byte_by_byte(queue: FaultQueue[Fault], fault: Fault, body: bytes, *, is_served: bool) -> Iterator[bytes]:
    if not is_served:
        raise httpx.ReadTimeout(TIMED_OUT)
    sent = 0
    elapsed_s = 0.0
    while sent < len(body) and elapsed_s < fault.limit_s:
        yield body[sent : sent + 1]
        sent += 1
        elapsed_s += fault.interval_s
        if queue.wait(fault.interval_s):
            break
    yield body[sent:]


def _without_items(response: Response, text: str) -> Response:
    if response.status == 200:
        body = json.loads(response.body)
        for name, value in body.items():
            if isinstance(value, list):
                body[name] = [item for item in value if text not in json.dumps(item).casefold()]
        response.body = json.dumps(body).encode()
    return response

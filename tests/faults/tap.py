"""Between a client and a simulator: notes what each request met, and lets things happen around it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import parse_qs

import httpx

from tests.faults.schedule import BELIEVABLE
from tests.simulators import messages
from tests.simulators.faults import Fault, FaultQueue
from tests.simulators.messages import READS, Response
from tests.simulators.upstream import Upstream
from tests.tally import count

SECOND_PAGE: Final = re.compile("[?&]page=2")


class KilledError(BaseException):
    """The process is no more: not even what cleans up after an exception is told."""


class NamedFaults(FaultQueue):
    """A queue that knows what its faults are called, and counts those that fire."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, tuple[str, Fault]] = {}
        self.taken: str | None = None
        self.fired = 0

    def order(self, name: str, fault: Fault, *, method: str | None, path: str | None, times: int, after: int) -> None:
        """Order a fault by its name."""
        self._names[id(fault)] = (name, fault)
        self.add(fault, method=method, path=path, times=times, after=after)

    def take(self, method: str, target: str) -> Fault | None:
        """Give the fault that this request meets, and count it."""
        fault = super().take(method, target)
        self.taken = None
        if fault is not None:
            self.taken, _ = self._names[id(fault)]
            self.fired += 1
            count("faults injected", self.taken)
            if SECOND_PAGE.search(target):
                count("pages after the first that failed")
        return fault


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its sender met it.

    Attributes:
        query: without the question mark.
        fault: by its name; None = it was answered as it should be.
        status: what was answered; None = nothing whole.
    """

    upstream: Upstream
    method: str
    path: str
    query: str
    body: bytes
    fault: str | None
    status: int | None

    @property
    def is_write(self) -> bool:
        """Whether it asked for a change."""
        return self.method not in READS

    @property
    def told(self) -> bool:
        """Whether its sender got the service's own answer, be it an old one."""
        return self.fault in {None, *BELIEVABLE} and self.status == 200

    @property
    def page(self) -> str:
        """Which page of a list it asked for; decimal text."""
        return parse_qs(self.query).get("page", ["1"])[0]


@dataclass(slots=True)
class Interruption:
    """Something that happens around a request.

    Attributes:
        action: what.
        service: to which service the request goes.
        after: how many requests pass before.
        committed: after the request was executed, not before.
    """

    action: Callable[[], None]
    upstream: Upstream
    after: int
    committed: bool


class Watcher(Protocol):
    """Who is told of every request."""

    def before(self, upstream: Upstream, method: str, path: str) -> None:
        """A request is about to be executed."""

    def after(self, request: Request) -> None:
        """A request is over."""


class Tap:
    """A WSGI application in front of a simulator, for one sender.

    Args:
        interruptions: shared by all senders; each is removed when it happens.
        cut_off: whether the sender reaches nobody now.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        watcher: Watcher,
        interruptions: list[Interruption],
        cut_off: Callable[[], bool],
    ) -> None:
        self._upstream = upstream
        self._watcher = watcher
        self._interruptions = interruptions
        self._cut_off = cut_off

    def __call__(self, request: messages.Request) -> Response:
        _one_after_another()
        if self._cut_off():
            raise httpx.ConnectError("[Errno 113] No route to host")
        due = self._due()
        if due is not None and not due.committed:
            due.action()
        self._watcher.before(self._upstream, request.method, request.path)
        queue = self._upstream.faults
        try:
            return self._upstream.handle(request)
        finally:
            taken = queue.taken if isinstance(queue, NamedFaults) else None
            status = self._upstream.requests[-1].status
            self._watcher.after(
                Request(self._upstream, request.method, request.path, request.query, request.body, taken, status)
            )
            if due is not None and due.committed:
                due.action()

    def _due(self) -> Interruption | None:
        # What is read in a thread of its own is interrupted by nobody: it has no clock of its own.
        if threading.current_thread() is not threading.main_thread():
            return None
        for interruption in self._interruptions:
            if interruption.upstream is not self._upstream:
                continue
            if interruption.after > 0:
                interruption.after -= 1
                return None
            self._interruptions.remove(interruption)
            return interruption
        return None


def _one_after_another() -> None:
    """Let the zone be read first of the two things that `cleanup` reads side by side: no seed may depend on luck."""
    for thread in threading.enumerate():
        if thread.name == "zone" and thread is not threading.current_thread():
            thread.join()

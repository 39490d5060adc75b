"""`Tap`, an application between a client and a simulator that reports each request and can interrupt it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import parse_qs

import httpx

from tests.faults.schedule import UNDETECTABLE
from tests.simulators import messages
from tests.simulators.faults import Fault, FaultQueue
from tests.simulators.messages import READS, Response
from tests.simulators.upstream import Upstream
from tests.tally import count

SECOND_PAGE: Final = re.compile("[?&]page=2")


class KilledError(BaseException):
    """The process was killed. It is not an `Exception`, so that the program does not catch it."""


class NamedFaults(FaultQueue):
    """A queue of faults that have names. It counts how often each is used.

    Attributes:
        taken: the name of the fault of the last request; None if it had no fault.
        fired: the number of requests with a fault.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, tuple[str, Fault]] = {}
        self.taken: str | None = None
        self.fired = 0

    def add_named(
        self, name: str, fault: Fault, *, method: str | None, path: str | None, times: int, after: int
    ) -> None:
        """Add a fault by its name."""
        self._names[id(fault)] = (name, fault)
        self.add(fault, method=method, path=path, times=times, after=after)

    def take(self, method: str, target: str) -> Fault | None:
        """Return the fault for this request, and count its use."""
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
    """One request, as its sender experienced it.

    Attributes:
        query: without the question mark.
        fault: the name of the injected fault; None = a correct response.
        status: of the response; None = no complete response.
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
        """True if it is a write."""
        return self.method not in READS

    @property
    def is_genuine(self) -> bool:
        """True if the sender received the upstream's own response, even a stale one."""
        return self.fault in {None, *UNDETECTABLE} and self.status == 200

    @property
    def page(self) -> str:
        """The requested page of a list, as decimal text."""
        return parse_qs(self.query).get("page", ["1"])[0]


@dataclass(slots=True)
class Interruption:
    """An action before or after a request.

    Attributes:
        action: the function to run.
        upstream: the upstream of the request.
        after: the number of requests to this upstream before it.
        committed: the action runs after the request is executed instead of before.
    """

    action: Callable[[], None]
    upstream: Upstream
    after: int
    committed: bool


class Watcher(Protocol):
    """Checks every request."""

    def before(self, upstream: Upstream) -> None:
        """Prepare the check, before a request is executed."""

    def after(self, request: Request) -> None:
        """Check a request that was executed or has failed."""


class Tap:
    """The handler of one sender's requests to a simulator.

    Args:
        watcher: checks every request.
        interruptions: shared by all senders; each is removed when it runs.
        cut_off: returns True while the sender has no network.
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
        _wait_for_reads()
        if self._cut_off():
            raise httpx.ConnectError("[Errno 113] No route to host")
        due = self._due()
        if due is not None and not due.committed:
            due.action()
        self._watcher.before(self._upstream)
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
        # Only requests of the main thread are interrupted, because the simulated clock belongs to this thread.
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


def _wait_for_reads() -> None:
    """Let the concurrent reads of `cleanup` run in a fixed order, so that a seed always gives the same run."""
    order = ("zone", "version", threading.main_thread().name)
    first = order.index(threading.current_thread().name)
    for thread in threading.enumerate():
        if thread.name in order[:first]:
            thread.join()

"""A handler between a client and a simulator (`Tap`), which reports each request and can interrupt it."""

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
from tests.simulators.messages import READ_METHODS, Response
from tests.simulators.upstream import Upstream
from tests.tally import count

SECOND_PAGE: Final = re.compile("[?&]page=2")


class KilledError(BaseException):
    """The process was killed. It is not an `Exception`, so that the program does not catch it."""


class NamedFaults(FaultQueue[Fault]):
    """A queue of faults that have names. The queue counts how often each fault is injected.

    Attributes:
        last_fault: the name of the fault that was injected into the last request; None if there was none.
        injected: the number of requests into which a fault was injected.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, tuple[str, Fault]] = {}
        self.last_fault: str | None = None
        self.injected = 0

    def add_named(
        self, name: str, fault: Fault, *, method: str | None, path: str | None, times: int, after: int
    ) -> None:
        """Add a fault with a name. The other arguments are those of `FaultQueue.add`."""
        self._names[id(fault)] = (name, fault)
        self.add(fault, method=method, path=path, times=times, after=after)

    def take(self, method: str, target: str) -> Fault | None:
        """Return the fault for this request, and count its use."""
        fault = super().take(method, target)
        self.last_fault = None
        if fault is not None:
            self.last_fault, _ = self._names[id(fault)]
            self.injected += 1
            count("faults injected", self.last_fault)
            if SECOND_PAGE.search(target):
                count("pages after the first that failed")
        return fault


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and what its sender received.

    Attributes:
        query: the query without the question mark.
        fault: the name of the injected fault; None = the response is correct.
        status: the status of the response; None = the sender received no complete response.
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
        """True if the request can change something."""
        return self.method not in READ_METHODS

    @property
    def looks_correct(self) -> bool:
        """True if the response is correct, or if the sender cannot detect that it is wrong."""
        return self.fault in {None, *UNDETECTABLE} and self.status == 200

    @property
    def page(self) -> str:
        """The requested page of a list, as decimal text."""
        return parse_qs(self.query).get("page", ["1"])[0]


@dataclass(slots=True)
class Interruption:
    """An action that runs before or after a request.

    Attributes:
        action: the function to run.
        upstream: the upstream to which the request is sent.
        after: the number of earlier requests to this upstream.
        committed: True if the action runs after the request is executed; False if it runs before.
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
    """The handler of all requests that one sender (a pod) sends to a simulator.

    Args:
        upstream: the simulator.
        watcher: checks every request.
        interruptions: the interruptions that have not run yet. All senders have the same list.
        is_cut_off: returns True while the sender has no network.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        watcher: Watcher,
        interruptions: list[Interruption],
        is_cut_off: Callable[[], bool],
    ) -> None:
        self._upstream = upstream
        self._watcher = watcher
        self._interruptions = interruptions
        self._is_cut_off = is_cut_off

    def __call__(self, request: messages.Request) -> Response:
        _wait_for_earlier_threads()
        if self._is_cut_off():
            raise httpx.ConnectError("[Errno 113] No route to host")
        interruption = self._take_interruption()
        if interruption is not None and not interruption.committed:
            interruption.action()
        self._watcher.before(self._upstream)
        queue = self._upstream.faults
        try:
            return self._upstream.handle(request)
        finally:
            fault = queue.last_fault if isinstance(queue, NamedFaults) else None
            status = self._upstream.requests[-1].status
            self._watcher.after(
                Request(self._upstream, request.method, request.path, request.query, request.body, fault, status)
            )
            if interruption is not None and interruption.committed:
                interruption.action()

    def _take_interruption(self) -> Interruption | None:
        """Return the interruption for this request, and remove it from the list; None if there is none."""
        # Actions may advance the simulated clock, and only the main thread may do this.
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


def _wait_for_earlier_threads() -> None:
    """Let the threads of `cleanup` send their requests in a fixed order: wait until the earlier threads have ended.

    Otherwise, two runs with the same seed would differ.
    """
    names = ("zone", "version", threading.main_thread().name)
    position = names.index(threading.current_thread().name)
    for thread in threading.enumerate():
        if thread.name in names[:position]:
            thread.join()

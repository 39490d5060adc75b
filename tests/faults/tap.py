"""A handler between a client and a simulator (`Tap`), which reports each request and can interrupt it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import httpx

from tests.simulators.faults import Fault, FaultQueue
from tests.simulators.messages import Request, Response
from tests.simulators.upstream import Exchange, Upstream
from tests.tally import add_to_count

SECOND_PAGE: Final = re.compile("[?&]page=2")


class KilledError(BaseException):
    """The process was killed. It is not an `Exception`, so that the program does not catch it."""


class CountedFaults(FaultQueue[Fault]):
    """A queue that counts how often each fault is injected.

    Attributes:
        injected: the number of requests into which a fault was injected.
    """

    def __init__(self) -> None:
        super().__init__()
        self.injected = 0

    def take(self, method: str, target: str) -> Fault | None:
        """Return the fault for this request, and count its use."""
        fault = super().take(method, target)
        if fault is not None:
            self.injected += 1
            add_to_count("faults injected", fault.name)
            if SECOND_PAGE.search(target):
                add_to_count("second pages with a fault")
        return fault


@dataclass(slots=True)
class Interruption:
    """An action that runs before or after a request.

    Attributes:
        action: the function to run.
        upstream: the upstream to which the request is sent.
        skip: how many more requests to this upstream come before the interrupted one.
        after_execution: True if the action runs after the request is executed; False if it runs before.
    """

    action: Callable[[], None]
    upstream: Upstream
    skip: int
    after_execution: bool


class Watcher(Protocol):
    """Checks every request."""

    def before(self, upstream: Upstream) -> None:
        """Prepare the check, before a request is executed."""

    def after(self, upstream: Upstream, request: Exchange) -> None:
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

    def __call__(self, request: Request) -> Response:
        _wait_for_earlier_threads()
        if self._is_cut_off():
            raise httpx.ConnectError("[Errno 113] No route to host")
        interruption = self._take_interruption()
        if interruption is not None and not interruption.after_execution:
            interruption.action()
        self._watcher.before(self._upstream)
        try:
            return self._upstream.handle(request)
        finally:
            self._watcher.after(self._upstream, self._upstream.requests[-1])
            if interruption is not None and interruption.after_execution:
                interruption.action()

    def _take_interruption(self) -> Interruption | None:
        """Return the interruption for this request, and remove it from the list; None if there is none."""
        # Actions may advance the simulated clock, and only the main thread may do this.
        if threading.current_thread() is not threading.main_thread():
            return None
        for interruption in self._interruptions:
            if interruption.upstream is not self._upstream:
                continue
            if interruption.skip > 0:
                interruption.skip -= 1
                return None
            self._interruptions.remove(interruption)
            return interruption
        return None


def _wait_for_earlier_threads() -> None:
    """Let the threads of `cleanup` send requests in a fixed order: "records", "version", and then the main thread.

    Otherwise, two runs with the same seed would differ.
    """
    names = ("records", "version", threading.main_thread().name)
    position = names.index(threading.current_thread().name)
    for thread in threading.enumerate():
        if thread.name in names[:position]:
            thread.join()

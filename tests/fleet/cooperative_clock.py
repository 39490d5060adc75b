"""A simulated clock for hundreds of threads, of which only one runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from threading import Semaphore, Thread, current_thread

from tests.world import Clock


class CooperativeClock(Clock):
    """A simulated clock. While one of its threads runs, all others sleep.

    If the running thread calls `sleep`, the clock advances to the time when the next thread wakes up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, Semaphore]] = []
        # Released when the running thread sleeps or ends.
        self._yielded = Semaphore(0)
        self._semaphores: dict[Thread, Semaphore] = {}
        self._errors: list[BaseException] = []

    def sleep(self, seconds: float, *, is_interrupted: Callable[[], bool] = lambda: False) -> None:
        """Let other threads run until the simulated time has advanced by this many seconds."""
        semaphore = self._semaphores.get(current_thread())
        if semaphore is None:
            # A command started this thread to work in the background. The work takes no simulated time.
            return
        heappush(self._sleepers, (self.elapsed_s + seconds, next(self._order), semaphore))
        self._yielded.release()
        semaphore.acquire()

    def run(self, functions: Iterable[Callable[[], None]]) -> None:
        """Run each function in its own thread until all have returned. Then raise the first error of a function."""
        for function in functions:
            thread = Thread(target=self._run_thread, args=(function,), daemon=True)
            semaphore = self._semaphores[thread] = Semaphore(0)
            heappush(self._sleepers, (self.elapsed_s, next(self._order), semaphore))
            thread.start()
        while self._sleepers:
            self.elapsed_s, _, semaphore = heappop(self._sleepers)
            semaphore.release()
            self._yielded.acquire()
        if self._errors:
            raise self._errors[0]

    def _run_thread(self, function: Callable[[], None]) -> None:
        self._semaphores[current_thread()].acquire()
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - `run` raises it in the thread of the test
            self._errors.append(error)
        finally:
            self._yielded.release()

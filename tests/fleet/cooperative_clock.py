"""A simulated clock for hundreds of threads, of which only one runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from threading import Semaphore, Thread, current_thread

from tests.world import Clock


class CooperativeClock(Clock):
    """A simulated clock. While one of its threads runs, all others sleep.

    If the running thread calls `sleep`, the clock advances to the time when the next thread wakes up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, Semaphore]] = []
        self._order = count()
        # Released when the running thread sleeps or ends.
        self._yielded = Semaphore(0)
        self._semaphores: dict[Thread, Semaphore] = {}
        self._errors: list[BaseException] = []

    def sleep(self, seconds: float, *, is_interrupted: Callable[[], bool] = lambda: False) -> None:
        """Let other threads run until the simulated time has advanced by this many seconds."""
        semaphore = self._semaphores.get(current_thread())
        if semaphore is None:
            # `run` did not start this thread: a command has started it to work in the background.
            return
        heappush(self._sleepers, (self.elapsed_s + seconds, next(self._order), semaphore))
        self._yielded.release()
        semaphore.acquire()

    def run(self, programs: Iterable[Callable[[], None]]) -> None:
        """Run each program in its own thread until all have ended. Then raise the first error of a program."""
        for program in programs:
            thread = Thread(target=self._begin, args=(program,), daemon=True)
            semaphore = self._semaphores[thread] = Semaphore(0)
            heappush(self._sleepers, (self.elapsed_s, next(self._order), semaphore))
            thread.start()
        while self._sleepers:
            self.elapsed_s, _, semaphore = heappop(self._sleepers)
            semaphore.release()
            self._yielded.acquire()
        if self._errors:
            raise self._errors[0]

    def _begin(self, program: Callable[[], None]) -> None:
        self._semaphores[current_thread()].acquire()
        try:
            program()
        except BaseException as error:  # noqa: BLE001 - `run` raises it in the thread of the test
            self._errors.append(error)
        finally:
            self._yielded.release()

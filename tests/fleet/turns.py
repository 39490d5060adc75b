"""A simulated clock for hundreds of threads: one thread runs at a time, and yields when it sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from threading import Semaphore, Thread, current_thread

from tests.world import Clock


class Turns(Clock):
    """A clock shared by threads of which only one runs at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, Semaphore]] = []
        self._tickets = count()
        self._yielded = Semaphore(0)
        self._own: dict[Thread, Semaphore] = {}
        self._errors: list[BaseException] = []

    def sleep(self, seconds: float, *, awoken: Callable[[], bool] = lambda: False) -> None:
        """Let other threads run until the simulated time has advanced."""
        own = self._own.get(current_thread())
        if own is None:
            # Threads that are not scheduled here, such as helper threads of a program, take no simulated time.
            return
        heappush(self._sleepers, (self.elapsed_s + seconds, next(self._tickets), own))
        self._yielded.release()
        own.acquire()

    def run(self, programs: Iterable[Callable[[], None]]) -> None:
        """Run all programs concurrently until the last one ends, then raise the first error."""
        for program in programs:
            thread = Thread(target=self._begin, args=(program,), daemon=True)
            own = self._own[thread] = Semaphore(0)
            heappush(self._sleepers, (self.elapsed_s, next(self._tickets), own))
            thread.start()
        while self._sleepers:
            self.elapsed_s, _, sleeper = heappop(self._sleepers)
            sleeper.release()
            self._yielded.acquire()
        if self._errors:
            raise self._errors[0]

    def _begin(self, program: Callable[[], None]) -> None:
        self._own[current_thread()].acquire()
        try:
            program()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
            self._errors.append(error)
        finally:
            self._yielded.release()

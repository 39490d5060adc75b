"""A clock for hundreds of programs that sleep: one at a time has the turn, and hands it on when it sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from threading import Semaphore, Thread, current_thread

from tests.world import Clock


class Turns(Clock):
    """Simulated time, shared by threads of which only one ever runs."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, Semaphore]] = []
        self._tickets = count()
        self._handed_back = Semaphore(0)
        self._own: dict[Thread, Semaphore] = {}
        self._errors: list[BaseException] = []

    def sleep(self, seconds: float, *, awoken: Callable[[], bool] = lambda: False) -> None:
        """Let time go by, and meanwhile the others."""
        own = self._own.get(current_thread())
        if own is None:
            # Somebody who has no turn, such as a helper of the one who has it, takes no time.
            return
        heappush(self._sleepers, (self.elapsed_s + seconds, next(self._tickets), own))
        self._handed_back.release()
        own.acquire()

    def run(self, programs: Iterable[Callable[[], None]]) -> None:
        """Run all of them side by side until the last one ends; the first error is raised then."""
        for program in programs:
            thread = Thread(target=self._begin, args=(program,), daemon=True)
            own = self._own[thread] = Semaphore(0)
            heappush(self._sleepers, (self.elapsed_s, next(self._tickets), own))
            thread.start()
        while self._sleepers:
            self.elapsed_s, _, sleeper = heappop(self._sleepers)
            sleeper.release()
            self._handed_back.acquire()
        if self._errors:
            raise self._errors[0]

    def _begin(self, program: Callable[[], None]) -> None:
        self._own[current_thread()].acquire()
        try:
            program()
        except BaseException as error:  # noqa: BLE001 - raised again where the test can see it
            self._errors.append(error)
        finally:
            self._handed_back.release()

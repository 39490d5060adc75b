"""One time budget for all that a call does on the network: resolving names, connecting, TLS, sending and reading.

Libraries have a time-out for each step, which a slow peer can stretch without limit. Here, each step gets what
is left of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TypeVar

from lifecycle.runtime.background import in_background

Result = TypeVar("Result")

_ends_at: ContextVar[float] = ContextVar("ends_at")


@contextmanager
def time_budget(seconds: float) -> Iterator[None]:
    """Limit the time of the block, as far as it uses `remaining_s`. An inner budget never extends an outer one."""
    ends_at = monotonic() + seconds
    token = _ends_at.set(min(ends_at, _ends_at.get(ends_at)))
    try:
        yield
    finally:
        _ends_at.reset(token)


def remaining_s() -> float:
    """Return the seconds that are left of the time budget.

    Raises:
        TimeoutError: none are left.
        LookupError: no time budget is set, which is a bug.
    """
    left_s = _ends_at.get() - monotonic()
    if left_s <= 0:
        raise TimeoutError("the time budget is used up")
    return left_s


def run_bounded(work: Callable[[], Result], *, name: str) -> Result:
    """Run work that cannot be interrupted, and abandon it when the time budget is used up.

    Args:
        work: runs in a daemon thread, without a time budget.
        name: of the thread.

    Raises:
        TimeoutError: the work did not end in time.
    """
    return in_background(work, name=name).result(remaining_s())

"""One time budget for a whole call: for resolving the name, connecting, TLS, sending and reading.

HTTP libraries have a separate time-out for each of these steps or even for each packet, so a call to a slow server
could take any time in total. Here, each step may take only the rest of the time budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

# The time-out of a socket must be shorter than 25 days, and that of a thread shorter than 293 years.
_MAX_BUDGET_S = 86_400.0

_ends_at: ContextVar[float] = ContextVar("ends_at")


@contextmanager
def time_budget(seconds: float) -> Iterator[None]:
    """Set the time budget that `remaining_s` uses in the block. A nested block cannot extend the budget.

    A budget of more than a day is reduced to a day.
    """
    ends_at = monotonic() + min(seconds, _MAX_BUDGET_S)
    token = _ends_at.set(min(ends_at, _ends_at.get(ends_at)))
    try:
        yield
    finally:
        _ends_at.reset(token)


def remaining_s() -> float:
    """Return how many seconds of the time budget are left.

    Raises:
        TimeoutError: the time budget is used up.
        LookupError: no time budget was set, which is a bug.
    """
    left_s = _ends_at.get() - monotonic()
    if left_s <= 0:
        raise TimeoutError("the time budget is used up")
    return left_s

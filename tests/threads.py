"""Simulate that no thread can be started, as when the containers of a pod together have reached its process limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest


@contextmanager
def refused_threads(*names: str) -> Iterator[None]:
    """Refuse to start threads in the block: those with these names, or all threads if no name is given."""
    start = Thread.start

    def refuse(thread: Thread) -> None:
        if not names or thread.name in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Thread, "start", refuse)
        yield

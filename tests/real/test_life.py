"""A pod's life on a real server."""

from __future__ import annotations

from tests.real.command import named
from tests.real.service import Service


def test_first_start(service: Service) -> None:
    """A key is written, a node comes in with it, and its address becomes the record."""
    ended = service.cleanup()
    assert named(ended.events, "key_file.written")
    machine = service.machine()
    watch = service.watch()
    service.published(machine.address)
    assert watch.stopped() == 0

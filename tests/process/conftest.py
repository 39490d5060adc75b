"""A pod, and both upstreams on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from wsgiref.types import WSGIApplication

import pytest

from tests.process.commands import Pod, served_pod
from tests.simulators.headscale import HeadscaleSimulator

MakePod = Callable[..., Pod]


@pytest.fixture
def make_pod(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[MakePod]:
    """Return a function that creates a pod and a Headscale of a version, optionally wrapped in another application."""
    with ExitStack() as stack:

        def make(
            version: str = "0.28.0",
            *,
            wrap: Callable[[WSGIApplication], WSGIApplication] = lambda application: application,
        ) -> Pod:
            return stack.enter_context(served_pod(clean_environment, tmp_path, HeadscaleSimulator(version), wrap=wrap))

        yield make


@pytest.fixture
def pod(make_pod: MakePod) -> Pod:
    """A pod with a Headscale that has the user `svc`."""
    pod = make_pod()
    pod.headscale.add_user("svc")
    return pod

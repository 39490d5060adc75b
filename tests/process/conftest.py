"""A pod beside both services, served on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from wsgiref.types import WSGIApplication

import pytest

from tests.process.commands import Pod
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve

MakePod = Callable[..., Pod]


@pytest.fixture
def make_pod(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[MakePod]:
    """Makes a pod beside a Headscale of a version; a second application may stand before it."""
    with ExitStack() as stack:

        def make(
            version: str = "0.28.0",
            *,
            before: Callable[[WSGIApplication], WSGIApplication] = lambda application: application,
        ) -> Pod:
            headscale, cloudflare = HeadscaleSimulator(version), CloudflareSimulator()
            pod = Pod(
                headscale,
                cloudflare,
                headscale_url=stack.enter_context(serve(before(headscale))),
                cloudflare_url=stack.enter_context(serve(cloudflare)),
                base=clean_environment,
                folder=tmp_path,
            )
            # Whoever hangs is let go first: the servers wait for their requests.
            stack.callback(headscale.faults.release)
            stack.callback(pod.end_all)
            return pod

        yield make


@pytest.fixture
def pod(make_pod: MakePod) -> Pod:
    """A pod beside a Headscale with the user `svc`."""
    pod = make_pod()
    pod.headscale.add_user("svc")
    return pod

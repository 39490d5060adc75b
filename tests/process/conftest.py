"""Fixtures: a pod, with simulators of Headscale and Cloudflare on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.commands import Pod
from tests.simulators.headscale import HeadscaleSimulator

MakePod = Callable[..., Pod]


@pytest.fixture
def make_pod(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[MakePod]:
    """Return a function that creates a pod whose Headscale has this version and one user, `svc`."""
    with ExitStack() as stack:

        def make(version: str = "0.28.0") -> Pod:
            headscale = HeadscaleSimulator(version)
            headscale.add_user("svc")
            return Pod(headscale, environment=clean_environment, working_directory=tmp_path, stack=stack)

        yield make


@pytest.fixture
def pod(make_pod: MakePod) -> Pod:
    return make_pod()

"""A real server for each installed release, and one workload on it for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.real.programs import Release, installed_releases
from tests.real.server import HeadscaleServer
from tests.real.workload import OTHER_USER, USER, Workload
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve

_numbers = count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the fixture `release` on each installed release, or skip it if there is none."""
    if "release" not in metafunc.fixturenames:
        return
    releases = installed_releases()
    if isinstance(releases, str):
        parameters = [pytest.param(None, marks=pytest.mark.skip(reason=releases), id="none")]
    else:
        parameters = [pytest.param(release, id=release.name) for release in releases]
    metafunc.parametrize("release", parameters, scope="session")


@pytest.fixture(scope="session")
def releases() -> list[Release]:
    """All installed releases, oldest first."""
    found = installed_releases()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server(release: Release) -> Iterator[HeadscaleServer]:
    """A running server of this release, shared by its tests. `USER` owns the nodes of the workloads."""
    with (
        tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder,
        HeadscaleServer(release, Path(folder)) as running,
    ):
        running.create_user(USER)
        running.create_user(OTHER_USER)
        yield running


@pytest.fixture
def cloudflare() -> CloudflareSimulator:
    """An account with the zone example.com, whose id is `workload.zone_id`."""
    return CloudflareSimulator()


@pytest.fixture
def workload(server: HeadscaleServer, cloudflare: CloudflareSimulator, short_folder: Path) -> Iterator[Workload]:
    """A workload with a unique name on the server. Its processes are stopped after the test."""
    with ExitStack() as stack:
        cloudflare_url = stack.enter_context(serve(cloudflare))
        yield stack.enter_context(
            Workload(
                f"app{next(_numbers)}.example.com",
                server=server,
                cloudflare=cloudflare,
                cloudflare_url=cloudflare_url,
                folder=short_folder,
            )
        )

"""A real server for each release that is installed, and one service on it for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.real.programs import Release, installed_releases
from tests.real.server import HeadscaleServer
from tests.real.service import OTHER_USER, USER, Service
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve

_numbers = count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a `release` on each of them; without any, skip it and say what to install."""
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
    """Every release that is installed, oldest first."""
    found = installed_releases()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server(release: Release) -> Iterator[HeadscaleServer]:
    """A running server of this release, for all tests on it; `USER` owns what ours makes."""
    with (
        tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder,
        HeadscaleServer(release, Path(folder)) as running,
    ):
        running.create_user(USER)
        running.create_user(OTHER_USER)
        yield running


@pytest.fixture
def cloudflare() -> CloudflareSimulator:
    """An account with the zone example.com; `service.zone_id` is its id."""
    return CloudflareSimulator()


@pytest.fixture
def service(server: HeadscaleServer, cloudflare: CloudflareSimulator, short_folder: Path) -> Iterator[Service]:
    """A service of its own name on the server; all that it started is gone afterwards."""
    with ExitStack() as stack:
        cloudflare_url = stack.enter_context(serve(cloudflare))
        yield stack.enter_context(
            Service(
                f"app{next(_numbers)}.example.com",
                server=server,
                cloudflare=cloudflare,
                cloudflare_url=cloudflare_url,
                folder=short_folder,
            )
        )

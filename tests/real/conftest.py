"""Fixtures: a real server for each installed release of Headscale, and a workload on it for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.real.postgres import PostgresCluster, postgres_programs
from tests.real.programs import Release, installed_releases, with_older_clients
from tests.real.server import HeadscaleServer
from tests.real.workload import Workload, server_with_users, workload_on

_workload_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "every_client: run the test with the newest Tailscale client, and also with each older client",
        "four_releases: run the test only with the oldest, a middle and the newest release, and with the main branch",
        "takes_minutes: start the test before the others, so that it does not run alone at the end",
    ):
        config.addinivalue_line("markers", marker)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the fixture `release` on each installed release, or skip it if there is none."""
    if "release" not in metafunc.fixturenames:
        return
    releases = installed_releases()
    if isinstance(releases, str):
        parameters = [pytest.param(None, marks=pytest.mark.skip(reason=releases), id="none")]
    else:
        if metafunc.definition.get_closest_marker("four_releases"):
            releases = select_four_releases(releases)
        if metafunc.definition.get_closest_marker("every_client"):
            releases = [each for release in releases for each in (release, *with_older_clients(release))]
        parameters = [pytest.param(release, id=release.test_id) for release in releases]
    metafunc.parametrize("release", parameters, scope="session")


def select_four_releases(releases: list[Release]) -> list[Release]:
    """Return the oldest, a middle and the newest release, and a build of the main branch, if there is one."""
    released = [release for release in releases if release.name != "head"]
    chosen = {released[index].name for index in (0, len(released) // 2, -1) if released} | {"head"}
    return [release for release in releases if release.name in chosen]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("takes_minutes") is None)


@pytest.fixture(scope="session")
def releases() -> list[Release]:
    """All installed releases, oldest first."""
    installed = installed_releases()
    if isinstance(installed, str):
        pytest.skip(installed)
    return installed


@pytest.fixture
def temporary_folder() -> Iterator[Path]:
    """A temporary folder with a short path, because the path of a Unix socket in it is limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server(release: Release) -> Iterator[HeadscaleServer]:
    """A running server with the users USER and OTHER_USER. All tests with this release share it."""
    with (
        tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder,
        server_with_users(release, Path(folder, "server")) as running,
    ):
        yield running


StartWorkload = Callable[..., Workload]


@pytest.fixture
def start_workload(release: Release, temporary_folder: Path) -> Iterator[StartWorkload]:
    """A function that starts a server of this release, and returns a workload whose node registers on this server."""
    with ExitStack() as stack:

        def start(
            server_settings: Mapping[str, Any] | None = None, public_url: str | None = None, **workload_settings: str
        ) -> Workload:
            options = {"settings": server_settings, "public_url": public_url}
            server = stack.enter_context(server_with_users(release, temporary_folder / "server", **options))
            return stack.enter_context(workload_on(server, temporary_folder / "pod", **workload_settings))

        yield start


@pytest.fixture
def workload(server: HeadscaleServer, temporary_folder: Path) -> Iterator[Workload]:
    """A workload with a unique name on the server. Its processes are stopped after the test."""
    with workload_on(server, temporary_folder / "pod", f"app{next(_workload_numbers)}.example.com") as workload:
        yield workload


@pytest.fixture
def workload_on_dedicated_server(start_workload: StartWorkload) -> Workload:
    """A workload on its own server, for a test that changes the server's users or its database."""
    return start_workload()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A running PostgreSQL server, which the tests share. Each test creates its own database."""
    programs = postgres_programs()
    if isinstance(programs, str):
        pytest.skip(programs)
    with (
        tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder,
        PostgresCluster(programs, Path(folder)) as cluster,
    ):
        yield cluster

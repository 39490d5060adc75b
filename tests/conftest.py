"""What every test starts from: no network beyond loopback, no settings but its own, no sleeping."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import hypothesis
import pytest
import structlog
from pytest_socket import socket_allow_hosts
from structlog.testing import LogCapture
from xdist.scheduler import LoadScopeScheduling

from lifecycle.settings.models import every_variable
from tests import tally

# Fixtures of more than one folder: the image is built once, for the tests of the image and of the pod.
pytest_plugins = ["tests.image.fixtures"]

# A machine that is busy makes no property false; and what fails, fails the next time too.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--system", action="store_true", help="fail where scripts/bootstrap --system would have helped")
    parser.addoption("--soak", action="store_true", help="twenty times the fault schedules, none of them drawn before")


# Tests that run in one process, since they share what takes long to make or cannot be made twice at a time.
TOGETHER = {
    "tests/image/": "image",
    "tests/pod/test_pod.py": "image",
    "tests/pod/test_real.py": "image",
    "tests/pod/test_security.py": "scanner",
    "tests/monitoring/test_prometheus.py": "prometheus",
}


def together(nodeid: str) -> str:
    """What all tests have in common that run in the process of this one."""
    return next((group for start, group in TOGETHER.items() if nodeid.startswith(start)), nodeid)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Each test where there is time for it, but those that belong together in one process.

    Not by xdist's own mark: with pytest 9.2 its 3.8 does as if there were none.
    """

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: many tests wait for a container, or a process that has to end."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See to it that the image is built once."""
    for item in items:
        if "workshop" in getattr(item, "fixturenames", ()) and together(item.nodeid) != "image":
            raise pytest.UsageError(f"{item.nodeid} needs the image: its file has to stand in TOGETHER of {__file__}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what one of several processes counted to the one that tells it."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tally"] = tally.counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process counted; one that crashed counted nothing."""
    tally.take_over(getattr(node, "workeroutput", {}).get("tally"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --system, take what is said to be missing for a failure."""
    report = yield
    if report.skipped and item.config.getoption("--system") and "scripts/bootstrap --system" in str(report.longrepr):
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was done to the program."""
    lines = tally.lines()
    if lines:
        terminalreporter.section("what the program was put through")
        for line in lines:
            terminalreporter.write_line(line)


class FakeStop(Event):
    """A stop that never sleeps: it notes how long it was to wait, and stops after so many waits.

    Args:
        after: waits until it is set by itself; None = never.
    """

    def __init__(self, after: int | None = None) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.now = 0.0
        self._after = after

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        self.now += timeout or 0.0
        if self._after is not None and len(self.waits) >= self._after:
            self.set()
        return self.is_set()

    def monotonic(self) -> float:
        """Seconds that go by only while waiting."""
        return self.now


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def _same_chance_each_time() -> None:
    """A pause is lengthened by chance: what fails, fails the next time too."""
    random.seed(1)


@pytest.fixture(autouse=True)
def _no_settings_but_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [*every_variable(), "HOSTNAME"]:
        monkeypatch.delenv(name, raising=False)
    # A folder without an .env file.
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """What was logged, each event a dictionary."""
    capture = LogCapture()
    structlog.configure(processors=[capture], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    yield capture.entries
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).parent.parent


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The environment for a child process: nothing of ours in it."""
    ours = {*every_variable(), "HOSTNAME"}
    return {name: value for name, value in os.environ.items() if name not in ours}

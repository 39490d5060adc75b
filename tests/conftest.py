"""Fixtures for all tests. This file also selects the tests of a tier, and distributes tests to several processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import socket
from threading import Event
from types import SimpleNamespace
from typing import Any

import certifi
import hypothesis
import pytest
import structlog
from hypothesis.configuration import set_hypothesis_home_dir
from pytest_socket import socket_allow_hosts
from structlog.testing import LogCapture
from xdist.scheduler import LoadScopeScheduling

from lifecycle.runtime.stop import StopEvent
from lifecycle.settings.load import variables_read
from tests import releases, tally
from tests.process.commands import Pod
from tests.simulators.headscale import HeadscaleSimulator
from tests.world import USER, World

# The tests in image/, pod/ and cluster/ share one build of the image.
pytest_plugins = ["tests.image.fixtures"]

# Examples have no time limit, because the machine can be busy, and they are the same in each run.
hypothesis.settings.register_profile("full", deadline=None, derandomize=True)
hypothesis.settings.register_profile("default tier", parent=hypothesis.settings.get_profile("full"), max_examples=25)
# The tests change the working folder, in which Hypothesis would store its tables of characters by default.
set_hypothesis_home_dir(Path(__file__).parents[1] / ".hypothesis")

TIERS = """\
The default tier has unit tests, scenarios in memory with one Headscale release per API dialect, tests of exit statuses
and signals with real processes, and twenty random sequences of faults. Other tests are deselected, or not collected if
their whole module is not in the tier. With a path or -m on the command line, all tests are in the tier."""

FULL = (
    "tests/cluster",
    "tests/faults/test_mutants.py",
    "tests/faults/test_processes.py",
    "tests/image",
    "tests/monitoring/test_prometheus.py",
    "tests/pod/test_pod.py",
    "tests/process/test_demo.py",
    "tests/real",
    "tests/security/test_processes.py",
    "tests/security/test_secrets.py",
)
"""Folders and files whose tests all belong to the full tier. The marker `full` is for single tests."""

GROUPS = {
    "tests/cluster/": "image",
    "tests/faults/test_mutants.py": "mutants",
    "tests/image/": "image",
    "tests/inject/test_components.py": "manifests",
    "tests/inject/test_with_tailscale.py": "manifests",
    "tests/pod/test_pod.py": "image",
    "tests/pod/test_security.py": "scanner",
    "tests/pod/": "manifests",
    "tests/monitoring/test_prometheus.py": "prometheus",
    "tests/terraform/": "terraform",
}
"""The group of each test whose id starts with the key. The first key counts. The tests of a group run in one process.

They share what is expensive to create, such as the image or rendered manifests, or what cannot exist twice.
"""


VARIABLES = variables_read()
"""The variables that the program reads."""


# --- Tiers --------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers", TIERS)
    group.addoption("--full", action="store_true", help="all tests: every release, more simulated faults, image, pods")
    group.addoption("--soak", action="store_true", help="all tests, and thousands of random simulated faults")
    group.addoption(
        "--system", action="store_true", help="fail tests that lack a package of scripts/bootstrap --system"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: the test runs only with --full")
    config.addinivalue_line(
        "markers",
        "max_cases_without_full(count): only the first COUNT cases of the test run by default; --full runs all cases",
    )
    if config.option.soak or config.option.markexpr or config.args_source is pytest.Config.ArgsSource.ARGS:
        config.option.full = True
    hypothesis.settings.load_profile("full" if config.option.full else "default tier")


def is_full(item: pytest.Item, earlier_cases: int) -> bool:
    """Return True if a test is not in the default tier.

    Args:
        item: the test, or one case of it.
        earlier_cases: how many cases of the same test were added to the default tier before this one.
    """
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return (
        item.get_closest_marker("full") is not None
        or any(earlier_cases >= marker.args[0] for marker in item.iter_markers("max_cases_without_full"))
        or releases.needs_full_tier(parameters)
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import modules whose tests are not in the tier. None = let other plugins decide."""
    return True if not config.option.full and str(collection_path.relative_to(config.rootpath)) in FULL else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are not in the tier."""
    for item in items:
        # The fixtures that build the image use `scratch_dir`. Outside of the group `image`, another process would build
        # the image again.
        if "scratch_dir" in getattr(item, "fixturenames", ()) and group_of(item.nodeid) != "image":
            raise pytest.UsageError(f"{item.nodeid} needs the image: add its file to GROUPS of {__file__}")
    if config.option.full:
        return
    selected: list[pytest.Item] = []
    deselected: list[pytest.Item] = []
    cases: Counter[str] = Counter()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if is_full(item, cases[test]):
            deselected.append(item)
        else:
            cases[test] += 1
            selected.append(item)
    items[:] = selected
    config.hook.pytest_deselected(items=deselected)
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output["deselected"] = [item.nodeid for item in deselected]


# --- Several processes --------------------------------------------------------------------------------


def group_of(nodeid: str) -> str:
    """Return a test's group, which is the test itself if no other test belongs to it."""
    return next((group for start, group in GROUPS.items() if nodeid.startswith(start)), nodeid)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Distribute single tests, and keep the tests of a group in one process.

    The marker `xdist_group` has no effect with pytest-xdist 3.8 and pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start one process more than the number of cores, because many tests wait for a container or a process."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's counts and measurements to the main process."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tally"] = tally.snapshot()


DESELECTED = pytest.StashKey[list[Any]]()
"""The deselected tests. All workers deselect the same tests, so the list of one worker is enough."""


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker. A worker that crashed has none."""
    output = getattr(node, "workeroutput", {})
    if "tally" in output:
        tally.merge(*output["tally"])
    node.config.stash[DESELECTED] = [SimpleNamespace(nodeid=nodeid) for nodeid in output.get("deselected", ())]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --system, fail a test that is skipped because a package is missing."""
    report = yield
    if report.skipped and item.config.getoption("--system") and "scripts/bootstrap --system" in str(report.longrepr):
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the report of `tally`, and let pytest's last line include the tests that the workers deselected."""
    lines = tally.lines()
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)
    deselected: list[Any] = config.stash.get(DESELECTED, [])
    terminalreporter.stats.setdefault("deselected", []).extend(deselected)


# --- Fixtures -----------------------------------------------------------------------------------------


class FakeStop(StopEvent):
    """A stop event whose waits return immediately and are recorded.

    Args:
        after_waits: the number of waits after which the event is set; None = never.
    """

    def __init__(self, after_waits: int | None = None) -> None:
        # Not StopEvent's constructor: it opens a pipe, which no test would close.
        Event.__init__(self)
        self.waits: list[float] = []
        self.now = 0.0
        self._after_waits = after_waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        self.now += timeout or 0.0
        if self._after_waits is not None and len(self.waits) >= self._after_waits:
            self.set()
        return self.is_set()

    def set(self) -> None:
        Event.set(self)

    def wait_readable(self, _socket: socket, timeout_s: float) -> bool:
        self.wait(timeout_s)
        return False

    def monotonic(self) -> float:
        """Return the sum of all waits, in seconds."""
        return self.now


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def _repeatable_jitter() -> None:
    random.seed(1)


@pytest.fixture(autouse=True)
def _restored_signal_mask() -> Iterator[None]:
    """Unblock the signals that a command blocked in this process. A child process would inherit the blocked signals."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@pytest.fixture(scope="session", autouse=True)
def _short_list_of_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust only one public certificate authority, because loading all of them takes 30 ms per client."""
    first, end, _ = certifi.contents().partition("-----END CERTIFICATE-----\n")
    path = tmp_path_factory.mktemp("authorities") / "cacert.pem"
    path.write_text(first + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(certifi, "where", lambda: str(path))
        yield


@pytest.fixture(scope="session")
def _empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cwd")


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch, _empty_folder: Path) -> None:
    """Unset the program's variables, and change to an empty folder, so that no .env file is read."""
    for name in VARIABLES & os.environ.keys():
        monkeypatch.delenv(name)
    # Remove the files of the previous test.
    for entry in _empty_folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    monkeypatch.chdir(_empty_folder)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """Capture the logged events, each as a dictionary."""
    capture = LogCapture()
    structlog.configure(processors=[capture], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    yield capture.entries
    structlog.reset_defaults()


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Simulators of Headscale and Cloudflare, and a simulated clock. Its parameter is the release of Headscale."""
    return World(monkeypatch, tmp_path, getattr(request, "param", "0.28.0"))


MakePod = Callable[..., Pod]


@pytest.fixture
def make_pod(clean_environment: dict[str, str], tmp_path: Path) -> Iterator[MakePod]:
    """Return a function that creates a pod whose Headscale has this version and one user, `svc`."""
    with ExitStack() as stack:

        def make(version: str = "0.28.0") -> Pod:
            headscale = HeadscaleSimulator(version)
            headscale.add_user(USER)
            return Pod(headscale, environment=clean_environment, working_directory=tmp_path, stack=stack)

        yield make


@pytest.fixture
def pod(make_pod: MakePod) -> Pod:
    """A pod that runs the commands as processes, with simulators of Headscale and Cloudflare on loopback."""
    return make_pod()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the folder that contains pyproject.toml."""
    return Path(__file__).parent.parent


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """Return the environment for a child process, without the program's settings."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}

"""Find the installed releases of Headscale and Tailscale, and run processes in the background."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, TypeVar

from tests.simulators.dialects import VERSIONS

Value = TypeVar("Value")

SERVERS_VARIABLE: Final = "HEADSCALE_BINARIES"
"""The environment variable with a folder that has one Headscale program for each release."""

CLIENTS_VARIABLE: Final = "TAILSCALE_BINARIES"
"""The environment variable with a folder that has a subfolder for each version of the Tailscale client."""

TIMEOUT_S: Final = 45.0
"""The time limit of each step. It is long enough for a machine under load."""

POLL_INTERVAL_S: Final = 0.05
"""The first interval between two polls of `eventually`. Later intervals are longer.

Headscale computes a bcrypt hash for each API request, so many short intervals would load the machine.
"""

MAX_POLL_INTERVAL_S: Final = 0.5

# These ports are below the ephemeral ports of Linux. An outgoing connection could otherwise take the port of a server
# while the server restarts.
_PORTS: Final = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class Release:
    """One release of Headscale, and the Tailscale client for it.

    Attributes:
        name: the version, or `head` for a build of the main branch.
        minor: the minor version. For `head`, it is the minor version of the next release.
        client: the version of the Tailscale client, or "" for the newest one.
    """

    name: str
    minor: int
    headscale: Path
    tailscale: Path
    tailscaled: Path
    client: str = ""

    @property
    def test_id(self) -> str:
        """The part of a test's id for this release."""
        return f"{self.name} with client {self.client}" if self.client else self.name

    @property
    def simulator_version(self) -> str:
        """The version with which the Headscale simulator behaves like this release."""
        exact = [version for version in VERSIONS if version == self.name]
        same_minor = [version for version in VERSIONS if version.split(".")[1] == str(self.minor)]
        return (exact or same_minor)[-1]

    @property
    def identifies_users_by_id(self) -> bool:
        """True if API and CLI identify the user of a pre-auth key by id. Older releases use the name of the user."""
        return self.minor >= 26

    @property
    def identifies_keys_by_id(self) -> bool:
        """True if the API expires and deletes pre-auth keys by id.

        Older releases identify a key by its secret, and cannot delete a key.
        """
        return self.minor >= 28

    @property
    def has_keys_without_user(self) -> bool:
        """True if a pre-auth key with tags can be created without a user."""
        return self.minor >= 28


def installed_releases() -> list[Release] | str:
    """Return the installed releases, oldest first, or a message that says what to install.

    All of them use the newest Tailscale client.
    """
    folder = os.environ.get(SERVERS_VARIABLE)
    path = os.pathsep.join(filter(None, [*map(str, _client_folders()[:1]), folder, os.environ.get("PATH")]))
    tailscale, tailscaled = (shutil.which(name, path=path) for name in ("tailscale", "tailscaled"))
    if tailscale is None or tailscaled is None:
        return f"needs tailscale and tailscaled: install the tailscale package, or set {CLIENTS_VARIABLE}"
    if folder is not None:
        servers = {file.name.removeprefix("headscale-"): file for file in Path(folder).glob("headscale-*")}
    elif headscale := shutil.which("headscale", path=path):
        servers = {_version(Path(headscale)): Path(headscale)}
    else:
        servers = {}
    if not servers:
        return (
            f"needs headscale: install its package, or set {SERVERS_VARIABLE} to a folder with one program for each "
            "release, named headscale-0.28.0 and so on"
        )
    releases = [
        Release(name, _minor(name, program), program, Path(tailscale), Path(tailscaled))
        for name, program in servers.items()
    ]
    return sorted(releases, key=lambda release: (release.minor, release.name))


def with_older_clients(release: Release) -> list[Release]:
    """Return copies of a release, one for each older Tailscale client in the folder `TAILSCALE_BINARIES`."""
    return [
        replace(release, tailscale=folder / "tailscale", tailscaled=folder / "tailscaled", client=folder.name)
        for folder in _client_folders()[1:]
    ]


def _client_folders() -> list[Path]:
    """Return the subfolders of `TAILSCALE_BINARIES`, newest client first. Their names are client versions."""
    folder = os.environ.get(CLIENTS_VARIABLE)
    if folder is None:
        return []
    folders = [path.parent for path in Path(folder).glob("*/tailscaled")]
    return sorted(folders, key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)


def _version(headscale: Path) -> str:
    """Return the version that the program prints, without the letter v, or `head` if it prints no version."""
    result = subprocess.run([headscale, "version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    match = re.search(r"\d+\.\d+\.\d\S*", result.stdout)
    return match[0] if match else "head"


def _minor(name: str, headscale: Path) -> int:
    """Return the minor version of a program, but at most the newest minor version that the simulator has."""
    match = re.match(r"0\.(\d+)\.", name)
    newest = int(VERSIONS[-1].split(".")[1])
    if match is not None:
        return min(int(match[1]), newest)
    # The program is named `head`. If it prints the version of a release, such as 0.29.3, it is this release. Otherwise,
    # it is a build of the main branch, and the simulator's newest version behaves like it.
    match = re.match(r"0\.(\d+)\.\d+$", _version(headscale))
    return int(match[1]) if match else newest


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are free for TCP and UDP."""
    ports: list[int] = []
    while len(ports) < count:
        # SystemRandom, because tests/conftest.py gives the default generator the same seed in parallel tests, which
        # would then choose the same ports.
        port = random.SystemRandom().choice(_PORTS)
        with suppress(OSError):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def eventually(
    condition: Callable[[], Value | None], what: str, *, details: Callable[[], str] = str, timeout_s: float = TIMEOUT_S
) -> Value:
    """Poll a condition until it is neither None nor False, and return its value.

    Args:
        condition: is called repeatedly.
        what: the expected state, for the error message.
        details: returns further text for the error message, such as a log.
        timeout_s: the time limit. Increase it only for a state that takes longer by design.

    Raises:
        AssertionError: the time limit has passed.
    """
    deadline = time.monotonic() + timeout_s
    interval_s = POLL_INTERVAL_S
    while True:
        value = condition()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}\n{details()}")
        time.sleep(interval_s)
        interval_s = min(interval_s * 1.3, MAX_POLL_INTERVAL_S)


def run_program(
    arguments: Sequence[str | Path], *, environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program without input, and wait until it has ended.

    Args:
        environment: all environment variables of the process.
        folder: the working directory.
    """
    return subprocess.run(
        arguments,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


class BackgroundProcess:
    """A running process in its own process group. It appends its output to a file.

    Args:
        arguments: the command.
        log: the file for the output.
        environment: all environment variables of the process.
        folder: the working directory.
    """

    def __init__(
        self, arguments: Sequence[str | Path], *, log: Path, environment: Mapping[str, str], folder: Path
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, or None if the process is running."""
        return self._process.poll()

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal to the process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal_number)

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, kill the process if it runs longer than TIMEOUT_S, and return the exit status."""
        if self._process.poll() is None:
            self.send(signal_number)
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def output(self) -> str:
        """Return the output so far."""
        return self.log.read_text(errors="replace")

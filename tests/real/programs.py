"""The real programs that are installed, and processes that are gone when a test is over."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tests.simulators.dialects import VERSIONS

Found = TypeVar("Found")

FOLDER_VARIABLE: Final = "HEADSCALE_BINARIES"

PATIENCE_S: Final = 45.0
"""How long anything may take on a machine that has other things to do."""

LOOK_EVERY_S: Final = 0.05

# Below what the kernel gives to outgoing connections: a server finds its port free again after a restart.
_PORTS: Final = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class Release:
    """One release of Headscale, and the Tailscale client that joins it.

    Attributes:
        name: as the program's file is named, such as `0.28.0` or `head`; for a single one on PATH what it says.
        minor: the middle number of its version; for `head` that of the release it becomes.
    """

    name: str
    minor: int
    headscale: Path
    tailscale: Path
    tailscaled: Path

    @property
    def simulated(self) -> str:
        """The version under which the simulator plays this release."""
        exact = [version for version in VERSIONS if version == self.name]
        same_minor = [version for version in VERSIONS if version.split(".")[1] == str(self.minor)]
        return (exact or same_minor)[-1]

    @property
    def user_by_id(self) -> bool:
        """Whether the CLI wants a user's id where it wanted a name before."""
        return self.minor >= 26

    @property
    def keys_by_id(self) -> bool:
        """Whether pre-auth keys are expired and deleted by id, need no user if they have tags, and are masked."""
        return self.minor >= 28


def installed_releases() -> list[Release] | str:
    """Every release that is here, oldest first; or why there is none, and what to install."""
    folder = os.environ.get(FOLDER_VARIABLE)
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PATH")]))
    tailscale, tailscaled = (shutil.which(name, path=path) for name in ("tailscale", "tailscaled"))
    if tailscale is None or tailscaled is None:
        return "needs tailscale and tailscaled: install the tailscale package"
    if folder is not None:
        servers = {file.name.removeprefix("headscale-"): file for file in Path(folder).glob("headscale-*")}
    elif found := shutil.which("headscale", path=path):
        servers = {_version(Path(found)): Path(found)}
    else:
        servers = {}
    if not servers:
        return (
            f"needs headscale: install its package, or set {FOLDER_VARIABLE} to a folder with one program for each "
            "release, named headscale-0.28.0 and so on"
        )
    releases = [
        Release(name, _minor(name, program), program, Path(tailscale), Path(tailscaled))
        for name, program in servers.items()
    ]
    return sorted(releases, key=lambda release: (release.minor, release.name))


def _version(headscale: Path) -> str:
    """What the program says it is, without a `v`."""
    said = subprocess.run([headscale, "version"], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    match = re.search(r"\d+\.\d+\.\d\S*", said.stdout)
    return match[0] if match else "head"


def _minor(name: str, headscale: Path) -> int:
    match = re.match(r"0\.(\d+)\.", name)
    newest = int(VERSIONS[-1].split(".")[1])
    if match is not None:
        return min(int(match[1]), newest)
    # A build from the main branch calls itself after the release before it.
    match = re.match(r"0\.(\d+)\.\d+$", _version(headscale))
    return int(match[1]) if match else newest


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at, for TCP or UDP."""
    ports: list[int] = []
    while len(ports) < count:
        # Chance is the same in each test, and several run at a time.
        port = random.SystemRandom().choice(_PORTS)
        with suppress(OSError):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def eventually(
    look: Callable[[], Found | None], what: str, *, tell: Callable[[], str] = str, patience_s: float = PATIENCE_S
) -> Found:
    """Look until something is there, and give it; when patience is over it is an AssertionError.

    Args:
        look: gives None or False until then.
        what: what is waited for, as in "waited for …".
        tell: gives what else to say when it did not come.
        patience_s: longer only for what is slow by design.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:g} s for {what}\n{tell()}")
        time.sleep(LOOK_EVERY_S)


class Background:
    """A process in a group of its own, writing to a file.

    Args:
        arguments: what to run.
        log: file that its output is added to.
        environment: all of it.
        folder: where it runs.
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

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, by force if need be, and give its exit status."""
        if self._process.poll() is None:
            self.send(number)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def words(self) -> str:
        """All that it said so far."""
        return self.log.read_text(errors="replace")

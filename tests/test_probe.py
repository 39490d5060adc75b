"""Test that the liveness probe of the tailscale container fails if dns-watch has requested a restart.

dns-watch requests a restart by writing a file, the restart marker. The probe compares the time of this file with the
time when tailscaled created its socket. In these tests, the probe can run only `sh` and `test`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.probe import BUSYBOX, NO_BUSYBOX, Probe

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)

STARTED_AT = 1_800_000_000
"""When tailscaled was started, in seconds since 1970."""


class Container:
    """The probe, and the files that it reads. Instead of tailscaled's socket, the tests use a regular file."""

    def __init__(self, folder: Path) -> None:
        self._probe = Probe(folder / "bin")
        self.marker = folder / "tailscale-auth/authkey.restart"
        self.socket = folder / "tailscaled.sock"
        self.marker.parent.mkdir()

    def start(self, time: int) -> None:
        """Replace the socket, as tailscaled does when it starts."""
        self.socket.unlink(missing_ok=True)
        self.socket.touch()
        os.utime(self.socket, (time, time))

    def write_marker(self, time: int) -> None:
        """Write the restart marker, as dns-watch does to request a restart."""
        self.marker.write_text("1")
        os.utime(self.marker, (time, time))

    def fails_probe(self, **variables: str) -> bool:
        """Return True if the probe fails in a container with these variables."""
        return self._probe.fails(marker=self.marker, socket=self.socket, variables=variables)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


@pytest.mark.parametrize(
    ("marker_time", "fails"),
    [
        pytest.param(STARTED_AT + 1, True, id="newer"),
        pytest.param(STARTED_AT + 86_400, True, id="a-day-newer"),
        pytest.param(STARTED_AT, False, id="same-second"),
        pytest.param(STARTED_AT - 1, False, id="older"),
    ],
)
def test_probe_fails_only_with_a_marker_newer_than_the_socket(
    container: Container, marker_time: int, fails: bool
) -> None:
    container.start(STARTED_AT)
    container.write_marker(marker_time)
    assert container.fails_probe() == fails


def test_probe_uses_the_socket_of_the_container(container: Container, tmp_path: Path) -> None:
    container.start(STARTED_AT)
    container.write_marker(STARTED_AT + 1)
    own_socket = container.socket.rename(tmp_path / "own socket")
    assert container.fails_probe(TS_SOCKET=str(own_socket))
    assert not container.fails_probe()


@pytest.mark.parametrize("file", ["marker", "socket", "key folder", "marker and socket"])
def test_probe_passes_without_a_file(container: Container, file: str) -> None:
    """A file can be missing, for example because tailscaled creates its socket some time after its start."""
    if "socket" not in file:
        container.start(STARTED_AT)
    if file == "key folder":
        container.marker.parent.rmdir()
    elif "marker" not in file:
        container.write_marker(STARTED_AT)
    assert not container.fails_probe()

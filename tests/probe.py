"""Run the liveness probe of the tailscale container.

The probe is read from a rendered manifest. Busybox runs it, as in the image of Tailscale.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.pod.rendering import containers, manifests_of, pod_spec

BUSYBOX: Final = shutil.which("busybox")
NO_BUSYBOX: Final = "needs busybox: scripts/bootstrap --system"
"""The reason for skipping a test."""

# The probe fails if the marker is newer than the socket. dns-watch writes the marker to request a restart of the
# container, and tailscaled creates the socket when it starts.
MARKER: Final = "/tailscale-auth/authkey.restart"
SOCKET: Final = "/tmp/tailscaled.sock"


class Probe:
    """The container's liveness probe.

    Args:
        folder: a folder to create, with links to busybox: the only programs that the probe can run.
    """

    def __init__(self, folder: Path) -> None:
        probe = containers(pod_spec(manifests_of("ollama")))["tailscale"]["livenessProbe"]
        self.command: list[str] = probe["exec"]["command"]
        self.timeout_s: int = probe["timeoutSeconds"]
        self._folder = folder
        folder.mkdir()
        for name in ("sh", "test"):
            (folder / name).symlink_to(BUSYBOX or "")

    def fails(self, *, marker: Path, socket: Path, variables: Mapping[str, str] | None = None) -> bool:
        """Run the probe, with these paths instead of those in the pod. Return True if the probe fails.

        Args:
            variables: the environment of the container.
        """
        script = " ".join(self.command)
        assert (script.count(MARKER), script.count(SOCKET)) == (1, 1)
        command = [word.replace(MARKER, str(marker)).replace(SOCKET, str(socket)) for word in self.command]
        done = subprocess.run(
            [self._folder / command[0], *command[1:]],
            env={"PATH": str(self._folder), **(variables or {})},
            capture_output=True,
            text=True,
            timeout=self.timeout_s,
            check=False,
        )
        # Busybox reports a syntax error, an unknown option or a missing program on standard error.
        assert not done.stderr, done.stderr
        return done.returncode != 0

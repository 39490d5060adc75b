"""The liveness probe of the tailscale container, as rendered, run with the shell of its image."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.pod.rendering import containers, pod_spec, rendered

BUSYBOX: Final = shutil.which("busybox")
NO_BUSYBOX: Final = "needs busybox: scripts/bootstrap --system"

MARKER: Final = "/tailscale-auth/authkey.restart"
SOCKET: Final = "/tmp/tailscaled.sock"


class Probe:
    """The container's liveness probe.

    Args:
        folder: a new folder for the programs of the tailscale image, which are all busybox.
    """

    def __init__(self, folder: Path) -> None:
        probe = containers(pod_spec(rendered("ollama")))["tailscale"]["livenessProbe"]
        self.command: list[str] = probe["exec"]["command"]
        self.timeout_s: int = probe["timeoutSeconds"]
        self._folder = folder
        folder.mkdir()
        for name in ("sh", "test", "wget", "grep", "timeout"):
            (folder / name).symlink_to(BUSYBOX or "")

    def fails(self, *, marker: Path, socket: Path) -> bool:
        """Run the probe with other paths than the pod's, and return True if the kubelet would count a failure."""
        script = " ".join(self.command)
        assert (script.count(MARKER), script.count(SOCKET)) == (1, 1)
        command = [word.replace(MARKER, str(marker)).replace(SOCKET, str(socket)) for word in self.command]
        done = subprocess.run(
            [self._folder / command[0], *command[1:]],
            env={"PATH": str(self._folder)},
            capture_output=True,
            text=True,
            timeout=self.timeout_s,
            check=False,
        )
        # A message means that the shell did not understand the command.
        assert not done.stderr, done.stderr
        return done.returncode != 0

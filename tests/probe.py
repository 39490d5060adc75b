"""The probe of the tailscale container, as it stands in the manifest, run with the programs of its image."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

MANIFEST: Final = Path(__file__).parent.parent / "deploy/components/lifecycle/plain/lifecycle.yaml"

BUSYBOX: Final = shutil.which("busybox")
NO_BUSYBOX: Final = "needs busybox: scripts/bootstrap --system"


class Probe:
    """The container's liveness probe.

    Args:
        folder: where programs are put that are all busybox, as in the tailscale image; not there yet.
    """

    def __init__(self, folder: Path) -> None:
        documents = yaml.safe_load_all(MANIFEST.read_text())
        (self.manifest,) = (
            container["livenessProbe"]
            for document in documents
            for container in document["spec"]["template"]["spec"].get("containers", [])
            if container["name"] == "tailscale"
        )
        self._folder = folder
        folder.mkdir()
        for name in ("sh", "wget", "grep", "timeout"):
            (folder / name).symlink_to(BUSYBOX or "")

    @property
    def command(self) -> list[str]:
        """What the kubelet runs."""
        command: list[str] = self.manifest["exec"]["command"]
        return command

    @property
    def timeout_s(self) -> int:
        """After which the kubelet takes it as failed."""
        timeout: Any = self.manifest["timeoutSeconds"]
        return int(timeout)

    def fails(self, port: int, **environment: str) -> bool:
        """Run it against a port of this machine instead of the pod's; whether the kubelet would count a failure."""
        command = [word.replace(":9003/", f":{port}/") for word in self.command]
        assert command != self.command
        done = subprocess.run(
            [self._folder / command[0], *command[1:]],
            env={"PATH": str(self._folder), **environment},
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.returncode != 0

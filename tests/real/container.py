"""Run the tailscale container of the rendered manifests, without a container image.

The container has the entry point of the image (containerboot), and the environment, files and probes of the manifests.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.pod.rendering import containers, environment, manifests_of, of_kind, pod_spec
from tests.probe import BUSYBOX
from tests.process.cluster import Authority, serve_to_pod
from tests.real.programs import TIMEOUT_S, BackgroundProcess, Release, eventually
from tests.real.workload import NAMESPACE
from tests.simulators.kubernetes import KubernetesSimulator

DOCUMENTS: Final = manifests_of("ollama")
"""The rendered manifests of the example service ollama."""

CONTAINER_MANIFEST: Final = containers(pod_spec(DOCUMENTS))["tailscale"]
"""The part of the pod's manifest for the tailscale container."""

SETTINGS: Final = environment(containers(pod_spec(DOCUMENTS))["dns-watch"], DOCUMENTS)
"""The rendered settings of `cleanup` and `dns-watch`."""

# The kubelet sets these variables from the metadata of the pod.
POD_VARIABLES: Final = {"POD_NAME": "ollama-0", "POD_UID": "11111111-2222-4333-8444-555555555555"}

START_TIMEOUT_S: Final = 180.0
"""The time limit of the rendered startup probe: 60 failures, one every 3 s."""

PROGRAMS: Final = ("containerboot", "tailscale", "tailscaled")

ENTRY_POINT_SCRIPT: Final = """
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /usr "$1/usr"
exec chroot "$1" /bin/containerboot
"""
"""Runs the entry point with the folder $1 as its root. The folder has the container's programs and volumes."""


class TailscaleContainer:
    """The tailscale container of a pod, in the network namespace of the thread that starts it.

    Args:
        release: the release whose Tailscale client runs. The folder of `tailscaled` must also contain `containerboot`.
        folder: an empty folder, which becomes the root folder of the container.
        hosts: the content of /etc/hosts.
        trust: the certificates that programs in the container trust, in PEM format.
        authority: the issuer of the certificate of the simulated Kubernetes API.
        stack: stops the container and the Kubernetes API when it is closed.

    Attributes:
        kubernetes: the simulated Kubernetes API. It has the Secret in which tailscale stores its state, and allows what
            the rendered Role allows.
        account: the folder with the service account token.
        api: the environment variables with the address of the Kubernetes API.
        starts: how many times the container was started.
    """

    def __init__(
        self,
        release: Release,
        folder: Path,
        *,
        hosts: str,
        trust: str,
        authority: Authority,
        stack: ExitStack,
    ) -> None:
        self.root = folder
        self.log = folder.with_name(f"{folder.name}.log")
        self.starts = 0
        self._process: BackgroundProcess | None = None
        for name in ("bin", "dev", "proc", "sys", "usr", "root", "run", "tmp", "var", "tailscale-auth"):
            (folder / name).mkdir()
        for name in ("lib", "lib64"):
            (folder / name).symlink_to(f"usr/{name}")
        (folder / "var/run").symlink_to("../run")
        for program in PROGRAMS:
            shutil.copy2(release.tailscaled.with_name(program), folder / "bin" / program)
        # A probe runs `wget -T`. Debian's busybox 1.35 crashes with this option, so wget is not copied from busybox,
        # and the probe finds the wget in /usr.
        for applet in ("sh", "test"):
            shutil.copy2(BUSYBOX or "", folder / "bin" / applet)
        (folder / "etc/ssl/certs").mkdir(parents=True)
        (folder / "etc/ssl/certs/ca-certificates.crt").write_text(trust)
        (folder / "etc/hosts").write_text(hosts)
        self._environment = self._serve_kubernetes(authority, stack)
        stack.callback(self.stop)

    def _serve_kubernetes(self, authority: Authority, stack: ExitStack) -> dict[str, str]:
        """Serve the Kubernetes API and return the environment of the container."""
        variables = {
            name: value for name, value in environment(CONTAINER_MANIFEST, DOCUMENTS).items() if value is not None
        }
        self.kubernetes = KubernetesSimulator()
        self.kubernetes.put_secret(NAMESPACE, variables["TS_KUBE_SECRET"], {})
        (role,) = of_kind(DOCUMENTS, "Role")
        self.kubernetes.allow(NAMESPACE, *role["rules"])
        self.account = self.root / "run/secrets/kubernetes.io/serviceaccount"
        serving = serve_to_pod(self.kubernetes, authority, account=self.account, namespace=NAMESPACE)
        self.api = stack.enter_context(serving)
        self.api["KUBERNETES_SERVICE_PORT_HTTPS"] = self.api["KUBERNETES_SERVICE_PORT"]
        return {"HOME": "/root", **self.api, **POD_VARIABLES, **variables}

    @property
    def key_file(self) -> Path:
        """The path of the pre-auth key's file outside of the container."""
        return self.root / "tailscale-auth/authkey"

    def start(self) -> None:
        """Start the container, and wait until its startup probe passes."""
        self._run()
        eventually(
            lambda: self.probe_passes("startupProbe"),
            "the startup probe",
            details=self.output,
            timeout_s=START_TIMEOUT_S,
        )

    def _run(self) -> None:
        self.starts += 1
        unshare = ("unshare", "--mount", "--propagation", "private")
        self._process = BackgroundProcess(
            [*unshare, "sh", "-ec", ENTRY_POINT_SCRIPT, "sh", self.root],
            log=self.log,
            environment=self._environment | {"PATH": "/bin:/usr/sbin:/usr/bin"},
            folder=self.root,
        )

    def stop(self) -> None:
        """Stop the container. Its volumes and the state Secret remain."""
        if self._process is not None:
            self._process.stop()

    def probe_passes(self, probe: str) -> bool:
        """Run a rendered probe, and return True if it passes. Like the kubelet, first restart an ended container."""
        assert self._process is not None
        if self._process.exit_status is not None:
            self._run()
        enter = ("nsenter", f"--target={self._process.pid}", "--mount", "--root", "--wd")
        done = subprocess.run(
            [*enter, *CONTAINER_MANIFEST[probe]["exec"]["command"]],
            env={"PATH": "/bin:/usr/bin"},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return done.returncode == 0

    def output(self) -> str:
        """Return the log of the container."""
        return self.log.read_text(errors="replace")

"""A pod that reaches Headscale through the Kubernetes API, with service account files and TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.certificates import PrivateAuthority
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, NAMESPACE, add_headscale
from tests.process.commands import Pod, Running
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator

# Run a command in a separate mount namespace, with its service account where the kubelet mounts it.
_WITH_SERVICE_ACCOUNT = """
mount -t tmpfs none /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""

# Works without root if the machine allows unprivileged user namespaces.
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


def with_service_account(folder: Path) -> list[str | Path]:
    """Return the prefix of a command that mounts this folder as the service account."""
    return [*_UNSHARE, "sh", "-ec", _WITH_SERVICE_ACCOUNT, "sh", folder]


def require_mount_namespace() -> None:
    """Skip the test if a mount namespace cannot be created."""
    for program in ("openssl", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install the packages openssl and util-linux")
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a mount namespace: run as root, or allow unprivileged user namespaces")


class Authority:
    """An authority without a key usage extension, as some clusters have, and a server on loopback.

    Python 3.13, which the image has, refuses such an authority by default.

    Args:
        folder: for the certificates and keys.
    """

    def __init__(self, folder: Path) -> None:
        authority = PrivateAuthority(folder, has_key_usage=False)
        self.certificate = authority.certificate
        self.server = authority.server()


class ClusterPod(Pod):
    """A pod that finds Headscale by its namespace.

    Args:
        kubernetes: the Kubernetes API, served at `kubernetes_url` with the certificate of `authority`.
    """

    def __init__(
        self, *upstreams: Any, kubernetes: KubernetesSimulator, kubernetes_url: str, authority: Authority, **pod: Any
    ) -> None:
        super().__init__(*upstreams, **pod)
        self.kubernetes = kubernetes
        self.cli = HeadscaleCli(self.headscale)
        add_headscale(kubernetes, self.cli)
        kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
        self._account = self.working_directory / "serviceaccount"
        self._account.mkdir()
        (self._account / "ca.crt").write_bytes(authority.certificate.read_bytes())
        (self._account / "namespace").write_text(NAMESPACE)
        self.mount_token()
        self.headscale_url = self.environment.pop("HEADSCALE_URL")
        del self.environment["HEADSCALE_API_KEY"]
        # The kubelet sets these.
        host, _, port = kubernetes_url.removeprefix("https://").partition(":")
        self.environment |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    def mount_token(self) -> None:
        """Write the current token of the service account."""
        (self._account / "token").write_text(self.kubernetes.token)

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start the program with its service account mounted; "" unsets a variable."""
        return self.fork(arguments, variables, service_account=self._account)

    def outside(self, *arguments: str, **variables: str) -> Running:
        """Start the program outside the cluster."""
        return self.fork(arguments, {"KUBERNETES_SERVICE_HOST": "", **variables})

    def secrets_in(self, *texts: str) -> list[str]:
        """Return the secrets of all upstreams that these texts contain."""
        token = self.kubernetes.token
        return super().secrets_in(*texts) + [token for text in texts if token in text]

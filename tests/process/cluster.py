"""A pod that reaches Headscale through the Kubernetes API, with a service account and TLS."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.certificates import PrivateAuthority
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, NAMESPACE, add_headscale
from tests.process.commands import Pod, Running
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.serve import serve

# A shell script that runs a command with the folder $1 mounted where the kubelet mounts the service account.
_WITH_SERVICE_ACCOUNT = """
mount -t tmpfs none /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""

# Creates a mount namespace. Works without root if the machine allows unprivileged user namespaces.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


def with_service_account(folder: Path) -> list[str | Path]:
    """Return the words to put before a command so that it runs with this folder mounted as its service account."""
    return [*UNSHARE, "sh", "-ec", _WITH_SERVICE_ACCOUNT, "sh", folder]


def require_mount_namespace() -> None:
    """Skip the test if a mount namespace cannot be created."""
    for program in ("openssl", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install the packages openssl and util-linux")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a mount namespace: run as root, or allow unprivileged user namespaces")


class Authority:
    """A certificate authority without a key usage extension, as some clusters have.

    Python 3.13, which the image has, refuses such an authority by default.

    Args:
        folder: for the certificates and keys.

    Attributes:
        certificate: the file with the authority's certificate.
        server: the TLS context of a server on loopback with a certificate of this authority.
    """

    def __init__(self, folder: Path) -> None:
        authority = PrivateAuthority(folder, has_key_usage=False)
        self.certificate = authority.certificate
        self.server = authority.server()


class ClusterPod(Pod):
    """A pod with a service account, which reaches Headscale by executing its command line in the Headscale pod.

    Args:
        headscale: runs in the namespace `headscale` of the cluster.
        authority: the issuer of the Kubernetes API's certificate.
        pod: the other arguments of `Pod`.
    """

    def __init__(self, headscale: HeadscaleSimulator, *, authority: Authority, stack: ExitStack, **pod: Any) -> None:
        super().__init__(headscale, stack=stack, **pod)
        self.kubernetes = KubernetesSimulator()
        url = stack.enter_context(serve(self.kubernetes, tls=authority.server))
        self.cli = HeadscaleCli(headscale)
        add_headscale(self.kubernetes, self.cli)
        self.kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
        self._account = self.working_directory / "serviceaccount"
        self._account.mkdir()
        (self._account / "ca.crt").write_bytes(authority.certificate.read_bytes())
        (self._account / "namespace").write_text(NAMESPACE)
        self.mount_token()
        self.headscale_url = self.environment.pop("HEADSCALE_URL")
        del self.environment["HEADSCALE_API_KEY"]
        # The kubelet sets these.
        host, _, port = url.removeprefix("https://").partition(":")
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
        """Return the secrets that these texts contain, including the service account token."""
        token = self.kubernetes.token
        return super().secrets_in(*texts) + [token for text in texts if token in text]

"""Run commands as processes of a pod that has a service account and reaches Headscale through the Kubernetes API."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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

# A shell script that mounts the folder $1 where the kubelet mounts the service account, and then runs the command that
# the other arguments contain.
_WITH_SERVICE_ACCOUNT = """
mount -t tmpfs none /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""

# A command prefix that creates a mount namespace. Without root, the machine must allow unprivileged user namespaces.
IN_NEW_MOUNT_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


def with_service_account(folder: Path) -> list[str | Path]:
    """Return the prefix of a command that needs this folder mounted as its service account."""
    return [*IN_NEW_MOUNT_NAMESPACE, "sh", "-ec", _WITH_SERVICE_ACCOUNT, "sh", folder]


@contextmanager
def serve_to_pod(
    kubernetes: KubernetesSimulator, authority: Authority, *, account: Path, namespace: str
) -> Iterator[dict[str, str]]:
    """Serve a simulator to a pod, and write the files of the pod's service account to a folder.

    Args:
        account: the folder to create.
        namespace: the namespace of the pod.

    Yields:
        The variables that the kubelet sets.
    """
    account.mkdir(parents=True)
    (account / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (account / "token").write_text(kubernetes.token)
    (account / "namespace").write_text(namespace)
    with serve(kubernetes, tls=authority.server) as url:
        host, _, port = url.removeprefix("https://").partition(":")
        yield {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}


def require_mount_namespace() -> None:
    """Skip the test if openssl is missing or no mount namespace can be created."""
    for program in ("openssl", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install the packages openssl and util-linux")
    if subprocess.run([*IN_NEW_MOUNT_NAMESPACE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a mount namespace: run as root, or allow unprivileged user namespaces")


class Authority:
    """A certificate authority without a key usage extension, as some clusters have.

    By default, Python 3.13 refuses such an authority. The image has Python 3.13, and the program must accept it.

    Args:
        folder: where the certificates and keys are created.

    Attributes:
        certificate: the file with the authority's certificate.
        server: the TLS context for a server on loopback, with a certificate that this authority has issued.
    """

    def __init__(self, folder: Path) -> None:
        authority = PrivateAuthority(folder, has_key_usage=False)
        self.certificate = authority.certificate
        self.server = authority.server_context()


class ClusterPod(Pod):
    """A pod with a service account. Unless a test sets HEADSCALE_URL, it reaches Headscale over exec.

    Args:
        headscale: the simulator that runs in the namespace `headscale` of the cluster.
        authority: the issuer of the Kubernetes API's certificate.
        other_arguments: the other arguments of `Pod`.

    Attributes:
        headscale_url: the URL of Headscale's HTTP API, for tests that set HEADSCALE_URL.
    """

    def __init__(
        self, headscale: HeadscaleSimulator, *, authority: Authority, stack: ExitStack, **other_arguments: Any
    ) -> None:
        super().__init__(headscale, stack=stack, **other_arguments)
        self.kubernetes = KubernetesSimulator()
        self.headscale_cli = HeadscaleCli(headscale)
        add_headscale(self.kubernetes, self.headscale_cli)
        self.kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
        self._account_folder = self.working_directory / "serviceaccount"
        self.headscale_url = self.environment.pop("HEADSCALE_URL")
        del self.environment["HEADSCALE_API_KEY"]
        self.environment |= stack.enter_context(
            serve_to_pod(self.kubernetes, authority, account=self._account_folder, namespace=NAMESPACE)
        )

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start the program with its service account mounted. A variable with the value "" is unset."""
        return self.fork(arguments, variables, service_account=self._account_folder)

    def start_outside_cluster(self, *arguments: str, **variables: str) -> Running:
        """Start the program outside the cluster."""
        return self.fork(arguments, {"KUBERNETES_SERVICE_HOST": "", **variables})

    def secrets_in(self, *texts: str) -> list[str]:
        """Return the secrets that these texts contain, including the service account token."""
        token = self.kubernetes.token
        return super().secrets_in(*texts) + [token for text in texts if token in text]

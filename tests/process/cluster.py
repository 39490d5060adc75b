"""A pod that reaches Headscale through the Kubernetes API: its service account's files, TLS and all."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, NAMESPACE, add_headscale
from tests.process.commands import PROGRAM, Pod, Running
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator

# In a mount namespace of its own, the command finds its service account where the kubelet mounts it.
_WITH_SERVICE_ACCOUNT = """
mount -t tmpfs none /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""

# Also for somebody who is not root, where the machine lets everybody have namespaces.
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


def with_service_account(folder: Path) -> list[str | Path]:
    """What to put before a command that is to find these files where the kubelet mounts a service account's."""
    return [*_UNSHARE, "sh", "-ec", _WITH_SERVICE_ACCOUNT, "sh", folder]


def needs_a_mount_namespace() -> None:
    """Skip where there can be none, and say what to install."""
    for program in ("openssl", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install the packages openssl and util-linux")
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a mount namespace: run as root, or allow unprivileged user namespaces")


class Authority:
    """A certificate for loopback that is its own authority.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "ca.crt"
        key = folder / "tls.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-days", "2", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
                *("-keyout", str(key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(self.certificate, key)


class ClusterPod(Pod):
    """A pod with no more than a namespace to find Headscale by.

    Args:
        kubernetes: served at `kubernetes_url` with the certificate of `authority`.
    """

    def __init__(
        self, *services: Any, kubernetes: KubernetesSimulator, kubernetes_url: str, authority: Authority, **pod: Any
    ) -> None:
        super().__init__(*services, **pod)
        self.kubernetes = kubernetes
        self.cli = HeadscaleCli(self.headscale)
        add_headscale(kubernetes, self.cli)
        kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
        self._account = self.folder / "serviceaccount"
        self._account.mkdir()
        (self._account / "ca.crt").write_bytes(authority.certificate.read_bytes())
        (self._account / "namespace").write_text(NAMESPACE)
        self.mount_token()
        self.headscale_url = self.environment.pop("HEADSCALE_URL")
        del self.environment["HEADSCALE_API_KEY"]
        # From the kubelet, too.
        host, _, port = kubernetes_url.removeprefix("https://").partition(":")
        self.environment |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    def mount_token(self) -> None:
        """Put the service account's token of now where it is read."""
        (self._account / "token").write_text(self.kubernetes.token)

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start the program with its service account mounted; "" unsets a variable."""
        command = [*map(str, with_service_account(self._account)), PROGRAM, *arguments]
        return Running(command, environment=self.environment | variables, folder=self.folder)

    def outside(self, *arguments: str, **variables: str) -> Running:
        """Start the program on a machine that is no pod."""
        environment: Mapping[str, str] = self.environment | {"KUBERNETES_SERVICE_HOST": ""} | variables
        return Running([PROGRAM, *arguments], environment=environment, folder=self.folder)

    def secrets_in(self, *texts: str) -> list[str]:
        """Which secrets of anybody stand in what was said."""
        token = self.kubernetes.token
        return super().secrets_in(*texts) + [token for text in texts if token in text]

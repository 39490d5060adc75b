"""A real Kubernetes API server with etcd, without kubelets: for admission and validation.

Requires KUBERNETES_BINARIES=<folder> with the program kube-apiserver, and etcd on the path (Debian: etcd-server).
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import yaml

from tests.real.programs import Background, eventually, free_ports

FOLDER_VARIABLE = "KUBERNETES_BINARIES"
_ADMIN = "made-up-for-tests"

Document = dict[str, Any]


def missing() -> str:
    """Return what is missing to run an API server; "" if nothing is."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return f"set {FOLDER_VARIABLE} to a folder with kube-apiserver, built from k8s.io/kubernetes"
    if not (Path(folder) / "kube-apiserver").exists():
        return f"{folder} has no kube-apiserver; build it from k8s.io/kubernetes"
    if shutil.which("etcd") is None:
        return "install etcd (Debian: etcd-server)"
    return ""


class Refused(Exception):  # noqa: N818 - the API server's answer, which tests expect
    """The API server refused an object; the text is its message."""


class ApiServer:
    """A running API server on a loopback port. The version is that of the program.

    Args:
        folder: an empty folder for its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = Path(os.environ[FOLDER_VARIABLE]) / "kube-apiserver"
        self._processes: list[Background] = []
        self._etcd, self._peer, self._port = free_ports(3)
        self.version = (0, 0)

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        etcd = f"http://127.0.0.1:{self._etcd}"
        peer = f"http://127.0.0.1:{self._peer}"
        self._start(
            [
                "etcd",
                f"--data-dir={self._folder / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ]
        )
        key = self._folder / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (self._folder / "tokens.csv").write_text(f"{_ADMIN},admin,admin,system:masters\n")
        version = subprocess.run([self._binary, "--version"], check=True, capture_output=True, text=True).stdout
        major, minor = version.removeprefix("Kubernetes v").split(".")[:2]
        self.version = (int(major), int(minor))
        self._start(
            [
                self._binary,
                f"--etcd-servers={etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={self._port}",
                f"--cert-dir={self._folder / 'certificates'}",
                f"--token-auth-file={self._folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-cluster-ip-range=10.96.0.0/16",
                # Nothing connects to the Service "kubernetes", which cannot have a loopback address.
                "--endpoint-reconciler-type=none",
                "--allow-privileged",
                *self._beta_options(),
            ]
        )
        eventually(self._is_ready, "a ready API server", details=self._log, timeout_s=120)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.stop()

    @property
    def policy_version(self) -> str:
        """The API version of MutatingAdmissionPolicy."""
        return f"admissionregistration.k8s.io/{'v1' if self.version >= (1, 36) else 'v1beta1'}"

    def _beta_options(self) -> list[str]:
        """Enable MutatingAdmissionPolicy, which is off by default before 1.36."""
        if self.version >= (1, 36):
            return []
        return [
            "--feature-gates=MutatingAdmissionPolicy=true",
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
        ]

    def _start(self, command: list[Any]) -> None:
        log = self._folder / f"{Path(command[0]).name}.log"
        self._processes.append(Background(command, log=log, environment=os.environ, folder=self._folder))

    def _is_ready(self) -> bool:
        assert all(process.exit_status is None for process in self._processes), self._log()
        with suppress(OSError, Refused):
            return str(self.request("GET", "/readyz")) == "ok"
        return False

    def _log(self) -> str:
        return self._processes[-1].log.read_text(errors="replace")[-4000:]

    def request(self, method: str, path: str, body: Document | None = None, *, kind: str = "application/json") -> Any:
        """Send a request as the administrator, and return the object or text of the response.

        Raises:
            Refused: the API server answered with an error.
        """
        # Not the default context, which loads all public authorities for each request.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {_ADMIN}", "Content-Type": kind},
            method=method,
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=30) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            answer = error.read().decode()
            with suppress(ValueError):
                answer = json.loads(answer)["message"]
            raise Refused(answer) from None
        try:
            return json.loads(text)
        except ValueError:
            return text

    @property
    def url(self) -> str:
        """The address that it listens on."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def token(self) -> str:
        """The administrator's token."""
        return _ADMIN

    def kubectl(self, *arguments: str | Path, text: str = "") -> str:
        """Run kubectl as the administrator, and return its output.

        Raises:
            Refused: kubectl failed.
        """
        options = [
            f"--server={self.url}",
            f"--token={self.token}",
            "--insecure-skip-tls-verify",
            f"--cache-dir={self._folder / 'cache'}",
        ]
        done = subprocess.run(
            [Path(sys.executable).with_name("kubectl"), *options, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "KUBECONFIG": os.devnull},
        )
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def create_namespace(self, name: str, labels: dict[str, str]) -> None:
        """Create a namespace with its default service account, which a controller manager would create."""
        metadata = {"name": name, "labels": labels}
        for item in (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}},
        ):
            self.kubectl("create", "-f", "-", text=json.dumps(item))

    def create(self, manifest: Document) -> Document:
        """Create an object without storing it, and return it as the API server would store it.

        Raises:
            Refused: it was not admitted.
        """
        text = self.kubectl("create", "--dry-run=server", "-o", "yaml", "-f", "-", text=json.dumps(manifest))
        created: Document = yaml.safe_load(text)
        return created

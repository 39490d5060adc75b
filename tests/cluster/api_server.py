"""Run a real Kubernetes API server with etcd: alone, to test admission and validation, or as a part of a cluster.

The tests need KUBERNETES_BINARIES=<folder> with the program kube-apiserver, and etcd (Debian: etcd-server) and openssl
on PATH.
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
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.pod.network import Host
from tests.pod.rendering import DEPLOY
from tests.real.programs import BackgroundProcess, eventually, free_ports

PROGRAMS_VARIABLE = "KUBERNETES_BINARIES"
SERVICE_NETWORK: Final = "10.96.0.0/16"
"""The network of the Services' addresses."""
_ADMIN_TOKEN = "made-up-for-tests"

Document = dict[str, Any]


def missing_programs() -> str:
    """Return a message that says what is missing to run an API server; "" if nothing is."""
    folder = os.environ.get(PROGRAMS_VARIABLE)
    if not folder:
        return f"set {PROGRAMS_VARIABLE} to a folder with kube-apiserver, built from k8s.io/kubernetes"
    if not (Path(folder) / "kube-apiserver").exists():
        return f"{folder} has no kube-apiserver; build it from k8s.io/kubernetes"
    if shutil.which("etcd") is None or shutil.which("openssl") is None:
        return "install etcd (Debian: etcd-server) and openssl"
    return ""


class RefusedError(Exception):
    """The API server refused a request, or kubectl failed. The text is the error message."""


class ApiServer:
    """A running API server on a loopback port.

    Args:
        folder: an empty folder for the data of the server.
        host: the network namespace of the server; None = the network namespace of the tests.
        address: the server's address for pods, in this network namespace; "" = there are no pods.

    Attributes:
        version: the major and minor version of the program.
    """

    def __init__(self, folder: Path, *, host: Host | None = None, address: str = "") -> None:
        self._folder = folder
        self._host = host
        self._address = address
        self._binary = Path(os.environ[PROGRAMS_VARIABLE]) / "kube-apiserver"
        self._processes: list[BackgroundProcess] = []
        self._etcd_port, self._peer_port, self._port = free_ports(3)
        self.version = (0, 0)

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        etcd = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
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
        key = self.service_account_key
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (self._folder / "tokens.csv").write_text(f"{_ADMIN_TOKEN},admin,admin,system:masters\n")
        version = subprocess.run([self._binary, "--version"], check=True, capture_output=True, text=True).stdout
        major, minor = version.removeprefix("Kubernetes v").split(".")[:2]
        self.version = (int(major), int(minor))
        self._start(
            [
                self._binary,
                f"--etcd-servers={etcd}",
                f"--secure-port={self._port}",
                f"--cert-dir={self._folder / 'certificates'}",
                f"--token-auth-file={self._folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                f"--service-cluster-ip-range={SERVICE_NETWORK}",
                "--allow-privileged",
                *self._address_options(),
                *self._beta_options(),
            ]
        )
        eventually(self._is_ready, "a ready API server", details=self._log, timeout_s=120)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.stop()

    @property
    def inject_folder(self) -> Path:
        """The folder of deploy/ with the admission policies for this version of Kubernetes."""
        return DEPLOY / ("inject" if self.version >= (1, 36) else "inject-v1beta1")

    @property
    def policy_version(self) -> str:
        """The API version of MutatingAdmissionPolicy."""
        return f"admissionregistration.k8s.io/{'v1' if self.version >= (1, 36) else 'v1beta1'}"

    def _address_options(self) -> list[str]:
        if self._address:
            # The API server connects to the kubelet by address, because DNS does not contain the name of the node.
            kubelet = "--kubelet-preferred-address-types=InternalIP"
            return ["--bind-address=0.0.0.0", f"--advertise-address={self._address}", kubelet]
        # The Service "kubernetes" gets no endpoint, because an endpoint cannot have a loopback address. Without pods,
        # nothing connects to this Service.
        return ["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"]

    def _beta_options(self) -> list[str]:
        """Return the options that enable MutatingAdmissionPolicy, which is off by default before Kubernetes 1.36."""
        if self.version >= (1, 36):
            return []
        return [
            "--feature-gates=MutatingAdmissionPolicy=true",
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
        ]

    def _start(self, command: list[Any]) -> None:
        log = self._folder / f"{Path(command[0]).name}.log"
        command = self._command(*command)
        self._processes.append(BackgroundProcess(command, log=log, environment=os.environ, folder=self._folder))

    def _command(self, *words: str | Path) -> list[str | Path]:
        return [*self._host.command(*words)] if self._host else [*words]

    def _inside(self) -> AbstractContextManager[None]:
        return self._host.inside() if self._host else nullcontext()

    def _is_ready(self) -> bool:
        assert all(process.exit_status is None for process in self._processes), self._log()
        with suppress(OSError, RefusedError):
            return str(self.request("GET", "/readyz")) == "ok"
        return False

    def _log(self) -> str:
        return self._processes[-1].log.read_text(errors="replace")[-4000:]

    def request(self, method: str, path: str, body: Document | None = None) -> Any:
        """Send a request as the administrator, and return the object or text of the response.

        Raises:
            RefusedError: the API server returned an error.
        """
        # ssl.create_default_context would load all public authorities for each request, which is slow.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {_ADMIN_TOKEN}", "Content-Type": "application/json"},
            method=method,
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with self._inside(), opener.open(request, timeout=30) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            message = error.read().decode()
            with suppress(ValueError):
                message = json.loads(message)["message"]
            raise RefusedError(message) from None
        try:
            return json.loads(text)
        except ValueError:
            return text

    @property
    def url(self) -> str:
        """The URL of the API server."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def certificate(self) -> Path:
        """The file with the server's certificate and the certificate of its authority."""
        return self._folder / "certificates/apiserver.crt"

    @property
    def service_account_key(self) -> Path:
        """The file with the private key that signs the tokens of service accounts."""
        return self._folder / "service-accounts.key"

    @property
    def token(self) -> str:
        """The administrator's token."""
        return _ADMIN_TOKEN

    @cached_property
    def kubeconfig(self) -> Path:
        """A kubeconfig file of the administrator."""
        file = self._folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
            "current-context": "tests",
        }
        file.write_text(yaml.safe_dump(config))
        return file

    def kubectl_command(self, *arguments: str | Path) -> list[str | Path]:
        """Return a command line that runs kubectl as the administrator."""
        options = [f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self._folder / 'cache'}"]
        return self._command(Path(sys.executable).with_name("kubectl"), *options, *arguments)

    def kubectl(self, *arguments: str | Path, text: str = "") -> str:
        """Run kubectl as the administrator, and return its output.

        Raises:
            RefusedError: kubectl failed.
        """
        done = subprocess.run(self.kubectl_command(*arguments), input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RefusedError(done.stderr)
        return done.stdout

    def create(self, *manifests: Document) -> None:
        """Create objects."""
        self.kubectl("create", "-f", "-", text=yaml.safe_dump_all(manifests))

    def create_namespace(self, name: str, labels: dict[str, str]) -> None:
        """Create a namespace, and the default service account that a controller manager would create."""
        self.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}},
        )

    def create_dry_run(self, manifest: Document) -> Document:
        """Create an object in a server-side dry run, and return it as the API server would store it.

        Raises:
            RefusedError: the API server refused the object.
        """
        text = self.kubectl("create", "--dry-run=server", "-o", "yaml", "-f", "-", text=json.dumps(manifest))
        created: Document = yaml.safe_load(text)
        return created

    def refusal(self, manifest: Document) -> str:
        """Return the message with which the API server refuses to create an object; "" if it accepts the object."""
        try:
            self.create_dry_run(manifest)
        except RefusedError as refused:
            return str(refused)
        return ""

    def injection_state(self, pod: Document) -> str:
        """Return "on" if the API server adds the containers to a labelled pod, "off" if not, or "refused".

        It refuses the pod while only one of the two admission policies is in force.
        """
        try:
            return "on" if "initContainers" in self.create_dry_run(pod)["spec"] else "off"
        except RefusedError:
            return "refused"

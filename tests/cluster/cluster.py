"""A real cluster of one node, and a real tailnet in it. This page describes how to write a test with them.

A test takes the fixture `cluster`, or `tailnet` if it needs Headscale and Cloudflare. It is skipped if something is not
installed. Both exist once for all tests, so a test uses names of its own, and deletes what would disturb others:

    def test_pod_gets_a_record(tailnet: Tailnet) -> None:
        cluster = tailnet.cluster
        cluster.apply(*manifests)                       # or cluster.kubectl("apply", "-k", tailnet.deploy / "…")
        cluster.wait_for_pod("wiki-0")                  # in the namespace "services"
        node = tailnet.wait_for_record("wiki.example.com")
        assert "ok" in cluster.exec("wiki-0", "application", "cat", "/data/state")

`Cluster` has kubectl, exec, logs, objects as JSON, and waits. `Cluster.node` is the machine: reboot it, stop its
kubelet, run a command on it. `Cluster.load` adds images, such as `images.application(cluster.layers, 3000)` under the
name that a manifest has; `images.py` has the names of those that are there.
`tailnet.py` describes `Tailnet`.

The image of this project is built for the tests, which takes minutes. `IMAGE_ARCHIVE=<file>` uses one that was saved
with `scripts/image --archive` instead.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.cluster import images
from tests.cluster.api_server import PROGRAMS_VARIABLE, SERVICES, ApiServer, RefusedError
from tests.cluster.dns import serve_dns
from tests.cluster.images import Image
from tests.cluster.node import ADDRESS, NAME, PODS, Node
from tests.pod.network import Host
from tests.real.programs import BackgroundProcess, eventually

Document = dict[str, Any]

STARTED_S: Final = 180.0
"""The time limit for a pod, on a machine under load."""

_VOLUMES: Final = 20


class Cluster:
    """A running cluster.

    Args:
        folder: an empty folder with a short path.
        host: an empty network namespace.
        layers: the layers of the stand-in images, to make further ones.
        archives: archives of images, which are imported before the kubelet starts.

    Attributes:
        names: addresses by name, besides the Services, for the cluster's DNS.
        server: the API server.
        node: the node.
    """

    def __init__(self, folder: Path, host: Host, layers: Sequence[Path], archives: Sequence[Path]) -> None:
        self.layers = layers
        self.names: dict[str, str] = {}
        self.lookups: list[Callable[[str], str | None]] = [self.names.get, self._service]
        self.folder = folder
        self.host = host
        (folder / "server").mkdir()
        (folder / "node").mkdir()
        self.server = ApiServer(folder / "server", host=host, address=ADDRESS)
        self._archives = archives
        self._stack = ExitStack()

    # --- Start and stop -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self._add_network()
        with self.host.inside():
            self._stack.enter_context(serve_dns(ADDRESS, self._resolve))
        self._stack.enter_context(self.server)
        self.node = Node(self.folder / "node", self.host, self.server)
        self._stack.callback(self.node.stop)
        self.node.start()
        for archive in self._archives:
            self.node.load(archive)
        for name, options in _CONTROLLERS.items():
            self._start_controller(name, *options)
        self.node.start_kubelet()
        self.wait_for_node()
        for number in range(_VOLUMES):
            (self.node.disk / f"volumes/{number}").mkdir(parents=True)
        self.apply(*(_volume(number) for number in range(_VOLUMES)))

    def _add_network(self) -> None:
        self.host.ip("link", "add", "cni0", "type", "bridge")
        self.host.ip("address", "add", f"{ADDRESS}/{PODS.rpartition('/')[2]}", "dev", "cni0")
        self.host.ip("link", "set", "cni0", "up")
        self.host.set_sysctls(
            [
                {"name": "net.ipv4.ip_forward", "value": "1"},
                # kube-proxy translates addresses of connections between two pods, too.
                {"name": "net.bridge.bridge-nf-call-iptables", "value": "1"},
            ]
        )

    def _start_controller(self, name: str, *options: str) -> None:
        kubeconfig = self.server.kubeconfig
        process = BackgroundProcess(
            self.host.command(
                Path(os.environ[PROGRAMS_VARIABLE]) / name,
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                "--leader-elect=false",
                *(option.format(server=self.server) for option in options),
            ),
            log=self.folder / f"{name}.log",
            environment=os.environ,
            folder=self.folder,
        )
        self._stack.callback(process.stop)

    # --- Names --------------------------------------------------------------------------------------

    def _resolve(self, name: str) -> str | None:
        return next((address for lookup in self.lookups if (address := lookup(name)) is not None), None)

    def _service(self, name: str) -> str | None:
        match name.split("."):
            case [service, namespace, "svc", "cluster", "local"]:
                with suppress(RefusedError, OSError):
                    found = self.server.request("GET", f"/api/v1/namespaces/{namespace}/services/{service}")
                    # A headless Service has the address "None", and one for an external name has none.
                    address: str = found["spec"].get("clusterIP", "None")
                    return None if address == "None" else address
        return None

    # --- Objects ------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str | Path, text: str = "") -> str:
        """Run kubectl as the administrator, and return its output.

        Raises:
            Refused: kubectl failed.
        """
        return self.server.kubectl(*arguments, text=text)

    def apply(self, *documents: Document) -> None:
        """Apply manifests, server-side."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=yaml.safe_dump_all(documents))

    def get(self, kind: str, name: str, namespace: str = "services") -> Document:
        """Return an object."""
        found: Document = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return found

    def exec(self, pod: str, container: str, *command: str, namespace: str = "services") -> str:
        """Run a command in a container, and return its output.

        Raises:
            Refused: the command failed.
        """
        return self.kubectl("-n", namespace, "exec", pod, "-c", container, "--", *command)

    def logs(self, pod: str, container: str, namespace: str = "services", *options: str) -> str:
        """Return the log of a container."""
        return self.kubectl("-n", namespace, "logs", pod, "-c", container, *options)

    def events(self, pod: str, container: str, namespace: str = "services") -> list[Document]:
        """Return the events that `cleanup` or `dns-watch` has logged."""
        lines = self.logs(pod, container, namespace).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # --- Waits --------------------------------------------------------------------------------------

    def wait_for_node(self) -> None:
        """Wait until the node is ready."""
        eventually(self._node_is_ready, "a ready node", details=self._logs, timeout_s=STARTED_S)

    def _node_is_ready(self) -> bool:
        with suppress(RefusedError):
            conditions = self.server.request("GET", f"/api/v1/nodes/{NAME}")["status"].get("conditions", ())
            return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
        return False

    def _logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.node.log(name)}" for name in ("containerd", "kubelet", "kube-proxy"))

    def wait_for_pod(self, name: str, namespace: str = "services", *, not_uid: str = "") -> Document:
        """Wait until a pod is ready, and return it.

        Args:
            name: its name.
            namespace: its namespace.
            not_uid: the id of an earlier pod with this name.
        """

        def find() -> Document | None:
            with suppress(RefusedError):
                pod: Document = self.server.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
                conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", ())}
                if pod["metadata"]["uid"] != not_uid and conditions.get("Ready") == "True":
                    return pod
            return None

        return eventually(find, f"pod {name}", details=lambda: self.describe_pod(name, namespace), timeout_s=STARTED_S)

    def describe_pod(self, name: str, namespace: str = "services") -> str:
        """Return what helps to find out why a pod does not work."""
        parts = []
        with suppress(RefusedError):
            parts.append(self.kubectl("-n", namespace, "describe", "pod", name))
            pod = self.get("pod", name, namespace)
            for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]:
                with suppress(RefusedError):
                    log = self.logs(name, container["name"], namespace, "--tail=30")
                    parts.append(f"--- {container['name']}\n{log}")
        return "\n".join(parts)

    def pods(self, selector: str, namespace: str = "services") -> list[Document]:
        """Return the pods with labels."""
        text = self.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json")
        found: list[Document] = json.loads(text)["items"]
        return found

    def load(self, wanted: Mapping[str, Image]) -> None:
        """Add images to the node, by name."""
        with tempfile.NamedTemporaryFile(suffix=".tar", dir=self.folder) as archive:
            images.write(wanted, Path(archive.name))
            self.node.load(Path(archive.name))


_CONTROLLERS: Final = {
    "kube-scheduler": (),
    "kube-controller-manager": (
        "--service-account-private-key-file={server.service_account_key}",
        "--root-ca-file={server.certificate}",
        f"--cluster-cidr={PODS}",
        f"--service-cluster-ip-range={SERVICES}",
    ),
}


def _volume(number: int) -> Document:
    """Return a volume for any claim, in a folder of the node."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"volume-{number}"},
        "spec": {
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": f"/var/lib/volumes/{number}"},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}
                    ]
                }
            },
        },
    }

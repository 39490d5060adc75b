"""A real Kubernetes cluster with one node.

A test uses the fixture `cluster`, or `tailnet` if it needs Headscale and Cloudflare. Without the required programs, the
test is skipped. All tests share one cluster and one tailnet, so each test uses its own names, and deletes what would
affect other tests:

    def test_pod_gets_a_record(tailnet: Tailnet) -> None:
        cluster = tailnet.cluster
        cluster.apply(*manifests)                       # or cluster.kubectl("apply", "-k", tailnet.deploy_folder / "…")
        cluster.wait_for_pod("wiki-0")                  # in the namespace `services`
        node = tailnet.wait_for_published_node("wiki.example.com")
        assert "ok" in cluster.exec("wiki-0", "application", "cat", "/data/state")

`Cluster.node` is the cluster node. It can be rebooted, and can run commands. `Cluster.load` adds images to it, such as
`images.application(cluster.layers, 3000)`; `images.py` has the names of the images that the node always has.

The tests build the image of this project, which takes minutes. With `IMAGE_ARCHIVE=<file>`, they use an archive that
`scripts/image --archive` has saved.
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
from tests.cluster.api_server import PROGRAMS_VARIABLE, SERVICE_NETWORK, ApiServer, RefusedError
from tests.cluster.dns import serve_dns
from tests.cluster.images import Image
from tests.cluster.node import NODE_ADDRESS, NODE_NAME, POD_NETWORK, ClusterNode
from tests.pod.network import Host
from tests.real.programs import BackgroundProcess, eventually

Document = dict[str, Any]

START_TIMEOUT_S: Final = 180.0
"""The time limit for the start of a pod, under load."""

_VOLUME_COUNT: Final = 20
"""The number of PersistentVolumes. They exist from the start, because no controller of this cluster creates volumes."""


class Cluster:
    """A running cluster.

    Args:
        folder: an empty folder with a short path, because the path of a Unix socket is limited to 107 bytes.
        host: an empty network namespace.
        layers: the lowest layers of all images, from `images.base_layers`. Tests use them for further images.
        archives: archives of images, which the node imports before the kubelet starts.

    Attributes:
        names: names that a test adds to the cluster's DNS, with their addresses.
        lookups: functions that return the address of a name in DNS, or None.
        server: the API server.
        node: the only node.
    """

    def __init__(self, folder: Path, host: Host, layers: Sequence[Path], archives: Sequence[Path]) -> None:
        self.layers = layers
        self.names: dict[str, str] = {}
        self.lookups: list[Callable[[str], str | None]] = [self.names.get, self._service_address]
        self.folder = folder
        self.host = host
        (folder / "server").mkdir()
        (folder / "node").mkdir()
        self.server = ApiServer(folder / "server", host=host, address=NODE_ADDRESS)
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
            self._stack.enter_context(serve_dns(NODE_ADDRESS, self._resolve))
        self._stack.enter_context(self.server)
        self.node = ClusterNode(self.folder / "node", self.host, self.server)
        self._stack.callback(self.node.stop)
        self.node.start()
        for archive in self._archives:
            self.node.load(archive)
        for name, options in _CONTROL_PLANE.items():
            self._start_controller(name, *options)
        self.node.start_kubelet()
        self.wait_for_node()
        for number in range(_VOLUME_COUNT):
            (self.node.disk / f"volumes/{number}").mkdir(parents=True)
        self.apply(*(_volume(number) for number in range(_VOLUME_COUNT)))

    def _add_network(self) -> None:
        self.host.ip("link", "add", "cni0", "type", "bridge")
        self.host.ip("address", "add", f"{NODE_ADDRESS}/{POD_NETWORK.rpartition('/')[2]}", "dev", "cni0")
        self.host.ip("link", "set", "cni0", "up")
        self.host.set_sysctls(
            [
                {"name": "net.ipv4.ip_forward", "value": "1"},
                # With this value, kube-proxy also translates the addresses of connections between pods.
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
        self._stack.enter_context(process)

    # --- Names --------------------------------------------------------------------------------------

    def _resolve(self, name: str) -> str | None:
        return next((address for lookup in self.lookups if (address := lookup(name)) is not None), None)

    def _service_address(self, name: str) -> str | None:
        match name.split("."):
            case [service, namespace, "svc", "cluster", "local"]:
                with suppress(RefusedError, OSError):
                    manifest = self.server.request("GET", f"/api/v1/namespaces/{namespace}/services/{service}")
                    # A headless Service has the address "None". An ExternalName Service has no such field.
                    address: str = manifest["spec"].get("clusterIP", "None")
                    return None if address == "None" else address
        return None

    # --- Objects ------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str | Path, text: str = "") -> str:
        """Run kubectl as the administrator, and return its output.

        Raises:
            RefusedError: kubectl failed.
        """
        return self.server.kubectl(*arguments, text=text)

    def apply(self, *documents: Document) -> None:
        """Apply manifests with server-side apply."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=yaml.safe_dump_all(documents))

    def get(self, kind: str, name: str, namespace: str = "services") -> Document:
        """Return an object."""
        manifest: Document = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return manifest

    def exec(self, pod: str, container: str, *command: str, namespace: str = "services") -> str:
        """Run a command in a container, and return its output.

        Raises:
            RefusedError: the command failed.
        """
        return self.kubectl("-n", namespace, "exec", pod, "-c", container, "--", *command)

    def logs(self, pod: str, container: str, namespace: str = "services", *options: str) -> str:
        """Return the log of a container."""
        return self.kubectl("-n", namespace, "logs", pod, "-c", container, *options)

    def events(self, pod: str, container: str) -> list[Document]:
        """Return the events that `cleanup` or `dns-watch` has logged."""
        lines = self.logs(pod, container).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # --- Waits --------------------------------------------------------------------------------------

    def wait_for_node(self) -> None:
        """Wait until the node is ready."""
        eventually(self._node_is_ready, "a ready node", details=self._logs, timeout_s=START_TIMEOUT_S)

    def _node_is_ready(self) -> bool:
        with suppress(RefusedError):
            conditions = self.server.request("GET", f"/api/v1/nodes/{NODE_NAME}")["status"].get("conditions", ())
            return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
        return False

    def _logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.node.log(name)}" for name in ("containerd", "kubelet", "kube-proxy"))

    def wait_for_pod(self, name: str, namespace: str = "services", *, not_uid: str = "") -> Document:
        """Wait until a pod is ready, and return it.

        Args:
            name: the name of the pod.
            namespace: the namespace of the pod.
            not_uid: the uid of an earlier pod with the same name. The function waits until another pod has replaced it.
        """

        def find() -> Document | None:
            with suppress(RefusedError):
                pod: Document = self.server.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
                conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", ())}
                if pod["metadata"]["uid"] != not_uid and conditions.get("Ready") == "True":
                    return pod
            return None

        return eventually(
            find, f"pod {name}", details=lambda: self.describe_pod(name, namespace), timeout_s=START_TIMEOUT_S
        )

    def describe_pod(self, name: str, namespace: str = "services") -> str:
        """Return the description of a pod and the ends of its logs, for the message of a failed test."""
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
        """Return the pods that a label selector selects."""
        text = self.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json")
        items: list[Document] = json.loads(text)["items"]
        return items

    def load(self, images_by_name: Mapping[str, Image]) -> None:
        """Add images to the node."""
        with tempfile.NamedTemporaryFile(suffix=".tar", dir=self.folder) as archive:
            images.write_archive(images_by_name, Path(archive.name))
            self.node.load(Path(archive.name))


_CONTROL_PLANE: Final = {
    "kube-scheduler": (),
    "kube-controller-manager": (
        "--service-account-private-key-file={server.service_account_key}",
        "--root-ca-file={server.certificate}",
        f"--cluster-cidr={POD_NETWORK}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
    ),
}


def _volume(number: int) -> Document:
    """Return a PersistentVolume that any claim can use. The volume is a folder of the cluster node."""
    on_the_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
    spec = {
        "capacity": {"storage": "1Ti"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "local": {"path": f"/var/lib/volumes/{number}"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_the_node]}]}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"volume-{number}"}, "spec": spec}


def manifest(kind: str, name: str, namespace: str, *, api: str = "v1", **fields: Any) -> Document:
    """Return the manifest of an object. The other fields are those beside `metadata`, such as `spec`."""
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **fields}

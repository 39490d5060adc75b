"""Test the fixtures `cluster` and `tailnet`, on which other tests depend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.images import BUSYBOX
from tests.cluster.node import NODE_NAME
from tests.cluster.tailnet import LOGIN_URL, Tailnet


@pytest.fixture(scope="module")
def pod(tailnet: Tailnet) -> Iterator[str]:
    """The name of a pod with a shell."""
    spec = {"containers": [{"name": "shell", "image": BUSYBOX, "command": ["sleep", "3600"]}]}
    metadata = {"name": "shell", "namespace": "services"}
    tailnet.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    tailnet.cluster.wait_for_pod("shell")
    yield "shell"
    tailnet.cluster.kubectl("-n", "services", "delete", "pod", "shell", "--force")


def test_kubelet_and_api_server_have_the_same_version(cluster: Cluster) -> None:
    version = cluster.get("node", NODE_NAME)["status"]["nodeInfo"]["kubeletVersion"]
    assert version.startswith(f"v{cluster.server.version[0]}.{cluster.server.version[1]}.")


def test_pod_reaches_headscale_by_its_names(tailnet: Tailnet, pod: str) -> None:
    for url in (f"{LOGIN_URL}/health", "http://headscale.headscale.svc.cluster.local:8080/health"):
        assert "pass" in tailnet.cluster.exec(pod, "shell", "wget", "-T", "5", "-q", "-O", "-", url)


def test_pod_reaches_the_cloudflare_simulator(tailnet: Tailnet, pod: str) -> None:
    header = f"Authorization: Bearer {tailnet.cloudflare.token}"
    command = ("wget", "-T", "5", "-q", "-O", "-", "--header", header, f"{tailnet.cloudflare_url}/zones")
    assert tailnet.zone_id in tailnet.cluster.exec(pod, "shell", *command)

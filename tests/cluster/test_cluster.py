"""Test the fixtures `cluster` and `tailnet`, on which other tests depend."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.node import NODE_NAME
from tests.cluster.tailnet import LOGIN_URL, Tailnet
from tests.cluster.workloads import POD_WITHOUT_VPN, response_to


def test_kubelet_and_api_server_have_the_same_version(cluster: Cluster) -> None:
    version = cluster.get("node", NODE_NAME)["status"]["nodeInfo"]["kubeletVersion"]
    assert version.startswith(f"v{cluster.server.version[0]}.{cluster.server.version[1]}.")


@pytest.mark.parametrize("url", [f"{LOGIN_URL}/health", "http://headscale.headscale.svc.cluster.local:8080/health"])
def test_pod_without_vpn_reaches_headscale(tailnet: Tailnet, client_pods: None, url: str) -> None:
    assert "pass" in response_to(tailnet, POD_WITHOUT_VPN, url)


def test_pod_without_vpn_reaches_the_cloudflare_simulator(tailnet: Tailnet, client_pods: None) -> None:
    header = f"Authorization: Bearer {tailnet.cloudflare.token}"
    assert tailnet.zone_id in response_to(
        tailnet, POD_WITHOUT_VPN, f"{tailnet.cloudflare_url}/zones", f"--header={header}"
    )

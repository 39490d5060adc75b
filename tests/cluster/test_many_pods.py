"""Start many pods at once, and measure what a start costs. Run it by hand: CLUSTER_PODS=100.

Each pod has `cleanup`, `dns-watch` and a pause container, and no tailscale, so that only the cost of this project and
of Headscale is measured.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import pytest

from tests import tally
from tests.cluster.cluster import Cluster, Document
from tests.cluster.images import PAUSE
from tests.cluster.node import NAME
from tests.cluster.tailnet import Tailnet
from tests.pod.rendering import containers, of_kind, pod_spec, render
from tests.real.programs import eventually

PODS: Final = int(os.environ.get("CLUSTER_PODS", "0"))
GROUP: Final = "many"
STARTED_S: Final = 1800.0


def workload(documents: list[Document]) -> list[Document]:
    """Return a StatefulSet of pods with the two containers of a rendered workload, and its settings."""
    spec = pod_spec(documents)
    found = containers(spec)
    for name in ("cleanup", "dns-watch"):
        # The variable replaces the value of the ConfigMap. Without a state Secret, no node is kept.
        found[name]["env"] += [
            {"name": "TS_HOSTNAME", "value": "$(POD_NAME).example.com"},
            {"name": "NODE_POLICY", "value": "replace"},
            {"name": "MAX_RETRIES", "value": "0"},
        ]
        found[name]["volumeMounts"] = [
            mount for mount in found[name]["volumeMounts"] if mount["name"] != "tailscale-lifecycle-token"
        ]
        # The node has fewer cores than a hundred requests add up to.
        found[name]["resources"].pop("requests")
        found[name]["resources"]["limits"].pop("cpu")
        found[name]["resources"]["requests"] = {"cpu": "1m", "memory": "1Mi"}
    labels = {"app": GROUP}
    pod = {
        "securityContext": {"fsGroup": spec["securityContext"]["fsGroup"]},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "initContainers": [found["cleanup"], found["dns-watch"]],
        "containers": [{"name": "pause", "image": PAUSE}],
        "volumes": [
            volume
            for volume in spec["volumes"]
            if volume["name"] in ("tailscale-lifecycle-auth", "tailscale-lifecycle-secrets")
        ],
    }
    stateful_set = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": GROUP, "namespace": "services"},
        "spec": {
            "replicas": PODS,
            "serviceName": GROUP,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    settings = [
        config for config in of_kind(documents, "ConfigMap") if config["metadata"]["name"].startswith("lifecycle")
    ]
    return [*settings, stateful_set]


def seconds_of_cpu(cluster: Cluster) -> float:
    """Return the CPU time of all pods since the node was booted."""
    for folder in cluster.node.cgroups():
        usage = folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        for line in (folder / "cpu.stat").read_text().splitlines() if (folder / "cpu.stat").exists() else ():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
    raise AssertionError("no cgroup counts the time")


def memory(cluster: Cluster) -> list[int]:
    """Return the working sets of all containers `dns-watch`, in bytes."""
    summary = cluster.server.request("GET", f"/api/v1/nodes/{NAME}/proxy/stats/summary")
    return sorted(
        container["memory"]["workingSetBytes"]
        for pod in summary["pods"]
        if pod["podRef"]["name"].startswith(f"{GROUP}-")
        for container in pod.get("containers", ())
        if container["name"] == "dns-watch" and "workingSetBytes" in container.get("memory", {})
    )


@pytest.mark.skipif(
    not PODS, reason="set CLUSTER_PODS to the number of pods: a hundred need minutes and 8 GB of memory"
)
def test_many_pods_start_at_once(tailnet: Tailnet) -> None:
    cluster = tailnet.cluster
    before, begin = seconds_of_cpu(cluster), time.monotonic()
    cluster.apply(*workload(render(tailnet.deploy / "services/grafana")))

    def started() -> int:
        return sum(pod["status"]["phase"] == "Running" for pod in cluster.pods(f"app={GROUP}"))

    try:
        eventually(
            lambda: started() == PODS,
            f"{PODS} pods",
            details=lambda: cluster.kubectl("-n", "services", "get", "pods", "-o", "wide"),
            timeout_s=STARTED_S,
        )
        took, cpu = time.monotonic() - begin, seconds_of_cpu(cluster) - before
        pods = cluster.pods(f"app={GROUP}")
        again = sum(status["restartCount"] for pod in pods for status in pod["status"]["initContainerStatuses"])
        keys = {key["id"] for key in tailnet.headscale("preauthkeys", "list") if key["user"]["name"] == "services"}
        sizes = eventually(lambda: found if len(found := memory(cluster)) == PODS else None, "figures of all pods")
        load = Path("/proc/loadavg").read_text().split()[0]
        tally.add_measurement(
            f"{PODS} pods at once: all run after {took:.0f} s; {cpu / PODS:.2f} s of CPU per pod, with Headscale's; "
            f"{again} restarts; dns-watch {sizes[len(sizes) // 2] / 2**20:.0f} MiB, at most {sizes[-1] / 2**20:.0f}; "
            f"load of the machine {load}"
        )
        assert len(keys) >= PODS
        assert again == 0
    finally:
        cluster.kubectl("-n", "services", "delete", "statefulset", GROUP)

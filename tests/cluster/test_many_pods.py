"""Start many pods at the same time, and measure their CPU time and memory.

The test runs only with CLUSTER_PODS=<number>.

Each pod has `cleanup`, `dns-watch` and a pause container. Without tailscale, the measurement includes only this project
and Headscale.
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
from tests.cluster.node import NODE_NAME
from tests.cluster.tailnet import Tailnet
from tests.pod.rendering import containers, of_kind, pod_spec, render
from tests.real.programs import eventually

POD_COUNT: Final = int(os.environ.get("CLUSTER_PODS", "0"))
NAME: Final = "many"
START_TIMEOUT_S: Final = 1800.0


def workload(documents: list[Document]) -> list[Document]:
    """Return a StatefulSet with `cleanup` and `dns-watch` of a rendered workload, and the ConfigMaps of settings."""
    spec = pod_spec(documents)
    rendered = containers(spec)
    for name in ("cleanup", "dns-watch"):
        # These variables override the ConfigMap. The pods have no state Secret, so they cannot keep a node.
        rendered[name]["env"] += [
            {"name": "TS_HOSTNAME", "value": "$(POD_NAME).example.com"},
            {"name": "NODE_POLICY", "value": "replace"},
            {"name": "MAX_RETRIES", "value": "0"},
        ]
        rendered[name]["volumeMounts"] = [
            mount for mount in rendered[name]["volumeMounts"] if mount["name"] != "tailscale-lifecycle-token"
        ]
        # With the rendered requests, all pods together would exceed the CPU cores of the node.
        rendered[name]["resources"].pop("requests")
        rendered[name]["resources"]["limits"].pop("cpu")
        rendered[name]["resources"]["requests"] = {"cpu": "1m", "memory": "1Mi"}
    labels = {"app": NAME}
    pod = {
        "securityContext": {"fsGroup": spec["securityContext"]["fsGroup"]},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "initContainers": [rendered["cleanup"], rendered["dns-watch"]],
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
        "metadata": {"name": NAME, "namespace": "services"},
        "spec": {
            "replicas": POD_COUNT,
            "serviceName": NAME,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    settings = [
        config for config in of_kind(documents, "ConfigMap") if config["metadata"]["name"].startswith("lifecycle")
    ]
    return [*settings, stateful_set]


def cpu_time_s(cluster: Cluster) -> float:
    """Return the CPU time of all pods since the node was booted, in seconds."""
    for folder in cluster.node.cgroups():
        usage = folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        for line in (folder / "cpu.stat").read_text().splitlines() if (folder / "cpu.stat").exists() else ():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
    raise AssertionError("no cgroup of the node has CPU accounting")


def working_sets(cluster: Cluster) -> list[int]:
    """Return the working set of each container `dns-watch` in bytes, sorted."""
    summary = cluster.server.request("GET", f"/api/v1/nodes/{NODE_NAME}/proxy/stats/summary")
    return sorted(
        container["memory"]["workingSetBytes"]
        for pod in summary["pods"]
        if pod["podRef"]["name"].startswith(f"{NAME}-")
        for container in pod.get("containers", ())
        if container["name"] == "dns-watch" and "workingSetBytes" in container.get("memory", {})
    )


@pytest.mark.skipif(
    not POD_COUNT, reason="set CLUSTER_PODS to the number of pods: a hundred need minutes and 8 GB of memory"
)
def test_many_pods_start_without_restarts(tailnet: Tailnet) -> None:
    cluster = tailnet.cluster
    before, begin = cpu_time_s(cluster), time.monotonic()
    cluster.apply(*workload(render(tailnet.deploy / "services/grafana")))

    def running() -> int:
        return sum(pod["status"]["phase"] == "Running" for pod in cluster.pods(f"app={NAME}"))

    def all_working_sets() -> list[int] | None:
        sizes = working_sets(cluster)
        return sizes if len(sizes) == POD_COUNT else None

    try:
        eventually(
            lambda: running() == POD_COUNT,
            f"{POD_COUNT} pods",
            details=lambda: cluster.kubectl("-n", "services", "get", "pods", "-o", "wide"),
            timeout_s=START_TIMEOUT_S,
        )
        took_s, cpu_s = time.monotonic() - begin, cpu_time_s(cluster) - before
        pods = cluster.pods(f"app={NAME}")
        restarts = sum(status["restartCount"] for pod in pods for status in pod["status"]["initContainerStatuses"])
        keys = {key["id"] for key in tailnet.headscale("preauthkeys", "list") if key["user"]["name"] == "services"}
        sizes = eventually(all_working_sets, "the working sets of all pods")
        load = Path("/proc/loadavg").read_text().split()[0]
        tally.add_measurement(
            f"{POD_COUNT} pods at once: all run after {took_s:.0f} s; {cpu_s / POD_COUNT:.2f} s of CPU per pod, with "
            f"Headscale's; {restarts} restarts; dns-watch {sizes[len(sizes) // 2] / 2**20:.0f} MiB, "
            f"at most {sizes[-1] / 2**20:.0f}; load of the machine {load}"
        )
        assert len(keys) >= POD_COUNT
        assert restarts == 0
    finally:
        cluster.kubectl("-n", "services", "delete", "statefulset", NAME)

"""Start many pods at the same time, and measure their CPU time and memory.

The test runs only with CLUSTER_PODS=<number>. Each pod has the containers `cleanup` and `dns-watch`, and a container
that does nothing. The pods have no tailscale container, so that the measurement includes only this project and
Headscale.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.cluster import Cluster, Document, manifest
from tests.cluster.images import PAUSE
from tests.cluster.node import NODE_NAME
from tests.cluster.tailnet import Tailnet
from tests.pod.rendering import containers, of_kind, pod_spec, render
from tests.real.programs import eventually
from tests.tally import add_measurement

POD_COUNT: Final = int(os.environ.get("CLUSTER_PODS", "0"))
NAME: Final = "many"
START_TIMEOUT_S: Final = 1800.0


def manifests_of_many_pods(grafana: list[Document]) -> list[Document]:
    """Return a StatefulSet whose pods have Grafana's `cleanup` and `dns-watch` containers, and their ConfigMaps."""
    spec = pod_spec(grafana)
    added = {name: container for name, container in containers(spec).items() if name in ("cleanup", "dns-watch")}
    for container in added.values():
        # These variables override the ConfigMap. NODE_POLICY=keep would need the Secret in which a tailscale container
        # stores its login. The pods have no tailscale container, so they never register in Headscale. With
        # MAX_RETRIES=0, dns-watch nevertheless does not exit.
        container["env"] += [
            {"name": "TS_HOSTNAME", "value": "$(POD_NAME).example.com"},
            {"name": "NODE_POLICY", "value": "replace"},
            {"name": "MAX_RETRIES", "value": "0"},
        ]
        # Without NODE_POLICY=keep, these containers need no service account token.
        container["volumeMounts"] = [
            mount for mount in container["volumeMounts"] if mount["name"] != "tailscale-lifecycle-token"
        ]
        # The pods of the test would together request more CPU cores than the cluster node has.
        container["resources"] |= {"requests": {"cpu": "1m", "memory": "1Mi"}}
        container["resources"]["limits"].pop("cpu")
    volumes = ("tailscale-lifecycle-auth", "tailscale-lifecycle-secrets")
    labels = {"app": NAME}
    pod = {
        "securityContext": {"fsGroup": spec["securityContext"]["fsGroup"]},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "initContainers": list(added.values()),
        "containers": [{"name": "pause", "image": PAUSE}],
        "volumes": [volume for volume in spec["volumes"] if volume["name"] in volumes],
    }
    stateful_set = {
        "replicas": POD_COUNT,
        "serviceName": NAME,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    settings = [
        config for config in of_kind(grafana, "ConfigMap") if config["metadata"]["name"].startswith("lifecycle")
    ]
    return [*settings, manifest("StatefulSet", NAME, "services", api="apps/v1", spec=stateful_set)]


def cpu_time_s(cluster: Cluster) -> float:
    """Return the CPU time of the cluster node's cgroup, in which all pods run, since its boot, in seconds."""
    for folder in cluster.node.cgroups():
        usage = folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        for line in (folder / "cpu.stat").read_text().splitlines() if (folder / "cpu.stat").exists() else ():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
    raise AssertionError("no cgroup of the cluster node has CPU accounting")


def working_sets(cluster: Cluster) -> list[int]:
    """Return the memory in use (the working set) of each `dns-watch` container in bytes, smallest first."""
    summary = cluster.server.request("GET", f"/api/v1/nodes/{NODE_NAME}/proxy/stats/summary")
    return sorted(
        container["memory"]["workingSetBytes"]
        for pod in summary["pods"]
        if pod["podRef"]["name"].startswith(f"{NAME}-")
        for container in pod.get("containers", ())
        if container["name"] == "dns-watch" and "workingSetBytes" in container.get("memory", {})
    )


@pytest.mark.skipif(
    not POD_COUNT, reason="set CLUSTER_PODS to the number of pods, such as 100, which need 8 GB of memory"
)
def test_many_pods_start_without_restarts(tailnet: Tailnet) -> None:
    cluster = tailnet.cluster
    before, begin = cpu_time_s(cluster), time.monotonic()
    cluster.apply(*manifests_of_many_pods(render(tailnet.deploy_folder / "services/grafana")))

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
        keys = {key["id"] for key in tailnet.run_headscale("preauthkeys", "list") if key["user"]["name"] == "services"}
        sizes = eventually(all_working_sets, "the working sets of all pods")
        load = Path("/proc/loadavg").read_text().split()[0]
        add_measurement(
            f"{POD_COUNT} pods at once: all run after {took_s:.0f} s; {cpu_s / POD_COUNT:.2f} s of CPU per pod, "
            f"Headscale included; {restarts} restarts; dns-watch {sizes[len(sizes) // 2] / 2**20:.0f} MiB, "
            f"at most {sizes[-1] / 2**20:.0f} MiB; load of the machine {load}"
        )
        assert len(keys) >= POD_COUNT
        assert restarts == 0
    finally:
        cluster.kubectl("-n", "services", "delete", "statefulset", NAME)

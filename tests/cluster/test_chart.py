"""Install, upgrade and uninstall the Helm chart on a real API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.chart.helm import SITE, Values, run, template
from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import RELEASE_NAMESPACE, helm
from tests.inject.labelled_workloads import pod
from tests.pod.rendering import render
from tests.real.programs import eventually

NAME = "tailscale-lifecycle"

CHANGED_BY_THE_SERVER = {"events", "leases", "endpoints", "endpointslices"}
"""Resources whose objects the API server itself creates and changes."""

SUBJECTS = [{"kind": "ServiceAccount", "name": "grafana", "namespace": "services"}]
INSTALL_VALUES: Values = {
    "settings": SITE,
    "prune": {"enabled": True, "namespaces": ["media", "services"]},
    "rbac": {
        "apiKeySecret": {"enabled": True, "subjects": SUBJECTS},
        "exec": {"enabled": True, "subjects": SUBJECTS},
        # Roles for NODE_POLICY=keep.
        "keep": [{"name": "read-state", "namespace": "services", "secret": "grafana", "serviceAccountName": "grafana"}],
    },
    "podMonitor": {"enabled": True, "namespace": "monitoring"},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True, "namespace": "monitoring"},
    "networkPolicy": {"enabled": True},
}
UPGRADE_VALUES: Values = {
    "settings": {**SITE, "LOG_LEVEL": "debug"},
    "build": {"enabled": False},
    "image": {"repository": "registry.example.com/lifecycle", "tag": "1"},
    "prune": {"enabled": True, "namespaces": ["services"]},
    "rbac": {"exec": {"enabled": True, "anyPod": True, "subjects": SUBJECTS}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
}

ObjectKey = tuple[str, str, str]
"""The kind, namespace and name of an object."""


def objects(server: ApiServer) -> dict[ObjectKey, dict[str, Any]]:
    """Return the metadata of all objects on the API server."""
    groups = [group["preferredVersion"]["groupVersion"] for group in server.request("GET", "/apis")["groups"]]
    metadata_by_key: dict[ObjectKey, dict[str, Any]] = {}
    for path in ("/api/v1", *(f"/apis/{group}" for group in groups)):
        for resource in server.request("GET", path)["resources"]:
            if "list" not in resource["verbs"] or resource["name"] in CHANGED_BY_THE_SERVER:
                continue
            for item in server.request("GET", f"{path}/{resource['name']}")["items"]:
                metadata = item["metadata"]
                metadata_by_key[resource["kind"], metadata.get("namespace", ""), metadata["name"]] = metadata
    return metadata_by_key


def objects_of_release(server: ApiServer) -> set[ObjectKey]:
    """Return the objects with Helm's label, which the Secret in which Helm stores the release does not have."""
    return {
        key
        for key, metadata in objects(server).items()
        if metadata.get("labels", {}).get("app.kubernetes.io/managed-by") == "Helm"
    }


def rendered_objects(chart: Path, values: Values) -> set[ObjectKey]:
    """Return the objects that the chart contains with these values."""
    documents = template(chart, values, f"--namespace={RELEASE_NAMESPACE}")
    return {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in documents}


def test_chart_leaves_no_objects_after_upgrade_and_uninstall(chart_server: ApiServer, chart: Path) -> None:
    before = objects(chart_server)

    helm(chart_server, "install", NAME, chart, values=INSTALL_VALUES)
    assert objects_of_release(chart_server) == rendered_objects(chart, INSTALL_VALUES)
    eventually(lambda: chart_server.injection_state(pod()) == "on", "an injected pod", timeout_s=60)
    (release,) = chart_server.request("GET", f"/api/v1/namespaces/{RELEASE_NAMESPACE}/secrets")["items"]
    # The limit is three quarters of a Secret's 1 MiB. The API returns the data in base64, which adds a third.
    assert len(release["data"]["release"]) < 0.75 * 2**20 * 4 / 3, "the release uses most of the size of a Secret"
    manifest = pod()
    manifest["metadata"]["name"] = "running"
    chart_server.create(manifest)
    path = "/api/v1/namespaces/services/pods/running"
    running = chart_server.request("GET", path)
    assert "tailscale" in str(running["spec"]["initContainers"])

    helm(chart_server, "upgrade", NAME, chart, values=UPGRADE_VALUES)
    assert objects_of_release(chart_server) == rendered_objects(chart, UPGRADE_VALUES)

    helm(chart_server, "uninstall", NAME)
    eventually(lambda: chart_server.injection_state(pod()) == "off", "a pod that is not injected", timeout_s=60)
    assert chart_server.request("GET", path) == running
    chart_server.kubectl("delete", "pod", "-n", "services", "running", "--force", "--grace-period=0")
    after = objects(chart_server)
    assert after.keys() == before.keys()
    for key, metadata in before.items():
        assert after[key].get("resourceVersion") == metadata.get("resourceVersion"), key


def test_chart_takes_over_the_objects_of_kustomize(chart_server: ApiServer, chart: Path) -> None:
    chart_server.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(render(chart_server.inject_folder)))
    values: Values = {"settings": SITE, "build": {"enabled": False}}
    # Helm 4 uses server-side apply, which reports conflicts for fields that kubectl has set.
    force = ["--force-conflicts"] if "--force-conflicts" in run("upgrade", "--help").stdout else []
    helm(chart_server, "upgrade", "--install", NAME, chart, "--take-ownership", *force, values=values)
    assert objects_of_release(chart_server) == rendered_objects(chart, values)
    path = f"/apis/{chart_server.policy_version}/mutatingadmissionpolicybindings/{NAME}"
    assert chart_server.request("GET", path)["spec"]["paramRef"]["namespace"] == RELEASE_NAMESPACE
    helm(chart_server, "uninstall", NAME)
    assert objects_of_release(chart_server) == set()
    chart_server.kubectl("delete", "namespace", "tailscale-lifecycle-inject", "--wait=false")

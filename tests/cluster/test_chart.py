"""Test on a real API server that the chart installs, upgrades and uninstalls without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.chart.helm import SITE, Values, run, template
from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import RELEASE_NAMESPACE, helm, injection
from tests.inject.refused import pod
from tests.pod.rendering import DEPLOY, render
from tests.real.programs import eventually

NAME = "tailscale-lifecycle"

# Changed by the API server itself.
OF_THE_SERVER = {"events", "leases", "endpoints", "endpointslices"}

SUBJECTS = [{"kind": "ServiceAccount", "name": "grafana", "namespace": "services"}]
FIRST: Values = {
    "settings": SITE,
    "prune": {"enabled": True, "namespaces": ["media", "services"]},
    "rbac": {
        "apiKeySecret": {"enabled": True, "subjects": SUBJECTS},
        "exec": {"enabled": True, "subjects": SUBJECTS},
        "keep": [{"name": "keep", "namespace": "services", "secret": "grafana", "serviceAccountName": "grafana"}],
    },
    "podMonitor": {"enabled": True, "namespace": "monitoring"},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True, "namespace": "monitoring"},
    "networkPolicy": {"enabled": True},
}
SECOND: Values = {
    "settings": {**SITE, "LOG_LEVEL": "debug"},
    "build": {"enabled": False},
    "image": {"repository": "registry.example.com/lifecycle", "tag": "1"},
    "prune": {"enabled": True, "namespaces": ["services"]},
    "rbac": {"exec": {"enabled": True, "anyPod": True, "subjects": SUBJECTS}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
}

Key = tuple[str, str, str]


def objects(server: ApiServer) -> dict[Key, dict[str, Any]]:
    """Return the metadata of every object, by resource, namespace and name."""
    groups = [group["preferredVersion"]["groupVersion"] for group in server.request("GET", "/apis")["groups"]]
    found: dict[Key, dict[str, Any]] = {}
    for path in ("/api/v1", *(f"/apis/{group}" for group in groups)):
        for resource in server.request("GET", path)["resources"]:
            if "list" not in resource["verbs"] or resource["name"] in OF_THE_SERVER:
                continue
            for item in server.request("GET", f"{path}/{resource['name']}")["items"]:
                metadata = item["metadata"]
                found[resource["kind"], metadata.get("namespace", ""), metadata["name"]] = metadata
    return found


def of_release(server: ApiServer) -> set[Key]:
    """Return the objects that Helm manages, without its record of the release."""
    return {
        key
        for key, metadata in objects(server).items()
        if metadata.get("labels", {}).get("app.kubernetes.io/managed-by") == "Helm"
    }


def rendered(chart: Path, values: Values) -> set[Key]:
    documents = template(chart, values, f"--namespace={RELEASE_NAMESPACE}")
    return {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in documents}


def test_install_upgrade_and_uninstall_leave_nothing(server: ApiServer, chart: Path) -> None:
    before = objects(server)

    helm(server, "install", NAME, chart, values=FIRST)
    assert of_release(server) == rendered(chart, FIRST)
    eventually(lambda: injection(server) == "on" or None, "an injected pod", timeout_s=60)
    (release,) = server.request("GET", f"/api/v1/namespaces/{RELEASE_NAMESPACE}/secrets")["items"]
    assert len(release["data"]["release"]) < 0.75 * 4 / 3 * 2**20, "the release comes near the limit of a Secret"
    created = pod()
    created["metadata"]["name"] = "running"
    server.kubectl("create", "-f", "-", text=json.dumps(created))
    path = "/api/v1/namespaces/services/pods/running"
    running = server.request("GET", path)
    assert "tailscale" in str(running["spec"]["initContainers"])

    helm(server, "upgrade", NAME, chart, values=SECOND)
    assert of_release(server) == rendered(chart, SECOND)

    helm(server, "uninstall", NAME)
    eventually(lambda: injection(server) == "off" or None, "a pod that is not injected", timeout_s=60)
    assert server.request("GET", path) == running
    server.kubectl("delete", "pod", "-n", "services", "running", "--force", "--grace-period=0")
    after = objects(server)
    assert after.keys() == before.keys()
    versions = [{key: item.get("resourceVersion") for key, item in seen.items()} for seen in (before, after)]
    assert versions[0] == versions[1]


def test_chart_takes_over_the_objects_of_kustomize(server: ApiServer, chart: Path) -> None:
    folder = DEPLOY / ("inject" if server.version >= (1, 36) else "inject-v1beta1")
    server.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(render(folder)))
    values: Values = {"settings": SITE, "build": {"enabled": False}}
    # Helm 4 applies on the server, which reports fields that kubectl has set.
    force = ["--force-conflicts"] if "--force-conflicts" in run("upgrade", "--help").stdout else []
    helm(server, "upgrade", "--install", NAME, chart, "--take-ownership", *force, values=values)
    assert of_release(server) == rendered(chart, values)
    path = f"/apis/{server.policy_version}/mutatingadmissionpolicybindings/{NAME}"
    assert server.request("GET", path)["spec"]["paramRef"]["namespace"] == RELEASE_NAMESPACE
    helm(server, "uninstall", NAME)
    assert of_release(server) == set()
    server.kubectl("delete", "namespace", "tailscale-lifecycle-inject", "--wait=false")

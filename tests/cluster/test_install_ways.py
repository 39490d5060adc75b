"""Test on a real API server that Kustomize, Terraform and Helm create the same pod from the same settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifecycle.inject.rules import HOSTNAME, LABEL, STATE_SECRET
from tests.chart.helm import Values
from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import helm
from tests.cluster.test_injection import admitted, pod_of
from tests.inject.labelled_workloads import pod, template_of
from tests.pod.rendering import DEPLOY, ROOT, Document, config_map_data, of_kind, render
from tests.pod.test_site import SITE, SITE_SETTINGS, create_site
from tests.real.programs import eventually
from tests.terraform.modules import BINARY, apply, root_module

NAME, IMAGE, PORT, DATA = "wiki", "docker.io/a/wiki:1.2", 8080, "/srv/wiki"

VALUES: Values = {
    "settings": {**SITE_SETTINGS, "LOGIN_SERVER": SITE["LOGIN_SERVER"], "DNS_CLEANUP": "keep"},
    "build": {"enabled": False},
}
"""The values of the chart. DNS_CLEANUP is `keep`, because deploy/base and the Terraform module also set it."""
INPUTS: dict[str, Any] = {
    "name": NAME,
    "image": IMAGE,
    "port": PORT,
    "data_path": DATA,
    "domain": SITE["DOMAIN_NAME"],
    "login_server": SITE["LOGIN_SERVER"],
    "headscale_url": SITE["HEADSCALE_URL"],
    "headscale_namespace": SITE["HEADSCALE_NAMESPACE"],
    "headscale_user": SITE["HEADSCALE_USER"],
    "vpn_prefixes": SITE["VPN_PREFIXES"].split(","),
}
"""The inputs of the Terraform module."""


@pytest.fixture(scope="module")
def installed(chart_server: ApiServer, chart: Path) -> Iterator[ApiServer]:
    """The API server on which the chart is installed."""
    helm(chart_server, "install", "tailscale-lifecycle", chart, values=VALUES)
    # The API server refuses a pod whose service account does not exist, also in the dry runs of this test.
    chart_server.kubectl("create", "serviceaccount", NAME, "-n", "services")
    eventually(lambda: chart_server.injection_state(pod()) == "on", "an injected pod", timeout_s=60)
    yield chart_server
    chart_server.kubectl("delete", "serviceaccount", NAME, "-n", "services")
    helm(chart_server, "uninstall", "tailscale-lifecycle")


def kustomize_manifests(folder: Path) -> list[Document]:
    """Create the workload as deploy/README.md describes, and render it."""
    cluster = create_site(folder)
    deploy = os.path.relpath(DEPLOY, cluster / NAME)
    options: list[str | Path] = ["--into", cluster, "--deploy", deploy]
    subprocess.run([ROOT / "scripts/new-service", *options, NAME, IMAGE, str(PORT), DATA], check=True)
    return render(cluster / NAME)


def terraform_manifests(folder: Path) -> tuple[list[Document], list[Document]]:
    """Apply the module, and return its manifests with and without the VPN containers."""
    folder.mkdir()
    outputs = apply(root_module(folder, {"on": INPUTS, "off": INPUTS | {"tailscale_enabled": False}}))["outputs"]
    return list(outputs["on"]["value"].values()), list(outputs["off"]["value"].values())


def request_injection(workload: Document) -> None:
    """Add the label and the annotations of injection to a workload."""
    metadata = template_of(workload)["metadata"]
    metadata["labels"][LABEL] = "true"
    metadata["annotations"] = {HOSTNAME: NAME, STATE_SECRET: f"{NAME}-tailscale"}


def without_hashes(documents: list[Document]) -> list[Document]:
    """Remove generated suffixes from the names of ConfigMaps, and the prefix that Terraform adds."""
    text = re.sub(rf'"(?:{NAME}-)?(nginx|lifecycle)-[0-9a-z]{{10}}"', r'"\1"', json.dumps(documents))
    renamed: list[Document] = json.loads(text)
    return renamed


def admitted_pod(way: str, documents: list[Document], server: ApiServer) -> Document:
    """Check that the API server accepts all objects, and return the spec of the pod that it admits."""
    accepted = server.kubectl("apply", "--dry-run=server", "-o", "name", "-f", "-", text=yaml.safe_dump_all(documents))
    assert len(accepted.splitlines()) == len(documents)
    documents = without_hashes(documents)
    (workload,) = of_kind(documents, "StatefulSet")
    # With Helm, the API server adds the settings to the containers, so the documents have no ConfigMap with settings.
    settings = None if way == "helm" else config_map_data(documents, "lifecycle")
    spec = admitted(server, pod_of(workload), settings)
    # Kubernetes starts these containers at the same time, so their order has no meaning.
    return spec | {"containers": sorted(spec["containers"], key=itemgetter("name"))}


def test_kustomize_terraform_and_helm_create_the_same_pod(installed: ApiServer, tmp_path: Path) -> None:
    if BINARY is None:
        pytest.skip("install Terraform or OpenTofu")
    kustomize = kustomize_manifests(tmp_path / "cluster")
    terraform, without_vpn = terraform_manifests(tmp_path / "terraform")
    (workload,) = of_kind(without_vpn, "StatefulSet")
    request_injection(workload)
    # With Helm, the policy of the chart adds the VPN containers.
    ways = {"kustomize": kustomize, "terraform": terraform, "helm": without_vpn}
    pods = {way: admitted_pod(way, documents, installed) for way, documents in ways.items()}
    assert [container["name"] for container in pods["helm"]["initContainers"]] == ["cleanup", "tailscale", "dns-watch"]
    assert pods["kustomize"] == pods["terraform"]
    assert pods["kustomize"] == pods["helm"]

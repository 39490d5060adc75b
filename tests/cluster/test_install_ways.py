"""Test that Kustomize, Terraform and Helm give the same pod, from the folder of a user, on a real API server."""

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
from tests.cluster.conftest import helm, injection
from tests.cluster.test_injection import admitted, pod_of
from tests.inject.refused import template_of
from tests.pod.rendering import DEPLOY, ROOT, Document, config_map_data, of_kind, render
from tests.pod.test_site import SITE, create_site
from tests.real.programs import eventually
from tests.terraform.modules import BINARY, apply, root_module

NAME, IMAGE, PORT, DATA = "wiki", "docker.io/a/wiki:1.2", 8080, "/srv/wiki"
SETTINGS = {name: SITE[name] for name in SITE if not name.startswith(("ACME", "KERBEROS"))}

# What the folders set for a whole pod. The other settings have the same defaults.
VALUES: Values = {"settings": {**SETTINGS, "DNS_CLEANUP": "keep"}, "build": {"enabled": False}}
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


@pytest.fixture(scope="module")
def installed(server: ApiServer, chart: Path) -> Iterator[ApiServer]:
    """The API server with the chart."""
    helm(server, "install", "tailscale-lifecycle", chart, values=VALUES)
    # Pods are not accepted without it, and a dry run stores nothing.
    server.kubectl("create", "serviceaccount", NAME, "-n", "services")
    eventually(lambda: injection(server) == "on" or None, "an injected pod", timeout_s=60)
    yield server
    server.kubectl("delete", "serviceaccount", NAME, "-n", "services")
    helm(server, "uninstall", "tailscale-lifecycle")


def by_kustomize(folder: Path) -> list[Document]:
    """Create the workload as deploy/README.md describes, and render it."""
    cluster = create_site(folder)
    deploy = os.path.relpath(DEPLOY, cluster / NAME)
    command: list[str | Path] = [
        ROOT / "scripts/new-service",
        "--into",
        cluster,
        "--deploy",
        deploy,
        NAME,
        IMAGE,
        str(PORT),
        DATA,
    ]
    subprocess.run(command, check=True)
    return render(cluster / NAME)


def by_terraform(folder: Path) -> tuple[list[Document], list[Document]]:
    """Apply the module with tailscale, and without."""
    folder.mkdir()
    outputs = apply(root_module(folder, {"on": INPUTS, "off": INPUTS | {"tailscale_enabled": False}}))["outputs"]
    return list(outputs["on"]["value"].values()), list(outputs["off"]["value"].values())


def labelled(workload: Document) -> Document:
    """Return the workload with the label and the annotations of injection."""
    metadata = template_of(workload)["metadata"]
    metadata["labels"][LABEL] = "true"
    metadata["annotations"] = {HOSTNAME: NAME, STATE_SECRET: f"{NAME}-tailscale"}
    return workload


def without_hashes(documents: list[Document]) -> list[Document]:
    """Remove the generated parts of the names of ConfigMaps, which Terraform begins with the workload's name."""
    text = re.sub(rf'"(?:{NAME}-)?(nginx|lifecycle)-[0-9a-z]{{10}}"', r'"\1"', json.dumps(documents))
    without: list[Document] = json.loads(text)
    return without


def pod_by(way: str, documents: list[Document], server: ApiServer) -> Document:
    """Return the spec of the pod as the API server admits it. It accepts all objects, without storing them."""
    accepted = server.kubectl("apply", "--dry-run=server", "-o", "name", "-f", "-", text=yaml.safe_dump_all(documents))
    assert len(accepted.splitlines()) == len(documents)
    documents = without_hashes(documents)
    (workload,) = of_kind(documents, "StatefulSet")
    spec = admitted(server, pod_of(workload), None if way == "helm" else config_map_data(documents, "lifecycle"))
    # The order of the application's containers has no meaning.
    return spec | {"containers": sorted(spec["containers"], key=itemgetter("name"))}


def test_three_ways_give_the_same_pod(installed: ApiServer, tmp_path: Path) -> None:
    if BINARY is None:
        pytest.skip("install Terraform or OpenTofu")
    kustomize = by_kustomize(tmp_path / "cluster")
    terraform, without = by_terraform(tmp_path / "terraform")
    (workload,) = of_kind(without, "StatefulSet")
    labelled(workload)
    ways = {"kustomize": kustomize, "terraform": terraform, "helm": without}
    pods = {way: pod_by(way, documents, installed) for way, documents in ways.items()}
    assert [container["name"] for container in pods["helm"]["initContainers"]] == ["cleanup", "tailscale", "dns-watch"]
    assert pods["kustomize"] == pods["terraform"]
    assert pods["kustomize"] == pods["helm"]

"""Fixtures: API servers for the admission policies and for the chart, and a cluster with a tailnet."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifecycle.inject.rules import LABEL
from tests.chart.helm import Values, packed_chart, program, run
from tests.cluster import images, node
from tests.cluster.api_server import ApiServer, RefusedError, missing_programs
from tests.cluster.cluster import Cluster, manifest
from tests.cluster.tailnet import Tailnet, tailnet_in
from tests.cluster.workloads import GRAFANA_POD, WIKI, deploy_clients, deploy_grafana, deploy_wiki
from tests.image.tools import ImageBuild
from tests.inject.labelled_workloads import labelled, pod, template_of
from tests.inject.samples import LOGIN_SERVER, SETTINGS, workloads
from tests.pod.certificates import issue
from tests.pod.network import create_host
from tests.pod.rendering import DOMAIN, render
from tests.real.programs import eventually


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A running API server. The admission policies of deploy/inject apply in the namespace `services`."""
    if reason := missing_programs():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="api-") as folder, ApiServer(Path(folder)) as server:
        server.create_namespace("services", {LABEL: "enabled"})
        server.create_namespace("elsewhere", {})
        for workload in workloads().values():
            if account := template_of(workload)["spec"].get("serviceAccountName"):
                server.kubectl("create", "serviceaccount", account, "-n", "services")
        server.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(render(server.inject_folder)))
        set_settings(server)
        # Policies take effect some seconds after their creation. The label must be "true" or "false", not "yes".
        eventually(lambda: server.refusal(labelled(pod(), inject="yes")) or None, "a refusal", timeout_s=60)
        eventually(lambda: server.injection_state(pod()) == "on", "an injected pod", timeout_s=60)
        yield server


def set_settings(server: ApiServer, **settings: str | None) -> None:
    """Replace the ConfigMap with the settings for the policies. A setting that is None is omitted."""
    data = SETTINGS | {"LOGIN_SERVER": LOGIN_SERVER} | settings
    data = {name: value for name, value in data.items() if value is not None}
    with suppress(RefusedError):
        server.kubectl("delete", "configmap", "-n", "tailscale-lifecycle-inject", "tailscale-lifecycle")
    server.create(manifest("ConfigMap", "tailscale-lifecycle", "tailscale-lifecycle-inject", data=data))


# --- The cluster --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster_programs() -> None:
    """Skip the test unless all programs for a cluster are installed."""
    if reason := node.missing_programs() or images.missing_programs():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def certificate() -> tuple[str, str]:
    """A certificate for all names of the domain, and its key. The images of `cluster` trust only this certificate."""
    return issue(f"*.{DOMAIN}")


@pytest.fixture(scope="session")
def image_archive(cluster_programs: None, request: pytest.FixtureRequest) -> Path:
    """The archive of this project's image: the file in IMAGE_ARCHIVE, or one that is built for the tests."""
    if archive := os.environ.get("IMAGE_ARCHIVE"):
        return Path(archive)
    image_build: ImageBuild = request.getfixturevalue("shared_build")
    return image_build.archive.path


@pytest.fixture(scope="session")
def cluster(cluster_programs: None, image_archive: Path, certificate: tuple[str, str]) -> Iterator[Cluster]:
    """A running cluster. All its images are made from local programs, except this project's image."""
    # /var/tmp is on a disk. If the folder were in memory, files that a pod writes would count towards its memory limit.
    with tempfile.TemporaryDirectory(prefix="c-", dir="/var/tmp") as name:
        folder = Path(name)
        layers = images.base_layers(folder, authority=certificate[0])
        archive = folder / "stand-ins.tar"
        images.write_archive(images.stand_ins(layers, folder), archive)
        with create_host("node") as namespace, Cluster(folder, namespace, layers, [archive, image_archive]) as running:
            archive.unlink()
            yield running


@pytest.fixture(scope="session")
def tailnet(cluster: Cluster, certificate: tuple[str, str]) -> Iterator[Tailnet]:
    """Headscale in the cluster, and the Cloudflare simulator."""
    with tailnet_in(cluster, certificate) as running:
        yield running


@pytest.fixture(scope="session")
def grafana(tailnet: Tailnet) -> str:
    """Deploy deploy/services/grafana, and return the name of the pod."""
    deploy_grafana(tailnet)
    return GRAFANA_POD


@pytest.fixture(scope="session")
def wiki(tailnet: Tailnet) -> str:
    """Deploy a workload whose pods get the containers by injection, and return the name of its Deployment."""
    deploy_wiki(tailnet)
    return WIKI


@pytest.fixture(scope="session")
def client_pods(tailnet: Tailnet) -> None:
    """Start two pods that can send requests: a VPN client, and a pod outside the VPN."""
    deploy_clients(tailnet)


# --- The chart ----------------------------------------------------------------------------------------

RELEASE_NAMESPACE = "system"


@pytest.fixture(scope="session")
def chart_server(chart: Path) -> Iterator[ApiServer]:
    """An API server for the chart. The objects named `unrelated` do not belong to the chart."""
    if reason := missing_programs():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="api-") as folder, ApiServer(Path(folder)) as server:
        for name in ("headscale", "media", "monitoring", RELEASE_NAMESPACE):
            server.create_namespace(name, {})
        server.create_namespace("services", {LABEL: "enabled"})
        for kind in ("PodMonitor", "PrometheusRule"):
            server.create(custom_resource_definition(kind))
        for namespace in ("services", "monitoring", RELEASE_NAMESPACE):
            server.kubectl("create", "configmap", "unrelated", "-n", namespace)
        server.create(*unrelated_policies(server))
        server.kubectl("create", "rolebinding", "unrelated", "--clusterrole=view", "--user=any", "-n", "headscale")
        eventually(
            lambda: "resources" in server.request("GET", "/apis/monitoring.coreos.com/v1"), "the API", timeout_s=60
        )
        yield server


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed Helm chart of this project, which contains the sources of the image."""
    program()  # Skips the test if Helm is not installed.
    return packed_chart(tmp_path_factory.mktemp("chart"))


def custom_resource_definition(kind: str, group: str = "monitoring.coreos.com", version: str = "v1") -> dict[str, Any]:
    """Return a custom resource definition that accepts all fields, by default of the Prometheus operator."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version_definition = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "scope": "Cluster" if kind.startswith("Cluster") else "Namespaced",
            "versions": [version_definition],
        },
    }


def unrelated_policies(server: ApiServer) -> Iterator[dict[str, Any]]:
    """Yield a policy of each kind with a ConfigMap as parameter, and its binding.

    When the last policy with such a parameter is deleted, the API server stops reading ConfigMaps, even if a new policy
    is created later (kubernetes/kubernetes#130887). The chart could then be installed only once.
    """
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["replicationcontrollers"]}
    common = {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [rule]},
    }
    mutation = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}
    parameter = {"name": "unrelated", "namespace": "services", "parameterNotFoundAction": "Allow"}
    binding = {"policyName": "unrelated", "paramRef": parameter}
    v1 = "admissionregistration.k8s.io/v1"
    for version, kind, spec in (
        (server.policy_version, "MutatingAdmissionPolicy", {"mutations": [mutation], "reinvocationPolicy": "Never"}),
        (server.policy_version, "MutatingAdmissionPolicyBinding", binding),
        (v1, "ValidatingAdmissionPolicy", {"validations": [{"expression": "true"}]}),
        (v1, "ValidatingAdmissionPolicyBinding", {**binding, "validationActions": ["Deny"]}),
    ):
        fields = spec if kind.endswith("Binding") else {**common, **spec}
        yield {"apiVersion": version, "kind": kind, "metadata": {"name": "unrelated"}, "spec": fields}


def helm(server: ApiServer, *arguments: str | Path, values: Values | None = None) -> str:
    """Run Helm as the administrator, in the namespace of the release."""
    connection = (f"--kube-apiserver={server.url}", f"--kube-token={server.token}", "--kube-insecure-skip-tls-verify")
    options = () if values is None else ("--values=-",)
    done = run(*arguments, *connection, f"--namespace={RELEASE_NAMESPACE}", *options, text=json.dumps(values))
    assert done.returncode == 0, done.stderr
    return done.stdout

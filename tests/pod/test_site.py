"""Test that the values of an operator's site file replace the shipped ones in all manifests of deploy/.

The site file is in a folder of the operator, outside of the repository, as deploy/README.md documents.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from lifecycle.settings.models import DryRunSettings, command_variables
from tests.pages import blocks
from tests.pod.rendering import (
    DEPLOY,
    FOLDERS,
    INGRESS_CONTROLLERS,
    INJECT_FOLDERS,
    LIFECYCLE_CONTAINERS,
    ROOT,
    SHIPPED_WORKLOADS,
    Document,
    argocd_kustomization,
    config_map_data,
    containers,
    environment,
    expand_references,
    of_kind,
    pod_spec,
    read_env_file,
    render,
    workload_resource,
    write_kustomization,
)

SITE = {
    "DOMAIN_NAME": "vpn.corp.test",
    "LOGIN_SERVER": "https://login.corp.test:8443",
    "HEADSCALE_URL": "http://hs.control.svc.cluster.local:80",
    "HEADSCALE_NAMESPACE": "control",
    "HEADSCALE_USER": "pods",
    "VPN_PREFIXES": "100.100.0.0/16,fd00:1::/48",
    "ACME_SERVER": "https://issuer.corp.test/directory",
    "ACME_EMAIL": "admin@corp.test",
    "INGRESS_DOMAIN": "in.vpn.corp.test",
    "KERBEROS_REALM": "CORP.TEST",
}
SHIPPED_VALUE = re.compile(r"example\.com|acme-v02|100\.64\.|fd7a:", re.IGNORECASE)
"""Matches the values of the shipped site file in a rendered manifest."""
SITE_SETTINGS = {
    name: SITE[name]
    for name in ("DOMAIN_NAME", "HEADSCALE_URL", "HEADSCALE_NAMESPACE", "HEADSCALE_USER", "VPN_PREFIXES")
}
"""The values of the site that the program reads."""

APPLICATION_VARIABLES = {
    "freeipa": {"IPA_SERVER_INSTALL_OPTS": "-U -r CORP.TEST --no-ntp"},
    "grafana": {"GF_SERVER_ROOT_URL": "https://grafana.vpn.corp.test"},
    "open-webui": {
        "WEBUI_URL": "https://open-webui.vpn.corp.test",
        "OLLAMA_BASE_URL": "https://ollama.vpn.corp.test",
    },
}
"""By workload: the variables of its application that contain a name of the site."""

ALL_FOLDERS = (*FOLDERS, *INJECT_FOLDERS, *(f"services/{name}" for name in SHIPPED_WORKLOADS))


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The folder of an operator, with the site component of deploy/README.md."""
    return create_site(tmp_path / "cluster")


def create_site(folder: Path) -> Path:
    """Write the site component of deploy/README.md below a folder, and return the folder."""
    write_kustomization(folder / "site", documented_kustomizations()[0])
    (folder / "site/site.env").write_text("".join(f"{name}={value}\n" for name, value in SITE.items()))
    return folder


def documented_kustomizations() -> list[str]:
    """Return the YAML blocks of deploy/README.md: the site component, a kustomization, and lines to add to it."""
    return [block.text for block in blocks((DEPLOY / "README.md").read_text(), "yaml")]


def write_overlay(cluster: Path, name: str, addition: str = "") -> Path:
    """Write the documented kustomization for a folder of deploy/. Return the folder of the kustomization."""
    text = documented_kustomizations()[1]
    assert text.count("services/grafana") == 1
    text = argocd_kustomization() if name == "services/argocd" else text.replace("services/grafana", name)
    return write_kustomization(cluster / name.replace("/", "-"), text + addition)


def scalars(value: object) -> list[str]:
    """Return all keys and scalar values in a document as text."""
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in scalars(each)]
    if isinstance(value, list):
        return [text for item in value for text in scalars(item)]
    return [str(value)]


@cache
def _rendered(name: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        return json.dumps(render(write_overlay(create_site(Path(temporary) / "cluster"), name)))


def manifests_with_site(name: str) -> list[Document]:
    """Return the documents of a folder of deploy/, with the values of SITE."""
    documents: list[Document] = json.loads(_rendered(name))
    return documents


@pytest.mark.max_cases_without_full(4)
@pytest.mark.parametrize("name", ALL_FOLDERS)
def test_manifests_contain_no_shipped_value(name: str) -> None:
    assert [text for text in scalars(manifests_with_site(name)) if SHIPPED_VALUE.search(text)] == []


def test_shipped_site_file_has_the_default_prefixes_and_a_login_server_with_https() -> None:
    """tailscale does not reconnect to a host name with http (docs/login-server.md)."""
    shipped = read_env_file(DEPLOY / "site/site.env")
    assert shipped.keys() == SITE.keys()
    default = command_variables(DryRunSettings)["VPN_PREFIXES"].default
    assert tuple(map(ip_network, shipped["VPN_PREFIXES"].split(","))) == tuple(default)
    assert shipped["LOGIN_SERVER"].startswith("https://")


@pytest.mark.max_cases_without_full(4)
@pytest.mark.parametrize("folder", [*INGRESS_CONTROLLERS, *(f"services/{name}" for name in SHIPPED_WORKLOADS)])
def test_containers_of_a_pod_get_the_site(folder: str) -> None:
    variables = variables_by_container(manifests_with_site(folder))
    for container in LIFECYCLE_CONTAINERS:
        assert variables[container].items() >= SITE_SETTINGS.items()
    assert variables["tailscale"]["TS_EXTRA_ARGS"].split()[0] == f"--login-server={SITE['LOGIN_SERVER']}"


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize("name", SHIPPED_WORKLOADS)
def test_hostname_of_a_workload_is_below_the_domain(name: str) -> None:
    documents = manifests_with_site(f"services/{name}")
    variables = variables_by_container(documents)
    hostname = f"{name}.vpn.corp.test"
    assert {variables[each]["TS_HOSTNAME"] for each in ("tailscale", *LIFECYCLE_CONTAINERS)} == {hostname}
    for key, value in APPLICATION_VARIABLES.get(name, {}).items():
        assert expand_references(variables["application"][key], variables["application"]) == value
    assert pod_spec(documents).get("hostnameOverride", hostname) == hostname
    for certificate in of_kind(documents, "Certificate"):
        assert certificate["spec"]["dnsNames"] == [hostname]
    assert config_map_data(documents, "nginx")["vpn-prefixes.conf"] == "100.100.0.0/16 1; fd00:1::/48 1;"


def variables_by_container(documents: list[Document]) -> dict[str, Document]:
    return {name: environment(container, documents) for name, container in containers(pod_spec(documents)).items()}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("prune", "lifecycle-prune"), ("inject", "tailscale-lifecycle"), ("inject-v1beta1", "tailscale-lifecycle")],
)
def test_settings_of_prune_and_of_injection_get_the_site(folder: str, name: str) -> None:
    data = config_map_data(manifests_with_site(folder), name)
    assert data.items() >= SITE_SETTINGS.items()
    assert data.get("LOGIN_SERVER") == (None if folder == "prune" else SITE["LOGIN_SERVER"])


def test_certificates_are_issued_for_the_domain() -> None:
    documents = manifests_with_site("cert-manager")
    (issuer,) = of_kind(documents, "ClusterIssuer")
    (certificate,) = of_kind(documents, "Certificate")
    acme = issuer["spec"]["acme"]
    assert (acme["server"], acme["email"]) == (SITE["ACME_SERVER"], SITE["ACME_EMAIL"])
    assert acme["solvers"][0]["selector"]["dnsZones"] == ["vpn.corp.test"]
    assert certificate["spec"]["dnsNames"] == ["*.vpn.corp.test", "*.in.vpn.corp.test"]


def test_external_controller_gets_the_login_server_and_headscales_namespace() -> None:
    documents = manifests_with_site("ingress/external")
    (ingress,) = of_kind(documents, "Ingress")
    (certificate,) = of_kind(documents, "Certificate")
    hosts = [*ingress["spec"]["tls"][0]["hosts"], ingress["spec"]["rules"][0]["host"], *certificate["spec"]["dnsNames"]]
    assert hosts == ["login.corp.test"] * 3
    (cluster_role,) = of_kind(documents, "ClusterRole")
    assert [rule["resourceNames"] for rule in cluster_role["rules"]] == [["nginx-external"], ["control"]]
    pod = pod_spec(documents)
    assert "-watch-namespace=control" in containers(pod)["nginx-ingress"]["args"]
    assert pod["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ["login.corp.test"]}]
    kinds = {document["kind"] for document in documents if document["metadata"].get("namespace") == "control"}
    assert kinds == {"Ingress", "Certificate", "Role", "RoleBinding"}


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("folder", ["rbac/exec", "rbac/exec-any-pod", "rbac/api-key-secret", "ingress/headscale-ui"])
def test_objects_are_in_headscales_namespace(folder: str) -> None:
    assert {document["metadata"]["namespace"] for document in manifests_with_site(folder)} == {"control"}


@pytest.mark.parametrize(("folder", "name"), [("ingress/examples", "wiki"), ("ingress/headscale-ui", "headscale-ui")])
def test_hosts_of_ingresses_are_below_the_ingress_domain(folder: str, name: str) -> None:
    (ingress,) = of_kind(manifests_with_site(folder), "Ingress")
    hosts = [*ingress["spec"]["tls"][0]["hosts"], ingress["spec"]["rules"][0]["host"]]
    assert hosts == [f"{name}.in.vpn.corp.test"] * 2


def test_internal_controller_gets_the_networks_and_the_ingress_domain() -> None:
    documents = manifests_with_site("ingress/internal")
    networks = "{ default 0; 100.100.0.0/16 1; fd00:1::/48 1; }"
    snippet = config_map_data(documents, "nginx-config")["http-snippets"]
    assert snippet == f"geo $from_vpn {networks} geo $server_addr $to_vpn {networks}"
    assert config_map_data(documents, "lifecycle")["DNS_SHARED_NAMES"] == "*.in.vpn.corp.test"
    assert config_map_data(documents, "lifecycle-prune").items() >= SITE_SETTINGS.items()


def test_replacements_select_by_exact_names() -> None:
    """Kustomize 5.4, which is a part of kubectl 1.31, does not accept patterns."""
    replacements = yaml.safe_load((DEPLOY / "site/replacements/kustomization.yaml").read_text())["replacements"]
    names = [target["select"].get("name", "") for each in replacements for target in each["targets"]]
    assert [name for name in names if not re.fullmatch("[a-z-]*", name)] == []


def test_changed_site_restarts_the_pods(cluster: Path) -> None:
    folder = write_overlay(cluster, "services/grafana")
    before = workload_resource(render(folder))["spec"]["template"]
    file = cluster / "site/site.env"
    file.write_text(file.read_text().replace("HEADSCALE_USER=pods", "HEADSCALE_USER=others"))
    assert workload_resource(render(folder))["spec"]["template"] != before


def test_overlay_can_change_settings_and_add_flags(cluster: Path) -> None:
    """The site replaces only the value of the first flag in TS_EXTRA_ARGS."""
    addition = dedent(documented_kustomizations()[2]) + "      - TS_EXTRA_ARGS=--login-server --accept-routes\n"
    documents = render(write_overlay(cluster, "services/grafana", addition))
    variables = variables_by_container(documents)
    assert variables["cleanup"]["LOG_LEVEL"] == "debug"
    assert variables["cleanup"]["TS_HOSTNAME"] == "grafana.vpn.corp.test"
    assert variables["tailscale"]["TS_EXTRA_ARGS"] == f"--login-server={SITE['LOGIN_SERVER']} --accept-routes"


@pytest.mark.full
def test_folders_can_be_combined(cluster: Path) -> None:
    """Only one of rbac/exec and rbac/exec-any-pod, of inject and inject-v1beta1, and of the services is applied."""
    names = [name for name in (*FOLDERS, "inject", "services/grafana") if name != "rbac/exec"]
    resources = [write_overlay(cluster, name).name for name in names]
    (cluster / "kustomization.yaml").write_text(yaml.safe_dump({"resources": resources}))
    alone = [document for name in resources for document in render(cluster / name)]
    assert sorted(map(str, render(cluster))) == sorted(map(str, alone))


def test_new_service_outside_of_the_repository_gets_the_site(cluster: Path) -> None:
    deploy = os.path.relpath(DEPLOY, (cluster / "wiki").resolve())
    arguments: list[str | Path] = ["--into", cluster, "--deploy", deploy, "wiki", "docker.io/a/wiki:1.2", "8080"]
    subprocess.run([ROOT / "scripts/new-service", *arguments], check=True, capture_output=True, cwd="/")
    documents = render(cluster / "wiki")
    assert config_map_data(documents, "lifecycle")["TS_HOSTNAME"] == "wiki.vpn.corp.test"
    assert [text for text in scalars(documents) if SHIPPED_VALUE.search(text)] == []

"""Test that a site file outside of the repository reaches every place that needs it, in every folder of deploy/."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from tests.pages import blocks
from tests.pod.rendering import (
    CONTROLLERS,
    DEPLOY,
    ROOT,
    SHIPPED,
    Document,
    argocd,
    configuration,
    containers,
    environment,
    of_kind,
    pod_spec,
    render,
    workload_resource,
    write,
)

SITE = {
    "DOMAIN_NAME": "vpn.acme.test",
    "LOGIN_SERVER": "https://login.acme.test",
    "HEADSCALE_URL": "http://hs.control.svc.cluster.local:80",
    "HEADSCALE_NAMESPACE": "control",
    "HEADSCALE_USER": "pods",
    "VPN_PREFIXES": "100.100.0.0/16,fd00:1::/48",
    "ACME_SERVER": "https://acme.acme.test/directory",
    "ACME_EMAIL": "admin@acme.test",
    "INGRESS_DOMAIN": "in.vpn.acme.test",
    "KERBEROS_REALM": "ACME.TEST",
}
PLACEHOLDER = re.compile(r"example\.com|acme-v02|100\.64\.|fd7a:", re.IGNORECASE)
"""Values of the shipped site file."""
SETTINGS = ("DOMAIN_NAME", "HEADSCALE_URL", "HEADSCALE_NAMESPACE", "HEADSCALE_USER", "VPN_PREFIXES")

PARTS = {
    "base",
    "base/resources",
    "ingress/controller",
    "ingress/external/controller",
    "ingress/external/headscale",
    "services/_template",
}
"""Folders that are rendered as parts of others."""


def is_applied(kustomization: Path) -> bool:
    return bool(yaml.safe_load(kustomization.read_text())["kind"] == "Kustomization")


FOLDERS = sorted(
    {
        str(path.parent.relative_to(DEPLOY))
        for path in DEPLOY.rglob("kustomization.yaml")
        if is_applied(path) and not path.is_relative_to(DEPLOY / "components")
    }
    - PARTS
    # A component.
    | {"services/argocd"}
)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The folder of a user, with the documented component of the site."""
    return prepared(tmp_path / "cluster")


def prepared(folder: Path) -> Path:
    """Write the documented component of the site."""
    write(folder / "site", documented()[0])
    (folder / "site/site.env").write_text("".join(f"{name}={value}\n" for name, value in SITE.items()))
    return folder


def documented() -> list[str]:
    """Return the documented kustomization of the site, that of a folder, and an addition to it."""
    return [block.text for block in blocks((DEPLOY / "README.md").read_text(), "yaml")]


def overlay(cluster: Path, name: str, addition: str = "") -> Path:
    """Write the documented kustomization of a folder of deploy/."""
    text = documented()[1]
    assert text.count("services/grafana") == 1
    text = argocd() if name == "services/argocd" else text.replace("services/grafana", name)
    return write(cluster / name.replace("/", "-"), text + addition)


def strings(part: object) -> list[str]:
    """Return all names and values below a part of a document."""
    if isinstance(part, dict):
        return [found for item in part.items() for each in item for found in strings(each)]
    if isinstance(part, list):
        return [found for item in part for found in strings(item)]
    return [str(part)]


@cache
def _rendered(name: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        return yaml.safe_dump_all(render(overlay(prepared(Path(temporary) / "cluster"), name)))


def with_site(name: str) -> list[Document]:
    """Return what the documented kustomization of a folder renders."""
    return list(yaml.safe_load_all(_rendered(name)))


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("name", FOLDERS)
def test_no_placeholder_is_left(name: str) -> None:
    assert [text for text in strings(with_site(name)) if PLACEHOLDER.search(text)] == []


def test_shipped_site_file_has_the_values_that_the_test_sets() -> None:
    names = re.findall(r"^(\w+)=", (DEPLOY / "site/site.env").read_text(), flags=re.MULTILINE)
    assert set(names) == set(SITE)


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("name", SHIPPED)
def test_pod_of_a_service_gets_the_site(name: str) -> None:
    documents = with_site(f"services/{name}")
    every = {name: environment(each, documents) for name, each in containers(pod_spec(documents)).items()}
    hostname = f"{name}.vpn.acme.test"
    for ours in ("cleanup", "dns-watch"):
        assert {key: every[ours][key] for key in SETTINGS} == {key: SITE[key] for key in SETTINGS}
    assert {every[each]["TS_HOSTNAME"] for each in ("cleanup", "tailscale", "dns-watch")} == {hostname}
    assert every["tailscale"]["TS_EXTRA_ARGS"] == "--login-server=https://login.acme.test"
    own = {key: expanded(value, every["application"]) for key, value in every.get("application", {}).items()}
    assert own.items() >= APPLICATIONS.get(name, {}).items()
    assert pod_spec(documents).get("hostnameOverride", hostname) == hostname
    for certificate in of_kind(documents, "Certificate"):
        assert certificate["spec"]["dnsNames"] == [hostname]
    assert configuration(documents, "nginx")["vpn-prefixes.conf"] == "100.100.0.0/16 1; fd00:1::/48 1;"


APPLICATIONS = {
    "freeipa": {"IPA_SERVER_INSTALL_OPTS": "-U -r ACME.TEST --no-ntp"},
    "grafana": {"GF_SERVER_ROOT_URL": "https://grafana.vpn.acme.test"},
    "open-webui": {
        "WEBUI_URL": "https://open-webui.vpn.acme.test",
        "OLLAMA_BASE_URL": "https://ollama.vpn.acme.test",
    },
}
"""Variables of an application that contain a hostname."""


def expanded(value: str | None, variables: Document) -> str:
    """Replace references to variables that are defined before, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda found: str(variables[found[1]]), value or "")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("prune", "lifecycle-prune"), ("inject", "tailscale-lifecycle"), ("inject-v1beta1", "tailscale-lifecycle")],
)
def test_settings_of_prune_and_of_injection_get_the_site(folder: str, name: str) -> None:
    data = configuration(with_site(folder), name)
    expected = {key: SITE[key] for key in SETTINGS}
    assert data.items() >= expected.items()
    assert data.get("LOGIN_SERVER") == (None if folder == "prune" else SITE["LOGIN_SERVER"])


def test_certificates_are_issued_for_the_domain() -> None:
    documents = with_site("cert-manager")
    (issuer,) = of_kind(documents, "ClusterIssuer")
    (certificate,) = of_kind(documents, "Certificate")
    acme = issuer["spec"]["acme"]
    assert (acme["server"], acme["email"]) == (SITE["ACME_SERVER"], SITE["ACME_EMAIL"])
    assert acme["solvers"][0]["selector"]["dnsZones"] == ["vpn.acme.test"]
    assert certificate["spec"]["dnsNames"] == ["*.vpn.acme.test", "*.in.vpn.acme.test"]


def test_login_server_is_published_from_headscales_namespace() -> None:
    documents = with_site("ingress/external")
    (ingress,) = of_kind(documents, "Ingress")
    (certificate,) = of_kind(documents, "Certificate")
    hosts = [*ingress["spec"]["tls"][0]["hosts"], ingress["spec"]["rules"][0]["host"], *certificate["spec"]["dnsNames"]]
    assert hosts == ["login.acme.test"] * 3
    (cluster_role,) = of_kind(documents, "ClusterRole")
    assert [rule["resourceNames"] for rule in cluster_role["rules"]] == [["nginx-external"], ["control"]]
    pod = pod_spec(documents)
    assert "-watch-namespace=control" in containers(pod)["nginx-ingress"]["args"]
    assert pod["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ["login.acme.test"]}]
    named = {document["kind"] for document in documents if document["metadata"].get("namespace") == "control"}
    assert named == {"Ingress", "Certificate", "Role", "RoleBinding"}


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("mode", ["exec", "exec-any-pod", "api-key-secret"])
def test_roles_are_in_headscales_namespace(mode: str) -> None:
    documents = with_site(f"rbac/{mode}")
    assert {document["metadata"]["namespace"] for document in documents} == {"control"}


@pytest.mark.parametrize(("folder", "name"), [("ingress/examples", "wiki"), ("ingress/headscale-ui", "headscale-ui")])
def test_hosts_of_ingresses_are_below_the_ingress_domain(folder: str, name: str) -> None:
    (ingress,) = of_kind(with_site(folder), "Ingress")
    hosts = [*ingress["spec"]["tls"][0]["hosts"], ingress["spec"]["rules"][0]["host"]]
    assert hosts == [f"{name}.in.vpn.acme.test"] * 2


def test_headscale_ui_is_in_headscales_namespace() -> None:
    assert {document["metadata"]["namespace"] for document in with_site("ingress/headscale-ui")} == {"control"}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_ingress_controllers_get_the_site(name: str) -> None:
    documents = with_site(name)
    every = containers(pod_spec(documents))
    for ours in ("cleanup", "dns-watch"):
        assert environment(every[ours], documents).items() >= {key: SITE[key] for key in SETTINGS}.items()
    flags = environment(every["tailscale"], documents)["TS_EXTRA_ARGS"].split()
    assert flags[0] == "--login-server=https://login.acme.test"


def test_internal_controller_gets_the_networks_and_the_ingress_domain() -> None:
    documents = with_site("ingress/internal")
    networks = "{ default 0; 100.100.0.0/16 1; fd00:1::/48 1; }"
    snippet = configuration(documents, "nginx-config")["http-snippets"]
    assert snippet == f"geo $from_vpn {networks} geo $server_addr $to_vpn {networks}"
    assert configuration(documents, "lifecycle")["DNS_SHARED_NAMES"] == "*.in.vpn.acme.test"
    assert configuration(documents, "lifecycle-prune").items() >= {key: SITE[key] for key in SETTINGS}.items()


def test_replacements_select_by_exact_names() -> None:
    """Kustomize 5.4, which is in kubectl 1.31, does not accept patterns."""
    replacements = yaml.safe_load((DEPLOY / "site/replacements/kustomization.yaml").read_text())["replacements"]
    selected = [target["select"].get("name", "") for each in replacements for target in each["targets"]]
    assert [name for name in selected if not re.fullmatch("[a-z-]*", name)] == []


def test_a_change_of_the_site_restarts_the_pods(cluster: Path) -> None:
    folder = overlay(cluster, "services/grafana")
    before = workload_resource(render(folder))["spec"]["template"]
    file = cluster / "site/site.env"
    file.write_text(file.read_text().replace("HEADSCALE_USER=pods", "HEADSCALE_USER=others"))
    assert workload_resource(render(folder))["spec"]["template"] != before


def test_overlay_changes_settings_and_adds_flags(cluster: Path) -> None:
    """The flags of the login server come first. No namespace has to be given."""
    addition = dedent(documented()[2]) + "      - TS_EXTRA_ARGS=--login-server --accept-routes\n"
    documents = render(overlay(cluster, "services/grafana", addition))
    every = {name: environment(each, documents) for name, each in containers(pod_spec(documents)).items()}
    assert (every["cleanup"]["LOG_LEVEL"], every["cleanup"]["TS_HOSTNAME"]) == ("debug", "grafana.vpn.acme.test")
    assert every["tailscale"]["TS_EXTRA_ARGS"] == "--login-server=https://login.acme.test --accept-routes"


@pytest.mark.full
def test_folders_can_be_combined(cluster: Path) -> None:
    names = [
        name for name in FOLDERS if name not in ("inject-v1beta1", "rbac/exec") and not name.startswith("services/")
    ]
    resources = [overlay(cluster, name).name for name in [*names, "services/grafana"]]
    (cluster / "kustomization.yaml").write_text(yaml.safe_dump({"resources": resources}))
    alone = [document for name in resources for document in render(cluster / name)]
    assert sorted(map(str, render(cluster))) == sorted(map(str, alone))


def test_new_service_outside_of_the_repository_gets_the_site(cluster: Path) -> None:
    here = os.path.relpath(DEPLOY, (cluster / "wiki").resolve())
    arguments: list[str | Path] = ["--into", cluster, "--deploy", here, "wiki", "docker.io/a/wiki:1.2", "8080"]
    subprocess.run([ROOT / "scripts/new-service", *arguments], check=True, capture_output=True, cwd="/")
    documents = render(cluster / "wiki")
    assert configuration(documents, "lifecycle")["TS_HOSTNAME"] == "wiki.vpn.acme.test"
    assert [text for text in strings(documents) if PLACEHOLDER.search(text)] == []

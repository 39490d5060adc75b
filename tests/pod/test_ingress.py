"""Test the ingress controllers and the certificates of cert-manager."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from lifecycle.settings.load import load
from lifecycle.settings.models import DryRunSettings, PruneSettings, command_variables
from tests.pod.rendering import (
    CONTROLLERS,
    DOMAIN,
    OTHERS,
    OURS,
    WORKLOADS,
    Document,
    configuration,
    containers,
    environment,
    of_kind,
    pod_spec,
    rendered,
    workload_resource,
)


def test_internal_controller_uses_the_default_vpn_prefixes() -> None:
    snippet = configuration(rendered("ingress/internal"), "nginx-config")["http-snippets"]
    prefixes = [ip_network(found) for found in re.findall(r"[0-9a-f.:]+/\d+", snippet)]
    # For the client's address and for the address that it connected to.
    assert prefixes == list(command_variables(DryRunSettings)["VPN_PREFIXES"].default) * 2


def test_only_login_paths_are_published() -> None:
    """Check that no published path includes the API or the metrics."""
    (ingress,) = of_kind(rendered("ingress/external"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    published = {path["path"]: path["pathType"] for path in rule["http"]["paths"]}
    assert published["/ts2021"] == "Exact"
    assert not [path for path in published if "/api/v1/node".startswith(path) or "/metrics".startswith(path)]
    assert ingress["metadata"]["annotations"]["nginx.org/websocket-services"] == "headscale"


def test_external_controller_has_access_to_two_namespaces_only() -> None:
    documents = rendered("ingress/external")
    assert {role["metadata"]["namespace"] for role in of_kind(documents, "Role")} == {
        "headscale",
        "ingress-nginx-external",
    }
    (cluster,) = of_kind(documents, "ClusterRole")
    assert all(rule.get("resourceNames") and rule["verbs"] == ["get"] for rule in cluster["rules"])
    assert "-watch-namespace=headscale" in containers(pod_spec(documents))["nginx-ingress"]["args"]


@pytest.mark.parametrize(("name", "ingress"), [("ingress/internal", "ingress/examples"), ("ingress/external",) * 2])
def test_controller_and_ingress_use_the_same_class(name: str, ingress: str) -> None:
    (created,) = of_kind(rendered(name), "IngressClass")
    controller = containers(pod_spec(rendered(name)))["nginx-ingress"]
    assert [word for word in controller["args"] if word.startswith("-ingress-class=")] == [
        f"-ingress-class={created['metadata']['name']}"
    ]
    (only,) = of_kind(rendered(ingress), "Ingress")
    assert only["spec"]["ingressClassName"] == created["metadata"]["name"]


def test_proxy_timeouts_allow_the_long_connections_of_headscale() -> None:
    """A client's connection can be idle for about a minute, which is nginx' default timeout."""
    (ingress,) = of_kind(rendered("ingress/external"), "Ingress")
    assert ingress["metadata"]["annotations"] == {
        "nginx.org/websocket-services": "headscale",
        "nginx.org/proxy-read-timeout": "1h",
        "nginx.org/proxy-send-timeout": "1h",
        "nginx.org/proxy-buffering": "False",
    }


def test_network_policy_allows_only_the_ports_of_the_external_service_and_of_the_vpn() -> None:
    (policy,) = of_kind(rendered("ingress/external"), "NetworkPolicy")
    (service,) = of_kind(rendered("ingress/external"), "Service")
    ports = [port["targetPort"] for port in service["spec"]["ports"]]
    assert policy["spec"]["ingress"][0] == {"ports": [{"port": port} for port in ports]}
    # WireGuard, and the metrics of dns-watch.
    assert [port for rule in policy["spec"]["ingress"][1:] for port in rule["ports"]] == [
        {"protocol": "UDP", "port": 41641},
        {"protocol": "TCP", "port": 9003},
    ]


def test_internal_class_is_the_only_default_class() -> None:
    classes = of_kind(rendered("ingress/internal") + rendered("ingress/external"), "IngressClass")
    default = [
        name["metadata"]["name"]
        for name in classes
        if name["metadata"].get("annotations", {}).get("ingressclass.kubernetes.io/is-default-class") == "true"
    ]
    assert default == ["nginx"]
    assert {name["metadata"]["name"] for name in classes} == {"nginx", "nginx-external"}


def served(documents: list[Document]) -> Iterator[tuple[str, str, str]]:
    """Iterate over the served certificates: the Secret's namespace and name, and the host name."""
    for ingress in of_kind(documents, "Ingress"):
        for tls in ingress["spec"]["tls"]:
            # Without a secretName, the controller uses the wildcard certificate.
            secret = tls.get("secretName")
            namespace = ingress["metadata"]["namespace"] if secret else "services"
            yield from ((namespace, secret or "wildcard-tls", host) for host in tls["hosts"])
    for only in of_kind(documents, "DaemonSet", "Deployment", "StatefulSet"):
        spec = only["spec"]["template"]["spec"]
        for volume in spec["volumes"]:
            if volume["name"] == "tls":
                host = environment(containers(spec)["cleanup"], documents)["TS_HOSTNAME"]
                yield only["metadata"]["namespace"], volume["secret"]["secretName"], host


def test_every_served_certificate_is_requested_for_its_host_name() -> None:
    documents = [document for name in (*OTHERS, *WORKLOADS) for document in rendered(name)]
    requested = {
        (certificate["metadata"]["namespace"], certificate["spec"]["secretName"]): set(certificate["spec"]["dnsNames"])
        for certificate in of_kind(documents, "Certificate")
    }
    used = {found for name in (*OTHERS, *WORKLOADS) for found in served(rendered(name))}
    assert {(namespace, secret) for namespace, secret, _ in used} == set(requested)
    for namespace, secret, host in used:
        assert {host, f"*.{host.partition('.')[2]}"} & requested[namespace, secret], host
    controller = containers(pod_spec(rendered("ingress/internal")))["nginx-ingress"]
    assert "-wildcard-tls-secret=services/wildcard-tls" in controller["args"]


def test_certificates_use_the_only_issuer_with_dns01() -> None:
    """Compare all fields, because Kubernetes' schemas do not include cert-manager's kinds."""
    documents = [document for name in (*OTHERS, *WORKLOADS) for document in rendered(name)]
    (issuer,) = of_kind(documents, "ClusterIssuer")
    for certificate in of_kind(documents, "Certificate"):
        spec = certificate["spec"]
        assert set(spec) == {"secretName", "dnsNames", "privateKey", "issuerRef"}
        assert spec["issuerRef"] == {"kind": "ClusterIssuer", "name": issuer["metadata"]["name"]}
        assert spec["privateKey"] == {"algorithm": "ECDSA", "rotationPolicy": "Always"}
    acme = issuer["spec"].pop("acme")
    assert issuer["spec"] == {}
    assert set(acme) == {"server", "email", "privateKeySecretRef", "solvers"}
    assert acme["solvers"] == [
        {
            "dns01": {"cloudflare": {"apiTokenSecretRef": {"name": "cloudflare", "key": "api-token"}}},
            "selector": {"dnsZones": [DOMAIN]},
        }
    ]


# --- The VPN nodes of the controllers -----------------------------------------------------------------

POD = {
    "ingress/external": ("nginx-external-0", "nginx-external-0"),
    "ingress/internal": ("nginx-ingress-x", "worker-1"),
}
"""The names of a pod and its cluster node."""
HOSTNAMES = {"ingress/external": "nginx-external-0", "ingress/internal": "nginx-ingress-worker-1"}


def variables(name: str, container: str) -> dict[str, str]:
    """Return a container's variables, as the kubelet sets them."""
    pod, node = POD[name]
    known = {"POD_NAME": pod, "NODE_NAME": node, "POD_NAMESPACE": "of-the-pod", "HEALTH_ADDRESS": "192.0.2.1"}
    documents = rendered(name)
    described = containers(pod_spec(documents))[container]
    every = environment(described, documents)
    values: dict[str, str] = {}
    # A reference is only to a variable of the list that is defined before.
    for variable in (item["name"] for item in described["env"]):
        value = known.get(variable, "") if every[variable] is None else every[variable]
        values[variable] = re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], value)
    return every | values


@pytest.mark.parametrize("name", CONTROLLERS)
def test_node_of_a_controller_is_named_after_the_pod_or_cluster_node(name: str) -> None:
    every = {container: variables(name, container) for container in (*OURS, "tailscale")}
    assert {values["TS_HOSTNAME"] for values in every.values()} == {HOSTNAMES[name]}
    assert len({values["TS_KUBE_SECRET"] for values in every.values()}) == 1


@pytest.mark.parametrize("name", CONTROLLERS)
def test_variables_of_a_controller_are_valid_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = command_variables(DryRunSettings)
    secret = tmp_path / "secret"
    secret.write_text("made-up")
    for container in OURS:
        values = variables(name, container)
        # TS_EXTRA_ARGS is for tailscale, and NODE_NAME for other variables.
        assert values.keys() <= {*known, "TS_EXTRA_ARGS", "NODE_NAME"}
        for variable, value in values.items():
            monkeypatch.setenv(variable, str(secret) if variable.endswith("_FILE") else value)
        settings = load(DryRunSettings)
        assert settings.record_name == f"{HOSTNAMES[name]}.{DOMAIN}"
        assert settings.node_policy == ("keep" if name == "ingress/internal" else "replace")


def test_health_port_of_the_internal_controller_is_not_on_the_vpn() -> None:
    """The kubelet connects to the pod's address, which is the cluster node's own."""
    spec = pod_spec(rendered("ingress/internal"))
    (address,) = [variable for variable in containers(spec)["dns-watch"]["env"] if variable["name"] == "HEALTH_ADDRESS"]
    assert address["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert spec["hostNetwork"]
    assert "host" not in containers(spec)["dns-watch"]["livenessProbe"]["httpGet"]


def test_tailscale_on_the_host_network_changes_neither_firewall_nor_resolver() -> None:
    values = variables("ingress/internal", "tailscale")
    assert "--netfilter-mode=off" in values["TS_EXTRA_ARGS"].split()
    assert values["TS_ACCEPT_DNS"] == "false"


def test_state_secret_of_a_cluster_node_can_be_created() -> None:
    documents = rendered("ingress/internal")
    spec = pod_spec(documents)
    (role,) = [role for role in of_kind(documents, "Role") if role["metadata"]["name"] == "nginx-ingress-state"]
    (secrets,) = [rule for rule in role["rules"] if rule["resources"] == ["secrets"]]
    assert "resourceNames" not in secrets
    assert sorted(secrets["verbs"]) == ["create", "get", "patch", "update"]
    (binding,) = [
        each for each in of_kind(documents, "RoleBinding") if each["metadata"]["name"] == "nginx-ingress-state"
    ]
    assert [subject["name"] for subject in binding["subjects"]] == [spec["serviceAccountName"]]


def test_prune_of_the_internal_controller_has_the_owner_of_its_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = rendered("ingress/internal")
    (job,) = of_kind(documents, "CronJob")
    namespace = job["metadata"]["namespace"]
    assert namespace == workload_resource(documents)["metadata"]["namespace"]
    secret = tmp_path / "secret"
    secret.write_text("made-up")
    for variable, value in configuration(documents, "lifecycle-prune").items():
        monkeypatch.setenv(variable, str(secret) if variable.endswith("_FILE") else value)
    assert load(PruneSettings).mark == f"tailscale-lifecycle/1 {namespace}"
    assert "DNS_OWNER" not in variables("ingress/internal", "cleanup")


def test_external_controller_serves_the_login_server_without_the_vpn() -> None:
    """tailscale logs in through nginx in the same pod, which must not wait for it."""
    documents = rendered("ingress/external")
    spec = pod_spec(documents)
    assert [container["name"] for container in spec["initContainers"]] == ["cleanup", "copy-configuration"]
    assert not {"startupProbe", "readinessProbe"} & containers(spec)["tailscale"].keys()
    (ingress,) = of_kind(documents, "Ingress")
    assert spec["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ingress["spec"]["tls"][0]["hosts"]}]


def test_web_interface_and_the_api_are_on_one_host_of_the_internal_controller() -> None:
    (ingress,) = of_kind(rendered("ingress/headscale-ui"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    backends = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert backends == {"/": "headscale-ui", "/api/": "headscale"}

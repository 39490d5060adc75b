"""Test the ingress controllers and the certificates of cert-manager."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from lifecycle.settings.models import DryRunSettings, command_variables
from tests.pod.rendering import (
    DOMAIN,
    OTHERS,
    WORKLOADS,
    Document,
    configuration,
    containers,
    environment,
    of_kind,
    pod_spec,
    rendered,
)


def test_internal_controller_uses_the_default_vpn_prefixes() -> None:
    snippet = configuration(rendered("ingress/internal"), "nginx-config")["http-snippets"]
    prefixes = {ip_network(found) for found in re.findall(r"[0-9a-f.:]+/\d+", snippet)}
    assert prefixes == set(command_variables(DryRunSettings)["VPN_PREFIXES"].default)


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
        "nginx-ingress-external",
    }
    (cluster,) = of_kind(documents, "ClusterRole")
    assert all(rule.get("resourceNames") and rule["verbs"] == ["get"] for rule in cluster["rules"])
    (arguments,) = [container["args"] for container in pod_spec(documents)["containers"]]
    assert "-watch-namespace=headscale" in arguments


@pytest.mark.parametrize(("name", "ingress"), [("ingress/internal", "ingress/examples"), ("ingress/external",) * 2])
def test_controller_and_ingress_use_the_same_class(name: str, ingress: str) -> None:
    (created,) = of_kind(rendered(name), "IngressClass")
    (container,) = pod_spec(rendered(name))["containers"]
    assert [word for word in container["args"] if word.startswith("-ingress-class=")] == [
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


def test_network_policy_allows_only_the_ports_of_the_external_service() -> None:
    (policy,) = of_kind(rendered("ingress/external"), "NetworkPolicy")
    (service,) = of_kind(rendered("ingress/external"), "Service")
    ports = [port["targetPort"] for port in service["spec"]["ports"]]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": port} for port in ports]}]


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
    for only in of_kind(documents, "Deployment", "StatefulSet"):
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
    (arguments,) = [container["args"] for container in pod_spec(rendered("ingress/internal"))["containers"]]
    assert "-wildcard-tls-secret=services/wildcard-tls" in arguments


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

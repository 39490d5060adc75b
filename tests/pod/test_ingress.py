"""Test the manifests of the ingress controllers, and of the certificates that cert-manager issues.

The internal controller publishes Services on the VPN. The external controller publishes Headscale's login server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lifecycle.settings.load import load
from lifecycle.settings.models import DryRunSettings, PruneSettings, command_variables
from tests.pod.conftest import SetVariables
from tests.pod.rendering import (
    DOMAIN,
    FOLDERS,
    INGRESS_CONTROLLERS,
    LIFECYCLE_CONTAINERS,
    WORKLOADS,
    Document,
    config_map_data,
    containers,
    environment,
    expand_references,
    manifests_of,
    of_kind,
    pod_spec,
    workload_resource,
)


def test_external_controller_publishes_neither_the_api_nor_the_metrics() -> None:
    (ingress,) = of_kind(manifests_of("ingress/external"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    published = {path["path"]: path["pathType"] for path in rule["http"]["paths"]}
    assert published["/ts2021"] == "Exact"
    # A path can also match the paths below it.
    assert not [path for path in published if "/api/v1/node".startswith(path) or "/metrics".startswith(path)]


def test_external_controller_has_access_to_two_namespaces_only() -> None:
    documents = manifests_of("ingress/external")
    assert {role["metadata"]["namespace"] for role in of_kind(documents, "Role")} == {
        "headscale",
        "ingress-nginx-external",
    }
    (cluster_role,) = of_kind(documents, "ClusterRole")
    assert all(rule.get("resourceNames") and rule["verbs"] == ["get"] for rule in cluster_role["rules"])
    assert "-watch-namespace=headscale" in containers(pod_spec(documents))["nginx-ingress"]["args"]


@pytest.mark.parametrize(
    ("controller", "ingress_folder"),
    [("ingress/internal", "ingress/examples"), ("ingress/external", "ingress/external")],
)
def test_controller_and_ingress_use_the_same_class(controller: str, ingress_folder: str) -> None:
    (ingress_class,) = of_kind(manifests_of(controller), "IngressClass")
    name = ingress_class["metadata"]["name"]
    arguments = containers(pod_spec(manifests_of(controller)))["nginx-ingress"]["args"]
    assert [word for word in arguments if word.startswith("-ingress-class=")] == [f"-ingress-class={name}"]
    (ingress,) = of_kind(manifests_of(ingress_folder), "Ingress")
    assert ingress["spec"]["ingressClassName"] == name


def test_proxy_timeouts_allow_the_long_connections_of_headscale() -> None:
    """The connection of a Tailscale client can be idle for about a minute. The default timeout of nginx is a minute."""
    (ingress,) = of_kind(manifests_of("ingress/external"), "Ingress")
    assert ingress["metadata"]["annotations"] == {
        "nginx.org/websocket-services": "headscale",
        "nginx.org/proxy-read-timeout": "1h",
        "nginx.org/proxy-send-timeout": "1h",
        "nginx.org/proxy-buffering": "False",
    }


def test_network_policy_of_the_external_controller_allows_only_its_ports() -> None:
    (policy,) = of_kind(manifests_of("ingress/external"), "NetworkPolicy")
    (service,) = of_kind(manifests_of("ingress/external"), "Service")
    ports = [port["targetPort"] for port in service["spec"]["ports"]]
    assert 443 in [port["port"] for port in service["spec"]["ports"]]
    assert policy["spec"]["ingress"][0] == {"ports": [{"port": port} for port in ports]}
    # The VPN clients connect to the port of WireGuard, and Prometheus to the port of dns-watch.
    assert [port for rule in policy["spec"]["ingress"][1:] for port in rule["ports"]] == [
        {"protocol": "UDP", "port": 41641},
        {"protocol": "TCP", "port": 9003},
    ]


def test_internal_class_is_the_only_default_class() -> None:
    classes = of_kind(manifests_of("ingress/internal") + manifests_of("ingress/external"), "IngressClass")
    default = "ingressclass.kubernetes.io/is-default-class"
    assert {
        ingress_class["metadata"]["name"]: ingress_class["metadata"].get("annotations", {}).get(default)
        for ingress_class in classes
    } == {"nginx": "true", "nginx-external": None}


def served_certificates(documents: list[Document]) -> Iterator[tuple[str, str, str]]:
    """Iterate over the certificates that nginx serves: the Secret's namespace and name, and the host name."""
    for ingress in of_kind(documents, "Ingress"):
        for tls in ingress["spec"]["tls"]:
            # Without a secretName, the controller uses the wildcard certificate.
            secret = tls.get("secretName")
            namespace = ingress["metadata"]["namespace"] if secret else "services"
            yield from ((namespace, secret or "wildcard-tls", host) for host in tls["hosts"])
    for workload in of_kind(documents, "DaemonSet", "Deployment", "StatefulSet"):
        spec = workload["spec"]["template"]["spec"]
        for volume in spec["volumes"]:
            if volume["name"] == "tls":
                host = environment(containers(spec)["cleanup"], documents)["TS_HOSTNAME"]
                yield workload["metadata"]["namespace"], volume["secret"]["secretName"], host


def test_every_served_certificate_is_requested_for_its_host_name() -> None:
    documents = [document for name in (*FOLDERS, *WORKLOADS) for document in manifests_of(name)]
    requested = {
        (certificate["metadata"]["namespace"], certificate["spec"]["secretName"]): set(certificate["spec"]["dnsNames"])
        for certificate in of_kind(documents, "Certificate")
    }
    served = {each for name in (*FOLDERS, *WORKLOADS) for each in served_certificates(manifests_of(name))}
    assert {(namespace, secret) for namespace, secret, _ in served} == set(requested)
    # A certificate contains the host name itself, or a wildcard for the domain.
    for namespace, secret, host in served:
        assert {host, f"*.{host.partition('.')[2]}"} & requested[namespace, secret], host
    controller = containers(pod_spec(manifests_of("ingress/internal")))["nginx-ingress"]
    assert "-wildcard-tls-secret=services/wildcard-tls" in controller["args"]


def test_certificates_use_the_only_issuer_with_dns01() -> None:
    """The test compares all fields, because Kubernetes' schemas do not include cert-manager's kinds."""
    documents = [document for name in (*FOLDERS, *WORKLOADS) for document in manifests_of(name)]
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

POD_FIELDS = {
    "ingress/external": {"POD_NAME": "nginx-external-0", "NODE_NAME": "worker-1"},
    "ingress/internal": {"POD_NAME": "nginx-ingress-x", "NODE_NAME": "worker-1"},
}
"""By controller: variables with the names of an example pod and its cluster node."""
HOSTNAMES = {"ingress/external": "nginx-external-0", "ingress/internal": "nginx-ingress-worker-1"}
"""By controller: the hostname on the VPN of this example."""


def variables(name: str, container: str) -> dict[str, str]:
    """Return a container's variables as the kubelet sets them: with fields of the pod, and references replaced."""
    fields = POD_FIELDS[name] | {"POD_NAMESPACE": "ingress", "HEALTH_ADDRESS": "192.0.2.1"}
    documents = manifests_of(name)
    manifest = containers(pod_spec(documents))[container]
    rendered_values = environment(manifest, documents)
    values: dict[str, str] = {}
    # A variable can only refer to variables above it.
    for variable in (variable["name"] for variable in manifest["env"]):
        value = fields.get(variable, "") if rendered_values[variable] is None else rendered_values[variable]
        values[variable] = expand_references(value, values)
    return rendered_values | values


@pytest.mark.parametrize("name", INGRESS_CONTROLLERS)
def test_node_of_a_controller_is_named_after_the_pod_or_cluster_node(name: str) -> None:
    by_container = {container: variables(name, container) for container in (*LIFECYCLE_CONTAINERS, "tailscale")}
    assert {values["TS_HOSTNAME"] for values in by_container.values()} == {HOSTNAMES[name]}
    assert len({values["TS_KUBE_SECRET"] for values in by_container.values()}) == 1


@pytest.mark.parametrize("name", INGRESS_CONTROLLERS)
def test_variables_of_a_controller_are_valid_settings(name: str, set_variables: SetVariables) -> None:
    known = command_variables(DryRunSettings)
    for container in LIFECYCLE_CONTAINERS:
        values = variables(name, container)
        # The tailscale container reads TS_EXTRA_ARGS, and other variables refer to NODE_NAME.
        assert values.keys() <= {*known, "TS_EXTRA_ARGS", "NODE_NAME"}
        set_variables(values)
        settings = load(DryRunSettings)
        assert settings.record_name == f"{HOSTNAMES[name]}.{DOMAIN}"
        assert settings.node_policy == ("keep" if name == "ingress/internal" else "replace")


def test_health_port_of_the_internal_controller_is_not_on_the_vpn() -> None:
    """dns-watch listens on the pod's address only. On the host network, this is the address of the cluster node."""
    spec = pod_spec(manifests_of("ingress/internal"))
    (address,) = [variable for variable in containers(spec)["dns-watch"]["env"] if variable["name"] == "HEALTH_ADDRESS"]
    assert address["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert spec["hostNetwork"]
    # Without the field `host`, the kubelet connects to the pod's address.
    assert "host" not in containers(spec)["dns-watch"]["livenessProbe"]["httpGet"]


def test_tailscale_on_the_host_network_changes_neither_firewall_nor_resolver() -> None:
    values = variables("ingress/internal", "tailscale")
    assert "--netfilter-mode=off" in values["TS_EXTRA_ARGS"].split()
    assert values["TS_ACCEPT_DNS"] == "false"


def test_internal_controller_can_create_a_state_secret_for_each_cluster_node() -> None:
    documents = manifests_of("ingress/internal")
    spec = pod_spec(documents)
    (role,) = [role for role in of_kind(documents, "Role") if role["metadata"]["name"] == "nginx-ingress-state"]
    (secrets,) = [rule for rule in role["rules"] if rule["resources"] == ["secrets"]]
    assert "resourceNames" not in secrets
    assert sorted(secrets["verbs"]) == ["create", "get", "patch", "update"]
    (binding,) = [
        binding for binding in of_kind(documents, "RoleBinding") if binding["metadata"]["name"] == "nginx-ingress-state"
    ]
    assert [subject["name"] for subject in binding["subjects"]] == [spec["serviceAccountName"]]


def test_prune_of_the_internal_controller_owns_the_records_of_its_pods(set_variables: SetVariables) -> None:
    """The comment (`mark`) of each record contains the owner: the pod's namespace, unless DNS_OWNER is set."""
    documents = manifests_of("ingress/internal")
    (job,) = of_kind(documents, "CronJob")
    namespace = job["metadata"]["namespace"]
    assert namespace == workload_resource(documents)["metadata"]["namespace"]
    set_variables(config_map_data(documents, "lifecycle-prune"))
    assert load(PruneSettings).mark == f"tailscale-lifecycle/1 {namespace}"
    assert "DNS_OWNER" not in variables("ingress/internal", "cleanup")


def test_external_controller_serves_the_login_server_without_the_vpn() -> None:
    """tailscale logs in through nginx in the same pod, so nginx must be reachable before tailscale is ready."""
    documents = manifests_of("ingress/external")
    spec = pod_spec(documents)
    assert [container["name"] for container in spec["initContainers"]] == ["cleanup", "copy-configuration"]
    assert not {"startupProbe", "readinessProbe"} & containers(spec)["tailscale"].keys()
    (ingress,) = of_kind(documents, "Ingress")
    assert spec["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ingress["spec"]["tls"][0]["hosts"]}]


def test_headscale_ui_and_the_api_have_the_same_host() -> None:
    (ingress,) = of_kind(manifests_of("ingress/headscale-ui"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    backends = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert backends == {"/": "headscale-ui", "/api/": "headscale"}

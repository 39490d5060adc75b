"""Everything in deploy/ that an operator applies: it renders, Kubernetes takes it, and its parts fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lifecycle.settings.models import DryRunSettings, command_variables, load
from tests.pod.rendering import (
    DEPLOY,
    DOMAIN,
    OTHERS,
    OURS,
    ROOT,
    SERVICES,
    SHIPPED,
    VARIANTS,
    WITH_PODS,
    Document,
    Variant,
    configuration,
    containers,
    copied,
    images,
    new_service,
    of_kind,
    pod_spec,
    render,
    rendered,
    workload,
)
from tests.pod.tailscale_container import health_address

NEWEST = kubernetes_validate.latest_version().rpartition(".")[0]
OLDEST_NATIVE = "1.29"
"""Where native sidecars are on by themselves."""
OLDEST_PLAIN = "1.25"
"""The oldest that there are schemas for."""
OLDEST = {"freeipa": "1.33"}
"""What says itself that it needs a newer one."""

WITHOUT_SCHEMA = {"Certificate", "ClusterIssuer"}
"""Kinds that Kubernetes itself does not know."""

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"

# Not ours: variables of the pod's name and place, and those that Kubernetes or the tailscale container reads.
TAILSCALE_VARIABLES = {
    "POD_NAME",
    "POD_UID",
    "TS_ACCEPT_DNS",
    "TS_AUTHKEY",
    "TS_AUTH_ONCE",
    "TS_DEBUG_FIREWALL_MODE",
    "TS_ENABLE_HEALTH_CHECK",
    "TS_EXTRA_ARGS",
    "TS_HOSTNAME",
    "TS_KUBERNETES_READ_API_SERVER_ADDRESS_FROM_ENV",
    "TS_KUBE_SECRET",
    "TS_LOCAL_ADDR_PORT",
    "TS_TAILSCALED_EXTRA_ARGS",
    "TS_USERSPACE",
}


def environment(container: Document, documents: list[Document]) -> dict[str, Any]:
    """A container's variables with the values they get; what only a pod knows is None."""
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
    values: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        values |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            values[variable["name"]] = maps[reference["name"]][reference["key"]]
        else:
            values[variable["name"]] = variable.get("value")
    return values


def holders(spec: Document, place: str) -> set[str]:
    """The containers that have something mounted there."""
    return {
        name
        for name, container in containers(spec).items()
        if any(mount["mountPath"] == place for mount in container.get("volumeMounts", []))
    }


def test_every_folder_with_a_kustomization_is_among_those_tested() -> None:
    """The base and the components are no kustomizations to apply, the template is none yet."""
    ours = ("cert-manager", "ingress", "services")
    found = {
        str(path.parent.relative_to(DEPLOY))
        for path in DEPLOY.rglob("kustomization.yaml")
        if path.relative_to(DEPLOY).parts[0] in ours
    }
    parts = {"ingress/controller", "ingress/external/controller", "ingress/external/headscale", "services/_template"}
    assert found - parts == {*OTHERS, *(f"services/{service}" for service in SHIPPED)}


@pytest.mark.parametrize(("name", "variant"), [*((name, "native") for name in OTHERS), *VARIANTS])
@pytest.mark.parametrize("newest", [True, False], ids=["newest", "oldest"])
def test_kubernetes_takes_it(name: str, variant: Variant, newest: bool) -> None:
    """Strictly: a field that does not exist is an error, where a cluster may drop it without a word."""
    oldest = OLDEST.get(name, OLDEST_NATIVE if variant == "native" else OLDEST_PLAIN)
    for document in rendered(name, variant):
        if document["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(document, NEWEST if newest else oldest, strict=True)


def test_an_old_kubernetes_would_not_take_a_native_sidecar() -> None:
    """So the schemas tell versions apart."""
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicy"):
        kubernetes_validate.validate(workload(rendered("ollama")), "1.27", strict=True)


@pytest.mark.parametrize("service", SERVICES)
def test_native_sidecars_start_in_order_and_the_rest_comes_after_them(service: str) -> None:
    """Whatever an overlay patches: with tailscale before cleanup, neither would ever start."""
    spec = pod_spec(rendered(service))
    first = [(container["name"], container.get("restartPolicy")) for container in spec["initContainers"]]
    assert first == [("cleanup", None), ("tailscale", "Always"), ("dns-watch", "Always")]
    own = {"freeipa": {"application"}, "redmine": {"nginx-tls", "application", "database"}}
    assert {container["name"] for container in spec["containers"]} == own.get(service, {"nginx-tls", "application"})
    # dns-watch starts when tailscale's startup probe has passed.
    assert "startupProbe" in containers(spec)["tailscale"]


def test_the_two_variants_differ_in_nothing_but_the_place() -> None:
    native, plain = pod_spec(rendered("grafana")), pod_spec(rendered("grafana", "plain"))
    moved = containers(native)
    for name in ("tailscale", "dns-watch"):
        assert moved[name].pop("restartPolicy") == "Always"
    assert moved == containers(plain)
    assert [container["name"] for container in plain["initContainers"]] == ["cleanup"]
    for spec in (native, plain):
        del spec["initContainers"], spec["containers"]
    assert native == plain


@pytest.mark.parametrize("variant", ["native", "plain"])
@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_any_workload_with_a_tailscale_container_can_be_made_to_manage_itself(
    kind: str, variant: str, tmp_path: Path
) -> None:
    """One that knows nothing of our base."""
    copied(tmp_path)
    folder = tmp_path / "deploy/theirs"
    folder.mkdir()
    pod = {
        "initContainers": [{"name": "prepare", "image": "docker.io/a/prepare:1"}],
        "containers": [
            {"name": "wiki", "image": "docker.io/a/wiki:1"},
            {"name": "tailscale", "image": "docker.io/tailscale/tailscale:v1.102.3"},
        ],
    }
    theirs = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "wiki"},
        "spec": {
            "selector": {"matchLabels": {"app": "wiki"}},
            "template": {"metadata": {"labels": {"app": "wiki"}}, "spec": pod},
            **({"serviceName": "wiki"} if kind == "StatefulSet" else {"strategy": {"type": "Recreate"}}),
        },
    }
    (folder / "wiki.yaml").write_text(yaml.safe_dump(theirs))
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["wiki.yaml"], "components": [f"../components/lifecycle/{variant}"]})
    )
    documents = render(folder)
    for document in documents:
        kubernetes_validate.validate(document, NEWEST, strict=True)
    spec = pod_spec(documents)
    starts = [container["name"] for container in spec["initContainers"]]
    assert starts == (
        ["cleanup", "tailscale", "dns-watch", "prepare"] if variant == "native" else ["cleanup", "prepare"]
    )
    assert set(containers(spec)) == {"cleanup", "dns-watch", "prepare", "tailscale", "wiki"}
    assert containers(spec)["tailscale"]["image"] == "docker.io/tailscale/tailscale:v1.102.3"
    # Only their own choice of NODE_POLICY or HEADSCALE_ACCESS gives ours a token.
    assert holders(spec, TOKEN) == {"tailscale"}


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_every_variable_is_a_setting_and_the_settings_are_right(
    service: str, variant: Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = rendered(service, variant)
    ours = {name: environment(containers(pod_spec(documents))[name], documents) for name in OURS}
    known = command_variables(DryRunSettings)
    assert {variable for values in ours.values() for variable in values} <= set(known)
    secret = tmp_path / "secret"
    secret.write_text("made-up")
    for variable, value in ours["cleanup"].items():
        monkeypatch.setenv(variable, str(secret) if variable.endswith("_FILE") else value or "services")
    monkeypatch.setenv("POD_NAME", f"{service}-0")
    settings = load(DryRunSettings)
    assert settings.access == "api"
    assert settings.record_name == f"{service}.{DOMAIN}"
    assert (settings.node_policy, settings.dns_cleanup, settings.self_heal) == ("keep", "keep", True)
    assert settings.headscale_user


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_tailscale_is_told_what_ours_rely_on(service: str, variant: Variant) -> None:
    documents = rendered(service, variant)
    every = containers(pod_spec(documents))
    told = environment(every["tailscale"], documents)
    ours = environment(every["cleanup"], documents)
    assert set(told) == TAILSCALE_VARIABLES
    assert (told["TS_HOSTNAME"], told["TS_KUBE_SECRET"]) == (ours["TS_HOSTNAME"], ours["TS_KUBE_SECRET"])
    assert (told["TS_USERSPACE"], told["TS_AUTH_ONCE"], told["TS_ACCEPT_DNS"]) == ("false", "true", "false")
    assert health_address(told) == ("127.0.0.1", 9002)
    assert told["TS_AUTHKEY"] == f"file:{command_variables(DryRunSettings)['AUTHKEY_OUTPUT_PATH'].default}"


@pytest.mark.parametrize("wrong", ["localhost:9002", ":9002", "9002"])
def test_an_address_that_tailscale_would_end_over_ends_its_stand_in(wrong: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        health_address({"TS_LOCAL_ADDR_PORT": wrong})


@pytest.mark.parametrize("service", SERVICES)
def test_the_state_secret_is_there_and_its_rights_are_to_it_alone(service: str) -> None:
    documents = rendered(service)
    (secret,) = of_kind(documents, "Secret")
    (role,) = of_kind(documents, "Role")
    (binding,) = of_kind(documents, "RoleBinding")
    spec = pod_spec(documents)
    name = environment(containers(spec)["tailscale"], documents)["TS_KUBE_SECRET"]
    assert secret["metadata"]["name"] == name
    assert "data" not in secret
    assert "stringData" not in secret
    (secrets,) = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
    assert (secrets["resourceNames"], sorted(secrets["verbs"])) == ([name], ["get", "patch", "update"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [spec["serviceAccountName"]]


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_the_token_is_tailscales_and_cleanups(service: str, variant: Variant) -> None:
    """cleanup's for NODE_POLICY=keep; Argo CD is a client of the Kubernetes API itself."""
    spec = pod_spec(rendered(service, variant))
    assert spec["automountServiceAccountToken"] is False
    assert holders(spec, TOKEN) == {"cleanup", "tailscale"} | ({"application"} if service == "argocd" else set())


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_the_key_is_in_memory_and_its_folder_is_mounted_where_it_is_used(service: str, variant: Variant) -> None:
    spec = pod_spec(rendered(service, variant))
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tailscale-auth"]
    assert volume["emptyDir"]["medium"] == "Memory"
    mounts = {
        name: mount
        for name, container in containers(spec).items()
        for mount in container.get("volumeMounts", [])
        if mount["name"] == "tailscale-auth"
    }
    assert set(mounts) == {"cleanup", "dns-watch", "tailscale"}
    assert all("subPath" not in mount for mount in mounts.values())
    assert {name for name, mount in mounts.items() if mount.get("readOnly")} == {"tailscale"}
    # Without DAC_OVERRIDE, root reads another user's 0640 only as a member of its group.
    group = spec["securityContext"].get("fsGroup") or spec["securityContext"]["supplementalGroups"][0]
    assert group == containers(spec)["cleanup"]["securityContext"]["runAsGroup"]


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_no_secret_reaches_a_container_that_does_not_need_it(service: str, variant: Variant) -> None:
    assert holders(pod_spec(rendered(service, variant)), "/run/secrets/lifecycle") == set(OURS)


@pytest.mark.parametrize("service", SERVICES)
def test_never_two_pods_at_once(service: str) -> None:
    only = workload(rendered(service))
    assert only["spec"]["replicas"] == 1
    if only["kind"] != "StatefulSet":
        assert only["spec"]["strategy"] == {"type": "Recreate"}
    assert only["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_no_probe_meets_the_allow_list(service: str, variant: Variant) -> None:
    """The kubelet comes from the cluster node's address: 403, which is a failure, on 80 and 443."""
    for name, container in containers(pod_spec(rendered(service, variant))).items():
        named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            port = probe.get("httpGet", {}).get("port")
            assert named.get(port, port) in {None, 9003, 9004}, f"{name}: {kind}"
            assert "tcpSocket" not in probe, f"{name}: {kind}"


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_no_readiness_probe_looks_at_readyz(service: str, variant: Variant) -> None:
    """Cloudflare being down takes no service out."""
    assert "readyz" not in yaml.safe_dump(pod_spec(rendered(service, variant)))
    assert "readinessProbe" not in containers(pod_spec(rendered(service, variant)))["dns-watch"]


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_everything_that_is_mounted_is_there(service: str, variant: Variant) -> None:
    documents = rendered(service, variant)
    only, spec = workload(documents), pod_spec(documents)
    claims = [claim["metadata"]["name"] for claim in only["spec"].get("volumeClaimTemplates", [])]
    there = [*claims, *(volume["name"] for volume in spec["volumes"])]
    assert len(there) == len(set(there))
    mounted = {mount["name"] for container in containers(spec).values() for mount in container.get("volumeMounts", [])}
    assert mounted <= set(there)
    maps = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
    for volume in spec["volumes"]:
        name = volume.get("configMap", {}).get("name")
        assert name is None or name in maps or name.startswith("argocd-"), f"{name} is nobody's"


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_called_by_its_name_throughout(service: str) -> None:
    """Several services share a namespace."""
    documents = rendered(service)
    only = workload(documents)
    label = only["spec"]["selector"]["matchLabels"]
    assert only["metadata"]["name"] == service
    assert only["spec"]["template"]["metadata"]["labels"] == label
    (policy,) = of_kind(documents, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == label
    for document in documents:
        assert document["metadata"]["name"] != "service"
        assert document["metadata"]["namespace"] == only["metadata"]["namespace"]
    if only["kind"] == "StatefulSet":
        (governing,) = of_kind(documents, "Service")
        assert only["spec"]["serviceName"] == governing["metadata"]["name"]
        assert governing["spec"]["selector"] == label


def test_an_image_is_pinned_to_a_version() -> None:
    """Ours is the one that every cluster node builds for itself, under a name that no registry has."""
    every = {image for name in [*OTHERS, *SERVICES] for image in images(rendered(name))}
    assert "localhost/tailscale-lifecycle:latest" in every
    for image in every - {"localhost/tailscale-lifecycle:latest"}:
        assert re.fullmatch(
            r"[a-z0-9.-]+\.[a-z]+(:\d+)?/[a-z0-9._/-]+:[a-z-]*v?\d+(-\d+)?(\.\d+)+(-[a-z0-9.-]+)?", image
        ), image


@pytest.mark.parametrize("service", SERVICES)
def test_nginx_and_the_settings_agree_on_what_the_vpn_is(service: str) -> None:
    lines = configuration(rendered(service), "nginx")["vpn-prefixes.conf"].splitlines()
    prefixes = {ip_network(line.split()[0]) for line in lines if not line.startswith("#")}
    assert prefixes == set(command_variables(DryRunSettings)["VPN_PREFIXES"].default)


def test_the_internal_controller_agrees_with_them() -> None:
    snippet = configuration(rendered("ingress/internal"), "nginx-config")["http-snippets"]
    prefixes = {ip_network(found) for found in re.findall(r"[0-9a-f.:]+/\d+", snippet)}
    assert prefixes == set(command_variables(DryRunSettings)["VPN_PREFIXES"].default)


def test_only_enrolment_is_published() -> None:
    """Neither the API nor the metrics, nor a path that would have them below it."""
    (ingress,) = of_kind(rendered("ingress/external"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    published = {path["path"]: path["pathType"] for path in rule["http"]["paths"]}
    assert published["/ts2021"] == "Exact"
    assert not [path for path in published if "/api/v1/node".startswith(path) or "/metrics".startswith(path)]
    assert ingress["metadata"]["annotations"]["nginx.org/websocket-services"] == "headscale"


def test_the_external_controller_has_rights_in_two_namespaces_only() -> None:
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
def test_a_controller_serves_the_class_that_it_brings_and_its_ingresses_name(name: str, ingress: str) -> None:
    (brought,) = of_kind(rendered(name), "IngressClass")
    (container,) = pod_spec(rendered(name))["containers"]
    assert [word for word in container["args"] if word.startswith("-ingress-class=")] == [
        f"-ingress-class={brought['metadata']['name']}"
    ]
    (only,) = of_kind(rendered(ingress), "Ingress")
    assert only["spec"]["ingressClassName"] == brought["metadata"]["name"]


def test_headscale_s_long_connections_are_left_alone() -> None:
    """A client's is an upgrade that may say nothing for a minute; nginx' own limit is a minute."""
    (ingress,) = of_kind(rendered("ingress/external"), "Ingress")
    assert ingress["metadata"]["annotations"] == {
        "nginx.org/websocket-services": "headscale",
        "nginx.org/proxy-read-timeout": "1h",
        "nginx.org/proxy-send-timeout": "1h",
        "nginx.org/proxy-buffering": "False",
    }


@pytest.mark.parametrize("service", SERVICES)
def test_from_outside_the_vpn_only_wireguard_and_the_metrics_are_let_in(service: str) -> None:
    documents = rendered(service)
    (policy,) = of_kind(documents, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert policy["spec"]["ingress"] == [
        {"ports": [{"protocol": "UDP", "port": 41641}]},
        {"from": [monitoring], "ports": [{"protocol": "TCP", "port": 9003}]},
    ]
    spec = pod_spec(documents)
    tailscale = environment(containers(spec)["tailscale"], documents)
    assert "--port=41641" in tailscale["TS_TAILSCALED_EXTRA_ARGS"].split()
    assert [port["containerPort"] for port in containers(spec)["dns-watch"]["ports"]] == [9003]


def test_nobody_but_the_load_balancer_s_clients_reaches_the_external_controller() -> None:
    (policy,) = of_kind(rendered("ingress/external"), "NetworkPolicy")
    (service,) = of_kind(rendered("ingress/external"), "Service")
    ports = [port["targetPort"] for port in service["spec"]["ports"]]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": port} for port in ports]}]


@pytest.mark.parametrize(("name", "variant"), [*((name, "native") for name in WITH_PODS), *VARIANTS])
def test_what_ended_says_why(name: str, variant: Variant) -> None:
    """In `kubectl describe`: its own last words, or the end of its log."""
    every = containers(pod_spec(rendered(name, variant)))
    assert {each["terminationMessagePolicy"] for each in every.values()} == {"FallbackToLogsOnError"}
    assert not [each for each in every.values() if "terminationMessagePath" in each]


PROBES = {
    ("tailscale", "startupProbe"): "http://127.0.0.1:9002/healthz",
    ("tailscale", "livenessProbe"): "http://127.0.0.1:9003/nodez",
    ("dns-watch", "livenessProbe"): "/livez",
    ("nginx-tls", "livenessProbe"): "/nginx",
    ("nginx-tls", "readinessProbe"): "/nginx",
    ("application", "startupProbe"): "/application",
    ("application", "livenessProbe"): "/application",
    ("application", "readinessProbe"): "/application",
}
"""What each asks; FreeIPA's application is asked through systemd."""


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_every_probe_asks_at_a_path_that_somebody_answers(service: str, variant: Variant) -> None:
    every = containers(pod_spec(rendered(service, variant)))
    for (name, kind), path in PROBES.items():
        probe = every.get(name, {}).get(kind)
        if probe is None or (service == "freeipa" and name == "application"):
            assert service == "freeipa"
        elif "httpGet" in probe:
            assert probe["httpGet"]["path"] == path
        else:
            words = " ".join(probe["exec"]["command"]).split()
            assert [word for word in words if word.startswith("http://")] == [path]


def test_one_class_is_the_default_and_it_is_the_internal_one() -> None:
    classes = of_kind(rendered("ingress/internal") + rendered("ingress/external"), "IngressClass")
    default = [
        name["metadata"]["name"]
        for name in classes
        if name["metadata"].get("annotations", {}).get("ingressclass.kubernetes.io/is-default-class") == "true"
    ]
    assert default == ["nginx"]
    assert {name["metadata"]["name"] for name in classes} == {"nginx", "nginx-external"}


def test_no_rule_has_a_wildcard() -> None:
    for name in [*OTHERS, *SERVICES]:
        for role in of_kind(rendered(name), "Role", "ClusterRole"):
            for rule in role["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def served(documents: list[Document]) -> Iterator[tuple[str, str, str]]:
    """What is served with a certificate: the namespace and name of its Secret, and the host's name."""
    for ingress in of_kind(documents, "Ingress"):
        for tls in ingress["spec"]["tls"]:
            # Without a Secret of its own, the controller's wildcard.
            secret = tls.get("secretName")
            namespace = ingress["metadata"]["namespace"] if secret else "services"
            yield from ((namespace, secret or "wildcard-tls", host) for host in tls["hosts"])
    for only in of_kind(documents, "Deployment", "StatefulSet"):
        spec = only["spec"]["template"]["spec"]
        for volume in spec["volumes"]:
            if volume["name"] == "tls":
                host = environment(containers(spec)["cleanup"], documents)["TS_HOSTNAME"]
                yield only["metadata"]["namespace"], volume["secret"]["secretName"], host


def test_every_certificate_that_is_served_is_made_and_has_the_host_s_name() -> None:
    documents = [document for name in (*OTHERS, *SERVICES) for document in rendered(name)]
    made = {
        (certificate["metadata"]["namespace"], certificate["spec"]["secretName"]): set(certificate["spec"]["dnsNames"])
        for certificate in of_kind(documents, "Certificate")
    }
    used = {found for name in (*OTHERS, *SERVICES) for found in served(rendered(name))}
    assert {(namespace, secret) for namespace, secret, _ in used} == set(made)
    for namespace, secret, host in used:
        assert {host, f"*.{host.partition('.')[2]}"} & made[namespace, secret], host
    (arguments,) = [container["args"] for container in pod_spec(rendered("ingress/internal"))["containers"]]
    assert "-wildcard-tls-secret=services/wildcard-tls" in arguments


def test_every_certificate_is_asked_of_the_one_issuer_which_proves_the_domain_by_dns() -> None:
    """To the letter: Kubernetes' own schemas know nothing of these two kinds."""
    documents = [document for name in (*OTHERS, *SERVICES) for document in rendered(name)]
    (issuer,) = of_kind(documents, "ClusterIssuer")
    for certificate in of_kind(documents, "Certificate"):
        spec = certificate["spec"]
        assert set(spec) == {"secretName", "dnsNames", "privateKey", "issuerRef"}
        assert spec["issuerRef"] == {"kind": "ClusterIssuer", "name": issuer["metadata"]["name"]}
        assert spec["privateKey"] == {"algorithm": "ECDSA", "rotationPolicy": "Always"}
    acme = issuer["spec"].pop("acme")
    assert issuer["spec"] == {}
    assert set(acme) == {"server", "privateKeySecretRef", "solvers"}
    assert acme["solvers"] == [
        {
            "dns01": {"cloudflare": {"apiTokenSecretRef": {"name": "cloudflare", "key": "api-token"}}},
            "selector": {"dnsZones": [DOMAIN]},
        }
    ]


# --- scripts/new-service ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(("Wiki", "docker.io/a/wiki:1.2", "8080"), id="name-in-capitals"),
        pytest.param(("wiki-", "docker.io/a/wiki:1.2", "8080"), id="name-ends-in-a-hyphen"),
        pytest.param(("w" * 53, "docker.io/a/wiki:1.2", "8080"), id="name-too-long"),
        pytest.param(("4wiki", "docker.io/a/wiki:1.2", "8080"), id="no-name-for-a-kubernetes-service"),
        pytest.param(("", "docker.io/a/wiki:1.2", "8080"), id="no-name"),
        pytest.param(("_template", "docker.io/a/wiki:1.2", "8080"), id="the-template"),
        pytest.param(("grafana", "docker.io/a/wiki:1.2", "8080"), id="there-already"),
        pytest.param(("wiki", "docker.io/a/wiki", "8080"), id="no-tag"),
        pytest.param(("wiki", "registry.example.com:5000/wiki", "8080"), id="a-port-is-no-tag"),
        pytest.param(("wiki", "docker.io/a/wiki:latest", "8080"), id="a-tag-that-moves"),
        pytest.param(("wiki", "docker.io/a/wiki:main", "8080"), id="a-branch"),
        pytest.param(("wiki", "docker.io/a/wiki:", "8080"), id="an-empty-tag"),
        pytest.param(("wiki", "wiki:1.2", "8080"), id="no-registry"),
        pytest.param(("wiki", "a/wiki:1.2", "8080"), id="still-no-registry"),
        pytest.param(("wiki", "docker.io/a/wiki:1|2", "8080"), id="no-image"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2\ndocker.io/a/wiki:1.2", "8080"), id="two-images"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "http"), id="no-port"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "443"), id="nginx-has-that-port"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "70000"), id="a-port-too-high"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "data"), id="no-path"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "/"), id="the-root"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "/tmp"), id="a-path-that-is-taken"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "/data/../tmp"), id="the-same-by-a-detour"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2"), id="too-few"),
    ],
)
def test_a_new_service_that_could_not_work_is_refused(wrong: tuple[str, ...], tmp_path: Path) -> None:
    before = sorted(copied(tmp_path).rglob("*"))
    done = new_service(tmp_path, *wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/new-service: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("volume", "mounts"),
    [
        pytest.param((), {"data": "/data", "application-tmp": "/tmp"}, id="by-default"),
        pytest.param(("/srv/wiki",), {"data": "/srv/wiki", "application-tmp": "/tmp"}, id="said"),
        pytest.param(("-",), {"application-tmp": "/tmp"}, id="none"),
    ],
)
def test_a_new_service_keeps_its_data_where_it_says(
    volume: tuple[str, ...], mounts: dict[str, str], tmp_path: Path
) -> None:
    folder = copied(tmp_path) / "deploy/services/wiki"
    image = "registry.example.com:5000/a_team/wiki:v1.2.3-alpine"
    done = new_service(tmp_path, "wiki", image, "65535", *volume)
    assert done.returncode == 0, done.stderr
    documents = render(folder)
    for document in documents:
        kubernetes_validate.validate(document, NEWEST, strict=True)
    only, application = workload(documents), containers(pod_spec(documents))["application"]
    assert application["image"] == image
    assert {mount["name"]: mount["mountPath"] for mount in application["volumeMounts"]} == mounts
    claims = [claim["metadata"]["name"] for claim in only["spec"].get("volumeClaimTemplates", [])]
    assert claims == ["data"] * ("data" in mounts)
    assert configuration(documents, "nginx")["application.conf"] == "proxy_pass http://127.0.0.1:65535;"


def test_the_script_leaves_nothing_of_the_template_to_fill_in() -> None:
    for file in (DEPLOY / "services/_template").iterdir():
        for marker in re.findall(r"SERVICE_[A-Z]+", file.read_text()):
            assert marker in (ROOT / "scripts/new-service").read_text()

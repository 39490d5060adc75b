"""Test that the manifests in deploy/ render, match the Kubernetes schemas, and are consistent."""

from __future__ import annotations

import re
import subprocess
from ipaddress import ip_network
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lifecycle.settings.load import load
from lifecycle.settings.models import DryRunSettings, command_variables
from tests.pod.rendering import (
    DEPLOY,
    DOMAIN,
    NEWEST,
    OTHERS,
    OURS,
    SHIPPED,
    VARIANTS,
    WITH_PODS,
    WORKLOADS,
    Document,
    Variant,
    configuration,
    containers,
    environment,
    images,
    of_kind,
    pod_spec,
    render,
    rendered,
    workload_resource,
)
from tests.pod.tailscale_container import health_address

OLDEST_NATIVE = "1.29"
"""Native sidecars are enabled by default since this version."""
OLDEST_PLAIN = "1.25"
"""The oldest version that there are schemas for."""
OLDEST = {"freeipa": "1.35"}
"""Workloads that document a newer minimum version."""

WITHOUT_SCHEMA = {"Certificate", "ClusterIssuer"}
"""Kinds that Kubernetes' schemas do not include."""

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"

# All variables of the tailscale container.
TAILSCALE_VARIABLES = {
    "POD_NAME",
    "POD_NAMESPACE",
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
    "TS_SOCKET",
    "TS_STATE_DIR",
    "TS_TAILSCALED_EXTRA_ARGS",
    "TS_USERSPACE",
    "TS_USE_CACHED_NETMAP",
}


def containers_with_mount(spec: Document, path: str) -> set[str]:
    """Return the containers that mount a volume at a path."""
    return {
        name
        for name, container in containers(spec).items()
        if any(mount["mountPath"] == path for mount in container.get("volumeMounts", []))
    }


def test_every_applicable_folder_is_tested() -> None:
    """Components, the base and the template are not applied directly, so they are tested through other folders."""
    ours = ("cert-manager", "ingress", "services")
    found = {
        str(path.parent.relative_to(DEPLOY))
        for path in DEPLOY.rglob("kustomization.yaml")
        if path.relative_to(DEPLOY).parts[0] in ours
    }
    parts = {
        "ingress/controller",
        "ingress/external/controller",
        "ingress/external/headscale",
        "ingress/external/vpn",
        "services/_template",
        "services/argocd/only-the-server",
    }
    assert found - parts == {*OTHERS, *(f"services/{name}" for name in SHIPPED)}


@pytest.mark.full
@pytest.mark.parametrize(("name", "variant"), [*((name, "native") for name in OTHERS), *VARIANTS])
@pytest.mark.parametrize("newest", [True, False], ids=["newest", "oldest"])
def test_manifests_match_the_schemas(name: str, variant: Variant, newest: bool) -> None:
    """Validate strictly: clusters may silently drop unknown fields."""
    oldest = OLDEST.get(name, OLDEST_NATIVE if variant == "native" else OLDEST_PLAIN)
    for document in rendered(name, variant):
        if document["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(document, NEWEST if newest else oldest, strict=True)


def test_schema_of_an_old_version_rejects_native_sidecars() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicy"):
        kubernetes_validate.validate(workload_resource(rendered("ollama")), "1.27", strict=True)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_native_sidecars_are_in_order_before_other_containers(workload: str) -> None:
    """With tailscale before cleanup, the pod would never start."""
    spec = pod_spec(rendered(workload))
    first = [(container["name"], container.get("restartPolicy")) for container in spec["initContainers"]]
    before = [("copy-models", None)] if workload == "open-webui" else []
    assert first == [*before, ("cleanup", None), ("tailscale", "Always"), ("dns-watch", "Always")]
    own = {
        "argocd": {"nginx-tls", "argocd-server"},
        "freeipa": {"application"},
        "redmine": {"nginx-tls", "application", "database"},
    }
    assert {container["name"] for container in spec["containers"]} == own.get(workload, {"nginx-tls", "application"})
    # The kubelet starts dns-watch after tailscale's startup probe has passed.
    assert "startupProbe" in containers(spec)["tailscale"]


def test_variants_have_the_same_containers() -> None:
    native, plain = pod_spec(rendered("grafana")), pod_spec(rendered("grafana", "plain"))
    moved = containers(native)
    for name in ("tailscale", "dns-watch"):
        assert moved[name].pop("restartPolicy") == "Always"
    assert moved == containers(plain)
    assert [container["name"] for container in plain["initContainers"]] == ["cleanup"]
    for spec in (native, plain):
        del spec["initContainers"], spec["containers"]
    assert native == plain


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_variables_are_valid_settings(
    workload: str, variant: Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = rendered(workload, variant)
    ours = {name: environment(containers(pod_spec(documents))[name], documents) for name in OURS}
    known = command_variables(DryRunSettings)
    # The tailscale container reads TS_EXTRA_ARGS from the same ConfigMap.
    assert {variable for values in ours.values() for variable in values} <= {*known, "TS_EXTRA_ARGS"}
    secret = tmp_path / "secret"
    secret.write_text("made-up")
    for variable, value in ours["cleanup"].items():
        monkeypatch.setenv(variable, str(secret) if variable.endswith("_FILE") else value or "services")
    monkeypatch.setenv("POD_NAME", f"{workload}-0")
    settings = load(DryRunSettings)
    assert settings.access == "api"
    assert settings.record_name == f"{workload}.{DOMAIN}"
    assert (settings.node_policy, settings.dns_cleanup, settings.self_heal) == ("keep", "keep", True)
    assert settings.headscale_user


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_tailscale_settings_match_the_settings_of_cleanup(workload: str, variant: Variant) -> None:
    documents = rendered(workload, variant)
    every = containers(pod_spec(documents))
    tailscale = environment(every["tailscale"], documents)
    ours = environment(every["cleanup"], documents)
    assert set(tailscale) == TAILSCALE_VARIABLES
    assert (tailscale["TS_HOSTNAME"], tailscale["TS_KUBE_SECRET"]) == (ours["TS_HOSTNAME"], ours["TS_KUBE_SECRET"])
    assert (tailscale["TS_USERSPACE"], tailscale["TS_AUTH_ONCE"], tailscale["TS_ACCEPT_DNS"]) == (
        "false",
        "true",
        "false",
    )
    assert health_address(tailscale) == ("127.0.0.1", 9002)
    assert tailscale["TS_AUTHKEY"] == f"file:{command_variables(DryRunSettings)['AUTHKEY_OUTPUT_PATH'].default}"


@pytest.mark.parametrize("wrong", ["localhost:9002", ":9002", "9002"])
def test_stand_in_rejects_health_addresses_that_tailscale_rejects(wrong: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        health_address({"TS_LOCAL_ADDR_PORT": wrong})


@pytest.mark.parametrize("workload", WORKLOADS)
def test_role_allows_access_to_the_state_secret_only(workload: str) -> None:
    documents = rendered(workload)
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


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_only_containers_that_need_the_token_mount_it(workload: str, variant: Variant) -> None:
    """cleanup needs it for NODE_POLICY=keep. Argo CD is a client of the Kubernetes API."""
    spec = pod_spec(rendered(workload, variant))
    assert spec["automountServiceAccountToken"] is False
    assert containers_with_mount(spec, TOKEN) == {"cleanup", "tailscale"} | (
        {"argocd-server"} if workload == "argocd" else set()
    )


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_key_volume_is_in_memory_and_readable_by_tailscale(workload: str, variant: Variant) -> None:
    spec = pod_spec(rendered(workload, variant))
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tailscale-lifecycle-auth"]
    assert volume["emptyDir"]["medium"] == "Memory"
    mounts = {
        name: mount
        for name, container in containers(spec).items()
        for mount in container.get("volumeMounts", [])
        if mount["name"] == "tailscale-lifecycle-auth"
    }
    assert set(mounts) == {"cleanup", "dns-watch", "tailscale"}
    assert all("subPath" not in mount for mount in mounts.values())
    assert {name for name, mount in mounts.items() if mount.get("readOnly")} == {"tailscale"}
    # Without DAC_OVERRIDE, root can read a 0640 file of another user only as a member of its group.
    group = spec["securityContext"].get("fsGroup") or spec["securityContext"]["supplementalGroups"][0]
    assert group == containers(spec)["cleanup"]["securityContext"]["runAsGroup"]


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_only_our_containers_mount_the_secret(workload: str, variant: Variant) -> None:
    assert containers_with_mount(pod_spec(rendered(workload, variant)), "/run/secrets/lifecycle") == set(OURS)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_two_pods_never_run_at_the_same_time(workload: str) -> None:
    only = workload_resource(rendered(workload))
    assert only["spec"]["replicas"] == 1
    if only["kind"] != "StatefulSet":
        assert only["spec"]["strategy"] == {"type": "Recreate"}
    assert only["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_probes_do_not_use_ports_with_an_allow_list(workload: str, variant: Variant) -> None:
    """On ports 80 and 443, the kubelet would get 403, because it connects from the cluster node's address."""
    for name, container in containers(pod_spec(rendered(workload, variant))).items():
        named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            port = probe.get("httpGet", {}).get("port")
            assert named.get(port, port) in {None, 9003, 9004}, f"{name}: {kind}"
            assert "tcpSocket" not in probe, f"{name}: {kind}"


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_readiness_does_not_depend_on_readyz(workload: str, variant: Variant) -> None:
    """A Cloudflare outage must not make pods unready."""
    assert "readyz" not in yaml.safe_dump(pod_spec(rendered(workload, variant)))
    assert "readinessProbe" not in containers(pod_spec(rendered(workload, variant)))["dns-watch"]


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_every_mounted_volume_exists(workload: str, variant: Variant) -> None:
    documents = rendered(workload, variant)
    only, spec = workload_resource(documents), pod_spec(documents)
    claims = [claim["metadata"]["name"] for claim in only["spec"].get("volumeClaimTemplates", [])]
    volumes = [*claims, *(volume["name"] for volume in spec["volumes"])]
    assert len(volumes) == len(set(volumes))
    mounted = {mount["name"] for container in containers(spec).values() for mount in container.get("volumeMounts", [])}
    assert mounted <= set(volumes)
    maps = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
    for volume in spec["volumes"]:
        name = volume.get("configMap", {}).get("name")
        assert name is None or name in maps or name.startswith("argocd-"), name


@pytest.mark.parametrize("workload", WORKLOADS)
def test_all_resources_are_named_after_the_workload(workload: str) -> None:
    """Several workloads share a namespace."""
    documents = rendered(workload)
    only = workload_resource(documents)
    label = only["spec"]["selector"]["matchLabels"]
    assert only["metadata"]["name"] == ("argocd-server" if workload == "argocd" else workload)
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


def test_images_are_pinned_to_a_version() -> None:
    """Our own image is built on each cluster node and has no version."""
    every = {image for name in [*OTHERS, *WORKLOADS] for image in images(rendered(name))}
    assert "localhost/tailscale-lifecycle:latest" in every
    for image in every - {"localhost/tailscale-lifecycle:latest"}:
        assert re.fullmatch(
            r"[a-z0-9.-]+\.[a-z]+(:\d+)?/[a-z0-9._/-]+:[a-z-]*v?\d+(-\d+)?(\.\d+)+(-[a-z0-9.-]+)?(@sha256:[0-9a-f]{64})?",
            image,
        ), image


@pytest.mark.parametrize("workload", WORKLOADS)
def test_nginx_allows_the_default_vpn_prefixes(workload: str) -> None:
    lines = configuration(rendered(workload), "nginx")["vpn-prefixes.conf"].split(";")
    prefixes = {ip_network(line.split()[0]) for line in lines if line}
    assert prefixes == set(command_variables(DryRunSettings)["VPN_PREFIXES"].default)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_network_policy_allows_only_wireguard_and_metrics(workload: str) -> None:
    documents = rendered(workload)
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


@pytest.mark.parametrize(("name", "variant"), [*((name, "native") for name in WITH_PODS), *VARIANTS])
def test_termination_message_falls_back_to_the_log(name: str, variant: Variant) -> None:
    every = containers(pod_spec(rendered(name, variant)))
    assert {each["terminationMessagePolicy"] for each in every.values()} == {"FallbackToLogsOnError"}
    assert not [each for each in every.values() if "terminationMessagePath" in each]


PROBES = {
    ("tailscale", "startupProbe"): "http://127.0.0.1:9002/healthz",
    ("dns-watch", "livenessProbe"): "/livez",
    ("nginx-tls", "livenessProbe"): "/nginx",
    ("nginx-tls", "readinessProbe"): "/nginx",
    ("application", "startupProbe"): "/application",
    ("application", "livenessProbe"): "/application",
    ("application", "readinessProbe"): "/application",
}
"""The path or URL of each probe that sends a request. FreeIPA's application has other probes, which use systemctl."""


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_probes_use_existing_endpoints(workload: str, variant: Variant) -> None:
    every = containers(pod_spec(rendered(workload, variant)))
    for (name, kind), path in PROBES.items():
        probe = every.get("argocd-server" if (workload, name) == ("argocd", "application") else name, {}).get(kind)
        if workload == "argocd" and kind == "startupProbe" and name == "application":
            # Argo CD's own manifest has none.
            assert probe is None
        elif probe is None or (workload == "freeipa" and name == "application"):
            assert workload == "freeipa"
        elif "httpGet" in probe:
            assert probe["httpGet"]["path"] == path
        else:
            words = " ".join(probe["exec"]["command"]).split()
            assert [word for word in words if word.startswith("http://")] == [path]


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_liveness_probe_of_tailscale_compares_the_restart_marker_with_the_socket(
    workload: str, variant: Variant
) -> None:
    documents = rendered(workload, variant)
    every = containers(pod_spec(documents))
    variables = environment(every["dns-watch"], documents)
    key_file = Path(
        variables.get("AUTHKEY_OUTPUT_PATH", command_variables(DryRunSettings)["AUTHKEY_OUTPUT_PATH"].default)
    )
    socket = environment(every["tailscale"], documents)["TS_SOCKET"]
    shell, option, script = every["tailscale"]["livenessProbe"]["exec"]["command"]
    assert (shell, option, script.split()) == ("sh", "-c", ["!", "test", f"{key_file}.restart", "-nt", socket])
    assert variables["SELF_HEAL"] == "true"
    sources = {
        (mount["name"], mount.get("readOnly", False))
        for name in ("dns-watch", "tailscale")
        for mount in every[name]["volumeMounts"]
        if mount["mountPath"] == str(key_file.parent)
    }
    # dns-watch writes the marker, and tailscale only reads it.
    assert sources == {("tailscale-lifecycle-auth", False), ("tailscale-lifecycle-auth", True)}


@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_no_other_container_can_replace_the_socket_of_tailscale(workload: str, variant: Variant) -> None:
    documents = rendered(workload, variant)
    every = containers(pod_spec(documents))
    socket = Path(environment(every["tailscale"], documents)["TS_SOCKET"])
    (volume,) = {
        mount["name"] for mount in every["tailscale"]["volumeMounts"] if mount["mountPath"] == str(socket.parent)
    }
    users = {name for name, each in every.items() for mount in each.get("volumeMounts", []) if mount["name"] == volume}
    assert users == {"tailscale"}


def test_documented_dry_run_of_prune_removes_the_option_that_applies_the_plan() -> None:
    """Run the comment's sed command on the CronJob's pod template, in the format that kubectl prints."""
    comment = (DEPLOY / "prune/kustomization.yaml").read_text()
    (script,) = re.findall(r"^# +sed '(.+)' \|", comment, flags=re.MULTILINE)
    (job,) = of_kind(render(DEPLOY / "prune"), "CronJob")
    template = yaml.safe_dump(job["spec"]["jobTemplate"]["spec"])
    done = subprocess.run(["sed", script], input=template, capture_output=True, text=True, check=True)
    before, after = (yaml.safe_load(text)["template"]["spec"]["containers"] for text in (template, done.stdout))
    assert [container.pop("args") for container in before] == [["prune", "--yes"]]
    assert [container.pop("args") for container in after] == [["prune"]]
    assert before == after


def test_roles_have_no_wildcards() -> None:
    for name in [*OTHERS, *WORKLOADS]:
        for role in of_kind(rendered(name), "Role", "ClusterRole"):
            for rule in role["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]

"""Test that the manifests of deploy/ match the schemas of Kubernetes, and that their values are consistent."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lifecycle.settings.load import load
from lifecycle.settings.models import DryRunSettings, command_variables
from tests.pod.conftest import SetVariables
from tests.pod.rendering import (
    DEPLOY,
    DOMAIN,
    FOLDERS,
    INGRESS_PODS,
    LIFECYCLE_CONTAINERS,
    NEWEST_KUBERNETES,
    WORKLOAD_VARIANTS,
    WORKLOADS,
    claim_names,
    containers,
    environment,
    manifests_of,
    of_kind,
    pod_spec,
    render,
    workload_resource,
)
from tests.pod.tailscale_container import health_address

OLDEST_KUBERNETES = {
    # Kubernetes enables native sidecars by default since 1.29.
    **dict.fromkeys((*WORKLOADS, "ingress/internal"), "1.29"),
    # Its pod uses `hostnameOverride`, which Kubernetes enables by default since 1.35.
    "freeipa": "1.35",
}
"""The oldest version of Kubernetes that a folder supports, if it is newer than 1.25."""

each_workload = pytest.mark.parametrize("workload", WORKLOADS)
# By default, only one workload has plain containers, because a test compares them with native sidecars.
each_variant = pytest.mark.parametrize(
    "workload",
    [
        name if name in {*WORKLOADS, "grafana/plain"} else pytest.param(name, marks=pytest.mark.full)
        for name in WORKLOAD_VARIANTS
    ],
)

WITHOUT_SCHEMA = {"Certificate", "ClusterIssuer", "PodMonitor", "PrometheusRule"}
"""Kinds that Kubernetes' schemas do not include."""


@pytest.mark.full
@pytest.mark.parametrize("name", [*FOLDERS, *WORKLOAD_VARIANTS])
def test_manifests_match_the_schemas_of_the_oldest_and_newest_kubernetes(name: str) -> None:
    """`strict` rejects unknown fields, because an API server may silently ignore them."""
    for document in manifests_of(name):
        for version in (OLDEST_KUBERNETES.get(name, "1.25"), NEWEST_KUBERNETES):
            if document["kind"] not in WITHOUT_SCHEMA:
                kubernetes_validate.validate(document, version, strict=True)


def test_schema_of_an_old_version_rejects_native_sidecars() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicy"):
        kubernetes_validate.validate(workload_resource(manifests_of("ollama")), "1.27", strict=True)


@each_workload
def test_native_sidecars_start_in_order_before_other_containers(workload: str) -> None:
    """If tailscale started before cleanup, it would have no key, and the pod would never start."""
    spec = pod_spec(manifests_of(workload))
    init_containers = [(container["name"], container.get("restartPolicy")) for container in spec["initContainers"]]
    before = [("copy-models", None)] if workload == "open-webui" else []
    assert init_containers == [*before, ("cleanup", None), ("tailscale", "Always"), ("dns-watch", "Always")]
    applications = {
        "argocd": {"nginx-tls", "argocd-server"},
        "freeipa": {"application"},
        "redmine": {"nginx-tls", "application", "database"},
    }
    assert {container["name"] for container in spec["containers"]} == applications.get(
        workload, {"nginx-tls", "application"}
    )
    # The kubelet starts dns-watch after tailscale's startup probe has passed.
    assert "startupProbe" in containers(spec)["tailscale"]


def test_sidecars_and_plain_containers_differ_only_in_their_place_and_restart_policy() -> None:
    """The variant with plain containers is for Kubernetes before 1.29, which has no native sidecars."""
    native, plain = pod_spec(manifests_of("grafana")), pod_spec(manifests_of("grafana/plain"))
    native_containers = containers(native)
    for name in ("tailscale", "dns-watch"):
        assert native_containers[name].pop("restartPolicy") == "Always"
    assert native_containers == containers(plain)
    assert [container["name"] for container in plain["initContainers"]] == ["cleanup"]
    for spec in (native, plain):
        del spec["initContainers"], spec["containers"]
    assert native == plain


@each_variant
def test_variables_are_valid_settings(workload: str, set_variables: SetVariables) -> None:
    documents = manifests_of(workload)
    variables = {name: environment(containers(pod_spec(documents))[name], documents) for name in LIFECYCLE_CONTAINERS}
    known = command_variables(DryRunSettings)
    # The tailscale container reads TS_EXTRA_ARGS from the same ConfigMap.
    assert {variable for values in variables.values() for variable in values} <= {*known, "TS_EXTRA_ARGS"}
    set_variables(variables["cleanup"] | {"POD_NAME": "made-up-0"})
    settings = load(DryRunSettings)
    assert settings.access == "api"
    assert settings.record_name == f"{workload.partition('/')[0]}.{DOMAIN}"
    assert (settings.node_policy, settings.dns_cleanup, settings.self_heal) == ("keep", "keep", True)
    assert settings.headscale_user


TAILSCALE_SETTINGS = {
    "TS_ACCEPT_DNS": "false",
    "TS_AUTH_ONCE": "true",
    "TS_DEBUG_FIREWALL_MODE": "nftables",
    "TS_ENABLE_HEALTH_CHECK": "true",
    "TS_KUBERNETES_READ_API_SERVER_ADDRESS_FROM_ENV": "true",
    "TS_STATE_DIR": "/var/lib/tailscale",
    "TS_USERSPACE": "false",
    # With a cached network map, a restarted client whose node was deleted does not use the new key.
    "TS_USE_CACHED_NETMAP": "false",
}
"""The settings of the tailscale container that are the same in every pod."""
OTHER_TAILSCALE_VARIABLES = {"POD_NAME", "POD_NAMESPACE", "POD_UID", "TS_AUTHKEY", "TS_EXTRA_ARGS", "TS_HOSTNAME"}
OTHER_TAILSCALE_VARIABLES |= {"TS_KUBE_SECRET", "TS_LOCAL_ADDR_PORT", "TS_TAILSCALED_EXTRA_ARGS"}


@each_variant
def test_tailscale_settings_match_the_settings_of_cleanup(workload: str) -> None:
    documents = manifests_of(workload)
    pod_containers = containers(pod_spec(documents))
    tailscale = environment(pod_containers["tailscale"], documents)
    cleanup = environment(pod_containers["cleanup"], documents)
    for name in ("TS_HOSTNAME", "TS_KUBE_SECRET"):
        assert tailscale[name] == cleanup[name]
    assert tailscale.items() >= TAILSCALE_SETTINGS.items()
    assert set(tailscale) == TAILSCALE_SETTINGS.keys() | OTHER_TAILSCALE_VARIABLES
    assert health_address(tailscale) == ("127.0.0.1", 9002)
    assert tailscale["TS_AUTHKEY"] == f"file:{command_variables(DryRunSettings)['AUTHKEY_OUTPUT_PATH'].default}"


@each_workload
def test_role_allows_access_to_the_state_secret_only(workload: str) -> None:
    documents = manifests_of(workload)
    (secret,) = of_kind(documents, "Secret")
    (role,) = of_kind(documents, "Role")
    (binding,) = of_kind(documents, "RoleBinding")
    spec = pod_spec(documents)
    name = environment(containers(spec)["tailscale"], documents)["TS_KUBE_SECRET"]
    assert secret["metadata"]["name"] == name
    # `kubectl apply` of a Secret with data would overwrite the state.
    assert "data" not in secret
    assert "stringData" not in secret
    (secrets,) = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
    assert (secrets["resourceNames"], sorted(secrets["verbs"])) == ([name], ["get", "patch", "update"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [spec["serviceAccountName"]]


VOLUME_USERS = {
    # The pre-auth key, and the restart marker of dns-watch.
    "tailscale-lifecycle-auth": {"cleanup", "tailscale", "dns-watch"},
    # The API key of Headscale and the API token of Cloudflare.
    "tailscale-lifecycle-secrets": {"cleanup", "dns-watch"},
    # The token of the service account, for the state Secret.
    "tailscale-lifecycle-token": {"cleanup", "tailscale"},
    # The state and the socket of tailscale.
    "tailscale-lifecycle-state": {"tailscale"},
}
"""By volume: the containers that mount it."""

MOUNT_PATHS = {
    "tailscale-lifecycle-auth": "/tailscale-auth",
    "tailscale-lifecycle-secrets": "/run/secrets/lifecycle",
    "tailscale-lifecycle-token": "/var/run/secrets/kubernetes.io/serviceaccount",
}
"""By volume: the only path at which it is mounted."""


@each_variant
def test_only_containers_that_need_a_volume_mount_it(workload: str) -> None:
    """Argo CD is a client of the Kubernetes API, so it also needs the token of the service account."""
    documents = manifests_of(workload)
    spec = pod_spec(documents)
    pod_containers = containers(spec)
    mounts = [(name, mount) for name, container in pod_containers.items() for mount in container["volumeMounts"]]
    for volume, users in VOLUME_USERS.items():
        others = {"argocd-server"} if workload.startswith("argocd") and volume.endswith("-token") else set()
        assert {name for name, mount in mounts if mount["name"] == volume} == users | others
    for volume, path in MOUNT_PATHS.items():
        assert {mount["mountPath"] for _, mount in mounts if mount["name"] == volume} == {path}
        assert {mount["name"] for _, mount in mounts if mount["mountPath"] == path} == {volume}
    # The socket of tailscale is in this folder.
    assert ("tailscale", "/tmp") in {
        (name, mount["mountPath"]) for name, mount in mounts if mount["name"] == "tailscale-lifecycle-state"
    }
    assert spec["automountServiceAccountToken"] is False


@each_variant
def test_key_volume_is_in_memory_and_readable_by_tailscale(workload: str) -> None:
    spec = pod_spec(manifests_of(workload))
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tailscale-lifecycle-auth"]
    assert volume["emptyDir"]["medium"] == "Memory"
    mounts = {
        name: mount
        for name, container in containers(spec).items()
        for mount in container["volumeMounts"]
        if mount["name"] == "tailscale-lifecycle-auth"
    }
    # With subPath, a container would not see a key file that replaces an earlier one.
    assert all("subPath" not in mount for mount in mounts.values())
    assert {name for name, mount in mounts.items() if mount.get("readOnly")} == {"tailscale"}
    # Without DAC_OVERRIDE, root can read a 0640 file of another user only as a member of its group.
    tailscale, cleanup = (containers(spec)[name]["securityContext"] for name in ("tailscale", "cleanup"))
    assert tailscale["runAsGroup"] == cleanup["runAsGroup"]


@each_workload
def test_two_pods_never_run_at_the_same_time(workload: str) -> None:
    resource = workload_resource(manifests_of(workload))
    assert resource["spec"]["replicas"] == 1
    if resource["kind"] != "StatefulSet":
        assert resource["spec"]["strategy"] == {"type": "Recreate"}


@each_workload
def test_tailscale_has_time_to_save_its_state(workload: str) -> None:
    """When the pod ends, tailscale stops last, so the default of 30 s would be too short."""
    assert pod_spec(manifests_of(workload))["terminationGracePeriodSeconds"] > 30


@each_variant
def test_probes_do_not_use_ports_with_an_allow_list(workload: str) -> None:
    """On ports 80 and 443, nginx would return 403, because the kubelet connects from the cluster node's address."""
    for name, container in containers(pod_spec(manifests_of(workload))).items():
        numbers = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            port = probe.get("httpGet", {}).get("port")
            assert numbers.get(port, port) in {None, 9003, 9004}, f"{name}: {kind}"
            assert "tcpSocket" not in probe, f"{name}: {kind}"


@each_variant
def test_readiness_does_not_depend_on_dns_watch(workload: str) -> None:
    """/readyz of dns-watch fails during an outage of Cloudflare, which must not make pods unready."""
    spec = pod_spec(manifests_of(workload))
    assert "readyz" not in yaml.safe_dump(spec)
    assert "readinessProbe" not in containers(spec)["dns-watch"]


@each_variant
def test_every_mounted_volume_exists(workload: str) -> None:
    documents = manifests_of(workload)
    spec = pod_spec(documents)
    volumes = [*claim_names(documents), *(volume["name"] for volume in spec["volumes"])]
    assert len(volumes) == len(set(volumes))
    mounted = {mount["name"] for container in containers(spec).values() for mount in container.get("volumeMounts", [])}
    assert mounted <= set(volumes)
    maps = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
    for volume in spec["volumes"]:
        name = volume.get("configMap", {}).get("name")
        assert name is None or name in maps or name.startswith("argocd-"), name


@each_workload
def test_all_resources_are_named_after_the_workload(workload: str) -> None:
    """Several workloads can share a namespace, so the names must not collide."""
    documents = manifests_of(workload)
    resource = workload_resource(documents)
    label = resource["spec"]["selector"]["matchLabels"]
    assert resource["metadata"]["name"] == ("argocd-server" if workload == "argocd" else workload)
    assert resource["spec"]["template"]["metadata"]["labels"] == label
    (policy,) = of_kind(documents, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == label
    for document in documents:
        # "service" is the placeholder in deploy/base.
        assert document["metadata"]["name"] != "service"
        assert document["metadata"]["namespace"] == resource["metadata"]["namespace"]
    if resource["kind"] == "StatefulSet":
        (service,) = of_kind(documents, "Service")
        assert resource["spec"]["serviceName"] == service["metadata"]["name"]
        assert service["spec"]["selector"] == label


def test_images_are_pinned_to_a_version() -> None:
    """The image of this repository has no version, because each cluster node builds it."""
    documents = [manifests_of(name) for name in (*FOLDERS, *WORKLOADS)]
    references = set(re.findall(r'"image": "([^"]+)"', json.dumps(documents)))
    assert "localhost/tailscale-lifecycle:latest" in references
    for image in references - {"localhost/tailscale-lifecycle:latest"}:
        assert re.fullmatch(
            r"[a-z0-9.-]+\.[a-z]+(:\d+)?/[a-z0-9._/-]+:[a-z-]*v?\d+(-\d+)?(\.\d+)+(-[a-z0-9.-]+)?(@sha256:[0-9a-f]{64})?",
            image,
        ), image


@each_workload
def test_network_policy_allows_only_wireguard_and_metrics(workload: str) -> None:
    documents = manifests_of(workload)
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


@pytest.mark.parametrize("name", [*INGRESS_PODS, *WORKLOADS])
def test_termination_message_falls_back_to_the_log(name: str) -> None:
    for container in containers(pod_spec(manifests_of(name))).values():
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert "terminationMessagePath" not in container


PROBES = {
    ("tailscale", "startupProbe"): "http://127.0.0.1:9002/healthz",
    ("dns-watch", "livenessProbe"): "/livez",
    ("nginx-tls", "livenessProbe"): "/nginx",
    ("nginx-tls", "readinessProbe"): "/nginx",
    ("application", "startupProbe"): "/application",
    ("application", "livenessProbe"): "/application",
    ("application", "readinessProbe"): "/application",
}
"""The path or URL of each probe that sends a request. The application of FreeIPA has other probes, with systemctl."""


@each_variant
def test_probes_use_existing_endpoints(workload: str) -> None:
    pod_containers = containers(pod_spec(manifests_of(workload)))
    for (name, kind), path in PROBES.items():
        is_argocd = workload.startswith("argocd") and name == "application"
        probe = pod_containers.get("argocd-server" if is_argocd else name, {}).get(kind)
        if is_argocd and kind == "startupProbe":
            # The manifest of Argo CD has no startup probe.
            assert probe is None
        elif probe is None or (workload == "freeipa" and name == "application"):
            assert workload == "freeipa"
        elif "httpGet" in probe:
            assert probe["httpGet"]["path"] == path
        else:
            words = " ".join(probe["exec"]["command"]).split()
            assert [word for word in words if word.startswith("http://")] == [path]


@each_variant
def test_liveness_probe_of_tailscale_compares_the_restart_marker_with_the_socket(workload: str) -> None:
    """The restart marker is a file that dns-watch writes, so that the kubelet restarts the tailscale container."""
    documents = manifests_of(workload)
    pod_containers = containers(pod_spec(documents))
    variables = environment(pod_containers["dns-watch"], documents)
    key_file = Path(
        variables.get("AUTHKEY_OUTPUT_PATH", command_variables(DryRunSettings)["AUTHKEY_OUTPUT_PATH"].default)
    )
    socket = '"${TS_SOCKET:-/tmp/tailscaled.sock}"'
    shell, option, script = pod_containers["tailscale"]["livenessProbe"]["exec"]["command"]
    assert (shell, option, script.split()) == ("sh", "-c", ["!", "test", f"{key_file}.restart", "-nt", socket])
    assert variables["SELF_HEAL"] == "true"


def test_documented_dry_run_of_prune_removes_the_option_that_applies_the_plan() -> None:
    """A comment in the kustomization of prune shows a `sed` command, which changes the pod template of the CronJob."""
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
    for name in (*FOLDERS, *WORKLOADS):
        for role in of_kind(manifests_of(name), "Role", "ClusterRole"):
            for rule in role["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]

"""Check the pods against the Pod Security Standard "restricted", and with the scanner Checkov."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.pod.rendering import (
    FOLDERS,
    INGRESS_CONTROLLERS,
    INGRESS_PODS,
    ROOT,
    WORKLOAD_VARIANTS,
    WORKLOADS,
    Document,
    containers,
    manifests_of,
    of_kind,
    pod_spec,
)

SAFE_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start"}
"""The sysctl that the pods use. It is on the standard's list of safe sysctls."""

ALLOWED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
}

TAILSCALE_VIOLATIONS = {
    # tailscale runs as root. It needs NET_ADMIN for the interface and its routes, and MKNOD for the tun device.
    ("tailscale", "capability NET_ADMIN"),
    ("tailscale", "capability MKNOD"),
    ("tailscale", "runs as root"),
}
EXCEPTIONS: dict[str, set[tuple[str, str]]] = {
    # systemd starts daemons under about thirty users. The pod's user namespace maps root to an unprivileged user.
    "freeipa": TAILSCALE_VIOLATIONS
    | {
        ("application", "keeps the runtime's capabilities"),
        ("application", "may gain privileges"),
        ("application", "runs as root"),
    },
    "ingress/headscale-ui": set(),
    # The VPN interface is in the cluster node's network namespace.
    "ingress/internal": TAILSCALE_VIOLATIONS | {("pod", "hostNetwork")},
}
"""By folder: the accepted violations. In other folders, they are TAILSCALE_VIOLATIONS."""


def restricted_violations(spec: Document) -> Iterator[tuple[str, str]]:
    """Iterate over what "restricted" does not allow in a pod, as pairs: a container or "pod", and the reason.

    The rules are those of the Pod Security Standards in Kubernetes 1.37.
    """
    pod = spec.get("securityContext", {})
    yield from (("pod", kind) for kind in ("hostNetwork", "hostPID", "hostIPC") if spec.get(kind))
    yield from (
        ("pod", f"volume {volume['name']}")
        for volume in spec["volumes"]
        if not ALLOWED_VOLUMES & (volume.keys() - {"name"})
    )
    yield from (
        ("pod", f"sysctl {sysctl['name']}") for sysctl in pod.get("sysctls", []) if sysctl["name"] not in SAFE_SYSCTLS
    )
    for name, container in containers(spec).items():
        context = pod | container.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        checks = {
            "privileged": context.get("privileged") or context.get("procMount", "Default") != "Default",
            "may gain privileges": context.get("allowPrivilegeEscalation") is not False,
            "runs as root": not context.get("runAsNonRoot") or context.get("runAsUser") == 0,
            "any system call": context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"},
            "keeps the runtime's capabilities": "ALL" not in capabilities.get("drop", []),
            "a port of the host": any("hostPort" in port for port in container.get("ports", [])),
        }
        yield from ((name, reason) for reason, is_violated in checks.items() if is_violated)
        yield from ((name, f"capability {added}") for added in {*capabilities.get("add", [])} - {"NET_BIND_SERVICE"})


@pytest.mark.max_cases_without_full(5)
@pytest.mark.parametrize("name", [*INGRESS_PODS, *WORKLOAD_VARIANTS])
def test_pod_is_restricted_except_for_tailscale(name: str) -> None:
    assert set(restricted_violations(pod_spec(manifests_of(name)))) == EXCEPTIONS.get(name, TAILSCALE_VIOLATIONS)


@pytest.mark.parametrize("name", INGRESS_CONTROLLERS)
def test_namespace_of_a_controller_admits_tailscale(name: str) -> None:
    (namespace,) = of_kind(manifests_of(name), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_check_of_the_restricted_standard_detects_violations() -> None:
    spec = pod_spec(manifests_of("ingress/headscale-ui"))
    assert list(restricted_violations(spec)) == []
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]
    del spec["securityContext"]["seccompProfile"]
    assert {reason for _, reason in restricted_violations(spec)} == {
        "volume host",
        "capability SYS_ADMIN",
        "any system call",
    }


# --- The scanner --------------------------------------------------------------------------------------

ACCEPTED_FINDINGS: dict[str, tuple[str, set[str]]] = {
    **{
        check: ("Argo CD's manifests set no requests and limits, and the operator can", {"argocd"})
        for check in ("CKV_K8S_10", "CKV_K8S_12", "CKV_K8S_13")
    },
    "CKV_K8S_11": (
        "CPU limits slow applications down, and CPU requests already protect other pods",
        {*WORKLOADS, *INGRESS_PODS},
    ),
    "CKV_K8S_14": (
        "each cluster node builds this project's image from the sources in the cluster, so it has no version",
        {*WORKLOADS, *INGRESS_CONTROLLERS, "prune"},
    ),
    "CKV_K8S_15": (
        "Always would pull this project's image from a registry on localhost, and other images have fixed tags",
        {*WORKLOADS, *INGRESS_PODS, "prune"},
    ),
    "CKV_K8S_25": (
        "NET_ADMIN and MKNOD for tailscale, NET_BIND_SERVICE for the ingress controllers and caddy",
        {*WORKLOADS, *INGRESS_PODS},
    ),
    "CKV_K8S_40": (
        "the images' files belong to the user that the image was built for",
        {*WORKLOADS, *INGRESS_PODS} - {"freeipa"},
    ),
    "CKV_K8S_43": (
        "tags are readable and can be mirrored; operators can set digests under images:",
        {*WORKLOADS, *INGRESS_PODS, "prune"},
    ),
    "CKV_K8S_21": ("the operator chooses the namespace, which must contain the Secret with the keys", {"prune"}),
    "CKV_K8S_22": (
        "Open WebUI and Redmine write into their program directories",
        {"open-webui", "redmine"},
    ),
    "CKV_K8S_35": (
        "Open WebUI, Argo CD and FreeIPA read their secret from a variable only",
        {"argocd", "freeipa", "open-webui"},
    ),
    "CKV_K8S_19": ("the VPN interface is in the cluster node's network namespace", {"ingress/internal"}),
    "CKV2_K8S_6": ("NetworkPolicies do not apply to the host network", {"ingress/internal"}),
    "CKV_K8S_20": ("systemd starts daemons under their own users", {"freeipa"}),
    "CKV_K8S_23": ("tailscale and systemd run as root", {*WORKLOADS, "ingress/external"}),
    "CKV_K8S_9": (
        "tailscale and dns-watch must not affect the readiness of the pod",
        {*WORKLOADS, "ingress/external"} - {"freeipa"},  # In freeipa, they are always init containers.
    ),
    "CKV_K8S_28": ("systemd needs the default capabilities", {"freeipa"}),
    "CKV_K8S_37": ("systemd needs the default capabilities", {"freeipa"}),
    "CKV_K8S_8": ("systemd restarts failed processes", {"freeipa"}),
}
"""By id of a check: the reason to accept its findings, and the folders with such findings.

Checkov's policy index for Kubernetes describes what each check requires.
"""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Run Checkov, and return the id and the folder of each failed check.

    The fixture runs before the environment of a test is cleared, because the installation of Checkov can need
    variables that are also settings of the program, such as SSL_CERT_FILE.
    """
    scanned = tmp_path_factory.mktemp("manifests")
    names: dict[str, str] = {}
    for name in (*FOLDERS, *WORKLOAD_VARIANTS):
        file = f"{len(names)}.yaml"
        (scanned / file).write_text(yaml.safe_dump_all(manifests_of(name)))
        names[f"/{file}"] = name.removesuffix("/plain")  # the folder of a workload in both variants
    done = subprocess.run(
        [ROOT / "scripts/checkov", "--directory", scanned, "--output", "json", "--quiet", "--soft-fail"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    return {(check["check_id"], names[check["file_path"]]) for check in report["results"]["failed_checks"]}


@pytest.mark.full
def test_scanner_reports_exactly_the_accepted_findings(findings: set[tuple[str, str]]) -> None:
    assert findings == {(check, folder) for check, (_, folders) in ACCEPTED_FINDINGS.items() for folder in folders}

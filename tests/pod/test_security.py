"""Check the pods against the Pod Security Standard "restricted" and the policy scanner Checkov.

Each exception has a reason.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.pod.rendering import (
    FOLDERS_WITH_PODS,
    INGRESS_CONTROLLERS,
    OTHER_FOLDERS,
    ROOT,
    SUPPORT_FOLDERS,
    VARIANTS,
    WORKLOADS,
    Document,
    Variant,
    containers,
    of_kind,
    pod_spec,
    rendered,
)

SAFE_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start"}
"""The sysctl that the pods use. It is on the standard's list of safe sysctls."""

ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}

TAILSCALE_VIOLATIONS = {
    # tailscale runs as root. It needs NET_ADMIN for the interface and its routes, and MKNOD for the tun device.
    ("tailscale", "capability NET_ADMIN"),
    ("tailscale", "capability MKNOD"),
    ("tailscale", "runs as root"),
}
EXCEPTIONS = {
    # systemd starts daemons under about thirty users. The pod's user namespace maps root to an unprivileged user.
    "freeipa": {
        ("application", "keeps the runtime's capabilities"),
        ("application", "may gain privileges"),
        ("application", "runs as root"),
    },
    "ingress/external": TAILSCALE_VIOLATIONS,
    # The VPN interface is in the cluster node's network namespace.
    "ingress/internal": TAILSCALE_VIOLATIONS | {("pod", "hostNetwork")},
}
"""By folder: the accepted violations. For workloads, TAILSCALE_VIOLATIONS are accepted as well."""


def violations(spec: Document) -> Iterator[tuple[str, str]]:
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
        yield from ((name, reason) for reason in _violations(container, pod | container.get("securityContext", {})))


def _violations(container: Document, context: Document) -> Iterator[str]:
    capabilities = context.get("capabilities", {})
    checks = {
        "privileged": context.get("privileged") or context.get("procMount", "Default") != "Default",
        "may gain privileges": context.get("allowPrivilegeEscalation") is not False,
        "runs as root": not context.get("runAsNonRoot") or context.get("runAsUser") == 0,
        "any system call": context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"},
        "keeps the runtime's capabilities": "ALL" not in capabilities.get("drop", []),
        "a port of the host": any("hostPort" in port for port in container.get("ports", [])),
    }
    yield from (reason for reason, is_violated in checks.items() if is_violated)
    yield from (f"capability {added}" for added in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"})


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(("workload", "variant"), VARIANTS)
def test_pod_is_restricted_except_for_tailscale(workload: str, variant: Variant) -> None:
    assert set(violations(pod_spec(rendered(workload, variant)))) == TAILSCALE_VIOLATIONS | EXCEPTIONS.get(
        workload, set()
    )


@pytest.mark.parametrize("name", FOLDERS_WITH_PODS)
def test_pod_of_an_ingress_folder_is_restricted_except_for_tailscale(name: str) -> None:
    assert set(violations(pod_spec(rendered(name)))) == EXCEPTIONS.get(name, set())


@pytest.mark.parametrize("name", INGRESS_CONTROLLERS)
def test_namespace_enforces_the_strictest_level_that_admits_the_pod(name: str) -> None:
    (namespace,) = of_kind(rendered(name), "Namespace")
    level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == ("privileged" if list(violations(pod_spec(rendered(name)))) else "restricted")


def test_violations_are_detected() -> None:
    spec = pod_spec(rendered("ingress/headscale-ui"))
    assert list(violations(spec)) == []
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]
    del spec["securityContext"]["seccompProfile"]
    assert {reason for _, reason in violations(spec)} == {"volume host", "capability SYS_ADMIN", "any system call"}


# --- The scanner --------------------------------------------------------------------------------------

ACCEPTED_FINDINGS: dict[str, tuple[str, set[str]]] = {
    **{
        check: ("Argo CD's manifests set no requests and limits, and the operator can", {"argocd"})
        for check in ("CKV_K8S_10", "CKV_K8S_12", "CKV_K8S_13")
    },
    "CKV_K8S_11": (
        "CPU limits slow applications down, and CPU requests already protect other pods",
        {*WORKLOADS, *FOLDERS_WITH_PODS},
    ),
    "CKV_K8S_14": (
        "each cluster node builds this project's image from the sources in the cluster, so it has no version",
        {*WORKLOADS, *INGRESS_CONTROLLERS, "prune"},
    ),
    "CKV_K8S_15": (
        "Always would pull this project's image from a registry on localhost, and other images have fixed tags",
        {*WORKLOADS, *FOLDERS_WITH_PODS, "prune"},
    ),
    "CKV_K8S_25": (
        "NET_ADMIN and MKNOD for tailscale, NET_BIND_SERVICE for the ingress controllers and caddy",
        {*WORKLOADS, *FOLDERS_WITH_PODS},
    ),
    "CKV_K8S_40": (
        "the images' files belong to the user that the image was built for",
        {*WORKLOADS, *FOLDERS_WITH_PODS} - {"freeipa"},
    ),
    "CKV_K8S_43": (
        "tags are readable and can be mirrored; operators can set digests under images:",
        {*WORKLOADS, *FOLDERS_WITH_PODS, "prune"},
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
        {*WORKLOADS, "ingress/external"} - {"freeipa"},
    ),
    "CKV_K8S_28": ("systemd needs the default capabilities", {"freeipa"}),
    "CKV_K8S_37": ("systemd needs the default capabilities", {"freeipa"}),
    "CKV_K8S_8": ("systemd restarts failed processes", {"freeipa"}),
}
"""By id of a check: the reason to accept its findings, and the folders with such findings.

Checkov's policy index for Kubernetes describes what each check requires.
"""

SCANNED_FOLDERS = [*OTHER_FOLDERS, *SUPPORT_FOLDERS, *WORKLOADS]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Run the scanner, and return the ids of the failed checks by folder."""
    folder = tmp_path_factory.mktemp("rendered")
    names: dict[str, str] = {}
    for name, variant in (*((name, "native") for name in (*OTHER_FOLDERS, *SUPPORT_FOLDERS)), *VARIANTS):
        file = f"{len(names)}.yaml"
        (folder / file).write_text(yaml.safe_dump_all(rendered(name, variant)))
        names[f"/{file}"] = name
    done = subprocess.run(
        [ROOT / "scripts/policy", "--directory", folder, "--output", "json", "--quiet", "--soft-fail"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    failed: dict[str, set[str]] = {name: set() for name in SCANNED_FOLDERS}
    for check in report["results"]["failed_checks"]:
        failed[names[check["file_path"]]].add(check["check_id"])
    return failed


@pytest.mark.full
def test_scanner_reports_exactly_the_accepted_findings(findings: dict[str, set[str]]) -> None:
    assert {(check, name) for check, (_, names) in ACCEPTED_FINDINGS.items() for name in names} == {
        (check, name) for name, checks in findings.items() for check in checks
    }

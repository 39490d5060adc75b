"""What the pods may do: Pod Security "restricted" and a policy scanner, every exception by name and with its reason."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.pod.rendering import (
    DEPLOY,
    OTHERS,
    ROOT,
    SERVICES,
    VARIANTS,
    WITH_PODS,
    Document,
    Variant,
    containers,
    of_kind,
    pod_spec,
    render,
    rendered,
    workload,
)

SAFE_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start"}
"""Of the published list, those that are used."""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}

TAILSCALE = {
    # A network interface and its routes; the device it is made through; both are root's.
    ("tailscale", "capability NET_ADMIN"),
    ("tailscale", "capability MKNOD"),
    ("tailscale", "runs as root"),
}
EXCEPTIONS = {
    # systemd and some thirty services under their own users, in a user namespace: root in it is nobody outside.
    "freeipa": {
        ("application", "keeps the runtime's capabilities"),
        ("application", "may gain privileges"),
        ("application", "runs as root"),
    },
    # The VPN's interface is the cluster node's.
    "ingress/internal": {("pod", "hostNetwork")},
}


def violations(spec: Document) -> Iterator[tuple[str, str]]:
    """What of a pod "restricted" would not admit: which container, and why.

    Source: Kubernetes, Pod Security Standards, v1.37.
    """
    pod = spec.get("securityContext", {})
    yield from (("pod", kind) for kind in ("hostNetwork", "hostPID", "hostIPC") if spec.get(kind))
    yield from (
        ("pod", f"volume {volume['name']}") for volume in spec["volumes"] if not VOLUMES & (volume.keys() - {"name"})
    )
    yield from (
        ("pod", f"sysctl {sysctl['name']}") for sysctl in pod.get("sysctls", []) if sysctl["name"] not in SAFE_SYSCTLS
    )
    for name, container in containers(spec).items():
        yield from ((name, reason) for reason in _violations(container, pod | container.get("securityContext", {})))


def _violations(container: Document, context: Document) -> Iterator[str]:
    capabilities = context.get("capabilities", {})
    broken = {
        "privileged": context.get("privileged") or context.get("procMount", "Default") != "Default",
        "may gain privileges": context.get("allowPrivilegeEscalation") is not False,
        "runs as root": not context.get("runAsNonRoot") or context.get("runAsUser") == 0,
        "any system call": context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"},
        "keeps the runtime's capabilities": "ALL" not in capabilities.get("drop", []),
        "a port of the host": any("hostPort" in port for port in container.get("ports", [])),
    }
    yield from (reason for reason, holds in broken.items() if holds)
    yield from (f"capability {added}" for added in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"})


@pytest.mark.parametrize(("service", "variant"), VARIANTS)
def test_restricted_but_for_what_tailscale_needs(service: str, variant: Variant) -> None:
    assert set(violations(pod_spec(rendered(service, variant)))) == TAILSCALE | EXCEPTIONS.get(service, set())


@pytest.mark.parametrize("name", WITH_PODS)
def test_the_ingress_controllers_are_restricted(name: str) -> None:
    assert set(violations(pod_spec(rendered(name)))) == EXCEPTIONS.get(name, set())


@pytest.mark.parametrize("name", WITH_PODS)
def test_their_namespace_says_how_much_it_admits(name: str) -> None:
    (namespace,) = of_kind(rendered(name), "Namespace")
    level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == ("privileged" if list(violations(pod_spec(rendered(name)))) else "restricted")


def test_a_pod_that_asks_for_more_is_noticed() -> None:
    """So an empty list of violations says something."""
    spec = pod_spec(rendered("ingress/external"))
    assert list(violations(spec)) == []
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    spec["containers"][0]["securityContext"]["capabilities"]["add"].append("SYS_ADMIN")
    del spec["securityContext"]["seccompProfile"]
    assert {reason for _, reason in violations(spec)} == {"volume host", "capability SYS_ADMIN", "any system call"}


# --- The scanner --------------------------------------------------------------------------------------

ACCEPTED: dict[str, tuple[str, set[str]]] = {
    "CKV_K8S_11": (
        "a limit on processor time slows an application down and protects nobody whom its request does not",
        {*SERVICES, *WITH_PODS},
    ),
    "CKV_K8S_14": (
        "our own image has no version in its name: each cluster node builds what the cluster was given",
        {*SERVICES, "prune"},
    ),
    "CKV_K8S_15": (
        "Always would ask a registry on localhost for our own image; the others' tags do not move",
        {*SERVICES, *WITH_PODS, "prune"},
    ),
    "CKV_K8S_25": (
        "NET_ADMIN and MKNOD for tailscale, NET_BIND_SERVICE for the ingress controllers",
        {*SERVICES, *WITH_PODS},
    ),
    "CKV_K8S_40": (
        "an image's files belong to the user it was made for, and nginx' are its own",
        {*SERVICES, *WITH_PODS} - {"freeipa"},
    ),
    "CKV_K8S_43": (
        "a tag is what a person can check and a mirror can keep; whoever wants digests sets them under images:",
        {*SERVICES, *WITH_PODS, "prune"},
    ),
    "CKV_K8S_21": ("whoever applies it says in which namespace: that of the Secret with the keys", {"prune"}),
    "CKV_K8S_22": (
        "Open WebUI, Redmine and FreeIPA write where their program is",
        {"freeipa", "open-webui", "redmine"},
    ),
    "CKV_K8S_35": (
        "Open WebUI, Argo CD and FreeIPA know their own secret as a variable only",
        {"argocd", "freeipa", "open-webui"},
    ),
    "CKV_K8S_38": ("an ingress controller is a client of the Kubernetes API", {*WITH_PODS}),
    "CKV_K8S_19": ("the VPN's interface is the cluster node's", {"ingress/internal"}),
    "CKV2_K8S_6": ("a NetworkPolicy does not hold for the host network", {"ingress/internal"}),
    "CKV_K8S_20": ("systemd starts services under their own users", {"freeipa"}),
    "CKV_K8S_23": ("tailscale runs as root, systemd too", {*SERVICES}),
    "CKV_K8S_9": ("neither tailscale nor dns-watch says whether the service is ready", {*SERVICES} - {"freeipa"}),
    "CKV_K8S_28": ("systemd", {"freeipa"}),
    "CKV_K8S_37": ("systemd", {"freeipa"}),
    "CKV_K8S_8": ("systemd restarts what fails inside", {"freeipa"}),
}


BESIDE = ("monitoring", "prune", *(f"rbac/{folder.name}" for folder in sorted((DEPLOY / "rbac").iterdir())))
"""What goes with the pods, and is tested elsewhere."""
SCANNED = [*OTHERS, *BESIDE, *SERVICES]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Which rules each folder's documents break, by the rule's name."""
    folder = tmp_path_factory.mktemp("rendered")
    everything = [(name, render(DEPLOY / name)) for name in (*OTHERS, *BESIDE)]
    everything += [(service, rendered(service, variant)) for service, variant in VARIANTS]
    files: dict[str, str] = {}
    for number, (name, documents) in enumerate(everything):
        file = f"{number}.yaml"
        (folder / file).write_text(yaml.safe_dump_all(documents))
        files[f"/{file}"] = name
    done = subprocess.run(
        [ROOT / "scripts/policy", "--directory", folder, "--output", "json", "--quiet", "--soft-fail"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    broken: dict[str, set[str]] = {name: set() for name in SCANNED}
    for check in report["results"]["failed_checks"]:
        broken[files[check["file_path"]]].add(check["check_id"])
    return broken


@pytest.mark.parametrize("name", SCANNED)
def test_the_scanner_finds_nothing_that_is_not_accepted_with_a_reason(name: str, scanned: dict[str, set[str]]) -> None:
    assert scanned[name] <= {rule for rule, (_, names) in ACCEPTED.items() if name in names}


def test_nothing_is_accepted_that_the_scanner_does_not_find(scanned: dict[str, set[str]]) -> None:
    assert {(rule, name) for rule, (_, names) in ACCEPTED.items() for name in names} == {
        (rule, name) for name, rules in scanned.items() for rule in rules
    }


def test_every_workload_was_scanned() -> None:
    assert [workload(rendered(name))["kind"] for name in WITH_PODS] == ["Deployment", "DaemonSet"]

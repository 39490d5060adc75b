"""Create the pods that several tests use: a workload of deploy/services, an injected Deployment, and clients."""

from __future__ import annotations

import json
from typing import Final

from lifecycle.inject.rules import HOSTNAME, LABEL
from tests.cluster.api_server import RefusedError
from tests.cluster.cluster import START_TIMEOUT_S, Document, manifest
from tests.cluster.images import BUSYBOX, TAILSCALE, application
from tests.cluster.tailnet import LOGIN_URL, Tailnet
from tests.pod.rendering import DOMAIN, containers, manifests_of, pod_spec, render
from tests.real.programs import eventually

GRAFANA_POD: Final = "grafana-0"
GRAFANA_NAME: Final = f"grafana.{DOMAIN}"
WIKI: Final = "wiki"
WIKI_IMAGE: Final = "docker.io/a/wiki:1.2"
WIKI_NAME: Final = f"wiki.{DOMAIN}"
CLIENT: Final = "client"
"""A pod that is a VPN client."""
POD_WITHOUT_VPN: Final = "outsider"
CLIENT_USER: Final = "people"
"""The Headscale user of the VPN client."""


def deploy_grafana(tailnet: Tailnet) -> None:
    """Apply deploy/services/grafana, with a stand-in for the application, and wait for the pod and its record."""
    cluster = tailnet.cluster
    image = containers(pod_spec(manifests_of("grafana")))["application"]["image"]
    cluster.load({image: application(cluster.layers, 3000, "/api/health")})
    cluster.kubectl("-n", "services", "create", "secret", "generic", "grafana-admin", "--from-literal=password=a")
    cluster.kubectl("apply", "-k", tailnet.deploy_folder / "services/grafana")
    cluster.wait_for_pod(GRAFANA_POD)
    tailnet.wait_for_published_node(GRAFANA_NAME)


def wiki_manifest() -> Document:
    """Return a Deployment with the label and the annotation that docs/inject.md describes."""
    labels = {"app": WIKI}
    metadata = {"labels": {**labels, LABEL: "true"}, "annotations": {HOSTNAME: WIKI}}
    pod = {"containers": [{"name": "wiki", "image": WIKI_IMAGE}], "terminationGracePeriodSeconds": 5}
    spec = {
        "selector": {"matchLabels": labels},
        "strategy": {"type": "Recreate"},
        "template": {"metadata": metadata, "spec": pod},
    }
    return manifest("Deployment", WIKI, "services", api="apps/v1", spec=spec)


def deploy_wiki(tailnet: Tailnet) -> None:
    """Apply deploy/inject and the Deployment, and wait for its pod and its record."""
    enable_injection(tailnet)
    cluster = tailnet.cluster
    cluster.load({WIKI_IMAGE: application(cluster.layers, 80, address="0.0.0.0")})
    cluster.apply(wiki_manifest())
    ready_wiki_pod(tailnet)
    tailnet.wait_for_published_node(WIKI_NAME)


def enable_injection(tailnet: Tailnet) -> None:
    """Apply the policies for this Kubernetes version, and wait until pods in the namespace `services` are injected."""
    cluster = tailnet.cluster
    cluster.kubectl("label", "--overwrite", "namespace", "services", "tailscale-lifecycle/inject=enabled")
    cluster.apply(*render(tailnet.deploy_folder / cluster.server.inject_folder.name))
    template = wiki_manifest()["spec"]["template"]
    metadata = {"name": "dry-run", "namespace": "services", **template["metadata"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    eventually(lambda: cluster.server.injection_state(pod) == "on", "injection", timeout_s=START_TIMEOUT_S)


def ready_wiki_pod(tailnet: Tailnet, *, not_uid: str = "") -> Document:
    """Wait until the Deployment WIKI has a ready pod whose uid is not `not_uid`, and return the pod."""

    def find() -> Document | None:
        pods = [pod for pod in tailnet.cluster.pods(f"app={WIKI}") if pod["metadata"]["uid"] != not_uid]
        return pods[0] if pods else None

    pod: Document = eventually(find, f"a pod of {WIKI}", timeout_s=START_TIMEOUT_S)
    return tailnet.cluster.wait_for_pod(pod["metadata"]["name"], not_uid=not_uid)


def deploy_clients(tailnet: Tailnet) -> None:
    """Start the pods CLIENT and POD_WITHOUT_VPN. The node of CLIENT belongs to CLIENT_USER."""
    user = tailnet.run_headscale("users", "create", CLIENT_USER)["id"]
    key = tailnet.run_headscale("preauthkeys", "create", "--user", str(user), "--reusable", "--expiration", "24h")[
        "key"
    ]
    variables = {
        "TS_AUTHKEY": key,
        "TS_HOSTNAME": CLIENT,
        "TS_USERSPACE": "false",
        "TS_STATE_DIR": "/tmp/state",
        "TS_KUBE_SECRET": "",
        "TS_ACCEPT_DNS": "false",
        "TS_DEBUG_FIREWALL_MODE": "nftables",
        "TS_EXTRA_ARGS": f"--login-server={LOGIN_URL}",
        "TS_TAILSCALED_EXTRA_ARGS": "--no-logs-no-support",
    }
    containers_by_pod: dict[str, Document] = {
        CLIENT: {
            "image": TAILSCALE,
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN", "MKNOD"]}},
        },
        POD_WITHOUT_VPN: {"image": BUSYBOX, "command": ["sleep", "100000"]},
    }
    for name, container in containers_by_pod.items():
        spec = {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "shell", **container}],
        }
        tailnet.cluster.apply(manifest("Pod", name, "services", spec=spec))
    for name in containers_by_pod:
        tailnet.cluster.wait_for_pod(name)
    eventually(
        lambda: any(node["online"] for node in tailnet.nodes(CLIENT)), "the client's node", timeout_s=START_TIMEOUT_S
    )


def response_to(tailnet: Tailnet, pod: str, url: str, *options: str) -> str:
    """Request a URL in the pod CLIENT or POD_WITHOUT_VPN. Return the body, or the error that wget prints."""
    try:
        return tailnet.cluster.exec(pod, "shell", "wget", "-T", "10", "-q", "-O", "-", *options, url)
    except RefusedError as error:
        return str(error)


def wait_for_response(tailnet: Tailnet, url: str) -> None:
    """Wait until CLIENT gets the response of the image `application`."""
    last: list[str] = []

    def is_received() -> bool:
        last[:] = [response_to(tailnet, CLIENT, url)]
        return "ok" in last[0]

    eventually(is_received, f"a response of {url}", details=lambda: json.dumps(last), timeout_s=START_TIMEOUT_S)


def container_id(pod: Document, container: str) -> str:
    """Return the id of a container, which changes at each restart; "" = the container does not exist yet."""
    status = pod["status"]
    statuses = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
    return next(str(item.get("containerID", "")) for item in statuses if item["name"] == container)

"""Run deploy/ingress on a cluster: nginx, tailscale and our containers on the network of the cluster node.

No registry here has the image of the ingress controller, so a file has to provide it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.api_server import SERVICES, RefusedError
from tests.cluster.cluster import STARTED_S, Cluster, Document
from tests.cluster.images import BUSYBOX, TAILSCALE, Image
from tests.cluster.node import ADDRESS, NAME
from tests.cluster.tailnet import NAME as LOGIN_NAME
from tests.cluster.tailnet import NAMESPACE as HEADSCALE_NAMESPACE
from tests.cluster.tailnet import URL, Tailnet
from tests.pages import blocks
from tests.pod.reference import USER
from tests.pod.rendering import DOMAIN, ROOT, SITE, containers, pod_spec, render, rendered
from tests.real.programs import eventually
from tests.simulators.dns import Record

IMAGE_VARIABLE: Final = "INGRESS_IMAGE"

CONTROLLER: Final[str] = containers(pod_spec(rendered("ingress/internal")))["nginx-ingress"]["image"]
NAMESPACE: Final = "nginx-ingress"
EXTERNAL: Final = "ingress-nginx-external"

HOSTNAME: Final = f"nginx-ingress-{NAME}"
"""The node of the only cluster node."""
SHARED: Final = f"*.{SITE['INGRESS_DOMAIN']}"
HOST: Final = f"wiki.{SITE['INGRESS_DOMAIN']}"
"""The host of the Ingress in deploy/ingress/examples."""
PAGE: Final = "the page of the wiki"

OTHER: Final = "100.64.99.99"
"""The address of another cluster node."""


@pytest.fixture(scope="module")
def controller(cluster: Cluster) -> None:
    """The image of the ingress controller on the cluster node, and routes for pods on the host network."""
    file = os.environ.get(IMAGE_VARIABLE)
    if not file:
        pytest.skip(f"set {IMAGE_VARIABLE} to an archive with the root file system of the image {CONTROLLER}")
    cluster.load({CONTROLLER: Image([Path(file)], ["/nginx-ingress"], user="101")})
    # As a default route on other cluster nodes. kube-proxy replaces the address before a packet is sent.
    cluster.host.ip("route", "replace", SERVICES, "dev", "cni0")


@pytest.fixture(scope="module")
def internal(tailnet: Tailnet, controller: None) -> Iterator[Tailnet]:
    """The internal controller, as docs/ingress.md describes, with the example of an Ingress and its Service."""
    cluster = tailnet.cluster
    add_setting(tailnet, "ingress/internal/lifecycle.env")
    add_other_cluster_node(tailnet)
    tailnet.prepare(NAMESPACE)
    cluster.kubectl("create", "namespace", "wiki")
    cluster.apply(*application())
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", tailnet.deploy / "ingress/internal")
    cluster.kubectl("apply", "-k", tailnet.deploy / "ingress/examples")
    cluster.wait_for_pod("wiki", "wiki")
    cluster.wait_for_pod(pod_name(cluster), NAMESPACE)
    yield tailnet
    cluster.kubectl("delete", "namespace", "wiki", "--wait=false")
    cluster.kubectl("delete", "-k", tailnet.deploy / "ingress/internal", "--ignore-not-found")


@pytest.fixture(scope="module")
def external(tailnet: Tailnet, controller: None) -> Iterator[Tailnet]:
    """The external controller, as docs/ingress.md describes, with a certificate in place of cert-manager's."""
    cluster = tailnet.cluster
    add_setting(tailnet, "ingress/external/vpn/lifecycle.env")
    tailnet.prepare(EXTERNAL)
    rendered_here = render(tailnet.deploy / "ingress/external")
    documents = [document for document in rendered_here if document["kind"] != "Certificate"]
    secret = cluster.get("secret", "wildcard-tls")
    metadata = {"name": "headscale-tls", "namespace": HEADSCALE_NAMESPACE}
    cluster.apply({**secret, "metadata": metadata}, *documents)
    yield tailnet
    cluster.kubectl("delete", "namespace", EXTERNAL, "--wait=false")


@pytest.fixture(scope="module")
def client(tailnet: Tailnet) -> Iterator[str]:
    """A pod that is a VPN client."""
    (user,) = [user["id"] for user in tailnet.headscale("users", "list") if user["name"] == USER]
    key = tailnet.headscale("preauthkeys", "create", "--user", str(user))["key"]
    variables = {
        "TS_AUTHKEY": key,
        "TS_EXTRA_ARGS": f"--login-server={URL}",
        "TS_HOSTNAME": "laptop",
        "TS_USERSPACE": "false",
        "TS_ACCEPT_DNS": "false",
        "TS_KUBE_SECRET": "",
        "TS_STATE_DIR": "/tmp",
        "TS_DEBUG_FIREWALL_MODE": "nftables",
    }
    container = {
        "name": "tailscale",
        "image": TAILSCALE,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "securityContext": {"privileged": True},
    }
    tailnet.cluster.apply(pod("laptop", "services", container))
    tailnet.cluster.wait_for_pod("laptop")
    eventually(
        lambda: [node for node in tailnet.nodes("laptop") if node["online"]], "a VPN client", timeout_s=STARTED_S
    )
    yield "laptop"
    tailnet.cluster.kubectl("-n", "services", "delete", "pod", "laptop", "--force")


@pytest.fixture(scope="module")
def stranger(tailnet: Tailnet) -> Iterator[str]:
    """A pod that is not on the VPN."""
    container = {"name": "shell", "image": BUSYBOX, "command": ["sleep", "86400"]}
    tailnet.cluster.apply(pod("stranger", "services", container))
    tailnet.cluster.wait_for_pod("stranger")
    yield "stranger"
    tailnet.cluster.kubectl("-n", "services", "delete", "pod", "stranger", "--force")


def pod(name: str, namespace: str, container: Document) -> Document:
    """Return a pod with one container."""
    labels = {"app": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


def application() -> Iterator[Document]:
    """Iterate over the pod and the Service that the example of an Ingress refers to."""
    script = f"mkdir /tmp/wiki && echo '{PAGE}' > /tmp/wiki/index.html && exec httpd -f -p 8080 -h /tmp/wiki"
    yield pod("wiki", "wiki", {"name": "wiki", "image": BUSYBOX, "command": ["sh", "-c", script]})
    spec = {"selector": {"app": "wiki"}, "ports": [{"port": 80, "targetPort": 8080}]}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wiki", "namespace": "wiki"}, "spec": spec}


def add_setting(tailnet: Tailnet, file: str) -> None:
    """Add the URL of the Cloudflare simulator to the settings of a controller."""
    with (tailnet.deploy / file).open("a") as settings:
        settings.write(f"CLOUDFLARE_API_URL={tailnet.cloudflare_url}\n")


def add_other_cluster_node(tailnet: Tailnet) -> None:
    """Add the record of a second cluster node at the shared name."""
    mark = f"tailscale-lifecycle/1 {NAMESPACE} nginx-ingress-node-2.{DOMAIN}"
    tailnet.cloudflare.add_record(tailnet.zone_id, name=SHARED, type="A", content=OTHER, comment=mark)


def pod_name(cluster: Cluster, namespace: str = NAMESPACE) -> str:
    """Return the name of the controller's newest pod that is not being deleted."""

    def find() -> str | None:
        pods = cluster.pods("app.kubernetes.io/name=nginx-ingress", namespace)
        names: list[str] = [each["metadata"]["name"] for each in pods if "deletionTimestamp" not in each["metadata"]]
        return names[0] if names else None

    return eventually(find, "a pod of the controller", timeout_s=STARTED_S)


def own_record(tailnet: Tailnet) -> Record | None:
    """Return this cluster node's record at the shared name."""
    found = [record for record in tailnet.records(SHARED) if record.content != OTHER]
    return found[0] if len(found) == 1 else None


def wait_for_records(tailnet: Tailnet, *, not_address: str = "") -> str:
    """Wait until the cluster node's node and both of its records have the same address, and return it."""

    def find() -> str | None:
        shared = own_record(tailnet)
        match tailnet.nodes(HOSTNAME), tailnet.records(f"{HOSTNAME}.{DOMAIN}"):
            case [node], [record] if record.content in node["ip_addresses"] and shared is not None:
                address: str = record.content
                return address if shared.content == address != not_address else None
        return None

    return eventually(
        find,
        "the node and its records",
        details=lambda: f"{tailnet.nodes(HOSTNAME)}\n{tailnet.cloudflare.records(tailnet.zone_id)}",
        timeout_s=STARTED_S,
    )


def page(tailnet: Tailnet, source: str, container: str, address: str, path: str = "/") -> str:
    """Request a page of the wiki from a pod, by its name, which resolves to an address there.

    Raises:
        Refused: the status is not 2xx; the message contains it.
    """
    tailnet.cluster.names[HOST] = address
    return tailnet.cluster.exec(source, container, "wget", "-T", "10", "-q", "-O", "-", f"https://{HOST}{path}")


def wait_for_page(tailnet: Tailnet, client: str, address: str) -> None:
    def is_served() -> bool:
        try:
            return PAGE in page(tailnet, client, "tailscale", address)
        except RefusedError:
            return False

    eventually(is_served, "the page of the wiki", timeout_s=STARTED_S)


def test_ingress_is_served_on_the_vpn_under_its_name(internal: Tailnet, client: str) -> None:
    wait_for_page(internal, client, wait_for_records(internal))


def test_clients_outside_of_the_vpn_are_refused(internal: Tailnet, client: str, stranger: str) -> None:
    address = wait_for_records(internal)
    wait_for_page(internal, client, address)
    for to in (address, ADDRESS):
        with pytest.raises(RefusedError, match="403"):
            page(internal, stranger, "shell", to)


def test_record_of_another_cluster_node_stays(internal: Tailnet) -> None:
    address = wait_for_records(internal)
    assert {record.content for record in internal.records(SHARED)} == {address, OTHER}


def test_tailscale_adds_no_rules_to_the_firewall_of_the_cluster_node(internal: Tailnet) -> None:
    wait_for_records(internal)
    for program in ("iptables-nft-save", "iptables-legacy-save"):
        command = internal.cluster.node.command(program)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "ts-" not in done.stdout
        assert "incompatible" not in done.stdout + done.stderr


def test_health_port_is_not_reachable_on_the_vpn(internal: Tailnet, client: str, stranger: str) -> None:
    address = wait_for_records(internal)
    get = ("wget", "-T", "5", "-q", "-O", "-")
    assert internal.cluster.exec(stranger, "shell", *get, f"http://{ADDRESS}:9003/readyz")
    with pytest.raises(RefusedError):
        internal.cluster.exec(client, "tailscale", *get, f"http://{address}:9003/readyz")


def test_new_pod_keeps_the_address_and_serves_again(internal: Tailnet, client: str) -> None:
    cluster = internal.cluster
    address = wait_for_records(internal)
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", pod_name(cluster))
    cluster.wait_for_pod(pod_name(cluster), NAMESPACE)
    assert wait_for_records(internal) == address
    wait_for_page(internal, client, address)


def test_records_follow_a_pod_with_a_new_node(internal: Tailnet, client: str) -> None:
    """Without its state, the pod registers a new node with a new address."""
    cluster = internal.cluster
    address = wait_for_records(internal)
    name = pod_name(cluster)
    cluster.kubectl("-n", NAMESPACE, "delete", "secret", HOSTNAME)
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", name, "--force")
    cluster.wait_for_pod(pod_name(cluster), NAMESPACE)
    new = wait_for_records(internal, not_address=address)
    assert [node["ip_addresses"][0] for node in internal.nodes(HOSTNAME)] == [new]
    wait_for_page(internal, client, new)


def test_documented_command_removes_a_cluster_node(internal: Tailnet) -> None:
    """The controller is removed, as on a cluster node that is gone."""
    cluster = internal.cluster
    wait_for_records(internal)
    cluster.kubectl("-n", NAMESPACE, "delete", "daemonset", "nginx-ingress")
    (command,) = [
        block.text for block in blocks((ROOT / "docs/ingress.md").read_text(), "sh") if "prune-now" in block.text
    ]
    kubectl = shlex.join(map(str, cluster.server.kubectl_command()))
    script = f'kubectl() {{ {kubectl} "$@"; }}\n{command.replace("worker-1", NAME)}'
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True)
    eventually(
        lambda: not internal.nodes(HOSTNAME) and not internal.records(f"{HOSTNAME}.{DOMAIN}"),
        "the removal",
        details=lambda: cluster.kubectl("-n", NAMESPACE, "logs", "job/prune-now"),
        timeout_s=STARTED_S,
    )
    assert [record.content for record in internal.records(SHARED)] == [OTHER]
    with pytest.raises(RefusedError, match="NotFound"):
        cluster.get("secret", HOSTNAME, NAMESPACE)


def test_external_controller_joins_the_vpn_through_itself(external: Tailnet) -> None:
    for number in range(2):
        name = f"nginx-external-{number}"
        external.cluster.wait_for_pod(name, EXTERNAL)

        def has_record(name: str = name) -> bool:
            match external.nodes(name), external.records(f"{name}.{DOMAIN}"):
                case [node], [record]:
                    return record.content in node["ip_addresses"]
            return False

        eventually(has_record, f"{name} on the VPN", timeout_s=STARTED_S)
        # The client's first request.
        assert "GET /key?" in external.cluster.logs(name, "nginx-ingress", EXTERNAL)


def test_external_controller_publishes_the_login_server_only(external: Tailnet, stranger: str) -> None:
    cluster = external.cluster
    address = cluster.wait_for_pod("nginx-external-0", EXTERNAL)["status"]["podIP"]
    service = cluster.names[LOGIN_NAME]
    cluster.names[LOGIN_NAME] = address
    try:
        get = ("wget", "-T", "10", "-q", "-O", "-")
        assert "pass" in cluster.exec(stranger, "shell", *get, f"{URL}/health")
        for path in ("/api/v1/node", "/metrics", "/version"):
            with pytest.raises(RefusedError, match="404"):
                cluster.exec(stranger, "shell", *get, f"{URL}{path}")
    finally:
        cluster.names[LOGIN_NAME] = service

"""Run the ingress controllers of deploy/ingress in a real cluster.

The internal controller publishes Services on the VPN. The external controller publishes Headscale's login server.
The cluster cannot pull images, so INGRESS_IMAGE must be the path of an archive: the image's root file system.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.api_server import SERVICE_NETWORK, RefusedError
from tests.cluster.cluster import START_TIMEOUT_S, Cluster, Document, manifest
from tests.cluster.images import BUSYBOX, Image
from tests.cluster.node import NODE_ADDRESS, NODE_NAME
from tests.cluster.tailnet import HEADSCALE_NAMESPACE, LOGIN_NAME, LOGIN_URL, Tailnet
from tests.cluster.workloads import CLIENT, POD_WITHOUT_VPN, response_to
from tests.pages import blocks
from tests.pod.rendering import DOMAIN, ROOT, SITE, containers, manifests_of, pod_spec, render
from tests.real.programs import eventually

IMAGE_VARIABLE: Final = "INGRESS_IMAGE"

CONTROLLER_IMAGE: Final[str] = containers(pod_spec(manifests_of("ingress/internal")))["nginx-ingress"]["image"]
NAMESPACE: Final = "nginx-ingress"
EXTERNAL_NAMESPACE: Final = "ingress-nginx-external"

HOSTNAME: Final = f"nginx-ingress-{NODE_NAME}"
"""The hostname of the VPN node that belongs to the cluster node."""
SHARED_NAME: Final = f"*.{SITE['INGRESS_DOMAIN']}"
"""The name of the records to which every cluster node adds its address."""
INGRESS_HOST: Final = f"wiki.{SITE['INGRESS_DOMAIN']}"
"""The host of the Ingress in deploy/ingress/examples."""
PAGE_TEXT: Final = "the page of the wiki"
WGET_ERROR: Final = "wget:"
"""The start of each error that wget prints."""

OTHER_ADDRESS: Final = "100.64.99.99"
"""The VPN address of another cluster node, which does not exist."""


@pytest.fixture(scope="module")
def controller_image(cluster: Cluster) -> None:
    """Load the image of the ingress controller, and prepare the cluster node for pods on the host network."""
    file = os.environ.get(IMAGE_VARIABLE)
    if not file:
        pytest.skip(f"set {IMAGE_VARIABLE} to an archive with the root file system of the image {CONTROLLER_IMAGE}")
    cluster.load({CONTROLLER_IMAGE: Image([Path(file)], ["/nginx-ingress"], user="101")})
    # kube-proxy redirects requests to Services only if a route exists. This cluster node has no default route.
    cluster.host.ip("route", "replace", SERVICE_NETWORK, "dev", "cni0")


@pytest.fixture(scope="module")
def internal(tailnet: Tailnet, controller_image: None) -> Iterator[Tailnet]:
    """Deploy the internal controller as docs/ingress.md describes, with the Ingress of deploy/ingress/examples."""
    cluster = tailnet.cluster
    set_cloudflare_url(tailnet, "ingress/internal/lifecycle.env")
    comment = f"tailscale-lifecycle/1 {NAMESPACE} nginx-ingress-node-2.{DOMAIN}"
    tailnet.cloudflare.add_record(tailnet.zone_id, name=SHARED_NAME, type="A", content=OTHER_ADDRESS, comment=comment)
    tailnet.prepare_namespace(NAMESPACE)
    cluster.kubectl("create", "namespace", "wiki")
    cluster.apply(*application())
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", tailnet.deploy_folder / "ingress/internal")
    cluster.kubectl("apply", "-k", tailnet.deploy_folder / "ingress/examples")
    cluster.wait_for_pod("wiki", "wiki")
    cluster.wait_for_pod(pod_name(cluster), NAMESPACE)
    yield tailnet
    cluster.kubectl("delete", "namespace", "wiki", "--wait=false")
    cluster.kubectl("delete", "-k", tailnet.deploy_folder / "ingress/internal", "--ignore-not-found")


@pytest.fixture(scope="module")
def external(tailnet: Tailnet, controller_image: None) -> Iterator[Tailnet]:
    """Deploy the external controller as docs/ingress.md describes, with the certificate of the tests."""
    cluster = tailnet.cluster
    set_cloudflare_url(tailnet, "ingress/external/vpn/lifecycle.env")
    tailnet.prepare_namespace(EXTERNAL_NAMESPACE)
    manifests = render(tailnet.deploy_folder / "ingress/external")
    documents = [document for document in manifests if document["kind"] != "Certificate"]
    secret = cluster.get("secret", "wildcard-tls")
    metadata = {"name": "headscale-tls", "namespace": HEADSCALE_NAMESPACE}
    cluster.apply({**secret, "metadata": metadata}, *documents)
    yield tailnet
    cluster.kubectl("delete", "namespace", EXTERNAL_NAMESPACE, "--wait=false")


def application() -> Iterator[Document]:
    """Yield the pod and the Service to which the Ingress of deploy/ingress/examples refers."""
    script = f"mkdir /tmp/wiki && echo '{PAGE_TEXT}' > /tmp/wiki/index.html && exec httpd -f -p 8080 -h /tmp/wiki"
    container = {"name": "wiki", "image": BUSYBOX, "command": ["sh", "-c", script]}
    pod = manifest("Pod", "wiki", "wiki", spec={"containers": [container], "terminationGracePeriodSeconds": 1})
    pod["metadata"]["labels"] = {"app": "wiki"}
    yield pod
    spec = {"selector": {"app": "wiki"}, "ports": [{"port": 80, "targetPort": 8080}]}
    yield manifest("Service", "wiki", "wiki", spec=spec)


def set_cloudflare_url(tailnet: Tailnet, file: str) -> None:
    """Add the URL of the Cloudflare simulator to the settings of a controller."""
    with (tailnet.deploy_folder / file).open("a") as settings:
        settings.write(f"CLOUDFLARE_API_URL={tailnet.cloudflare_url}\n")


def pod_name(cluster: Cluster) -> str:
    """Return the name of a pod of the controller that is not being deleted."""

    def find() -> str | None:
        pods = cluster.pods("app.kubernetes.io/name=nginx-ingress", NAMESPACE)
        names: list[str] = [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return names[0] if names else None

    return eventually(find, "a pod of the controller", timeout_s=START_TIMEOUT_S)


def wait_for_records(tailnet: Tailnet, *, not_address: str = "") -> str:
    """Wait until the VPN node, its own record and its shared record have the same address, and return this address.

    `not_address` is an earlier address, which does not count.
    """

    def find() -> str | None:
        shared = [record for record in tailnet.records(SHARED_NAME) if record.content != OTHER_ADDRESS]
        match tailnet.nodes(HOSTNAME), tailnet.records(f"{HOSTNAME}.{DOMAIN}"), shared:
            case [node], [record], [shared_record] if record.content in node["ip_addresses"]:
                address: str = record.content
                return address if shared_record.content == address != not_address else None
        return None

    return eventually(
        find,
        "the node and its records",
        details=lambda: f"{tailnet.nodes(HOSTNAME)}\n{tailnet.cloudflare.records(tailnet.zone_id)}",
        timeout_s=START_TIMEOUT_S,
    )


def request_page(tailnet: Tailnet, pod: str, address: str) -> str:
    """Set the address of the wiki's name in DNS, request the page from a pod, and return the page or the error."""
    tailnet.cluster.names[INGRESS_HOST] = address
    return response_to(tailnet, pod, f"https://{INGRESS_HOST}/")


def wait_for_page(tailnet: Tailnet, address: str) -> None:
    """Wait until the VPN client gets the page of the wiki from an address."""
    eventually(
        lambda: PAGE_TEXT in request_page(tailnet, CLIENT, address), "the page of the wiki", timeout_s=START_TIMEOUT_S
    )


def test_ingress_is_served_on_the_vpn_under_its_name(internal: Tailnet, client_pods: None) -> None:
    wait_for_page(internal, wait_for_records(internal))


def test_clients_outside_of_the_vpn_are_refused(internal: Tailnet, client_pods: None) -> None:
    address = wait_for_records(internal)
    wait_for_page(internal, address)
    for destination in (address, NODE_ADDRESS):
        assert "403" in request_page(internal, POD_WITHOUT_VPN, destination)


def test_record_of_another_cluster_node_is_kept(internal: Tailnet) -> None:
    address = wait_for_records(internal)
    assert {record.content for record in internal.records(SHARED_NAME)} == {address, OTHER_ADDRESS}


def test_tailscale_adds_no_rules_to_the_firewall_of_the_cluster_node(internal: Tailnet) -> None:
    wait_for_records(internal)
    for program in ("iptables-nft-save", "iptables-legacy-save"):
        command = internal.cluster.node.command(program)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        # The names of tailscale's chains start with "ts-".
        assert "ts-" not in done.stdout
        # iptables prints "incompatible" if it cannot show all rules.
        assert "incompatible" not in done.stdout + done.stderr


def test_health_port_of_dns_watch_is_not_reachable_on_the_vpn(internal: Tailnet, client_pods: None) -> None:
    address = wait_for_records(internal)
    assert WGET_ERROR not in response_to(internal, POD_WITHOUT_VPN, f"http://{NODE_ADDRESS}:9003/readyz")
    assert WGET_ERROR in response_to(internal, CLIENT, f"http://{address}:9003/readyz")


def test_new_pod_serves_at_the_same_address(internal: Tailnet, client_pods: None) -> None:
    cluster = internal.cluster
    address = wait_for_records(internal)
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", pod_name(cluster))
    cluster.wait_for_pod(pod_name(cluster), NAMESPACE)
    assert wait_for_records(internal) == address
    wait_for_page(internal, address)


def test_records_follow_a_pod_with_a_new_node(internal: Tailnet, client_pods: None) -> None:
    """Without its state, the pod registers a new node with a new address."""
    cluster = internal.cluster
    address = wait_for_records(internal)
    name = pod_name(cluster)
    cluster.kubectl("-n", NAMESPACE, "delete", "secret", HOSTNAME)
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", name, "--force")
    cluster.wait_for_pod(pod_name(cluster), NAMESPACE)
    new_address = wait_for_records(internal, not_address=address)
    assert [node["ip_addresses"][0] for node in internal.nodes(HOSTNAME)] == [new_address]
    wait_for_page(internal, new_address)


def test_documented_command_deletes_what_a_removed_cluster_node_left(internal: Tailnet) -> None:
    """The test deletes the DaemonSet instead of the cluster node. Either way, the controller no longer runs there."""
    cluster = internal.cluster
    wait_for_records(internal)
    cluster.kubectl("-n", NAMESPACE, "delete", "daemonset", "nginx-ingress")
    (command,) = [
        block.text for block in blocks((ROOT / "docs/ingress.md").read_text(), "sh") if "prune-now" in block.text
    ]
    kubectl = shlex.join(map(str, cluster.server.kubectl_command()))
    script = f'kubectl() {{ {kubectl} "$@"; }}\n{command.replace("worker-1", NODE_NAME)}'
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True)
    eventually(
        lambda: not internal.nodes(HOSTNAME) and not internal.records(f"{HOSTNAME}.{DOMAIN}"),
        "the removal",
        details=lambda: cluster.kubectl("-n", NAMESPACE, "logs", "job/prune-now"),
        timeout_s=START_TIMEOUT_S,
    )
    assert [record.content for record in internal.records(SHARED_NAME)] == [OTHER_ADDRESS]
    with pytest.raises(RefusedError, match="NotFound"):
        cluster.get("secret", HOSTNAME, NAMESPACE)


def test_external_controller_logs_in_through_its_own_nginx(external: Tailnet) -> None:
    for number in range(2):
        name = f"nginx-external-{number}"
        external.cluster.wait_for_pod(name, EXTERNAL_NAMESPACE)
        external.wait_for_published_node(f"{name}.{DOMAIN}", hostname=name)
        # The first request of a Tailscale client is in the log of the pod's own nginx.
        assert "GET /key?" in external.cluster.logs(name, "nginx-ingress", EXTERNAL_NAMESPACE)


def test_external_controller_publishes_only_the_login_server(external: Tailnet, client_pods: None) -> None:
    cluster = external.cluster
    address = cluster.wait_for_pod("nginx-external-0", EXTERNAL_NAMESPACE)["status"]["podIP"]
    usual_address = cluster.names[LOGIN_NAME]
    cluster.names[LOGIN_NAME] = address
    try:
        assert "pass" in response_to(external, POD_WITHOUT_VPN, f"{LOGIN_URL}/health")
        for path in ("/api/v1/node", "/metrics", "/version"):
            assert "404" in response_to(external, POD_WITHOUT_VPN, f"{LOGIN_URL}{path}")
    finally:
        cluster.names[LOGIN_NAME] = usual_address

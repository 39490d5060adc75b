"""Run the pod of deploy/services/ollama with a simulated Headscale and Cloudflare.

The tests cover requests, probes, privileges and replacement. The pod has no native sidecars, which podman does not
implement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.pod.certificates import issue
from tests.pod.conftest import STAND_INS
from tests.pod.kubelet import PROBES, Kubelet, Pod, Podman
from tests.pod.network import (
    CLUSTER_NODE_ADDRESSES,
    VPN_CLIENT_ADDRESSES,
    Hosts,
    Response,
    create_hosts,
)
from tests.pod.rendering import (
    DOMAIN,
    RECORD_COMMENT,
    USER,
    configure,
    containers,
    copy_deploy,
    render,
    select_plain_containers,
)
from tests.real.programs import eventually
from tests.simulators.cloudflare import CloudflareSimulator, Record
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.simulators.tailnet import Node

NAME = f"ollama.{DOMAIN}"

_PYTHON = ["env", "PYTHONPATH=/opt", "PYTHONDONTWRITEBYTECODE=1", "python3", "-u"]
STAND_IN_COMMANDS = {
    "application": [*_PYTHON, "/opt/tests/pod/application.py", "11434"],
    "tailscale": [*_PYTHON, "-m", "tests.pod.tailscale_container"],
}
"""The commands of the stand-ins for the application and tailscale, by container."""

TEST_SETTINGS = {
    # The default "keep" reads the Secret with the state of tailscale, and these tests have no Kubernetes API.
    "NODE_POLICY": "replace",
    # Short intervals keep the tests fast.
    "POLL_INTERVAL": "1s",
    "RETRY_INTERVAL": "1s",
    "VERIFY_INTERVAL": "2s",
}


@dataclass
class Setup:
    """A cluster that can run the pod, and the simulated Headscale and Cloudflare.

    Attributes:
        trust: the file with the certificate that clients have to trust.
    """

    headscale: HeadscaleSimulator
    cloudflare: CloudflareSimulator
    zone: str
    hosts: Hosts
    kubelet: Kubelet
    trust: Path

    @property
    def nodes(self) -> list[Node]:
        """The nodes with the workload's hostname."""
        return [node for node in self.headscale.nodes if node.name == NAME]

    @property
    def records(self) -> list[Record]:
        """The records at the workload's name."""
        return self.cloudflare.records(self.zone, NAME)

    def is_published(self, node: Node) -> bool:
        """Return True if the name has exactly one record, with this node's address and the program's comment."""
        return [(record.type, record.content, record.comment, record.proxied) for record in self.records] == [
            ("A", node.addresses[0], RECORD_COMMENT, False)
        ]

    def request(self, path: str = "/", **options: Any) -> Response:
        """Send a request from a VPN client to the address in the DNS record."""
        (record,) = self.records
        return self.hosts.vpn.request(
            f"https://{NAME}{path}", to=record.content, source=VPN_CLIENT_ADDRESSES[0], trust=str(self.trust), **options
        )


@contextmanager
def set_up(runtime: Podman, folder: Path) -> Iterator[Setup]:
    """Prepare the cluster and the simulators, without starting a pod."""
    headscale = HeadscaleSimulator()
    headscale.add_user(USER)
    cloudflare = CloudflareSimulator()
    zone = cloudflare.add_zone(DOMAIN)
    with ExitStack() as stack:
        hosts = stack.enter_context(create_hosts())
        with hosts.cluster.inside():
            headscale_url, cloudflare_url = (
                stack.enter_context(serve(upstream, host=CLUSTER_NODE_ADDRESSES[0]))
                for upstream in (headscale, cloudflare)
            )
        repository = copy_deploy(folder / "repository")
        configure(
            repository,
            **TEST_SETTINGS,
            HEADSCALE_URL=headscale_url,
            CLOUDFLARE_API_URL=f"{cloudflare_url}/client/v4",
            LOGIN_SERVER=headscale_url,
        )
        kustomization = repository / "deploy/services/ollama/kustomization.yaml"
        select_plain_containers(kustomization)
        certificate, key = issue(f"*.{DOMAIN}")
        trust = folder / "trust.pem"
        trust.write_text(certificate)
        kubelet = Kubelet(
            runtime,
            hosts,
            folder,
            render(kustomization.parent),
            images=dict.fromkeys(("application", "nginx-tls", "tailscale"), STAND_INS),
            commands=STAND_IN_COMMANDS,
            secrets={
                "lifecycle": {"HEADSCALE_API_KEY": headscale.api_key, "CLOUDFLARE_API_TOKEN": cloudflare.token},
                "wildcard-tls": {"tls.crt": certificate, "tls.key": key},
            },
        )
        yield Setup(headscale, cloudflare, zone, hosts, kubelet, trust)


def wait_until_published(setup: Setup) -> Node:
    """Wait until there is exactly one node and one record with its address, and return the node."""
    eventually(lambda: len(setup.nodes) == 1 and setup.is_published(setup.nodes[0]), "one node and its record")
    return setup.nodes[0]


@pytest.fixture(scope="module")
def running(runtime: Podman, scratch_dir: Path) -> Iterator[tuple[Setup, Pod]]:
    """Run a pod and wait until its record is published."""
    folder = scratch_dir / "running"
    folder.mkdir()
    with set_up(runtime, folder) as setup, setup.kubelet.pod() as pod:
        wait_until_published(setup)
        yield setup, pod


def test_vpn_client_reaches_the_application_by_name(running: tuple[Setup, Pod]) -> None:
    """The client connects to the address in the DNS record. The application receives the client's address.

    nginx sets the Host header to localhost, because Ollama rejects other values if it listens on localhost.
    """
    setup, _ = running
    eventually(lambda: setup.request().status == 200, "the application behind nginx")
    response = setup.request("/api/tags")
    forwarded = dict(response.forwarded["headers"])
    assert response.status == 200
    assert (forwarded["x-real-ip"], forwarded["x-forwarded-proto"]) == (VPN_CLIENT_ADDRESSES[0], "https")
    assert forwarded["host"] == "localhost"


def test_all_probes_pass_in_a_healthy_pod(running: tuple[Setup, Pod]) -> None:
    setup, pod = running
    pod_containers = containers(setup.kubelet.spec)
    probes = [(name, kind) for name in pod_containers for kind in PROBES if kind in pod_containers[name]]
    assert {name for name, _ in probes} == {"application", "dns-watch", "nginx-tls", "tailscale"}
    for name, kind in probes:
        eventually(partial(pod.probe, name, kind), f"{name}'s {kind}")


@pytest.mark.parametrize("name", ["dns-watch", "nginx-tls", "application", "tailscale"])
def test_process_has_the_privileges_of_the_manifest(name: str, running: tuple[Setup, Pod]) -> None:
    """/proc/PID/status of the container's first process shows its privileges."""
    setup, pod = running
    context = containers(setup.kubelet.spec)[name]["securityContext"]
    text = (setup.kubelet.podman.process(pod.container(name)) / "status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    # The numbers of capabilities in linux/capability.h.
    numbers = {"NET_ADMIN": 12, "MKNOD": 27}
    allowed = sum(1 << numbers[capability] for capability in context["capabilities"].get("add", []))
    assert int(status["CapBnd"], 16) == allowed
    assert int(status["CapEff"], 16) == (allowed if context["runAsUser"] == 0 else 0)
    assert status["Uid"].split() == [str(context["runAsUser"])] * 4
    assert str(setup.kubelet.group) in status["Groups"].split()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"  # SECCOMP_MODE_FILTER


def test_logs_contain_no_secrets(running: tuple[Setup, Pod]) -> None:
    setup, pod = running
    for name in containers(setup.kubelet.spec):
        log = pod.log(name)
        assert not [secret for secret in [*setup.headscale.secrets(), *setup.cloudflare.secrets()] if secret in log]


def test_replacing_a_killed_pod_leaves_one_node_and_one_record(runtime: Podman, scratch_dir: Path) -> None:
    """Headscale still reports the old node as online, because its client did not disconnect."""
    folder = scratch_dir / "replaced"
    folder.mkdir()
    with set_up(runtime, folder) as setup:
        with setup.kubelet.pod() as pod:
            first = wait_until_published(setup)
            pod.kill()
        assert setup.headscale.online(first.id)
        with setup.kubelet.pod() as pod:
            eventually(lambda: [node.id for node in setup.nodes] not in ([], [first.id]), "the new pod's node")
            second = wait_until_published(setup)
            assert second.id > first.id
            eventually(lambda: setup.request().status == 200, "the application at the same name")
            deleted = [event["node_id"] for event in pod.events("cleanup") if event["event"] == "node.deleted"]
            assert deleted == [str(first.id)]
        # The record was created once and then updated, so the name has always resolved.
        assert [write.method for write in setup.cloudflare.writes] == ["POST", "PATCH"]

"""Run the rendered pod: from the first start to a response over https, replacement and shutdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pages import ROOT, section
from tests.pod.cluster import MARK, NAME, USER, deployed
from tests.pod.network import CLUSTER_SIDE, ON_THE_VPN, POD_SIDE, Hosts, Response, eventually, hosts
from tests.pod.play import PROBES, Kubelet, Pod, Podman
from tests.pod.rendering import DOMAIN, configuration, containers, pod_spec, rendered
from tests.simulators.cloudflare import CloudflareSimulator, Record
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.simulators.tailnet import Node


@dataclass
class Setup:
    """A cluster with one workload, and simulated upstreams."""

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

    def published(self, node: Node) -> bool:
        """Return True if the only record at the name has this node's address and our mark."""
        return [(record.type, record.content, record.comment, record.proxied) for record in self.records] == [
            ("A", node.addresses[0], MARK, False)
        ]

    def request(self, path: str = "/", **options: Any) -> Response:
        """Send a request from a VPN client to the address in the DNS record."""
        (record,) = self.records
        return self.hosts.vpn.request(
            f"https://{NAME}{path}", to=record.content, source=ON_THE_VPN[0], trust=str(self.trust), **options
        )


@contextmanager
def set_up(runtime: Podman, folder: Path) -> Iterator[Setup]:
    """Prepare the reference workload with plain containers, without starting a pod."""
    headscale = HeadscaleSimulator()
    headscale.add_user(USER)
    cloudflare = CloudflareSimulator()
    zone = cloudflare.add_zone(DOMAIN)
    with ExitStack() as stack:
        around = stack.enter_context(hosts())
        with around.cluster.inside():
            headscale_url, cloudflare_url = (
                stack.enter_context(serve(upstream, host=CLUSTER_SIDE[0])) for upstream in (headscale, cloudflare)
            )
        kubelet, trust = deployed(
            runtime,
            around,
            folder,
            headscale=(headscale_url, headscale.api_key),
            cloudflare=(cloudflare_url, cloudflare.token),
        )
        yield Setup(headscale, cloudflare, zone, around, kubelet, trust)


def wait_until_published(setup: Setup) -> Node:
    """Wait until there is exactly one node and one record with its address, and return the node."""
    eventually(lambda: len(setup.nodes) == 1 and setup.published(setup.nodes[0]), "one node and its record")
    return setup.nodes[0]


@pytest.fixture(scope="module")
def applied(runtime: Podman, scratch_dir: Path) -> Iterator[tuple[Setup, Pod]]:
    """Run a pod and wait until its record is published."""
    folder = scratch_dir / "applied"
    folder.mkdir()
    with set_up(runtime, folder) as setup, setup.kubelet.pod() as pod:
        wait_until_published(setup)
        yield setup, pod


def test_vpn_client_reaches_the_application_by_name(applied: tuple[Setup, Pod]) -> None:
    """Follow the DNS record over the VPN and through nginx to the application, which gets the client's address."""
    setup, pod = applied
    eventually(lambda: setup.request().status == 200, "the application behind nginx")
    response = setup.request("/api/tags")
    forwarded = dict(response.forwarded["headers"])
    assert (response.status, forwarded["x-real-ip"], forwarded["x-forwarded-proto"]) == (200, ON_THE_VPN[0], "https")
    assert [event["event"] for event in pod.events("cleanup")][-1] == "pass.finished"


def test_requests_from_the_cluster_are_refused(applied: tuple[Setup, Pod]) -> None:
    setup, _ = applied
    for scheme in ("http", "https"):
        assert setup.hosts.cluster.request(f"{scheme}://{NAME}/", to=POD_SIDE[0]).status == 403


PROBED = [
    ("application", "livenessProbe"),
    ("application", "readinessProbe"),
    ("application", "startupProbe"),
    ("dns-watch", "livenessProbe"),
    ("nginx-tls", "livenessProbe"),
    ("nginx-tls", "readinessProbe"),
    ("tailscale", "livenessProbe"),
    ("tailscale", "startupProbe"),
]


@pytest.mark.parametrize(("container", "kind"), PROBED)
def test_probe_passes_in_a_healthy_pod(container: str, kind: str, applied: tuple[Setup, Pod]) -> None:
    _, pod = applied
    eventually(lambda: pod.probe(container, kind), f"{container}'s {kind}")


def test_all_probes_are_tested() -> None:
    every = containers(pod_spec(rendered("ollama", "plain")))
    assert [(name, kind) for name in sorted(every) for kind in sorted(PROBES) if kind in every[name]] == PROBED


@pytest.mark.parametrize("name", ["dns-watch", "nginx-tls", "application", "tailscale"])
def test_process_has_the_privileges_of_the_manifest(name: str, applied: tuple[Setup, Pod]) -> None:
    """Compare the security context with /proc/PID/status of the container's first process."""
    setup, pod = applied
    context = containers(setup.kubelet.spec)[name]["securityContext"]
    text = (setup.kubelet.podman.process(pod.container(name)) / "status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    numbers = {"NET_ADMIN": 12, "MKNOD": 27}
    allowed = sum(1 << numbers[capability] for capability in context["capabilities"].get("add", []))
    assert int(status["CapBnd"], 16) == allowed
    assert int(status["CapEff"], 16) == (allowed if context["runAsUser"] == 0 else 0)
    assert status["Uid"].split() == [str(context["runAsUser"])] * 4
    assert str(setup.kubelet.group) in status["Groups"].split()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_only_tailscale_can_read_the_key(applied: tuple[Setup, Pod]) -> None:
    setup, pod = applied
    read = ["cat", "/tailscale-auth/authkey"]
    done = setup.kubelet.podman.try_to("exec", pod.container("tailscale"), *read)
    assert done.stdout in setup.headscale.secrets()
    for other in ("application", "nginx-tls"):
        assert setup.kubelet.podman.try_to("exec", pod.container(other), *read).returncode != 0


def documented(container: str) -> dict[str, list[str]]:
    """Return the commands that docs/operations.md runs in a container, by the command line."""
    page = (ROOT / "docs/operations.md").read_text()
    found = re.findall(rf"exec grafana-0 -c {container} -- ([^#\n]*[^#\n ])", section(page, "## First commands"))
    return {line: shlex.split(line) for line in found}


def test_documented_commands_for_nginx_show_what_is_running(applied: tuple[Setup, Pod]) -> None:
    setup, pod = applied
    eventually(lambda: pod.probe("application", "readinessProbe"), "the application")
    done = {
        line: setup.kubelet.podman.try_to("exec", pod.container("nginx-tls"), *words)
        for line, words in documented("nginx-tls").items()
    }
    assert {line: each.stderr for line, each in done.items() if each.returncode} == {}
    by_program = {line.partition(" http")[0]: each.stdout + each.stderr for line, each in done.items()}
    assert set(by_program) == {"nginx -t", "nginx -T", "netstat -tln", "wget -S -O -"}
    assert "configuration file /etc/nginx/nginx.conf test is successful" in by_program["nginx -t"]
    assert configuration(setup.kubelet.documents, "nginx")["nginx.conf"] in by_program["nginx -T"]
    ports = {line.split()[3] for line in by_program["netstat -tln"].splitlines() if line.startswith("tcp")}
    assert ports >= {"0.0.0.0:80", "0.0.0.0:443", "0.0.0.0:9004", "127.0.0.1:9002", "127.0.0.1:11434"}
    assert " 204 " in by_program["wget -S -O -"]


def test_logs_contain_no_secrets(applied: tuple[Setup, Pod]) -> None:
    setup, pod = applied
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
        # The record was updated in place, so the name resolved all the time.
        assert [write.method for write in setup.cloudflare.writes] == ["POST", "PATCH"]


def test_dns_watch_exits_on_sigterm(runtime: Podman, scratch_dir: Path) -> None:
    """Stop it with a grace period and check that SIGKILL was not needed."""
    folder = scratch_dir / "stopped"
    folder.mkdir()
    with set_up(runtime, folder) as setup, setup.kubelet.pod() as pod:
        wait_until_published(setup)
        setup.kubelet.podman.run("stop", "--time", "30", pod.container("dns-watch"))
        status = setup.kubelet.podman.run("inspect", "--format", "{{.State.ExitCode}}", pod.container("dns-watch"))
        assert status.strip() == "0"
        assert pod.events("dns-watch")[-1]["event"] == "stop.requested"


# --- tailscale's liveness probe -----------------------------------------------------------------------


MARKER = "/tailscale-auth/authkey.restart"


def test_liveness_probe_of_tailscale_fails_while_dns_watch_has_a_restart_marker(applied: tuple[Setup, Pod]) -> None:
    """Write the marker through the mount of dns-watch, and run the probe through the mount of tailscale."""
    setup, pod = applied
    podman = setup.kubelet.podman

    def change(call: str) -> None:
        code = f"from pathlib import Path; Path({MARKER!r}).{call}"
        podman.run("exec", pod.container("dns-watch"), "/opt/lifecycle/bin/python", "-c", code)

    def fails() -> bool:
        # dns-watch may remove the marker in between, because the node is registered.
        change("touch()")
        return not pod.probe("tailscale", "livenessProbe")

    podman.run("exec", pod.container("tailscale"), "test", "-S", "/tmp/tailscaled.sock")
    eventually(fails, "the probe to fail")
    change("unlink(missing_ok=True)")
    assert pod.probe("tailscale", "livenessProbe")

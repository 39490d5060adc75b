"""The rendered pod, run as a pod: from `apply` to an answer over https, and what is left when it is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pod.cluster import MARK, NAME, PYTHON, USER, deployed
from tests.pod.conftest import STAND_INS
from tests.pod.network import CLUSTER_SIDE, ON_THE_VPN, POD_SIDE, Answer, Surroundings, eventually, surroundings
from tests.pod.play import PROBES, Kubelet, Pod, Podman
from tests.pod.rendering import DOMAIN, containers, pod_spec, rendered
from tests.simulators.cloudflare import CloudflareSimulator, Record
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.simulators.tailnet import Node


@dataclass
class World:
    """A cluster with one service in it, and both services that it depends on."""

    headscale: HeadscaleSimulator
    cloudflare: CloudflareSimulator
    zone: str
    around: Surroundings
    kubelet: Kubelet
    trust: Path

    @property
    def nodes(self) -> list[Node]:
        """The nodes of our name."""
        return [node for node in self.headscale.nodes if node.name == NAME]

    @property
    def records(self) -> list[Record]:
        """The records at our name."""
        return self.cloudflare.records(self.zone, NAME)

    def published(self, node: Node) -> bool:
        """Whether the one record at our name is this node's, and ours."""
        return [(record.type, record.content, record.comment, record.proxied) for record in self.records] == [
            ("A", node.addresses[0], MARK, False)
        ]

    def ask(self, path: str = "/", **options: Any) -> Answer:
        """Ask for a page by the name, which Cloudflare resolves, from a machine on the VPN."""
        (record,) = self.records
        return self.around.vpn.ask(
            f"https://{NAME}{path}", to=record.content, source=ON_THE_VPN[0], trust=str(self.trust), **options
        )


@contextmanager
def world(runtime: Podman, folder: Path) -> Iterator[World]:
    """The reference service, rendered in plain containers, ready to start."""
    headscale = HeadscaleSimulator()
    headscale.add_user(USER)
    cloudflare = CloudflareSimulator()
    zone = cloudflare.add_zone(DOMAIN)
    with ExitStack() as stack:
        around = stack.enter_context(surroundings())
        with around.cluster.inside():
            headscale_url, cloudflare_url = (
                stack.enter_context(serve(service, host=CLUSTER_SIDE[0])) for service in (headscale, cloudflare)
            )
        kubelet, trust = deployed(
            runtime,
            around,
            folder,
            headscale=(headscale_url, headscale.api_key),
            cloudflare=(cloudflare_url, cloudflare.token),
        )
        yield World(headscale, cloudflare, zone, around, kubelet, trust)


def is_published(world: World) -> Node:
    """Wait until there is one node of ours and one record, the node's."""
    eventually(lambda: len(world.nodes) == 1 and world.published(world.nodes[0]), "one node and its record")
    return world.nodes[0]


@pytest.fixture(scope="module")
def applied(runtime: Podman, workshop: Path) -> Iterator[tuple[World, Pod]]:
    """The service, published."""
    folder = workshop / "applied"
    folder.mkdir()
    with world(runtime, folder) as made, made.kubelet.pod() as pod:
        is_published(made)
        yield made, pod


def test_from_apply_to_an_answer_by_name(applied: tuple[World, Pod]) -> None:
    """The name that Cloudflare holds leads over the VPN through nginx to the application, which knows who asks."""
    world, pod = applied
    eventually(lambda: world.ask().status == 200, "the application behind nginx")
    answer = world.ask("/api/tags")
    seen = dict(answer.seen["headers"])
    assert (answer.status, seen["x-real-ip"], seen["x-forwarded-proto"]) == (200, ON_THE_VPN[0], "https")
    assert [event["event"] for event in pod.events("cleanup")][-1] == "pass.finished"


def test_the_cluster_is_refused(applied: tuple[World, Pod]) -> None:
    world, _ = applied
    for scheme in ("http", "https"):
        assert world.around.cluster.ask(f"{scheme}://{NAME}/", to=POD_SIDE[0]).status == 403


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
def test_every_probe_passes_as_it_stands(container: str, kind: str, applied: tuple[World, Pod]) -> None:
    _, pod = applied
    eventually(lambda: pod.probe(container, kind), f"{container}'s {kind}")


def test_those_are_all_the_probes_there_are() -> None:
    every = containers(pod_spec(rendered("ollama", "plain")))
    assert [(name, kind) for name in sorted(every) for kind in sorted(PROBES) if kind in every[name]] == PROBED


@pytest.mark.parametrize("name", ["dns-watch", "nginx-tls", "application", "tailscale"])
def test_a_container_has_the_rights_that_its_manifest_gives_it(name: str, applied: tuple[World, Pod]) -> None:
    """As the kernel sees its first process."""
    world, pod = applied
    context = containers(world.kubelet.spec)[name]["securityContext"]
    said = (world.kubelet.podman.process(pod.container(name)) / "status").read_text()
    status = dict(line.split(":\t", 1) for line in said.splitlines())
    numbers = {"NET_ADMIN": 12, "MKNOD": 27}
    allowed = sum(1 << numbers[capability] for capability in context["capabilities"].get("add", []))
    assert int(status["CapBnd"], 16) == allowed
    assert int(status["CapEff"], 16) == (allowed if context["runAsUser"] == 0 else 0)
    assert status["Uid"].split() == [str(context["runAsUser"])] * 4
    assert str(world.kubelet.group) in status["Groups"].split()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_the_key_is_for_tailscale_to_read_and_for_nobody_else(applied: tuple[World, Pod]) -> None:
    world, pod = applied
    read = ["cat", "/tailscale-auth/authkey"]
    done = world.kubelet.podman.try_to("exec", pod.container("tailscale"), *read)
    assert done.stdout in world.headscale.secrets()
    for other in ("application", "nginx-tls"):
        assert world.kubelet.podman.try_to("exec", pod.container(other), *read).returncode != 0


def test_no_secret_is_in_any_log(applied: tuple[World, Pod]) -> None:
    world, pod = applied
    for name in containers(world.kubelet.spec):
        said = pod.log(name)
        assert not [secret for secret in [*world.headscale.secrets(), *world.cloudflare.secrets()] if secret in said]


def test_a_pod_that_was_killed_and_replaced_leaves_one_node_and_one_record(runtime: Podman, workshop: Path) -> None:
    """Headscale still calls the old node online, since nobody said good-bye."""
    folder = workshop / "replaced"
    folder.mkdir()
    with world(runtime, folder) as made:
        with made.kubelet.pod() as pod:
            first = is_published(made)
            pod.kill()
        assert made.headscale.online(first.id)
        with made.kubelet.pod() as pod:
            eventually(lambda: [node.id for node in made.nodes] not in ([], [first.id]), "the new pod's node")
            second = is_published(made)
            assert second.id > first.id
            eventually(lambda: made.ask().status == 200, "the application, by the same name")
            deleted = [event["node_id"] for event in pod.events("cleanup") if event["event"] == "node.deleted"]
            assert deleted == [str(first.id)]
        # The record was repointed: the name never stopped resolving.
        assert [write.method for write in made.cloudflare.writes] == ["POST", "PATCH"]


def test_dns_watch_ends_when_the_pod_is_told_to(runtime: Podman, workshop: Path) -> None:
    """Within its grace, and not by the signal that follows."""
    folder = workshop / "stopped"
    folder.mkdir()
    with world(runtime, folder) as made, made.kubelet.pod() as pod:
        is_published(made)
        made.kubelet.podman.run("stop", "--time", "30", pod.container("dns-watch"))
        ended = made.kubelet.podman.run("inspect", "--format", "{{.State.ExitCode}}", pod.container("dns-watch"))
        assert ended.strip() == "0"
        assert pod.events("dns-watch")[-1]["event"] == "stop.requested"


# --- tailscale's liveness probe -----------------------------------------------------------------------

ANSWERS = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        if sys.argv[1] == "0":
            time.sleep(60)
        self.send_response(int(sys.argv[1]))
        self.end_headers()
        self.wfile.write(b"HTTP/1.1 503 in a body says nothing")

HTTPServer(("127.0.0.1", 9003), Answers).serve_forever()
"""


@pytest.mark.parametrize(
    ("status", "restarted"),
    [
        pytest.param(200, False, id="well"),
        pytest.param(503, True, id="gone-and-a-fresh-key-is-there"),
        pytest.param(500, False, id="broken"),
        pytest.param(404, False, id="of-an-older-version"),
        pytest.param(0, False, id="no-answer"),
        pytest.param(None, False, id="nobody-there"),
    ],
)
def test_tailscale_is_restarted_on_an_answered_503_alone(
    status: int | None, restarted: bool, runtime: Podman, applied: tuple[World, Pod]
) -> None:
    world, _ = applied
    probe = containers(world.kubelet.spec)["tailscale"]["livenessProbe"]
    command = ["sleep", "600"] if status is None else [*PYTHON, "-c", ANSWERS, str(status)]
    container = runtime.run("run", "--detach", "--network=none", STAND_INS, *command).strip()
    try:
        if status:
            eventually(
                lambda: "HTTP/1" in runtime.try_to("exec", container, "wget", "-S", "-O-", "127.0.0.1:9003").stderr,
                "an answer",
            )
        done = runtime.try_to("exec", container, *probe["exec"]["command"])
        assert (done.returncode != 0) == restarted, done.stderr
    finally:
        runtime.run("rm", "--force", "--time", "0", container)

"""The same pod with the real tailscale in it and a real Headscale, where both are installed.

The rendered security context is what is on trial here: a read-only root, NET_ADMIN and MKNOD, nothing else. The
program that starts tailscale in its image is not: its state Secret would need a Kubernetes API.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pod.cluster import MARK, NAME, USER, deployed
from tests.pod.conftest import STAND_INS
from tests.pod.network import CLUSTER_SIDE, POD_SIDE, Surroundings, eventually, process, run, surroundings
from tests.pod.play import Pod, Podman
from tests.real.programs import Release, installed_releases
from tests.simulators.cloudflare import CloudflareSimulator, Record
from tests.simulators.serve import serve

WITH_TAILSCALE = "localhost/stand-ins:tailscale"

# What the image's own program does with its variables, as far as it matters here.
CONTAINER = (
    "mkdir -p /dev/net; test -e /dev/net/tun || mknod /dev/net/tun c 10 200; "
    "tailscaled $TS_TAILSCALED_EXTRA_ARGS --socket=/tmp/socket --state=/tmp/state --statedir=/tmp & "
    "until test -S /tmp/socket; do sleep 0.1; done; "
    'tailscale --socket=/tmp/socket up --auth-key="$TS_AUTHKEY" --hostname="$TS_HOSTNAME" '
    '--accept-dns="$TS_ACCEPT_DNS" --timeout=60s $TS_EXTRA_ARGS || exit 1; '
    "wait"
)

FIRST_START_S = 180.0
"""How long a real client may take to find out that it has no way to the internet, on a machine that is busy."""

HOME = "198.51.100.1", "198.51.100.2"
"""The router and the machine of somebody who uses the service."""


@dataclass
class Server:
    """A real Headscale in the cluster."""

    release: Release
    folder: Path

    url = f"http://{CLUSTER_SIDE[0]}:8080"

    def configure(self) -> Path:
        """Write its configuration: where it is."""
        file = self.folder / "config.yaml"
        address = CLUSTER_SIDE[0]
        relay = {
            "enabled": True,
            "region_id": 999,
            "region_code": "own",
            "region_name": "Its own",
            "stun_listen_addr": f"{address}:3478",
            "private_key_path": str(self.folder / "derp.key"),
            "automatically_add_embedded_derp_region": True,
            "verify_clients": False,
            "ipv4": address,
        }
        configuration = {
            "server_url": self.url,
            "listen_addr": f"{address}:8080",
            "metrics_listen_addr": "127.0.0.1:9090",
            "grpc_listen_addr": "127.0.0.1:50443",
            "noise": {"private_key_path": str(self.folder / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
            "derp": {"server": relay, "urls": [], "paths": [], "auto_update_enabled": False},
            "disable_check_updates": True,
            "database": {"type": "sqlite", "sqlite": {"path": str(self.folder / "db.sqlite")}},
            "dns": {
                "magic_dns": False,
                "override_local_dns": False,
                "base_domain": "tailnet.example",
                "nameservers": {"global": []},
            },
            "unix_socket": str(self.folder / "socket"),
            "unix_socket_permission": "0700",
        }
        file.write_text(yaml.safe_dump(configuration))
        return file

    def command(self, *words: str) -> list[str | Path]:
        """A command line of its CLI."""
        return [self.release.headscale, "--config", self.folder / "config.yaml", *words]

    def cli(self, *words: str) -> Any:
        """What its CLI answers."""
        return json.loads(run(*self.command(*words, "--output", "json")))

    def key_for(self, user: str) -> str:
        """A pre-auth key for a user, made if need be."""
        made = self.cli("users", "create", user)
        reference = str(made["id"]) if self.release.user_by_id else user
        key: str = self.cli("preauthkeys", "create", "--user", reference)["key"]
        return key

    def nodes(self, name: str) -> list[dict[str, Any]]:
        """The nodes of a hostname."""
        return [node for node in self.cli("nodes", "list") or [] if node["name"] == name]


@dataclass
class World:
    """A cluster, a tailnet, and somebody at home."""

    server: Server
    cloudflare: CloudflareSimulator
    zone: str
    around: Surroundings
    trust: Path
    pod: Pod

    @property
    def records(self) -> list[Record]:
        return self.cloudflare.records(self.zone, NAME)


def build_image(runtime: Podman, release: Release) -> None:
    """The stand-ins, and the two programs among them."""
    container = runtime.run("create", "--network=none", STAND_INS, "true").strip()
    for program in (release.tailscale, release.tailscaled):
        runtime.run("cp", program, f"{container}:/usr/bin/{program.name}")
    runtime.run("commit", "--quiet", container, WITH_TAILSCALE)
    runtime.run("rm", container)


def lay_a_way_home(around: Surroundings) -> None:
    """The machine at home reaches the cluster over the internet; only through the VPN it is welcome."""
    run(
        "ip",
        "link",
        "add",
        "eth0",
        "netns",
        around.vpn.name,
        "type",
        "veth",
        "peer",
        "home",
        "netns",
        around.cluster.name,
    )
    for host, interface, address in ((around.cluster, "home", HOME[0]), (around.vpn, "eth0", HOME[1])):
        host.ip("address", "add", f"{address}/24", "dev", interface)
        host.ip("link", "set", interface, "up")
    around.vpn.ip("route", "add", "default", "via", HOME[0])
    around.cluster.set_sysctls([{"name": "net.ipv4.ip_forward", "value": "1"}])


@pytest.fixture(scope="module")
def world(runtime: Podman, workshop: Path) -> Iterator[World]:
    """The service published, and a machine at home that has joined the tailnet, too."""
    releases = installed_releases()
    if isinstance(releases, str):
        pytest.skip(releases)
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun: modprobe tun")
    folder = workshop / "real"
    folder.mkdir()
    server = Server(releases[-1], folder)
    cloudflare = CloudflareSimulator()
    zone = cloudflare.add_zone("example.com")
    build_image(runtime, server.release)
    with ExitStack() as stack:
        around = stack.enter_context(surroundings())
        with around.cluster.inside():
            cloudflare_url = stack.enter_context(serve(cloudflare, host=CLUSTER_SIDE[0]))
        serving = around.cluster.command(server.release.headscale, "--config", server.configure(), "serve")
        stack.enter_context(process(serving, folder / "headscale.log"))
        eventually(lambda: around.cluster.ask(f"{server.url}/health").status == 200, "Headscale")
        server.cli("users", "create", USER)
        kubelet, trust = deployed(
            runtime,
            around,
            folder,
            headscale=(server.url, server.cli("apikeys", "create")),
            cloudflare=(cloudflare_url, cloudflare.token),
            tailscale=(WITH_TAILSCALE, ["sh", "-c", CONTAINER]),
        )
        pod = stack.enter_context(kubelet.pod())
        # The VPN is tailscale's here, not a cable.
        pod.host.ip("link", "delete", "vpn0")
        pod.host.ip("route", "add", "default", "via", CLUSTER_SIDE[0])
        lay_a_way_home(around)
        stack.enter_context(joined(server, around, folder))
        yield World(server, cloudflare, zone, around, trust, pod)


@contextmanager
def joined(server: Server, around: Surroundings, folder: Path) -> Iterator[None]:
    """A machine at home on the VPN, for as long as the block lasts."""
    socket = folder / "home.socket"
    daemon = around.vpn.command(
        server.release.tailscaled, "--port=41641", "--no-logs-no-support", f"--socket={socket}", "--state=mem:"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TS_DEBUG_FIREWALL_MODE": "nftables"}
    with process(daemon, folder / "home.log", env=environment):
        eventually(socket.exists, "tailscaled at home")
        run(
            *(server.release.tailscale, f"--socket={socket}", "up", f"--auth-key={server.key_for('ann')}"),
            *(f"--login-server={server.url}", "--hostname=laptop", "--accept-dns=false", "--timeout=60s"),
        )
        yield


def test_from_apply_to_an_answer_over_the_real_vpn(world: World) -> None:
    """nginx sees the laptop's own VPN address, which is what the allow list is about."""
    (record,) = eventually(lambda: world.records, "the record", within_s=FIRST_START_S)
    (node,) = world.server.nodes(NAME)
    assert (record.type, record.comment) == ("A", MARK)
    assert f'"{record.content}"' in json.dumps(node)
    url, asked = f"https://{NAME}/", {"to": record.content, "trust": str(world.trust)}
    eventually(
        lambda: world.around.vpn.ask(url, **asked).status == 200,
        "the application, over the VPN",
        within_s=FIRST_START_S,
    )
    seen = dict(world.around.vpn.ask(url, **asked).seen["headers"])
    (laptop,) = world.server.nodes("laptop")
    assert seen["x-real-ip"] in json.dumps(laptop)


def test_everybody_else_is_refused(world: World) -> None:
    """The laptop, too, when it comes another way."""
    for host in (world.around.cluster, world.around.vpn):
        for scheme in ("http", "https"):
            assert host.ask(f"{scheme}://{NAME}/", to=POD_SIDE[0]).status == 403


def test_tailscale_needs_no_more_than_it_was_given(world: World) -> None:
    """Its packet filter is there, by way of NET_ADMIN alone."""
    eventually(lambda: world.records, "the record", within_s=FIRST_START_S)
    log = world.pod.log("tailscale")
    assert "netfilter running in nftables mode" in log
    assert "permission denied" not in log.lower()
    assert "operation not permitted" not in log.lower()


def test_tailscale_s_liveness_probe_passes(world: World) -> None:
    eventually(lambda: world.pod.probe("tailscale", "livenessProbe"), "the probe")

"""Run the rendered pod with a real tailscale and a real Headscale, if both are installed.

The tests show that tailscale works with the rendered security context: a read-only root file system, NET_ADMIN and
MKNOD. They do not run containerboot, the image's entry point, which needs a Kubernetes API for the state Secret.
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

from tests.pod.conftest import STAND_INS
from tests.pod.kubelet import Pod, Podman
from tests.pod.network import CLUSTER_NODE_ADDRESSES, POD_ADDRESSES, Hosts, create_hosts, eventually, process, run
from tests.pod.reference import NAME, RECORD_COMMENT, USER, prepare_reference_workload
from tests.real.programs import Release, installed_releases
from tests.simulators.cloudflare import CloudflareSimulator, Record
from tests.simulators.serve import serve

WITH_TAILSCALE = "localhost/stand-ins:tailscale"

CONTAINER_SCRIPT = (
    # The steps of containerboot that these tests need.
    "mkdir -p /dev/net; test -e /dev/net/tun || mknod /dev/net/tun c 10 200; "
    "tailscaled $TS_TAILSCALED_EXTRA_ARGS --socket=/tmp/socket --state=/tmp/state --statedir=/tmp & "
    "until test -S /tmp/socket; do sleep 0.1; done; "
    'tailscale --socket=/tmp/socket up --auth-key="$TS_AUTHKEY" --hostname="$TS_HOSTNAME" '
    '--accept-dns="$TS_ACCEPT_DNS" --timeout=60s $TS_EXTRA_ARGS || exit 1; '
    "wait"
)

FIRST_LOGIN_TIMEOUT_S = 180.0
"""The time limit for a first login. The client first tries to reach the internet, which takes long under load."""

ROUTER_ADDRESS = "198.51.100.1"
CLIENT_ADDRESS = "198.51.100.2"
"""The address of a client machine outside the cluster. Its router is the host `cluster`."""


@dataclass
class Server:
    """A real Headscale in the cluster."""

    release: Release
    folder: Path

    url = f"http://{CLUSTER_NODE_ADDRESSES[0]}:8080"

    def configure(self) -> Path:
        """Write the configuration, in which Headscale is also the only relay, and return the path of the file."""
        file = self.folder / "config.yaml"
        address = CLUSTER_NODE_ADDRESSES[0]
        relay = {
            "enabled": True,
            "region_id": 999,
            "region_code": "own",
            "region_name": "Own relay",
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
        """Return a command line of Headscale's CLI."""
        return [self.release.headscale, "--config", self.folder / "config.yaml", *words]

    def cli(self, *words: str) -> Any:
        """Run Headscale's CLI and return its JSON output."""
        return json.loads(run(*self.command(*words, "--output", "json")))

    def key_for(self, user: str) -> str:
        """Create a user, and return a pre-auth key of this user."""
        created = self.cli("users", "create", user)
        reference = str(created["id"]) if self.release.identifies_users_by_id else user
        key: str = self.cli("preauthkeys", "create", "--user", reference)["key"]
        return key

    def nodes(self, name: str) -> list[dict[str, Any]]:
        """Return the nodes with this hostname."""
        return [node for node in self.cli("nodes", "list") or [] if node["name"] == name]


@dataclass
class Setup:
    """A cluster, a tailnet, and a client machine outside the cluster."""

    server: Server
    cloudflare: CloudflareSimulator
    zone: str
    hosts: Hosts
    trust: Path
    pod: Pod

    @property
    def records(self) -> list[Record]:
        """The records with the workload's name."""
        return self.cloudflare.records(self.zone, NAME)


def build_image(runtime: Podman, release: Release) -> None:
    """Add the tailscale programs to the stand-in image."""
    container = runtime.run("create", "--network=none", STAND_INS, "true").strip()
    for program in (release.tailscale, release.tailscaled):
        runtime.run("cp", program, f"{container}:/usr/bin/{program.name}")
    runtime.run("commit", "--quiet", container, WITH_TAILSCALE)
    runtime.run("rm", container)


def connect_client_machine(hosts: Hosts) -> None:
    """Connect the client machine to the cluster with a route, in place of the internet."""
    peer = ("peer", "home", "netns", hosts.cluster.name)
    run("ip", "link", "add", "eth0", "netns", hosts.vpn.name, "type", "veth", *peer)
    for host, interface, address in ((hosts.cluster, "home", ROUTER_ADDRESS), (hosts.vpn, "eth0", CLIENT_ADDRESS)):
        host.ip("address", "add", f"{address}/24", "dev", interface)
        host.ip("link", "set", interface, "up")
    hosts.vpn.ip("route", "add", "default", "via", ROUTER_ADDRESS)
    hosts.cluster.set_sysctls([{"name": "net.ipv4.ip_forward", "value": "1"}])


@pytest.fixture(scope="module")
def setup(runtime: Podman, scratch_dir: Path) -> Iterator[Setup]:
    """Run the pod and a client machine that has joined the tailnet."""
    releases = installed_releases()
    if isinstance(releases, str):
        pytest.skip(releases)
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun: modprobe tun")
    folder = scratch_dir / "real"
    folder.mkdir()
    server = Server(releases[-1], folder)
    cloudflare = CloudflareSimulator()
    zone = cloudflare.add_zone("example.com")
    build_image(runtime, server.release)
    with ExitStack() as stack:
        hosts = stack.enter_context(create_hosts())
        with hosts.cluster.inside():
            cloudflare_url = stack.enter_context(serve(cloudflare, host=CLUSTER_NODE_ADDRESSES[0]))
        serving = hosts.cluster.command(server.release.headscale, "--config", server.configure(), "serve")
        stack.enter_context(process(serving, folder / "headscale.log"))
        eventually(lambda: hosts.cluster.request(f"{server.url}/health").status == 200, "Headscale")
        server.cli("users", "create", USER)
        kubelet, trust = prepare_reference_workload(
            runtime,
            hosts,
            folder,
            headscale=(server.url, server.cli("apikeys", "create")),
            cloudflare=(cloudflare_url, cloudflare.token),
            tailscale=(WITH_TAILSCALE, ["sh", "-c", CONTAINER_SCRIPT]),
        )
        pod = stack.enter_context(kubelet.pod())
        # In other tests, this veth pair is the VPN. Here, tailscale creates an interface.
        pod.host.ip("link", "delete", "vpn0")
        pod.host.ip("route", "add", "default", "via", CLUSTER_NODE_ADDRESSES[0])
        connect_client_machine(hosts)
        stack.enter_context(joined_client(server, hosts, folder))
        yield Setup(server, cloudflare, zone, hosts, trust, pod)


@contextmanager
def joined_client(server: Server, hosts: Hosts, folder: Path) -> Iterator[None]:
    """Run tailscale on the client machine, and log it in, for the duration of the block."""
    socket = folder / "home.socket"
    daemon = hosts.vpn.command(
        server.release.tailscaled, "--port=41641", "--no-logs-no-support", f"--socket={socket}", "--state=mem:"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TS_DEBUG_FIREWALL_MODE": "nftables"}
    with process(daemon, folder / "home.log", env=environment):
        eventually(socket.exists, "tailscaled on the client machine")
        run(
            *(server.release.tailscale, f"--socket={socket}", "up", f"--auth-key={server.key_for('ann')}"),
            *(f"--login-server={server.url}", "--hostname=laptop", "--accept-dns=false", "--timeout=60s"),
        )
        yield


def test_client_machine_reaches_the_application_over_the_vpn(setup: Setup) -> None:
    """nginx receives the VPN address of the client, on which its allow list depends."""
    (record,) = eventually(lambda: setup.records, "the record", within_s=FIRST_LOGIN_TIMEOUT_S)
    (node,) = setup.server.nodes(NAME)
    assert (record.type, record.comment) == ("A", RECORD_COMMENT)
    assert f'"{record.content}"' in json.dumps(node)
    url, options = f"https://{NAME}/", {"to": record.content, "trust": str(setup.trust)}
    eventually(
        lambda: setup.hosts.vpn.request(url, **options).status == 200,
        "the application over the VPN",
        within_s=FIRST_LOGIN_TIMEOUT_S,
    )
    headers = dict(setup.hosts.vpn.request(url, **options).forwarded["headers"])
    (laptop,) = setup.server.nodes("laptop")
    assert headers["x-real-ip"] in json.dumps(laptop)


def test_requests_outside_the_vpn_are_refused(setup: Setup) -> None:
    """The cluster and the client machine connect to the pod's address in the cluster, instead of its VPN address."""
    for host in (setup.hosts.cluster, setup.hosts.vpn):
        for scheme in ("http", "https"):
            assert host.request(f"{scheme}://{NAME}/", to=POD_ADDRESSES[0]).status == 403


def test_tailscale_reports_no_missing_privileges(setup: Setup) -> None:
    """tailscale can set up its packet filter, for which it has NET_ADMIN."""
    eventually(lambda: setup.records, "the record", within_s=FIRST_LOGIN_TIMEOUT_S)
    log = setup.pod.log("tailscale")
    assert "netfilter running in nftables mode" in log
    assert "permission denied" not in log.lower()
    assert "operation not permitted" not in log.lower()


def test_tailscale_liveness_probe_passes(setup: Setup) -> None:
    eventually(lambda: setup.pod.probe("tailscale", "livenessProbe"), "the probe")

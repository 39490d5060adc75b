"""A node is taken away from under a real client, and the pod comes back by itself."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.command import Watch, named
from tests.real.machine import Machine
from tests.real.programs import Release, eventually, free_ports
from tests.real.server import HeadscaleServer
from tests.real.service import OTHER_USER, USER, Service
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve

# To be sure takes a minute by design; a machine with other things to do takes longer.
CONFIRMED_S = 150.0

# On which servers, and whether the pod has an interface of the kernel's: each costs that minute. The others differ in
# nothing that counts here.
CHOSEN = [
    pytest.param("0.28.0", "tailscale0", id="0.28.0-interface"),
    pytest.param("head", "", id="head-user-space"),
]

# Somewhere to go, or tailscaled takes the network for being down.
NETWORK = """
ip link set lo up
ip link add uplink type veth peer name beyond
ip link set beyond up
ip link set uplink up
ip address add 192.0.2.1/24 dev uplink
ip route add default via 192.0.2.2
"""
CLONE_NEWNET = 0x40000000

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)


def in_a_network_of_its_own(body: Callable[[], None]) -> None:
    """Run it, and all processes that it starts, where there is none of this machine's interfaces."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install the package {package}")
    if os.getuid() or not Path("/dev/net/tun").exists():
        pytest.skip("needs root and /dev/net/tun, to make an interface: modprobe tun")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            # A network is the thread's, and that of what it starts.
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            subprocess.run(["sh", "-ec", NETWORK], check=True)
            body()
        except BaseException as error:  # noqa: BLE001 - it is the test's
            raised.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


class Pod:
    """A service's pod with both containers, and the kubelet that looks after one of them."""

    def __init__(
        self, name: str, *, stack: ExitStack, server: HeadscaleServer, folder: Path, interface: str = ""
    ) -> None:
        folder.mkdir()
        cloudflare = CloudflareSimulator()
        self.service = stack.enter_context(
            Service(
                name,
                server=server,
                cloudflare=cloudflare,
                cloudflare_url=stack.enter_context(serve(cloudflare)),
                folder=folder,
            )
        )
        self.interface = interface
        self.service.environment["TAILSCALE_INTERFACE"] = interface
        self.service.cleanup()
        self.machine: Machine = self.service.machine()
        (self.port,) = free_ports(1)
        self.watch: Watch = self.service.watch(SELF_HEAL="true", HEALTH_PORT=str(self.port), HEALTH_ADDRESS="127.0.0.1")
        self.service.publishes(self.machine)
        self.first_key = self.service.key_file.read_text()
        self.first_address = self.machine.address
        (self.first_id,) = self.service.ids
        self.writes = len(cloudflare.writes)

    @property
    def nodez(self) -> tuple[int, str]:
        """Status and state."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/nodez", timeout=30, trust_env=False)
        return answer.status_code, answer.json()["state"]

    def fails(self, probe: Probe) -> bool:
        """Run the probe with this pod's files."""
        key_file = self.service.key_file
        return probe.fails(marker=key_file.with_name(f"{key_file.name}.restart"), socket=self.machine.socket)

    def restart_by(self, probe: Probe) -> None:
        """Do what the kubelet does: wait until the probe fails, and restart the container then."""
        eventually(lambda: self.fails(probe), "the probe to fail", patience_s=CONFIRMED_S)
        assert self.service.key_file.read_text() != self.first_key
        if self.interface:
            shown = subprocess.run(
                ["ip", "-oneline", "address", "show", "dev", self.interface], capture_output=True, check=True
            )
            assert f" {self.first_address}/" in shown.stdout.decode()
        # What the record says is left alone for as long as there is nothing better.
        assert (self.service.contents, len(self.service.cloudflare.writes)) == ([self.first_address], self.writes)
        self.machine.restart()
        # Passes before dns-watch has noticed: the new socket is newer than the marker.
        assert not self.fails(probe)
        self.machine.up(self.service.key_file)
        self.watch.said("node.returned")


@pytest.mark.parametrize(("version", "interface"), CHOSEN)
def test_healing(releases: list[Release], short_folder: Path, version: str, interface: str) -> None:
    """One node is deleted and another one expires, while their clients are connected; both pods come back.

    Up to 0.29.3 the client of a deleted node is not told: it believes that it is connected, and its interface is up.
    """
    release = {release.name: release for release in releases}.get(version)
    if release is None:
        pytest.skip(f"needs headscale-{version}")
    if interface:
        in_a_network_of_its_own(lambda: heal(release, short_folder, interface))
    else:
        heal(release, short_folder, interface)


def heal(release: Release, folder: Path, interface: str) -> None:
    """Take both nodes away, and see both pods come back."""
    (folder / "server").mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(HeadscaleServer(release, folder / "server"))
        for user in (USER, OTHER_USER):
            server.create_user(user)
        # A list without anybody else would say nothing.
        probe = Probe(folder / "bin")
        deleted = Pod("deleted.example.com", stack=stack, server=server, folder=folder / "d", interface=interface)
        expired = Pod("expired.example.com", stack=stack, server=server, folder=folder / "e")
        assert not deleted.fails(probe)

        server.delete_node(deleted.first_id)
        server.ask("POST", f"/api/v1/node/{expired.first_id}/expire").raise_for_status()
        deleted.restart_by(probe)
        expired.restart_by(probe)

        (new_id,) = deleted.service.ids
        assert int(new_id) > int(deleted.first_id)
        deleted.service.publishes(deleted.machine)
        assert deleted.service.ids == [new_id]
        assert expired.service.ids == [expired.first_id]
        expired.service.publishes(expired.machine)
        assert expired.machine.address == expired.first_address
        assert len(expired.service.cloudflare.writes) == expired.writes
        for pod in (deleted, expired):
            assert pod.nodez == (200, "registered")
            assert not pod.fails(probe)
            assert [event["node_id"] for event in named(pod.watch.events, "node.lost")] == [pod.first_id]
            assert len(named(pod.watch.events, "pre_auth_key.created")) == 1
            assert pod.watch.stopped() == 0


def test_api_key_expiry(service: Service) -> None:
    """Each server lists its API keys in a way that tells which is ours."""
    (port,) = free_ports(1)
    service.cleanup()
    service.machine()
    watch = service.watch(HEALTH_PORT=str(port), HEALTH_ADDRESS="127.0.0.1")
    watch.said("pass.finished")
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
    (line,) = [line for line in metrics.splitlines() if line.startswith("tailscale_lifecycle_api_key_expiration")]
    days = (float(line.split()[1]) - datetime.now(UTC).timestamp()) / 86_400
    assert days == pytest.approx(90, abs=0.1)
    assert not named(watch.events, "api_key.expiring")

"""Self-healing: the node of a real client is deleted or expired, and the pod registers again."""

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
from tests.real.workload import Workload, server_with_users, workload_on

# The confirmation takes a minute by design, and longer on a machine under load.
CONFIRMED_S = 150.0

# Releases and interfaces to test. Each takes a minute, and the other releases behave in the same way.
CASES = [
    pytest.param("0.28.0", "tailscale0", id="0.28.0 with interface"),
    pytest.param("head", "", id="head with userspace networking"),
]

# Without a default route, tailscaled considers the network to be down.
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


def in_new_network(body: Callable[[], None]) -> None:
    """Run a function, and the processes that it starts, in a new network namespace."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install the package {package}")
    if os.getuid() or not Path("/dev/net/tun").exists():
        pytest.skip("needs root and /dev/net/tun to create an interface: modprobe tun")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            # A network namespace belongs to a thread and the processes that it starts.
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            subprocess.run(["sh", "-ec", NETWORK], check=True)
            body()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
            raised.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


class Pod:
    """The pod of a workload with both containers, and a kubelet for the tailscale container."""

    def __init__(
        self, name: str, *, stack: ExitStack, server: HeadscaleServer, folder: Path, interface: str = ""
    ) -> None:
        self.workload = stack.enter_context(workload_on(server, folder, name, TAILSCALE_INTERFACE=interface))
        self.interface = interface
        self.workload.cleanup()
        self.machine: Machine = self.workload.machine()
        (self.port,) = free_ports(1)
        self.watch: Watch = self.workload.watch(
            SELF_HEAL="true", HEALTH_PORT=str(self.port), HEALTH_ADDRESS="127.0.0.1"
        )
        self.workload.wait_until_published(self.machine)
        self.first_key = self.workload.key_file.read_text()
        self.first_address = self.machine.address
        (self.first_id,) = self.workload.ids
        self.writes = len(self.workload.cloudflare.writes)

    @property
    def nodez(self) -> tuple[int, str]:
        """The HTTP status and the state."""
        response = httpx.get(f"http://127.0.0.1:{self.port}/nodez", timeout=30, trust_env=False)
        return response.status_code, response.json()["state"]

    def fails(self, probe: Probe) -> bool:
        """Run the probe with this pod's files."""
        key_file = self.workload.key_file
        return probe.fails(marker=key_file.with_name(f"{key_file.name}.restart"), socket=self.machine.socket)

    def restart_by(self, probe: Probe, *, timeout_s: float = CONFIRMED_S) -> None:
        """Do what the kubelet does: wait until the probe fails, and restart the container then."""
        eventually(lambda: self.fails(probe), "the probe to fail", timeout_s=timeout_s)
        assert self.workload.key_file.read_text() != self.first_key
        if self.interface:
            result = subprocess.run(
                ["ip", "-oneline", "address", "show", "dev", self.interface], capture_output=True, check=True
            )
            assert f" {self.first_address}/" in result.stdout.decode()
        # The record does not change until there is a new address.
        assert (self.workload.contents, len(self.workload.cloudflare.writes)) == ([self.first_address], self.writes)
        self.machine.restart()
        # Passes before dns-watch has noticed: the new socket is newer than the marker.
        assert not self.fails(probe)
        self.machine.up(self.workload.key_file)
        self.watch.wait_for("node.returned")


@pytest.mark.parametrize(("version", "interface"), CASES)
def test_pods_with_a_deleted_and_an_expired_node_recover(
    releases: list[Release], short_folder: Path, version: str, interface: str
) -> None:
    """One node is deleted and another one expires while their clients are connected.

    Up to 0.29.3, the client of a deleted node is not notified and keeps its interface up.
    """
    release = {release.name: release for release in releases}.get(version)
    if release is None:
        pytest.skip(f"needs headscale-{version}")
    if interface:
        in_new_network(lambda: heal(release, short_folder, interface))
    else:
        heal(release, short_folder, interface)


def heal(release: Release, folder: Path, interface: str) -> None:
    """Delete one node, expire another one, and require that both pods recover."""
    with ExitStack() as stack:
        server = stack.enter_context(server_with_users(release, folder / "server"))
        probe = Probe(folder / "bin")
        # Two pods, because a deletion takes five minutes to be confirmed if the list of nodes is empty.
        deleted = Pod("deleted.example.com", stack=stack, server=server, folder=folder / "d", interface=interface)
        expired = Pod("expired.example.com", stack=stack, server=server, folder=folder / "e")
        assert not deleted.fails(probe)

        server.delete_node(deleted.first_id)
        server.request("POST", f"/api/v1/node/{expired.first_id}/expire").raise_for_status()
        deleted.restart_by(probe)
        expired.restart_by(probe)

        (new_id,) = deleted.workload.ids
        assert int(new_id) > int(deleted.first_id)
        deleted.workload.wait_until_published(deleted.machine)
        assert deleted.workload.ids == [new_id]
        assert expired.workload.ids == [expired.first_id]
        expired.workload.wait_until_published(expired.machine)
        assert expired.machine.address == expired.first_address
        assert len(expired.workload.cloudflare.writes) == expired.writes
        for pod in (deleted, expired):
            assert pod.nodez == (200, "registered")
            assert not pod.fails(probe)
            assert [event["node_id"] for event in named(pod.watch.events, "node.lost")] == [pod.first_id]
            assert len(named(pod.watch.events, "pre_auth_key.created")) == 1
            assert pod.watch.terminate() == 0


def test_expiry_of_the_api_key_is_exported(workload: Workload) -> None:
    """The lists of API keys of all releases identify the configured key."""
    (port,) = free_ports(1)
    workload.cleanup()
    workload.machine()
    watch = workload.watch(HEALTH_PORT=str(port), HEALTH_ADDRESS="127.0.0.1")
    watch.wait_for("pass.finished")

    def exported() -> str | None:
        """Return the line of the metric, which is present after the second pass."""
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
        lines = [line for line in metrics.splitlines() if line.startswith("tailscale_lifecycle_api_key_expiration")]
        return lines[0] if lines else None

    line = eventually(exported, "the metric")
    days = (float(line.split()[1]) - datetime.now(UTC).timestamp()) / 86_400
    assert days == pytest.approx(90, abs=0.1)
    assert not named(watch.events, "api_key.expiring")

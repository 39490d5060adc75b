"""Test self-healing: after the node of a real client was deleted or has expired, the pod registers again."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.command import DnsWatch, events_named
from tests.real.programs import Release, eventually, free_ports
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient, network_for_tailscale
from tests.real.workload import CONFIRM_TIMEOUT_S, Workload, server_with_users, workload_on

CASES = [
    pytest.param("0.28.0", "tailscale0", id="0.28.0 with interface"),
    pytest.param("head", "", id="head with userspace networking"),
]
"""Release and network interface of each case. A case takes a minute, and other releases behave in the same way."""

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)


class Pod:
    """The pod of a workload, and the state of its node and record before the fault."""

    def __init__(
        self, name: str, *, stack: ExitStack, server: HeadscaleServer, folder: Path, interface: str = ""
    ) -> None:
        self.workload = stack.enter_context(workload_on(server, folder, name, TAILSCALE_INTERFACE=interface))
        self.interface = interface
        self.workload.run_cleanup()
        self.client: TailscaleClient = self.workload.start_client()
        (self.port,) = free_ports(1)
        self.watch: DnsWatch = self.workload.start_dns_watch(
            SELF_HEAL="true", HEALTH_PORT=str(self.port), HEALTH_ADDRESS="127.0.0.1"
        )
        self.workload.wait_until_published(self.client)
        self.first_key = self.workload.key_file.read_text()
        self.first_address = self.client.address
        (self.first_id,) = self.workload.node_ids
        self.writes_before = len(self.workload.cloudflare.writes)

    @property
    def nodez(self) -> tuple[int, str]:
        """The HTTP status and the state in the response of /nodez."""
        response = httpx.get(f"http://127.0.0.1:{self.port}/nodez", timeout=30, trust_env=False)
        return response.status_code, response.json()["state"]

    def probe_fails(self, probe: Probe) -> bool:
        """Run the liveness probe of the tailscale container, and return True if it fails.

        To restart the container, `dns-watch` writes the restart marker: the probe fails while this file is newer than
        the socket of the client.
        """
        key_file = self.workload.key_file
        return probe.fails(marker=key_file.with_name(f"{key_file.name}.restart"), socket=self.client.socket)

    def restart_when_probe_fails(self, probe: Probe, *, timeout_s: float = CONFIRM_TIMEOUT_S) -> None:
        """Restart the client when its liveness probe fails, like the kubelet, and wait until it has registered."""
        eventually(lambda: self.probe_fails(probe), "the probe to fail", timeout_s=timeout_s)
        assert self.workload.key_file.read_text() != self.first_key
        if self.interface:
            result = subprocess.run(
                ["ip", "-oneline", "address", "show", "dev", self.interface], capture_output=True, check=True
            )
            assert f" {self.first_address}/" in result.stdout.decode()
        # The record does not change until there is a new address.
        assert (self.workload.record_contents, len(self.workload.cloudflare.writes)) == (
            [self.first_address],
            self.writes_before,
        )
        self.client.restart()
        # The new socket is newer than the restart marker, so the probe passes even before the marker is deleted.
        assert not self.probe_fails(probe)
        self.client.log_in(self.workload.key_file)
        self.watch.wait_for("node.returned")


@pytest.mark.parametrize(("version", "interface"), CASES)
def test_pods_with_a_deleted_and_an_expired_node_recover(
    releases: list[Release], temporary_folder: Path, version: str, interface: str
) -> None:
    """From Headscale 0.27 on, a running client is not notified that its node was deleted."""
    release = {release.name: release for release in releases}.get(version)
    if release is None:
        pytest.skip(f"needs headscale-{version}")
    with ExitStack() as stack:
        if interface:
            if shutil.which("ip") is None or os.getuid() or not Path("/dev/net/tun").exists():
                pytest.skip("needs root, the package iproute2 and /dev/net/tun to create an interface: modprobe tun")
            stack.enter_context(network_for_tailscale("healing"))
        server = stack.enter_context(server_with_users(release, temporary_folder / "server"))
        probe = Probe(temporary_folder / "bin")
        # The node of the second pod keeps the list of nodes non-empty. If the list is empty, `dns-watch` waits five
        # minutes before it treats a node as deleted.
        deleted = Pod(
            "deleted.example.com", stack=stack, server=server, folder=temporary_folder / "d", interface=interface
        )
        expired = Pod("expired.example.com", stack=stack, server=server, folder=temporary_folder / "e")
        assert not deleted.probe_fails(probe)

        server.delete_node(deleted.first_id)
        server.expire_node(expired.first_id)
        deleted.restart_when_probe_fails(probe)
        expired.restart_when_probe_fails(probe)

        (new_id,) = deleted.workload.node_ids
        assert int(new_id) > int(deleted.first_id)
        deleted.workload.wait_until_published(deleted.client)
        assert deleted.workload.node_ids == [new_id]
        assert expired.workload.node_ids == [expired.first_id]
        expired.workload.wait_until_published(expired.client)
        assert expired.client.address == expired.first_address
        assert len(expired.workload.cloudflare.writes) == expired.writes_before
        for pod in (deleted, expired):
            assert pod.nodez == (200, "registered")
            assert not pod.probe_fails(probe)
            assert [event["node_id"] for event in events_named(pod.watch.events, "node.lost")] == [pod.first_id]
            assert len(events_named(pod.watch.events, "pre_auth_key.created")) == 1
            assert pod.watch.terminate() == 0


def test_metric_contains_the_expiry_of_the_api_key(workload: Workload) -> None:
    """`dns-watch` finds the configured API key in the list of API keys of every release."""
    (port,) = free_ports(1)
    workload.run_cleanup()
    workload.start_client()
    watch = workload.start_dns_watch(HEALTH_PORT=str(port), HEALTH_ADDRESS="127.0.0.1")
    watch.wait_for("pass.finished")

    def find_metric() -> str | None:
        """Return the line with the metric, or None before the second pass of `dns-watch`."""
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
        lines = [line for line in metrics.splitlines() if line.startswith("tailscale_lifecycle_api_key_expiration")]
        return lines[0] if lines else None

    line = eventually(find_metric, "the metric")
    days = (float(line.split()[1]) - datetime.now(UTC).timestamp()) / 86_400
    # `HeadscaleServer.api_key` expires after 90 days.
    assert days == pytest.approx(90, abs=0.1)
    assert not events_named(watch.events, "api_key.expiring")

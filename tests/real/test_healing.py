"""Test self-healing: after the node of a real client was deleted or has expired, the pod registers again.

If the only node is deleted, the list of nodes is empty. The list is also empty while Headscale runs with a wrong
database, so `dns-watch` then waits longer before it treats the node as deleted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import pytest

from lifecycle.dns_watch.healing import CONFIRMING_S, EMPTY_LIST_CONFIRMING_S
from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.administrator import Administrator
from tests.real.command import DnsWatch, Event, events_named
from tests.real.programs import Release, eventually, free_ports
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient, network_for_tailscale
from tests.real.workload import CONFIRM_TIMEOUT_S, Workload, server_with_users, workload_on

CASES = [
    pytest.param("0.28.0", "tailscale0", id="0.28.0 with interface"),
    pytest.param("head", "", id="head with userspace networking"),
]
"""Release and network interface of each case. A case takes a minute, and other releases behave in the same way."""

VERSIONS_WITH_ONE_NODE: Final = ("0.23.0", "0.26.1", "0.27.1", "0.29.3", "head")
"""The releases of the tests with only one node. It is a selection, because each release takes six minutes.

It contains the oldest and the newest release, and the main branch (head). Up to 0.26.1, Headscale reads the list of
nodes from the database, and from 0.27.1 on from memory.
"""

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)


def release_named(version: str, releases: list[Release]) -> Release:
    """Return the release with this version, or skip the test."""
    for release in releases:
        if release.name == version:
            return release
    pytest.skip(f"needs headscale-{version}")


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
    """Headscale up to 0.29.3 does not notify a running client that its node was deleted."""
    release = release_named(version, releases)
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


@pytest.fixture(params=VERSIONS_WITH_ONE_NODE)
def server_without_nodes(
    request: pytest.FixtureRequest, releases: list[Release], temporary_folder: Path
) -> Iterator[HeadscaleServer]:
    """A server without nodes."""
    with server_with_users(release_named(request.param, releases), temporary_folder / "server") as server:
        yield server


def time_of(event: Event) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


def test_pod_with_the_only_node_recovers(server_without_nodes: HeadscaleServer, temporary_folder: Path) -> None:
    server = server_without_nodes
    with ExitStack() as stack:
        probe = Probe(temporary_folder / "bin")
        pod = Pod("only.example.com", stack=stack, server=server, folder=temporary_folder / "p")
        server.delete_node(pod.first_id)
        assert server.nodes() == []

        pod.restart_when_probe_fails(probe, timeout_s=CONFIRM_TIMEOUT_S + EMPTY_LIST_CONFIRMING_S)

        pod.workload.wait_until_published(pod.client)
        (new_id,) = pod.workload.node_ids
        assert int(new_id) > int(pod.first_id)
        assert pod.nodez == (200, "registered")
        (lost,) = events_named(pod.watch.events, "node.lost")
        assert lost["node_id"] == pod.first_id
        first_missed = events_named(pod.watch.events, "pass.skipped")[0]
        assert (time_of(lost) - time_of(first_missed)).total_seconds() >= EMPTY_LIST_CONFIRMING_S - 1
        assert len(events_named(pod.watch.events, "pre_auth_key.created")) == 1
        assert pod.watch.terminate() == 0


def test_database_without_the_node_for_two_minutes_changes_nothing(
    server_without_nodes: HeadscaleServer, temporary_folder: Path
) -> None:
    """An administrator first restores an old backup by mistake, and then the newest one."""
    server = server_without_nodes
    with ExitStack() as stack:
        administrator = Administrator(server)
        old, newest = temporary_folder / "old", temporary_folder / "newest"
        assert server.api_key  # created on first use, so that both backups contain it
        administrator.copy_database(old)
        pod = Pod("only.example.com", stack=stack, server=server, folder=temporary_folder / "p")
        administrator.copy_database(newest)
        administrator.restore_database(old)
        assert (server.nodes(), server.pre_auth_keys()) == ([], [])

        def has_missed_the_node_for_two_minutes() -> bool:
            missed = events_named(pod.watch.events, "pass.skipped")
            return bool(missed) and (time_of(missed[-1]) - time_of(missed[0])).total_seconds() > 2 * CONFIRMING_S

        eventually(has_missed_the_node_for_two_minutes, "two minutes without the node", timeout_s=CONFIRM_TIMEOUT_S)
        assert server.pre_auth_keys() == []
        assert pod.nodez == (200, "waiting")
        administrator.restore_database(newest)
        eventually(lambda: pod.nodez == (200, "registered"), "the node to be found again", details=pod.watch.output)
        assert pod.workload.node_ids == [pod.first_id]
        assert pod.workload.key_file.read_text() == pod.first_key
        assert len(pod.workload.cloudflare.writes) == pod.writes_before
        assert not events_named(pod.watch.events, "node.lost")
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

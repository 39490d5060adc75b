"""Upgrade the Headscale server from the oldest to the newest release while pods with various settings run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.real.command import DnsWatch
from tests.real.programs import Release, eventually
from tests.real.tailscale_client import TailscaleClient
from tests.real.workload import State, Workload, server_with_users, workload_on

POD_SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "plain": {},
    "tagged": {"AUTHKEY_TAGS": "tag:web"},
    "reusable": {"AUTHKEY_REUSABLE": "true"},
    "both-families": {"DNS_IPV6": "true"},
    "healing": {"SELF_HEAL": "true"},
}
"""The settings of each pod, by name."""


@dataclass
class Pod:
    """A running pod, and its state before the upgrades."""

    workload: Workload
    client: TailscaleClient
    watch: DnsWatch
    before: State

    @classmethod
    def start(cls, workload: Workload) -> Pod:
        """Start a pod, and wait until its address is published."""
        client, watch = workload.start_pod(ipv6="DNS_IPV6" in workload.environment)
        return cls(workload, client, watch, workload.state())


@pytest.mark.takes_minutes
def test_upgrades_of_the_server_do_not_affect_pods(releases: list[Release], temporary_folder: Path) -> None:
    """The database stays the same. The administrator replaces the API key if a newer release refuses the key."""
    if len(releases) == 1:
        pytest.skip("needs more than one release of headscale; see HEADSCALE_BINARIES")
    with ExitStack() as stack:
        server = stack.enter_context(server_with_users(releases[0], temporary_folder / "server"))
        api_key_file = temporary_folder / "api_key"
        api_key_file.write_text(server.api_key)
        api_key_settings = {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(api_key_file)}
        pods = [
            Pod.start(
                stack.enter_context(
                    workload_on(server, temporary_folder / name, f"{name}.example.com", **settings, **api_key_settings)
                )
            )
            for name, settings in POD_SETTINGS.items()
        ]
        for _, release in pairwise(releases):
            server.restart(release)
            if not server.accepts_api_key:
                for pod in pods:
                    pod.watch.wait_for_next("pass.failed", error_type="AuthError")
                api_key_file.write_text(server.renew_api_key())
            for pod in pods:
                eventually(
                    lambda name=pod.workload.name: server.nodes(name)[0]["online"],  # type: ignore[misc]
                    "the client to be online",
                )
                pod.watch.wait_for_next("pass.finished", changes=0, in_sync=True)
                assert pod.workload.state() == pod.before, (release.name, pod.workload.name)
                assert pod.watch.events_named("node.lost") == []

        # The newest release accepts a pre-auth key that the oldest release created, and `cleanup` can delete the node.
        for pod in pods:
            workload, client = pod.workload, pod.client
            client.restart_and_wait_for_login()
            assert client.login_error(workload.key_file) is None
            assert workload.state() == pod.before
            pod.watch.terminate()
            workload.run_cleanup()
            assert workload.node_ids == []
            client.reset()
            client.log_in(workload.key_file)
            workload.start_dns_watch()
            workload.wait_until_published(client, ipv6="DNS_IPV6" in workload.environment)

"""Upgrades of the server under a fleet of pods."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.real.command import Watch
from tests.real.machine import Machine
from tests.real.programs import Release, eventually
from tests.real.workload import Workload, server_with_users, workload_on

FLEET: Final[Mapping[str, Mapping[str, str]]] = {
    "plain": {},
    "tagged": {"AUTHKEY_TAGS": "tag:web"},
    "reusable": {"AUTHKEY_REUSABLE": "true"},
    "both-families": {"DNS_IPV6": "true"},
    "healing": {"SELF_HEAL": "true"},
}
"""The settings of each pod in the fleet."""


@dataclass
class Pod:
    """A running pod, and what must not change."""

    workload: Workload
    machine: Machine
    watch: Watch
    before: tuple[list[str], list[str], int]

    @classmethod
    def start(cls, workload: Workload) -> Pod:
        """Start a pod, and wait until it is published."""
        workload.cleanup()
        machine = workload.machine()
        watch = workload.watch()
        workload.wait_until_published(machine, ipv6="DNS_IPV6" in workload.environment)
        return cls(workload, machine, watch, cls._state(workload))

    @property
    def state(self) -> tuple[list[str], list[str], int]:
        """The ids of its nodes, the contents of its records, and the number of writes to its zone."""
        return self._state(self.workload)

    @staticmethod
    def _state(workload: Workload) -> tuple[list[str], list[str], int]:
        return workload.ids, workload.contents, len(workload.cloudflare.writes)


@pytest.mark.takes_minutes
def test_fleet_survives_upgrades(releases: list[Release], short_folder: Path) -> None:
    """The server is upgraded from the oldest installed release to the newest, with one database.

    If a release refuses the API key of an older one, the new key is read from its file.
    """
    if len(releases) == 1:
        pytest.skip("needs more than one release of headscale; see HEADSCALE_BINARIES")
    with ExitStack() as stack:
        server = stack.enter_context(server_with_users(releases[0], short_folder / "server"))
        api_key_file = short_folder / "api_key"
        api_key_file.write_text(server.api_key)
        from_file = {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(api_key_file)}
        pods = [
            Pod.start(
                stack.enter_context(
                    workload_on(server, short_folder / name, f"{name}.example.com", **settings, **from_file)
                )
            )
            for name, settings in FLEET.items()
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
                assert pod.state == pod.before, (release.name, pod.workload.name)
                assert pod.watch.named("node.lost") == []

        # The newest release accepts the key of the oldest one, and `cleanup` deletes the node of that release.
        for pod in pods:
            workload, machine = pod.workload, pod.machine
            machine.restart_logged_in()
            assert machine.login_error(workload.key_file) is None
            assert pod.state == pod.before
            pod.watch.terminate()
            workload.cleanup()
            assert workload.ids == []
            machine.reset()
            machine.up(workload.key_file)
            workload.watch()
            workload.wait_until_published(machine, ipv6="DNS_IPV6" in workload.environment)

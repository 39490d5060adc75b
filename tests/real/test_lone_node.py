"""Test self-healing with a single node in Headscale.

If the only node is deleted, the list of nodes is empty. The list is also empty while Headscale runs with a wrong
database, so `dns-watch` waits longer before it treats the node as deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from lifecycle.dns_watch.healing import CONFIRMING_S, EMPTY_LIST_CONFIRMING_S
from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.administrator import Administrator
from tests.real.command import Event, events_named
from tests.real.programs import Release, eventually
from tests.real.server import HeadscaleServer
from tests.real.test_healing import Pod
from tests.real.workload import CONFIRM_TIMEOUT_S, USER

VERSIONS = ("0.23.0", "0.26.1", "0.27.1", "0.29.3", "head")
"""A selection, because each release takes six minutes.

It contains the oldest and the newest release, and the main branch (head). Up to 0.26.1, Headscale reads the list of
nodes from the database, and from 0.27.1 on from memory.
"""

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)


@pytest.fixture(params=VERSIONS)
def server(
    request: pytest.FixtureRequest, releases: list[Release], temporary_folder: Path
) -> Iterator[HeadscaleServer]:
    """A server without nodes and without other users."""
    release = {release.name: release for release in releases}.get(request.param)
    if release is None:
        pytest.skip(f"needs headscale-{request.param}")
    (temporary_folder / "server").mkdir()
    with HeadscaleServer(release, temporary_folder / "server") as server:
        server.create_user(USER)
        yield server


def time_of(event: Event) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


def test_pod_with_the_only_node_recovers(server: HeadscaleServer, temporary_folder: Path) -> None:
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
    server: HeadscaleServer, temporary_folder: Path
) -> None:
    """An administrator first restores an old backup by mistake, and then the newest one."""
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

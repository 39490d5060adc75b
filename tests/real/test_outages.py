"""Test pods during a long outage of Headscale, with a restored database, and with a wrong clock."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.real.administrator import Administrator
from tests.real.programs import Release, eventually
from tests.real.workload import CONFIRM_TIMEOUT_S, Workload, server_with_users, workload_on

OUTAGE_S: Final = 600.0

RECOVERY_TIMEOUT_S: Final = 400.0
"""How long recovery may take after a long outage. dns-watch waits up to five minutes between attempts."""


@pytest.mark.takes_minutes
def test_ten_minutes_without_a_server_change_nothing(releases: list[Release], temporary_folder: Path) -> None:
    """The servers of all releases stop at the same time, so that the test takes ten minutes only once."""
    with ExitStack() as stack:
        pods = []
        for release in releases:
            folder = temporary_folder / release.name
            server = stack.enter_context(server_with_users(release, folder))
            workload = stack.enter_context(
                workload_on(server, folder / "pod", POLL_INTERVAL="10s", VERIFY_INTERVAL="1m", SELF_HEAL="true")
            )
            _, watch = workload.start_pod()
            pods.append((workload, watch, workload.state()))
        for workload, _, _ in pods:
            workload.server.stop()
        outage_ends_at = time.monotonic() + OUTAGE_S

        def is_outage_over() -> bool:
            assert all(watch.exit_status is None for _, watch, _ in pods)
            return time.monotonic() > outage_ends_at

        eventually(is_outage_over, "the end of the outage", timeout_s=OUTAGE_S + 5)
        for workload, _, _ in pods:
            workload.server.start()
        for workload, watch, before in pods:
            eventually(
                lambda workload=workload: workload.server.nodes(workload.name)[0]["online"],  # type: ignore[misc]
                "the client to be online",
                timeout_s=RECOVERY_TIMEOUT_S,
            )
            watch.wait_for_next("pass.finished", timeout_s=RECOVERY_TIMEOUT_S, changes=0, in_sync=True)
            assert workload.state() == before, workload.server.release.name
            assert watch.events_named("pass.failed")
            assert watch.events_named("node.lost") == []


@pytest.mark.four_releases
def test_pod_recovers_when_a_restored_database_reuses_its_node_id(
    workload_on_dedicated_server: Workload, temporary_folder: Path
) -> None:
    """The backup is older than the pod's node. After the restore, another client gets this node's id and address."""
    workload, administrator = workload_on_dedicated_server, Administrator(workload_on_dedicated_server.server)
    workload.environment["SELF_HEAL"] = "true"
    administrator.copy_database(temporary_folder / "copy")
    client, watch = workload.start_pod()
    (old_id,), writes_before = workload.node_ids, len(workload.cloudflare.writes)
    workload.server.stop()
    # The client must not log in before the other client has registered.
    client.stop()
    administrator.restore_database(temporary_folder / "copy")
    with workload_on(workload.server, temporary_folder / "later", "later.example.com") as later:
        later.run_cleanup()
        later.start_client()
        assert later.node_ids == [old_id]
        watch.wait_for("node.lost", node_id=old_id, timeout_s=CONFIRM_TIMEOUT_S)
        created = watch.wait_for("pre_auth_key.created", timeout_s=CONFIRM_TIMEOUT_S)
        assert len(workload.cloudflare.writes) == writes_before
        client.start()
        client.log_in(workload.key_file)
        watch.wait_for("node.returned")
        workload.wait_until_published(client)
        assert later.node_ids == [old_id]
        assert int(workload.node_ids[0]) > int(old_id)
        assert workload.server.nodes(workload.name)[0]["preAuthKey"]["id"] == created["key_id"]


SHIFTED_CLOCK: Final = """
from datetime import UTC, datetime, timedelta
import lifecycle.runtime.clock
lifecycle.runtime.clock.utc_now = lambda: datetime.now(UTC) + timedelta(minutes={minutes})
"""
"""A sitecustomize.py, which Python runs before the program starts."""


@pytest.mark.four_releases
@pytest.mark.parametrize("minutes", [-30, 180], ids=["30 minutes behind", "3 hours ahead"])
def test_wrong_clock_of_the_pod_changes_nothing(workload: Workload, minutes: int) -> None:
    (workload.folder / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(minutes=minutes))
    workload.environment["PYTHONPATH"] = str(workload.folder)
    workload.run_cleanup()
    client = workload.start_client()
    watch = workload.start_dns_watch(SELF_HEAL="true")
    workload.wait_until_published(client)
    before = workload.state()
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before
    assert watch.events_named("node.lost") == []

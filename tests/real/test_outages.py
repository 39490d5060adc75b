"""Long outages, restored databases and wrong clocks."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.real.administrator import Administrator
from tests.real.programs import Release, eventually
from tests.real.workload import Workload, server_with_users, workload_on

OUTAGE_S: Final = 600.0

CONFIRMED_S: Final = 150.0
"""How long `dns-watch` may take to confirm that a node is gone: a minute by design."""

RECOVERED_S: Final = 400.0
"""How long recovery may take after a long outage. The longest backoff is five minutes."""


@pytest.mark.takes_minutes
def test_ten_minutes_without_a_server(releases: list[Release], short_folder: Path) -> None:
    """The servers of all releases stop at the same time. Nodes, keys and records are the same afterwards."""
    with ExitStack() as stack:
        pods = []
        for release in releases:
            folder = short_folder / release.name
            server = stack.enter_context(server_with_users(release, folder))
            workload = stack.enter_context(
                workload_on(server, folder / "pod", POLL_INTERVAL="10s", VERIFY_INTERVAL="1m", SELF_HEAL="true")
            )
            workload.cleanup()
            machine = workload.machine()
            watch = workload.watch()
            workload.wait_until_published(machine)
            before = workload.ids, workload.contents, len(workload.cloudflare.writes), workload.key_file.read_text()
            pods.append((workload, watch, before))
        for workload, _, _ in pods:
            workload.server.stop()
        end = time.monotonic() + OUTAGE_S
        eventually(lambda: time.monotonic() > end, "the end of the outage", timeout_s=OUTAGE_S + 5)
        for workload, watch, _ in pods:
            assert watch.exit_status is None
            workload.server.start()
        for workload, watch, before in pods:
            eventually(
                lambda workload=workload: workload.server.nodes(workload.name)[0]["online"],  # type: ignore[misc]
                "the client to be online",
                timeout_s=RECOVERED_S,
            )
            watch.wait_for_next("pass.finished", timeout_s=RECOVERED_S, changes=0, in_sync=True)
            after = workload.ids, workload.contents, len(workload.cloudflare.writes), workload.key_file.read_text()
            assert after == before, workload.server.release.name
            assert watch.named("pass.failed")
            assert watch.named("node.lost") == []


@pytest.mark.sample
def test_restored_database_uses_an_id_again(own_workload: Workload, short_folder: Path) -> None:
    """The restored copy is older than the pod's node, and another machine gets its id and address."""
    workload, administrator = own_workload, Administrator(own_workload.server)
    workload.environment["SELF_HEAL"] = "true"
    administrator.copy_database(short_folder / "copy")
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(machine)
    (old_id,), written = workload.ids, len(workload.cloudflare.writes)
    workload.server.stop()
    # Its client would register again with its own key otherwise, which the copy lacks.
    machine.stop()
    administrator.restore_database(short_folder / "copy")
    with workload_on(workload.server, short_folder / "later", "later.example.com") as later:
        later.cleanup()
        later.machine()
        assert later.ids == [old_id]
        watch.wait_for("node.lost", node_id=old_id, timeout_s=CONFIRMED_S)
        created = watch.wait_for("pre_auth_key.created", timeout_s=CONFIRMED_S)
        assert len(workload.cloudflare.writes) == written
        machine.start()
        machine.up(workload.key_file)
        watch.wait_for("node.returned")
        workload.wait_until_published(machine)
        assert later.ids == [old_id]
        assert int(workload.ids[0]) > int(old_id)
        assert workload.server.nodes(workload.name)[0]["preAuthKey"]["id"] == created["key_id"]


# Replaces the clock of the program before any module has imported it.
SHIFTED_CLOCK: Final = """
from datetime import UTC, datetime, timedelta
import lifecycle.runtime.clock
lifecycle.runtime.clock.utc_now = lambda: datetime.now(UTC) + timedelta(minutes={minutes})
"""


@pytest.mark.sample
@pytest.mark.parametrize("minutes", [-30, 180], ids=["30 minutes behind", "3 hours ahead"])
def test_clock_of_the_pod_is_wrong(workload: Workload, minutes: int) -> None:
    (workload.folder / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(minutes=minutes))
    workload.environment["PYTHONPATH"] = str(workload.folder)
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch(SELF_HEAL="true")
    workload.wait_until_published(machine)
    before = workload.ids, len(workload.cloudflare.writes), workload.key_file.read_text()
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert (workload.ids, len(workload.cloudflare.writes), workload.key_file.read_text()) == before
    assert watch.named("node.lost") == []

"""The life of a pod on real servers: each test is one event in it."""

from __future__ import annotations

import pytest

from tests.real.command import named
from tests.real.programs import eventually
from tests.real.workload import MARK, OTHER_USER, USER, Workload


@pytest.mark.every_client
def test_first_start(workload: Workload) -> None:
    """A key is written, a node registers with it, and its address is published once."""
    workload.cleanup()
    watch = workload.watch()
    watch.wait_for("pass.skipped")
    machine = workload.machine()
    workload.wait_until_published(machine)
    assert watch.wait_for("node.registered")["node_id"] == workload.ids[0]
    written = len(workload.cloudflare.writes)
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert len(workload.cloudflare.writes) == written
    assert watch.terminate() == 0


def test_missing_key_metadata(workload: Workload) -> None:
    """Without key metadata, as in a sidecar without the key volume, the only node that is online is published."""
    machine = workload.machine(key_file=workload.write_key(workload.server.create_key(USER)))
    workload.watch()
    workload.wait_until_published(machine)


@pytest.mark.every_client
def test_container_restarts(workload: Workload) -> None:
    """A client with state keeps its address, although its key is used and expired; the zone is not written."""
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(machine)
    ids, address, written = workload.ids, machine.address, len(workload.cloudflare.writes)
    workload.server.expire_key(workload.key_file.read_text())
    machine.restart_logged_in()
    assert machine.login_error(workload.key_file) is None
    assert (workload.ids, machine.address) == (ids, address)
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert watch.terminate() == 0
    workload.watch().wait_for("pass.finished", changes=0, in_sync=True)
    assert len(workload.cloudflare.writes) == written


def test_pod_is_replaced(workload: Workload) -> None:
    """A pod without state replaces the old node, although it is online, and the record."""
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(machine)
    (old,) = workload.ids
    watch.terminate()

    ended = workload.cleanup()
    for event in ("node.online", "node.deleted"):
        assert [logged["node_id"] for logged in named(ended.events, event)] == [old]
    assert (workload.ids, workload.contents) == ([], [])

    machine.reset()
    machine.up(workload.key_file)
    workload.watch()
    workload.wait_until_published(machine)
    (new,) = workload.ids
    assert int(new) > int(old)


@pytest.mark.every_client
def test_node_is_deleted(workload: Workload) -> None:
    """The node of a running pod is deleted: its record stays until a new node registers."""
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(machine)
    (old,), written = workload.ids, len(workload.cloudflare.writes)
    workload.server.delete_node(old)
    watch.wait_for("pass.skipped")
    assert len(workload.cloudflare.writes) == written

    # The operator creates a new key and restarts the container of the client.
    workload.cleanup()
    machine.restart()
    machine.up(workload.key_file)
    workload.wait_until_published(machine)
    (new,) = workload.ids
    assert int(new) > int(old)
    assert watch.wait_for("node.registered")["node_id"] == new


def test_two_concurrent_pods(workload: Workload) -> None:
    """The later pod is published; the earlier one stands down."""
    later_key = workload.folder / "later"
    workload.cleanup()
    workload.cleanup(AUTHKEY_OUTPUT_PATH=str(later_key))
    earlier = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(earlier)

    later = workload.machine(key_file=later_key)
    later_watch = workload.watch(AUTHKEY_OUTPUT_PATH=str(later_key))
    workload.wait_until_published(later)
    watch.wait_for("node.superseded", successor_id=workload.ids[1])
    later_watch.wait_for("node.registered", node_id=workload.ids[1])
    written = len(workload.cloudflare.writes)
    for either in (watch, later_watch, watch):
        either.wait_for_next("pass.finished", changes=0)
    assert (workload.contents, len(workload.cloudflare.writes)) == ([later.address], written)


def test_node_of_another_user(workload: Workload) -> None:
    """A node with the same name and another user is not deleted or published, and is logged once."""
    other = workload.machine(key_file=workload.write_key(workload.server.create_key(OTHER_USER)))
    (foreign,) = workload.ids
    (warned,) = named(workload.cleanup().events, "node.foreign")
    assert (warned["node_id"], warned["user"]) == (foreign, OTHER_USER)
    watch = workload.watch()
    watch.wait_for("pass.skipped")
    machine = workload.machine()
    workload.wait_until_published(machine)
    assert other.address != machine.address
    assert foreign in workload.ids


def test_node_registered_by_cli(workload: Workload) -> None:
    """A node that registered without a key is not deleted, although it has the same user."""
    machine = workload.new_machine()
    workload.server.approve(machine, USER)
    (foreign,) = workload.ids
    (warned,) = named(workload.cleanup().events, "node.foreign")
    assert (warned["node_id"], warned["registered_by"]) == (foreign, "CLI")
    assert workload.ids == [foreign]


@pytest.mark.every_client
def test_tagged_node(workload: Workload) -> None:
    """A node with the configured tags is owned: published, and deleted by the next pod."""
    tags = {"AUTHKEY_TAGS": "tag:web"}
    workload.cleanup(**tags)
    machine = workload.machine()
    workload.watch(**tags)
    workload.wait_until_published(machine)
    (node,) = workload.server.nodes(workload.name)
    assert (node.get("tags") or node["forcedTags"]) == ["tag:web"]
    (deleted,) = named(workload.cleanup(**tags).events, "node.deleted")
    assert deleted["node_id"] == node["id"]
    assert workload.ids == []


@pytest.mark.every_client
def test_both_address_families(workload: Workload) -> None:
    """With DNS_IPV6 both addresses are published, and deleted records are created again."""
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch(DNS_IPV6="true")
    workload.wait_until_published(machine, ipv6=True)
    for record in workload.records:
        workload.cloudflare.remove_record(record.id)
    eventually(lambda: len(watch.named("record.created")) == 4, "both records again", details=watch.output)
    workload.wait_until_published(machine, ipv6=True)


@pytest.mark.every_client
def test_server_restarts(workload: Workload) -> None:
    """Nodes are offline after a restart of the server, and keep their addresses."""
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(machine)
    ids, written = workload.ids, len(workload.cloudflare.writes)
    workload.server.stop()
    watch.wait_for("pass.failed", upstream="Headscale")
    workload.server.start()
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    eventually(lambda: workload.server.nodes(workload.name)[0]["online"], "the client to be online")
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert (workload.ids, len(workload.cloudflare.writes)) == (ids, written)


def test_wrong_api_key(workload: Workload) -> None:
    """The error names the setting; `cleanup` fails and `dns-watch` continues."""
    wrong = workload.server.api_key[:-4] + "oooo"
    ended = workload.run("cleanup", HEADSCALE_API_KEY=wrong)
    assert ended.exit_status == 1
    (failed,) = named(ended.events, "command.failed")
    assert (failed["error_type"], "HEADSCALE_API_KEY" in failed["error"]) == ("AuthError", True)
    assert not workload.key_file.exists()
    assert wrong not in ended.out + ended.errors

    watch = workload.watch(HEADSCALE_API_KEY=wrong)
    watch.wait_for("pass.failed", error_type="AuthError", level="error", failures_in_a_row=2)
    assert watch.terminate() == 0
    assert wrong not in watch.output()


def test_unknown_user(workload: Workload) -> None:
    """The error lists the existing users."""
    ended = workload.run("cleanup", HEADSCALE_USER="nobody")
    assert ended.exit_status == 1
    (failed,) = named(ended.events, "command.failed")
    assert all(name in failed["error"] for name in (OTHER_USER, USER))
    assert not workload.key_file.exists()


def test_dry_run(workload: Workload) -> None:
    """A dry run does not change Headscale, the zone or files."""
    workload.cleanup()
    machine = workload.machine()
    workload.cloudflare.add_record(
        workload.zone_id, type="A", name=workload.name, content="100.64.200.1", comment=MARK, ttl=60
    )
    before = workload.server.snapshot()
    key = workload.key_file.read_bytes()
    ended = workload.run("--dry-run", "--output", "json")
    assert (ended.exit_status, workload.cloudflare.writes) == (0, [])
    assert (workload.server.snapshot(), workload.key_file.read_bytes()) == (before, key)
    assert f'"content": "{machine.address}"' in ended.out
    assert workload.ids[0] in ended.out

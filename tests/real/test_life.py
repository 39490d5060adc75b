"""Test the lifecycle of a pod on real servers: start, restart and replacement."""

from __future__ import annotations

import pytest

from tests.real.command import events_named
from tests.real.workload import NAMESPACE, OTHER_USER, USER, Workload


@pytest.mark.every_client
def test_first_pod_is_published(workload: Workload) -> None:
    """`cleanup` writes a key, a client registers with it, and `dns-watch` publishes its address once."""
    workload.run_cleanup()
    watch = workload.start_dns_watch()
    watch.wait_for("pass.skipped")
    client = workload.start_client()
    workload.wait_until_published(client)
    assert watch.wait_for("node.registered")["node_id"] == workload.node_ids[0]
    written = len(workload.cloudflare.writes)
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert len(workload.cloudflare.writes) == written
    assert watch.terminate() == 0


def test_without_key_metadata_the_only_online_node_is_published(workload: Workload) -> None:
    """`cleanup` writes key metadata beside the key. `dns-watch` has none if it does not mount the volume of the key."""
    client = workload.start_client(key_file=workload.write_key(workload.server.create_key(USER)))
    workload.start_dns_watch()
    workload.wait_until_published(client)


@pytest.mark.every_client
def test_restarted_container_keeps_node_and_record(workload: Workload) -> None:
    """A client with state can log in although its key is used and expired. The record is not written again."""
    client, watch = workload.start_pod()
    ids, address, written = workload.node_ids, client.address, len(workload.cloudflare.writes)
    workload.server.expire_key(workload.key_file.read_text())
    client.restart_and_wait_for_login()
    assert client.login_error(workload.key_file) is None
    assert (workload.node_ids, client.address) == (ids, address)
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert watch.terminate() == 0
    workload.start_dns_watch().wait_for("pass.finished", changes=0, in_sync=True)
    assert len(workload.cloudflare.writes) == written


def test_new_pod_replaces_the_node_and_the_record(workload: Workload) -> None:
    """The new pod has no state. `cleanup` deletes the old node although Headscale reports the node as online."""
    client, watch = workload.start_pod()
    (old,) = workload.node_ids
    watch.terminate()

    ended = workload.run_cleanup()
    for event in ("node.online", "node.deleted"):
        assert [logged["node_id"] for logged in events_named(ended.events, event)] == [old]
    assert (workload.node_ids, workload.record_contents) == ([], [])

    client.reset()
    client.log_in(workload.key_file)
    workload.start_dns_watch()
    workload.wait_until_published(client)
    (new,) = workload.node_ids
    assert int(new) > int(old)


@pytest.mark.every_client
def test_record_of_a_deleted_node_stays_until_a_new_node_registers(workload: Workload) -> None:
    client, watch = workload.start_pod()
    (old,), written = workload.node_ids, len(workload.cloudflare.writes)
    workload.server.delete_node(old)
    watch.wait_for("pass.skipped")
    assert len(workload.cloudflare.writes) == written

    # Like an operator, create a new key and restart the client.
    workload.run_cleanup()
    client.restart()
    client.log_in(workload.key_file)
    workload.wait_until_published(client)
    (new,) = workload.node_ids
    assert int(new) > int(old)
    assert watch.wait_for("node.registered")["node_id"] == new


def test_commands_that_only_read_change_nothing(workload_on_dedicated_server: Workload) -> None:
    workload = workload_on_dedicated_server
    workload.start_pod()
    before = workload.state()
    for command in ("--dry-run", "status", "prune"):
        ended = workload.run(command, DNS_OWNER=NAMESPACE)
        assert ended.exit_status == 0, ended.out + ended.errors
    assert workload.state() == before


def test_later_of_two_concurrent_pods_is_published(workload: Workload) -> None:
    """`dns-watch` in the earlier pod stops changing the record, also after a pass of the later `dns-watch`."""
    later_key = workload.folder / "later"
    workload.run_cleanup()
    workload.run_cleanup(AUTHKEY_OUTPUT_PATH=str(later_key))
    earlier = workload.start_client()
    earlier_watch = workload.start_dns_watch()
    workload.wait_until_published(earlier)

    later = workload.start_client(key_file=later_key)
    later_watch = workload.start_dns_watch(AUTHKEY_OUTPUT_PATH=str(later_key))
    workload.wait_until_published(later)
    earlier_watch.wait_for("node.superseded", superseded_by=workload.node_ids[1])
    later_watch.wait_for("node.registered", node_id=workload.node_ids[1])
    written = len(workload.cloudflare.writes)
    for next_watch in (earlier_watch, later_watch, earlier_watch):
        next_watch.wait_for_next("pass.finished", changes=0)
    assert (workload.record_contents, len(workload.cloudflare.writes)) == ([later.address], written)


def test_node_of_another_user_is_neither_deleted_nor_published(workload: Workload) -> None:
    """The other user's node has the hostname of the workload. `cleanup` logs one warning about this node."""
    other = workload.start_client(key_file=workload.write_key(workload.server.create_key(OTHER_USER)))
    (foreign,) = workload.node_ids
    (warned,) = events_named(workload.run_cleanup().events, "node.foreign")
    assert (warned["node_id"], warned["user"]) == (foreign, OTHER_USER)
    watch = workload.start_dns_watch()
    watch.wait_for("pass.skipped")
    client = workload.start_client()
    workload.wait_until_published(client)
    assert other.address != client.address
    assert foreign in workload.node_ids


def test_node_registered_by_the_cli_is_not_deleted(workload: Workload) -> None:
    """The node has the workload's hostname and user, but it registered without a pre-auth key."""
    client = workload.start_client_without_login()
    workload.server.approve(client, USER)
    (foreign,) = workload.node_ids
    (warned,) = events_named(workload.run_cleanup().events, "node.foreign")
    assert (warned["node_id"], warned["registered_by"]) == (foreign, "CLI")
    assert workload.node_ids == [foreign]


@pytest.mark.every_client
def test_both_addresses_are_published_with_dns_ipv6(workload: Workload) -> None:
    workload.environment["DNS_IPV6"] = "true"
    workload.start_pod(ipv6=True)

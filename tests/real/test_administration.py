"""Test the effect of an administrator's changes in Headscale on pods.

The administrator rotates API keys, renames and moves nodes, renames users, and adds nodes with similar names.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.real.administrator import Administrator
from tests.real.command import DnsWatch, events_named
from tests.real.tailscale_client import TailscaleClient
from tests.real.workload import OTHER_USER, USER, Workload

SHORT_LIFETIME: Final = timedelta(seconds=5)


def assert_unaffected(workload: Workload, watch: DnsWatch, change: Callable[[], None]) -> None:
    """Make a change, and check that the next two passes leave the node, record and pre-auth key unchanged."""
    before = workload.state()
    change()
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before


# --- API keys -----------------------------------------------------------------------------------------


@pytest.fixture
def api_key_file(workload: Workload) -> Path:
    """The file from which the workload reads its API key. The administrator uses another API key."""
    path = workload.folder / "api_key"
    path.write_text(Administrator(workload.server).create_api_key())
    workload.environment |= {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(path)}
    return path


@pytest.mark.parametrize("reason", ["deleted", "expired by an administrator", "expired after its lifetime"])
def test_new_api_key_in_the_file_replaces_a_refused_one(workload: Workload, api_key_file: Path, reason: str) -> None:
    """While Headscale refuses the old key, `dns-watch` reports this and changes nothing."""
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    before = workload.state()
    key = api_key_file.read_text()
    match reason:
        case "deleted":
            administrator.delete_api_key(key)
        case "expired by an administrator":
            administrator.expire_api_key(key)
        case "expired after its lifetime":
            # When Headscale refuses the old key, `dns-watch` reads this key, which then expires.
            api_key_file.write_text(administrator.create_api_key(SHORT_LIFETIME))
            administrator.delete_api_key(key)
    failed = watch.wait_for_next("pass.failed", error_type="AuthError", failures_in_a_row=2)
    assert (failed["upstream"], failed["level"]) == ("Headscale", "error")
    assert workload.state() == before
    api_key_file.write_text(administrator.create_api_key())
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before
    assert watch.events_named("node.lost") == []
    assert all(secret not in watch.output() for secret in (key, api_key_file.read_text()))


def test_api_key_can_be_rotated_without_a_failed_pass(workload: Workload, api_key_file: Path) -> None:
    """The administrator writes the new key into the file, and deletes the old key afterwards."""
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    old = api_key_file.read_text()
    api_key_file.write_text(administrator.create_api_key())
    assert_unaffected(workload, watch, lambda: administrator.delete_api_key(old))
    assert watch.events_named("pass.failed") == []


# --- Nodes and users ----------------------------------------------------------------------------------


def test_renamed_node_is_still_owned(workload: Workload) -> None:
    """`cleanup` of the next pod finds the node by its hostname, which the new name does not change."""
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    (node_id,) = workload.node_ids
    new_name = f"renamed-{workload.name.partition('.')[0]}"
    assert_unaffected(workload, watch, lambda: administrator.rename_node(node_id, new_name))
    assert workload.server.nodes(workload.name)[0]["givenName"] == new_name
    watch.terminate()
    workload.run_cleanup()
    assert (workload.node_ids, workload.record_contents) == ([], [])


def test_node_is_not_deleted_while_it_belongs_to_another_user(workload: Workload) -> None:
    """An administrator moves the node to another user and back. `cleanup` reports that the workload does not own it."""
    if workload.server.release.minor >= 28:
        pytest.skip("Headscale 0.28 and newer cannot move a node")
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    before = workload.state()
    administrator.move_node(before.node_ids[0], OTHER_USER)
    watch.wait_for_next("pass.skipped")
    # `dns-watch` still uses the key file of the running pod.
    (warned,) = events_named(
        workload.run_cleanup(AUTHKEY_OUTPUT_PATH=str(workload.folder / "other")).events, "node.foreign"
    )
    assert (warned["node_id"], warned["user"]) == (before.node_ids[0], OTHER_USER)
    assert workload.node_ids == before.node_ids
    administrator.move_node(before.node_ids[0], USER)
    watch.wait_for_next("pass.finished", in_sync=True)
    assert (workload.node_ids, workload.record_contents) == (
        before.node_ids,
        [workload.server.nodes(workload.name)[0]["ipAddresses"][0]],
    )


def test_renamed_user_affects_only_new_pods(workload_on_dedicated_server: Workload) -> None:
    """A new pod needs the user's new name in HEADSCALE_USER. The user's id remains valid there."""
    workload = workload_on_dedicated_server
    user_id = f"id:{workload.server.user_id(USER)}"
    _, watch = workload.start_pod()
    assert_unaffected(workload, watch, lambda: Administrator(workload.server).rename_user(USER, "platform"))
    watch.terminate()
    before = workload.state()
    ended = workload.run("cleanup")
    (failed,) = events_named(ended.events, "command.failed")
    assert (ended.exit_status, failed["error_type"], "platform" in failed["error"]) == (1, "UserError", True)
    watch = workload.start_dns_watch(HEADSCALE_USER=user_id)
    watch.wait_for("pass.finished", changes=0, in_sync=True)
    watch.terminate()
    assert workload.state() == before
    workload.run_cleanup(HEADSCALE_USER="platform")
    assert (workload.node_ids, workload.record_contents) == ([], [])


USER_NAMES: Final = ("first.last", "12345", "Ann.Müller", "ann@example.com")


def test_every_valid_user_name_can_be_configured(workload_on_dedicated_server: Workload) -> None:
    """Each name that the release accepts works as the value of HEADSCALE_USER."""
    workload = workload_on_dedicated_server
    client = workload.start_client_without_login()
    accepted = []
    for name in USER_NAMES:
        if workload.server.request("POST", "/api/v1/user", body={"name": name}).is_error:
            continue
        accepted.append(name)
        workload.run_cleanup(HEADSCALE_USER=name)
        client.reset()
        client.log_in(workload.key_file)
        ended = workload.run("dns-watch", "--once", HEADSCALE_USER=name)
        assert (ended.exit_status, workload.record_contents) == (0, [client.address]), ended.out
        workload.run_cleanup(HEADSCALE_USER=name)
        assert (workload.node_ids, workload.record_contents) == ([], []), name
    assert accepted


# --- Similar nodes ------------------------------------------------------------------------------------

HOSTNAME: Final = "app.example.com"
"""The hostname of the workload."""
TAG: Final = "tag:web"

SIMILAR_HOSTNAMES: Final = (
    "app",
    "app.example.co",
    "app.example.com.example.org",
    "app-example-com",
    "app-0.example.com",
    "xapp.example.com",
    "app.example.org",
)


def test_cleanup_deletes_only_owned_nodes_among_similar_ones(workload_on_dedicated_server: Workload) -> None:
    """A node with the workload's hostname as its name, but with another hostname, is not owned."""
    workload = workload_on_dedicated_server
    server, administrator = workload.server, Administrator(workload.server)

    def register(folder: str, hostname: str, user: str | None, *key_options: str) -> str:
        """Register a node with a new pre-auth key of the user, and return the node's id."""
        existing_ids = {node["id"] for node in server.nodes()}
        client = TailscaleClient(server.release, workload.folder / folder, hostname=hostname, url=server.url)
        try:
            client.log_in(workload.write_key(server.create_key(user, *key_options)))
        finally:
            client.stop()
        (node_id,) = {node["id"] for node in server.nodes()} - existing_ids
        return str(node_id)

    renamed = register("renamed", "database.example.com", USER)
    # Headscale 0.29 and newer refuse a name with dots.
    administrator.rename_node(renamed, HOSTNAME if server.release.minor < 29 else HOSTNAME.replace(".", "-"))
    not_owned = {
        "renamed": renamed,
        "another user's": register("user", HOSTNAME, OTHER_USER),
        **{hostname: register(f"f{number}", hostname, USER) for number, hostname in enumerate(SIMILAR_HOSTNAMES)},
    }
    existing_ids = {node["id"] for node in server.nodes()}
    client = workload.start_client_without_login()
    server.approve(client, USER)
    (not_owned["registered by the CLI"],) = {node["id"] for node in server.nodes()} - existing_ids
    client.stop()
    owned = {
        "no tags": register("plain", HOSTNAME, USER),
        "capital letters": register("capitals", HOSTNAME.title(), USER),
        "configured tag": register("own-tag", HOSTNAME, USER, f"--tags={TAG}"),
        "reusable key": register("reusable", HOSTNAME, USER, "--reusable"),
        "expired node": register("expired", HOSTNAME, USER),
    }
    if server.release.has_keys_without_user:
        not_owned["no user, other tag"] = register("tags", HOSTNAME, None, "--tags=tag:db")
        owned["no user, configured tag"] = register("own-tags", HOSTNAME, None, f"--tags={TAG}")
    else:
        # In these releases, a node with tags belongs to the user of its key.
        not_owned["another user's, configured tag"] = register("tagged", HOSTNAME, OTHER_USER, f"--tags={TAG}")
    server.expire_node(owned["expired node"])
    ended = workload.run_cleanup(AUTHKEY_TAGS=TAG)
    assert {event["node_id"] for event in events_named(ended.events, "node.deleted")} == {*owned.values()}
    assert {node["id"] for node in server.nodes()} == {*not_owned.values()}

"""Administrators rotate API keys, rename and move nodes and users, and add similar nodes, while pods run."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.real.administrator import Administrator
from tests.real.command import DnsWatch, events_named
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient
from tests.real.workload import OTHER_USER, USER, Workload
from tests.simulators.dialects import DIALECTS

SHORT_LIFETIME: Final = timedelta(seconds=5)


def assert_unaffected(workload: Workload, watch: DnsWatch, change: Callable[[], None]) -> None:
    """Check that a change has no effect on node, record and key."""
    before = workload.state()
    change()
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before


# --- API keys -----------------------------------------------------------------------------------------


@pytest.fixture
def api_key_file(workload: Workload) -> Path:
    """The file with the API key of the workload, which is not that of the administrator."""
    path = workload.folder / "api_key"
    path.write_text(Administrator(workload.server).create_api_key())
    workload.environment |= {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(path)}
    return path


@pytest.mark.parametrize("reason", ["deleted", "expired by an administrator", "end of its lifetime"])
def test_new_api_key_in_the_file_replaces_a_refused_one(workload: Workload, api_key_file: Path, reason: str) -> None:
    """While Headscale refuses the old key, `dns-watch` reports this and changes nothing."""
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    before = workload.state()
    key = api_key_file.read_text()
    match reason:
        case "deleted":
            administrator.revoke_api_key(key)
        case "expired by an administrator":
            administrator.expire_api_key(key)
        case "end of its lifetime":
            api_key_file.write_text(administrator.create_api_key(SHORT_LIFETIME))
            administrator.revoke_api_key(key)
    failed = watch.wait_for_next("pass.failed", error_type="AuthError", failures_in_a_row=2)
    assert (failed["upstream"], failed["level"]) == ("Headscale", "error")
    assert workload.state() == before
    api_key_file.write_text(administrator.create_api_key())
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before
    assert watch.events_named("node.lost") == []
    assert all(secret not in watch.output() for secret in (key, api_key_file.read_text()))


def test_api_key_can_be_rotated_without_a_failed_pass(workload: Workload, api_key_file: Path) -> None:
    """The administrator writes the new key into the file before they delete the old one."""
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    old = api_key_file.read_text()
    api_key_file.write_text(administrator.create_api_key())
    assert_unaffected(workload, watch, lambda: administrator.revoke_api_key(old))
    assert watch.events_named("pass.failed") == []


# --- Nodes and users ----------------------------------------------------------------------------------


def test_renamed_node_is_still_owned(workload: Workload) -> None:
    """A node's name in the tailnet can differ from its hostname. The next pod deletes the node."""
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    (node_id,) = workload.node_ids
    new_name = f"renamed-{workload.name.partition('.')[0]}"
    assert_unaffected(workload, watch, lambda: administrator.rename_node(node_id, new_name))
    assert workload.server.nodes(workload.name)[0]["givenName"] == new_name
    watch.terminate()
    workload.run_cleanup()
    assert (workload.node_ids, workload.record_contents) == ([], [])


def test_node_of_another_user_is_foreign_until_it_is_moved_back(workload: Workload) -> None:
    """The record stays while another user owns the node."""
    if workload.server.release.minor >= 28:
        pytest.skip("Headscale 0.28 and newer cannot move a node")
    administrator = Administrator(workload.server)
    _, watch = workload.start_pod()
    before = workload.state()
    administrator.move_node(before.node_ids[0], OTHER_USER)
    watch.wait_for_next("pass.skipped")
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


def test_renamed_user_affects_only_new_pods(own_workload: Workload) -> None:
    """A new pod needs the user's new name or its id, which does not change."""
    workload = own_workload
    user_id = f"id:{workload.server.user_id(USER)}"
    _, watch = workload.start_pod()
    assert_unaffected(workload, watch, lambda: Administrator(workload.server).rename_user(USER, "platform"))
    watch.terminate()
    before = workload.state()
    ended = workload.run("cleanup")
    (failed,) = events_named(ended.events, "command.failed")
    assert (ended.exit_status, failed["error_type"], "platform" in failed["error"]) == (1, "UserError", True)
    by_id = workload.start_dns_watch(HEADSCALE_USER=user_id)
    by_id.wait_for("pass.finished", changes=0, in_sync=True)
    by_id.terminate()
    assert workload.state() == before
    workload.run_cleanup(HEADSCALE_USER="platform")
    assert (workload.node_ids, workload.record_contents) == ([], [])


USER_NAMES: Final = ("first.last", "12345", "Ann.Müller", "ann@example.com")


def test_every_valid_user_name_can_be_configured(own_workload: Workload) -> None:
    """Each name that the release accepts works as the value of HEADSCALE_USER."""
    workload = own_workload
    pattern = DIALECTS[workload.server.release.simulated].user_name_pattern
    client = workload.start_client_without_login()
    accepted = []
    for name in USER_NAMES:
        created = workload.server.request("POST", "/api/v1/user", body={"name": name}).is_success
        assert created is (re.fullmatch(pattern, name) is not None), name
        if not created:
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


def test_cleanup_deletes_only_owned_nodes_among_similar_ones(
    own_server: HeadscaleServer, own_workload: Workload
) -> None:
    server, workload, administrator = own_server, own_workload, Administrator(own_server)
    by_id = server.release.keys_by_id

    def join(kind: str, hostname: str, user: str | None, *options: str) -> str:
        """Register a node, and return its id."""
        known = {node["id"] for node in server.nodes()}
        client = TailscaleClient(server.release, workload.folder / kind, hostname=hostname, url=server.url)
        try:
            client.log_in(workload.write_key(server.create_key(user, *options)))
        finally:
            client.stop()
        (new,) = {node["id"] for node in server.nodes()} - known
        return str(new)

    renamed = join("renamed", "database.example.com", USER)
    administrator.rename_node(renamed, HOSTNAME if server.release.minor < 29 else HOSTNAME.replace(".", "-"))
    foreign = {
        "renamed": renamed,
        "another user's": join("user", HOSTNAME, OTHER_USER),
        "another user's with our tag": join("tagged", HOSTNAME, OTHER_USER, f"--tags={TAG}") if not by_id else "",
        "without user, other tags": join("tags", HOSTNAME, None, "--tags=tag:db") if by_id else "",
        **{hostname: join(f"f{number}", hostname, USER) for number, hostname in enumerate(SIMILAR_HOSTNAMES)},
    }
    by_cli = workload.start_client_without_login()
    known = {node["id"] for node in server.nodes()}
    server.approve(by_cli, USER)
    (foreign["registered by the CLI"],) = {node["id"] for node in server.nodes()} - known
    by_cli.stop()
    owned = {
        "plain": join("plain", HOSTNAME, USER),
        "capitals": join("capitals", HOSTNAME.title(), USER),
        "tags": join("own-tag", HOSTNAME, USER, f"--tags={TAG}"),
        "reusable": join("reusable", HOSTNAME, USER, "--reusable"),
        "expired": join("expired", HOSTNAME, USER),
        "without user, our tag": join("own-tags", HOSTNAME, None, f"--tags={TAG}") if by_id else "",
    }
    server.request("POST", f"/api/v1/node/{owned['expired']}/expire").raise_for_status()
    ended = workload.run_cleanup(AUTHKEY_TAGS=TAG)
    kept, deleted = ({node_id for node_id in kind.values() if node_id} for kind in (foreign, owned))
    assert {event["node_id"] for event in events_named(ended.events, "node.deleted")} == deleted
    assert {node["id"] for node in server.nodes()} == kept

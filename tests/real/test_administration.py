"""What administrators do while pods run: they rotate API keys, rename, move, and add similar nodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.real.administrator import Administrator
from tests.real.command import Watch, named
from tests.real.machine import Machine
from tests.real.server import HeadscaleServer
from tests.real.workload import OTHER_USER, USER, Workload
from tests.simulators.dialects import DIALECTS

SOON: Final = timedelta(seconds=5)


def publish(workload: Workload, **settings: str) -> tuple[Machine, Watch]:
    """Start a pod, and wait until it is published."""
    workload.cleanup(**settings)
    machine = workload.machine()
    watch = workload.watch(**settings)
    workload.wait_until_published(machine)
    return machine, watch


def state_of(workload: Workload) -> tuple[list[str], list[str], int, str]:
    """Return the ids of the nodes, the contents of the records, the number of writes to the zone, and the key."""
    return workload.ids, workload.contents, len(workload.cloudflare.writes), workload.key_file.read_text()


def stays_in_sync(workload: Workload, watch: Watch, change: Callable[[], None]) -> None:
    """Require that a change has no effect on node, record and key."""
    before = state_of(workload)
    change()
    for _ in range(2):
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert state_of(workload) == before


# --- API keys -----------------------------------------------------------------------------------------


@pytest.fixture
def api_key_file(workload: Workload) -> Path:
    """The file with the API key of the workload, which is not that of the administrator."""
    path = workload.folder / "api_key"
    path.write_text(Administrator(workload.server).create_api_key())
    workload.environment |= {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(path)}
    return path


@pytest.mark.parametrize("end", ["deleted", "expired by an administrator", "expired by itself"])
def test_refused_api_key_is_replaced_in_its_file(workload: Workload, api_key_file: Path, end: str) -> None:
    """Until then, `dns-watch` reports the refusal, and nothing changes."""
    administrator = Administrator(workload.server)
    _, watch = publish(workload)
    before = state_of(workload)
    key = api_key_file.read_text()
    match end:
        case "deleted":
            administrator.revoke_api_key(key)
        case "expired by an administrator":
            administrator.expire_api_key(key)
        case "expired by itself":
            api_key_file.write_text(administrator.create_api_key(SOON))
            administrator.revoke_api_key(key)
    failed = watch.wait_for_next("pass.failed", error_type="AuthError", failures_in_a_row=2)
    assert (failed["upstream"], failed["level"]) == ("Headscale", "error")
    assert state_of(workload) == before
    api_key_file.write_text(administrator.create_api_key())
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert state_of(workload) == before
    assert watch.named("node.lost") == []
    assert all(secret not in watch.output() for secret in (key, api_key_file.read_text()))


def test_api_key_is_rotated_by_file(workload: Workload, api_key_file: Path) -> None:
    """No pass fails if the new key is in the file before the old one is deleted."""
    administrator = Administrator(workload.server)
    _, watch = publish(workload)
    old = api_key_file.read_text()
    api_key_file.write_text(administrator.create_api_key())
    stays_in_sync(workload, watch, lambda: administrator.revoke_api_key(old))
    assert watch.named("pass.failed") == []


# --- Nodes and users ----------------------------------------------------------------------------------


def test_node_is_renamed(workload: Workload) -> None:
    """The name in the tailnet does not matter, and the next pod deletes the node."""
    administrator = Administrator(workload.server)
    _, watch = publish(workload)
    (node_id,) = workload.ids
    new_name = f"renamed-{workload.name.partition('.')[0]}"
    stays_in_sync(workload, watch, lambda: administrator.rename_node(node_id, new_name))
    assert workload.server.nodes(workload.name)[0]["givenName"] == new_name
    watch.terminate()
    workload.cleanup()
    assert (workload.ids, workload.contents) == ([], [])


def test_node_is_moved_to_another_user_and_back(workload: Workload) -> None:
    """The node of another user is foreign, and the record stays until the node is back."""
    if workload.server.release.minor >= 28:
        pytest.skip("Headscale 0.28 and newer cannot move a node")
    administrator = Administrator(workload.server)
    _, watch = publish(workload)
    before = state_of(workload)
    administrator.move_node(before[0][0], OTHER_USER)
    watch.wait_for_next("pass.skipped")
    (warned,) = named(workload.cleanup(AUTHKEY_OUTPUT_PATH=str(workload.folder / "other")).events, "node.foreign")
    assert (warned["node_id"], warned["user"]) == (before[0][0], OTHER_USER)
    assert workload.ids == before[0]
    administrator.move_node(before[0][0], USER)
    watch.wait_for_next("pass.finished", in_sync=True)
    assert (workload.ids, workload.contents) == (before[0], [workload.server.nodes(workload.name)[0]["ipAddresses"][0]])


def test_user_is_renamed(own_workload: Workload) -> None:
    """A running pod is not affected. A new one needs the new name, or the id, which does not change."""
    workload = own_workload
    user_id = f"id:{workload.server.user_id(USER)}"
    _, watch = publish(workload)
    stays_in_sync(workload, watch, lambda: Administrator(workload.server).rename_user(USER, "platform"))
    watch.terminate()
    before = state_of(workload)
    ended = workload.run("cleanup")
    (failed,) = named(ended.events, "command.failed")
    assert (ended.exit_status, failed["error_type"], "platform" in failed["error"]) == (1, "UserError", True)
    by_id = workload.watch(HEADSCALE_USER=user_id)
    by_id.wait_for("pass.finished", changes=0, in_sync=True)
    by_id.terminate()
    assert state_of(workload) == before
    workload.cleanup(HEADSCALE_USER="platform")
    assert (workload.ids, workload.contents) == ([], [])


NAMES: Final = ("first.last", "12345", "Ann.Müller", "ann@example.com")


def test_names_of_users(own_workload: Workload) -> None:
    """Each name that the release accepts can be the value of HEADSCALE_USER."""
    workload = own_workload
    pattern = DIALECTS[workload.server.release.simulated].user_name_pattern
    machine = workload.new_machine()
    accepted = []
    for name in NAMES:
        created = workload.server.request("POST", "/api/v1/user", body={"name": name}).is_success
        assert created is (re.fullmatch(pattern, name) is not None), name
        if not created:
            continue
        accepted.append(name)
        workload.cleanup(HEADSCALE_USER=name)
        machine.reset()
        machine.up(workload.key_file)
        ended = workload.run("dns-watch", "--once", HEADSCALE_USER=name)
        assert (ended.exit_status, workload.contents) == (0, [machine.address]), ended.out
        workload.cleanup(HEADSCALE_USER=name)
        assert (workload.ids, workload.contents) == ([], []), name
    assert accepted


# --- Similar nodes ------------------------------------------------------------------------------------

OURS: Final = "app.example.com"
TAG: Final = "tag:web"

FOREIGN_HOSTNAMES: Final = (
    "app",
    "app.example.co",
    "app.example.com.example.org",
    "app-example-com",
    "app-0.example.com",
    "xapp.example.com",
    "app.example.org",
)


def test_only_our_nodes_are_deleted_among_similar_ones(own_server: HeadscaleServer, own_workload: Workload) -> None:
    server, workload, administrator = own_server, own_workload, Administrator(own_server)
    by_id = server.release.keys_by_id

    def join(kind: str, hostname: str, user: str | None, *options: str) -> str:
        """Register a node and return its id."""
        known = {node["id"] for node in server.nodes()}
        machine = Machine(server.release, workload.folder / kind, hostname=hostname, url=server.url)
        try:
            machine.up(workload.write_key(server.create_key(user, *options)))
        finally:
            machine.stop()
        (new,) = {node["id"] for node in server.nodes()} - known
        return str(new)

    renamed = join("renamed", "database.example.com", USER)
    administrator.rename_node(renamed, OURS if server.release.minor < 29 else OURS.replace(".", "-"))
    foreign = {
        "renamed": renamed,
        "another user's": join("user", OURS, OTHER_USER),
        "another user's with our tag": join("tagged", OURS, OTHER_USER, f"--tags={TAG}") if not by_id else "",
        "without user, other tags": join("tags", OURS, None, "--tags=tag:db") if by_id else "",
        **{hostname: join(f"f{number}", hostname, USER) for number, hostname in enumerate(FOREIGN_HOSTNAMES)},
    }
    by_cli = workload.new_machine()
    known = {node["id"] for node in server.nodes()}
    server.approve(by_cli, USER)
    (foreign["registered by the CLI"],) = {node["id"] for node in server.nodes()} - known
    by_cli.stop()
    ours = {
        "plain": join("plain", OURS, USER),
        "capitals": join("capitals", OURS.title(), USER),
        "tags": join("own-tag", OURS, USER, f"--tags={TAG}"),
        "reusable": join("reusable", OURS, USER, "--reusable"),
        "expired": join("expired", OURS, USER),
        "without user, our tag": join("own-tags", OURS, None, f"--tags={TAG}") if by_id else "",
    }
    server.request("POST", f"/api/v1/node/{ours['expired']}/expire").raise_for_status()
    ended = workload.cleanup(AUTHKEY_TAGS=TAG)
    kept, deleted = ({node_id for node_id in kind.values() if node_id} for kind in (foreign, ours))
    assert {event["node_id"] for event in named(ended.events, "node.deleted")} == deleted
    assert {node["id"] for node in server.nodes()} == kept

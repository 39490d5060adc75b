"""Test with simulators what `cleanup` deletes, in which order, and when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cleanup.run import Cleanup
from lifecycle.domain.errors import (
    ApiError,
    AuthError,
    ConflictError,
    KeyFileError,
    NameTakenError,
    StoppedError,
    UserError,
)
from lifecycle.runtime.retry import no_retries
from lifecycle.settings.models import CleanupSettings
from lifecycle.wiring.writers import connect_writers
from tests.builders import COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.serve import serve
from tests.threads import refused_threads
from tests.world import USER, StopAt, World, event_names, events_named

OLD_KEY = "hskey-auth-the-key-of-the-last-start"

Events = list[Any]


def is_unchanged(world: World) -> bool:
    """Return True if no request that changes something was sent, and no file was written."""
    return not world.headscale.writes and not world.cloudflare.writes and not list(world.key_file.parent.iterdir())


# --- A whole run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", VERSIONS, indirect=True)
def test_leftovers_are_removed_and_a_fresh_key_is_written(world: World, events: Events) -> None:
    world.add_leftovers()
    other = world.headscale.add_node("wiki.example.com", user=USER)
    world.add_record(other.address, name="wiki.example.com", comment=OUR_COMMENT)
    world.cleanup().run()
    assert world.hostnames == ["wiki.example.com"]
    assert world.records() == {}
    assert len(world.records("wiki.example.com")) == 1
    assert world.headscale.register(key=world.key, hostname=NAME).name == NAME
    finished = events_named(events, "pass.finished")
    assert [(event["nodes_deleted"], event["records_deleted"]) for event in finished] == [(1, 1)]


def test_without_leftovers_only_a_key_is_created(world: World) -> None:
    world.cleanup().run()
    assert len(world.headscale.writes) == 1
    assert world.cloudflare.writes == []
    assert world.key is not None


def test_nodes_are_deleted_before_the_key_and_records_after_it(world: World, events: Events) -> None:
    world.add_leftovers()
    world.cleanup().run()
    changes = [
        name for name in event_names(events) if name.partition(".")[0] in {"node", "pre_auth_key", "key_file", "record"}
    ]
    assert changes == ["node.deleted", "pre_auth_key.created", "key_file.written", "record.deleted"]
    assert event_names(events)[-1] == "pass.finished"


def test_key_and_metadata_are_written(world: World) -> None:
    world.cleanup(AUTHKEY_FILE_MODE="0600").run()
    [key] = world.headscale.keys
    assert world.key == key.key
    assert stat.S_IMODE(world.key_file.stat().st_mode) == 0o600
    assert json.loads(Path(f"{world.key_file}.id").read_text()) == {
        "pre_auth_key_id": str(key.id),
        "node_id": None,
        "machine_key": None,
        "key_sha256": hashlib.sha256(key.key.encode()).hexdigest(),
        "key_created_at": key.created_at.isoformat().replace("+00:00", "Z"),
    }
    assert sorted(path.name for path in world.key_file.parent.iterdir()) == ["authkey", "authkey.id"]


@pytest.mark.parametrize("flag", ["reusable", "ephemeral"])
def test_key_matches_the_settings(world: World, flag: str) -> None:
    variables = {f"AUTHKEY_{flag.upper()}": "true", "AUTHKEY_TAGS": "tag:web, tag:db", "AUTHKEY_EXPIRATION": "2h"}
    world.cleanup(**variables).run()
    [key] = world.headscale.keys
    assert (key.reusable, key.ephemeral) == (flag == "reusable", flag == "ephemeral")
    assert (set(key.tags), key.user_id) == ({"tag:web", "tag:db"}, 1)
    # Up to 60 random seconds are added to the lifetime.
    assert timedelta(hours=2) <= key.expires_at - world.clock.now() <= timedelta(hours=2, seconds=60)


def test_nodes_are_deleted_one_by_one(world: World) -> None:
    for _ in range(3):
        world.headscale.add_node(NAME, user=USER, online=False)
    world.cleanup().run()
    assert world.headscale.nodes == []
    requests = [
        (exchange.method, exchange.path.rpartition("/")[2])
        for exchange in world.headscale.requests
        if "/node/" in exchange.path
    ]
    # Each node is read directly before its deletion.
    assert requests == [(method, node_id) for node_id in "123" for method in ("GET", "DELETE")]


def test_online_node_is_deleted_with_a_warning(world: World, events: Events) -> None:
    world.headscale.add_node(NAME, user=USER, online=True)
    world.cleanup().run()
    assert world.headscale.nodes == []
    assert [event["node_id"] for event in events_named(events, "node.online")] == ["1"]


def test_old_keys_are_never_deleted_or_expired(world: World) -> None:
    """Another pod may need its key again after a restart of its container."""
    old = world.headscale.create_key(USER, reusable=True)
    world.cleanup().run()
    world.cleanup().run()
    assert old.key in world.usable_keys()
    assert len(world.headscale.keys) == 3


def test_single_user_of_headscale_is_used_with_a_warning(world: World, events: Events) -> None:
    world.cleanup().run()
    assert [event["user"] for event in events_named(events, "user.assumed")] == [USER]


def test_configured_user_is_used_without_a_warning(world: World, events: Events) -> None:
    world.headscale.add_user("ann")
    world.cleanup(HEADSCALE_USER="ann").run()
    assert events_named(events, "user.assumed") == []
    assert [key.user_id for key in world.headscale.keys] == [2]


# --- Foreign nodes ------------------------------------------------------------------------------------


def test_foreign_nodes_stay_and_are_reported(world: World, events: Events) -> None:
    """Only a node with exactly the hostname of the workload is reported."""
    world.headscale.add_user("ann")
    world.headscale.add_node(NAME, user="ann", registered_by="oidc")
    world.headscale.add_node(NAME, user="ann")
    world.headscale.add_node(f"x-{NAME}", user=USER)
    world.cleanup(HEADSCALE_USER=USER).run()
    assert len(world.headscale.nodes) == 3
    reported = [
        (event["node_id"], event["user"], event["registered_by"]) for event in events_named(events, "node.foreign")
    ]
    assert reported == [("1", "ann", "OIDC"), ("2", "ann", "auth key")]
    assert all("headscale nodes delete" in event["advice"] for event in events_named(events, "node.foreign"))


def test_node_whose_id_was_assigned_to_another_machine_stays(world: World) -> None:
    """The databases of older Headscale releases assign the highest id again after its node was deleted."""
    world.headscale.add_node(NAME, user=USER)
    fields = ("user", "ipAddresses", "preAuthKey", "registerMethod", "online", "expiry", "lastSeen", "tags")
    other_machine = {"id": "1", "machineKey": "mkey:" + "0" * 64, "name": NAME, **dict.fromkeys(fields)}
    world.headscale.faults.add(faults.answer(200, json.dumps({"node": other_machine})), path="/api/v1/node/1")
    with pytest.raises(ConflictError):
        world.cleanup().run()
    assert is_unchanged(world)


# --- Names that are taken -----------------------------------------------------------------------------


@pytest.mark.parametrize("dns_cleanup", ["delete", "keep"])
def test_name_of_another_owner_is_refused_and_nothing_is_changed(world: World, dns_cleanup: str) -> None:
    world.add_leftovers()
    world.add_record("100.64.0.9", comment=COMMENT_OF_OTHER_OWNER)
    with pytest.raises(NameTakenError, match=rf'{NAME}.*"{COMMENT_OF_OTHER_OWNER}".*"{OUR_COMMENT}".*TS_HOSTNAME'):
        world.cleanup(DNS_CLEANUP=dns_cleanup).run()
    assert is_unchanged(world)


def test_records_of_the_configured_owner_are_deleted(world: World) -> None:
    world.add_record("100.64.0.9", comment="tailscale-lifecycle/1 staging")
    world.cleanup(DNS_OWNER="staging").run()
    assert world.records() == {}


# --- Records that change during the run ---------------------------------------------------------------


def run_while_the_key_is_created(world: World, action: Callable[[], object]) -> None:
    """Make the first request for a key fail. Run an action before the retry: nodes are deleted, records are not yet."""
    world.headscale.faults.add(faults.html(502), method="POST", path="/preauthkey$")
    world.clock.schedule(world.clock.elapsed_s + 0.1, action)


def give_to_another_owner(world: World) -> None:
    """Another instance of this program takes over the record."""
    [record] = world.cloudflare.records(world.zone_id, NAME)
    world.cloudflare.change_record(record.id, comment=COMMENT_OF_OTHER_OWNER)


def publish_a_later_pod(world: World) -> None:
    """A later pod registers and publishes its address."""
    [record] = world.cloudflare.records(world.zone_id, NAME)
    world.cloudflare.change_record(record.id, content=world.headscale.add_node(NAME, user=USER).address)


@pytest.mark.parametrize("change", [give_to_another_owner, publish_a_later_pod])
@pytest.mark.parametrize("comment", [OUR_COMMENT, ""])
@pytest.mark.parametrize("dns_cleanup", ["delete", "keep"])
def test_record_that_changes_during_the_run_stays(
    world: World, events: Events, change: Callable[[World], None], comment: str, dns_cleanup: str
) -> None:
    node = world.headscale.add_node(NAME, user=USER, online=False)
    world.add_record(node.address, ttl=60, comment=comment)
    run_while_the_key_is_created(world, lambda: change(world))
    world.cleanup(DNS_CLEANUP=dns_cleanup).run()
    assert len(world.records()) == 1
    assert world.cloudflare.writes == []
    assert world.key is not None
    assert len(events_named(events, "record.delete_failed")) == (1 if dns_cleanup == "delete" else 0)


def test_record_that_a_later_pod_makes_valid_during_the_run_stays(world: World) -> None:
    """The record is unchanged, but a new node of the workload has its address."""
    node = world.add_leftovers()
    run_while_the_key_is_created(world, lambda: world.headscale.add_node(NAME, user=USER, addresses=node.addresses))
    world.cleanup().run()
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert world.cloudflare.writes == []


def test_record_that_is_deleted_during_the_run_counts_as_deleted(world: World, events: Events) -> None:
    world.add_leftovers()
    [record] = world.cloudflare.records(world.zone_id, NAME)
    run_while_the_key_is_created(world, lambda: world.cloudflare.remove_record(record.id))
    world.cleanup().run()
    assert world.cloudflare.writes == []
    assert events_named(events, "record.delete_failed") == []


def test_records_stay_if_the_nodes_cannot_be_read_again(world: World, events: Events) -> None:
    world.add_leftovers()
    fault = faults.html(502)
    run_while_the_key_is_created(
        world, lambda: world.headscale.faults.add(fault, path=r"/api/v1/node(\?|$)", times=None)
    )
    world.cleanup().run()
    assert world.key is not None
    assert len(world.records()) == 1
    assert len(events_named(events, "record.delete_failed")) == 1


# --- Failures of Cloudflare ---------------------------------------------------------------------------


def test_refused_thread_does_not_block_the_start(world: World, events: Events) -> None:
    world.add_leftovers()
    with refused_threads("records", "version"):
        world.cleanup().run()
    assert world.key is not None
    assert world.records() == {"A 100.64.0.1": OUR_COMMENT}
    [event] = events_named(events, "zone.unreadable")
    assert "thread" in event["error"]


def test_missing_token_file_does_not_block_the_start(world: World, tmp_path: Path) -> None:
    world.add_leftovers()
    token = tmp_path / "token"
    token.write_text(world.cloudflare.token)
    cleanup = world.cleanup(CLOUDFLARE_API_TOKEN="", CLOUDFLARE_API_TOKEN_FILE=str(token))
    token.unlink()
    cleanup.run()
    assert world.key is not None


def test_zone_read_that_outlasts_the_run_logs_no_traceback(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run fails and closes the connections while the thread that reads the zone still waits for the token."""
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    token = tmp_path / "token"
    token.write_text(world.cloudflare.token)
    with serve(world.headscale) as headscale_url, serve(world.cloudflare) as cloudflare_url, ExitStack() as stack:
        settings = world.settings(
            CleanupSettings,
            HEADSCALE_URL=headscale_url,
            HEADSCALE_API_KEY="wrong",
            CLOUDFLARE_API_URL=f"{cloudflare_url}/client/v4",
            CLOUDFLARE_API_TOKEN="",
            CLOUDFLARE_API_TOKEN_FILE=str(token),
        )
        # A reader of the FIFO blocks until something is written to it.
        token.unlink()
        os.mkfifo(token)
        writers = connect_writers(settings, no_retries(), stack, None)
        cleanup = Cleanup(settings, writers=writers, now=world.clock.now, stop=threading.Event())
        with pytest.raises(AuthError, match="HEADSCALE_API_KEY"):
            cleanup.run()
        stack.close()
        (reading,) = [thread for thread in threading.enumerate() if thread.name == "records"]
        token.write_text(world.cloudflare.token)
        reading.join()
    assert world.cloudflare.requests == []
    assert errors == []


# --- Failures of Headscale ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/version", "/api/v1/user", "/api/v1/node", "/api/v1/preauthkey"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(502), id="502"),
        pytest.param(faults.drop(after_execution=True), id="response lost"),
        pytest.param(faults.hang(), id="slow"),
        pytest.param(faults.html(404), id="404 of a proxy"),
    ],
)
def test_temporary_failure_is_retried(world: World, path: str, fault: Fault) -> None:
    world.add_leftovers()
    world.headscale.faults.add(fault, path=path, times=3)
    world.cleanup().run()
    assert world.headscale.nodes == []
    assert world.records() == {}
    assert world.usable_keys() == [world.key]


def test_ambiguous_user_changes_nothing(world: World) -> None:
    world.add_leftovers()
    world.headscale.add_user("ann")
    with pytest.raises(UserError, match=rf"HEADSCALE_USER.*ann.*{USER}"):
        world.cleanup().run()
    assert is_unchanged(world)


@pytest.mark.parametrize(
    "fault", [faults.html(502), faults.html(404), faults.html(200), faults.html(403), faults.drop()]
)
def test_failed_node_deletion_ends_the_run_without_a_key(world: World, fault: Fault) -> None:
    world.add_leftovers()
    keys = len(world.headscale.keys)
    world.headscale.faults.add(fault, method="DELETE", times=None)
    with pytest.raises(ApiError):
        world.cleanup().run()
    assert len(world.headscale.keys) == keys
    assert world.key is None
    assert world.cloudflare.writes == []


# --- The key cannot be written ------------------------------------------------------------------------


def test_key_that_cannot_be_written_is_expired_and_the_old_file_stays(world: World, events: Events) -> None:
    """After `cleanup` has checked the paths, a folder appears at the path of the metadata file."""
    world.add_leftovers()
    folder = world.key_file.parent / "auth"
    folder.mkdir()
    (folder / "authkey").write_text(OLD_KEY)

    cleanup = world.cleanup(AUTHKEY_OUTPUT_PATH=str(folder / "authkey"))
    run_while_the_key_is_created(world, (folder / "authkey.id").mkdir)
    with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
        cleanup.run()
    assert (folder / "authkey").read_text() == OLD_KEY
    assert [path.name for path in sorted(folder.iterdir())] == ["authkey", "authkey.id"]
    assert world.usable_keys() == []
    assert [event["reason"] for event in events_named(events, "pre_auth_key.expired")] == [
        "the key file could not be written"
    ]
    assert world.cloudflare.writes == []


def test_key_that_can_be_neither_written_nor_expired_is_reported(world: World, events: Events) -> None:
    run_while_the_key_is_created(world, (world.key_file.parent / "authkey.id").mkdir)
    world.headscale.faults.add(faults.html(403), path="/preauthkey/expire")
    with pytest.raises(KeyFileError):
        world.cleanup().run()
    assert len(events_named(events, "pre_auth_key.expire_failed")) == 1


# --- Stopping ----------------------------------------------------------------------------------------


def test_stop_before_the_first_change_changes_nothing(world: World) -> None:
    world.add_leftovers()
    stop = StopAt(world.clock)
    stop.set()
    with pytest.raises(StoppedError):
        world.cleanup(stop).run()
    assert is_unchanged(world)


def test_stop_during_a_deletion_creates_no_key(world: World) -> None:
    class StopAfterDeletion(StopAt):
        def is_set(self) -> bool:
            return not world.headscale.nodes

    world.add_leftovers()
    keys = len(world.headscale.keys)
    with pytest.raises(StoppedError):
        world.cleanup(StopAfterDeletion(world.clock)).run()
    assert len(world.headscale.keys) == keys
    assert world.key is None

"""Test the guarantees "Never 1" to "Never 8" of docs/architecture.md.

The tests run the real commands with simulators of Headscale and Cloudflare.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import ApiError, LifecycleError, NameTakenError, TransientError
from lifecycle.health.metrics import render_metrics
from lifecycle.keyfile import writer as key_file_writer
from lifecycle.keyfile.reader import KeyFileReader
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings
from lifecycle.settings.reference import non_default_settings
from tests.builders import COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT
from tests.releases import DEFAULT
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.faults import Fault
from tests.simulators.headscale import Node
from tests.world import USER, Interface, World, event_names

Events = list[Any]

# In this time, dns-watch reads the record at least twice.
SEVERAL_READS_S = 700.0
# In this time, dns-watch with SELF_HEAL confirms that its node was deleted, and creates a new key.
HEALING_S = 300.0
TAG = "tag:web"

# One Headscale release for each dialect of its API.
each_dialect = pytest.mark.parametrize("world", DEFAULT, indirect=True)


def register_node(world: World) -> Node:
    """Register a node with the key that `cleanup` wrote, as the tailscale container does."""
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    return node


def delete_node(world: World, node: Node) -> None:
    """Delete a node. Another node is added first, because dns-watch waits longer if the list of nodes is empty."""
    world.headscale.add_node("other", user=USER)
    world.headscale.delete_node(node.id)


def run_watch(world: World, seconds: float, node: Node, **variables: str) -> DnsWatch:
    """Run `dns-watch` for this long, in a pod whose interface has the node's addresses. It does not give up."""
    watch = world.watch(Interface(*node.addresses), MAX_RETRIES="0", **variables)
    world.run(watch, seconds)
    return watch


# --- 1: a record that is not ours is never changed or deleted -----------------------------------------

FOREIGN_RECORDS = [
    pytest.param({"content": "100.64.0.1", "comment": "by hand"}, id="other-comment"),
    pytest.param({"content": "100.64.0.1", "comment": COMMENT_OF_OTHER_OWNER}, id="other-owner"),
    pytest.param({"content": "100.64.0.1", "comment": f"{OUR_COMMENT}-2"}, id="owner-with-a-longer-name"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT[:-1]}, id="owner-with-a-shorter-name"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT.upper()}, id="comment-in-capitals"),
    pytest.param({"content": "100.64.0.1", "comment": f" {OUR_COMMENT}"}, id="comment-after-a-space"),
    pytest.param({"content": "100.64.0.1", "comment": f"was {OUR_COMMENT}"}, id="comment-after-a-word"),
    pytest.param({"content": "198.51.100.7"}, id="public-address-without-a-comment"),
    pytest.param({"content": "100.128.0.1"}, id="address-after-the-vpn-range-without-a-comment"),
    pytest.param({"content": "2001:db8::1", "type_": "AAAA"}, id="public-IPv6-address-without-a-comment"),
    pytest.param({"content": "fd7a:115c:a1e0::1", "type_": "AAAA", "comment": "by hand"}, id="AAAA-with-a-comment"),
    pytest.param({"content": "100.64.0.1", "type_": "TXT", "comment": OUR_COMMENT}, id="TXT-with-our-comment"),
    pytest.param({"content": "example.org", "type_": "CNAME", "comment": OUR_COMMENT}, id="CNAME-with-our-comment"),
    pytest.param({"content": "ns.example.org", "type_": "NS", "comment": OUR_COMMENT}, id="NS-with-our-comment"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT, "name": f"x.{NAME}"}, id="subdomain"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT, "name": f"x{NAME}"}, id="longer-name"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT, "name": "example.com"}, id="parent-domain"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT, "name": f"{NAME}.example.com"}, id="name-as-prefix"),
]


@pytest.mark.parametrize("fields", FOREIGN_RECORDS)
@pytest.mark.parametrize("variables", [{}, {"DNS_CLEANUP": "keep", "DNS_IPV6": "true"}], ids=["defaults", "IPv6-keep"])
def test_never_1_foreign_record_is_not_changed(world: World, fields: dict[str, Any], variables: dict[str, str]) -> None:
    foreign = world.add_record(**fields)
    [before] = world.cloudflare.records(world.zone_id)
    # `cleanup` refuses a name with a record of another owner.
    with suppress(NameTakenError):
        world.cleanup(**variables).run()
    run_watch(world, SEVERAL_READS_S, world.headscale.add_node(NAME, user=USER), **variables)
    assert [record for record in world.cloudflare.records(world.zone_id) if record.id == foreign] == [before]


def test_never_1_record_that_is_renamed_after_it_was_read_is_not_deleted(world: World) -> None:
    record = world.add_record("100.64.0.99", ttl=60, comment=OUR_COMMENT)
    world.cloudflare.change_record(record, name="wiki.example.com")
    # dns-watch gets a response in which the record still has its old name.
    world.cloudflare.faults.add(faults.stale(), method="GET")
    run_watch(world, SEVERAL_READS_S, world.headscale.add_node(NAME, user=USER))
    assert len(world.records("wiki.example.com")) == 1


def test_our_record_is_deleted_by_cleanup_and_updated_by_dns_watch(world: World) -> None:
    """The tests above would also pass if the program changed nothing at all."""
    world.add_record("100.64.0.99", comment=OUR_COMMENT)
    world.cleanup().run()
    assert world.records() == {}
    world.add_record("100.64.0.99", comment=OUR_COMMENT)
    node = register_node(world)
    run_watch(world, SEVERAL_READS_S, node)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


# --- 2: a node that is not ours is never deleted or expired -------------------------------------------


def add_foreign_nodes(world: World) -> dict[str, Node]:
    """Add nodes that differ from our nodes in one criterion of ownership. Return each by its difference."""
    headscale = world.headscale
    headscale.add_user("ann")
    renamed = headscale.add_node("phone", user=USER)
    return {
        "other user": headscale.add_node(NAME, user="ann"),
        "other user, our tag": headscale.add_node(NAME, user="ann", tags=(TAG,)),
        "other user, other tag": headscale.add_node(NAME, user="ann", tags=("tag:db",)),
        "moved to another user": headscale.add_node(NAME, user="ann", pre_auth_key=headscale.create_key(USER)),
        "registered on the command line": headscale.add_node(NAME, user=USER, registered_by="cli"),
        "registered by login": headscale.add_node(NAME, user=USER, registered_by="oidc"),
        "longer name": headscale.add_node(f"{NAME}x", user=USER),
        "subdomain": headscale.add_node(f"x.{NAME}", user=USER),
        "renamed to our given name": headscale.rename_node(renamed.id, NAME.replace(".", "-")),
    }


@each_dialect
def test_never_2_only_our_nodes_are_deleted(world: World) -> None:
    """A foreign node is not expired, either."""
    foreign = add_foreign_nodes(world)
    ours = [
        world.headscale.add_node(name, user=USER, tags=tags) for name in (NAME, NAME.upper()) for tags in ((), (TAG,))
    ]
    variables = {"HEADSCALE_USER": USER, "AUTHKEY_TAGS": TAG, "SELF_HEAL": "true"}
    world.cleanup(**variables).run()
    assert [node for node in ours if world.headscale.node(node.id)] == []
    registered = register_node(world)
    run_watch(world, SEVERAL_READS_S, registered, **variables)
    world.headscale.delete_node(registered.id)
    run_watch(world, HEALING_S, registered, **variables)
    after = {name: world.headscale.node(node.id) for name, node in foreign.items()}
    assert [name for name, node in after.items() if node is None or node.expires_at is not None] == []


# --- 3: nothing is changed because of a failed, incomplete or malformed response ------------------------

UNUSABLE_RESPONSES = [
    pytest.param(faults.html(502), id="502"),
    pytest.param(faults.html(404), id="404-of-a-proxy"),
    pytest.param(faults.answer(404, "{}"), id="404-in-JSON"),
    pytest.param(faults.html(403), id="403"),
    pytest.param(faults.html(200), id="HTML"),
    pytest.param(faults.answer(200, "{}"), id="empty-object"),
    pytest.param(faults.answer(200, '{"success": true, "result": null}'), id="null-result"),
    pytest.param(faults.answer(200, '{"users": null, "nodes": null, "node": null}'), id="null-lists"),
    pytest.param(faults.malformed_json(), id="malformed-JSON"),
    pytest.param(faults.truncate(), id="truncated"),
    pytest.param(faults.drop(), id="connection-lost"),
    pytest.param(faults.too_many_requests(1), id="429"),
]


@pytest.mark.parametrize("fault", UNUSABLE_RESPONSES)
@pytest.mark.parametrize("path", ["/api/v1/user$", "/api/v1/node$", "/api/v1/node/"])
def test_never_3_cleanup_changes_nothing_if_headscale_is_unreadable(world: World, fault: Fault, path: str) -> None:
    """Only failures that may be temporary are retried, for about two minutes."""
    node = world.add_leftovers()
    world.headscale.faults.add(fault, method="GET", path=path, times=None)
    with pytest.raises(ApiError) as raised:
        world.cleanup().run()
    assert (
        (60 < world.clock.elapsed_s <= 180) if isinstance(raised.value, TransientError) else not world.clock.elapsed_s
    )
    assert world.headscale.nodes == [node]
    assert world.headscale.writes == world.cloudflare.writes == []
    assert world.key is None


@pytest.mark.parametrize("fault", UNUSABLE_RESPONSES)
def test_never_3_zone_is_not_changed_if_a_page_is_unreadable(world: World, fault: Fault) -> None:
    # A page has 100 records.
    for number in range(1, 131):
        world.add_record(f"100.64.0.{number}", comment=OUR_COMMENT)
    for path in ("page=1", "page=2"):
        world.cloudflare.faults.clear()
        world.cloudflare.faults.add(fault, method="GET", path=path, times=None)
        world.cleanup().run()
        run_watch(world, SEVERAL_READS_S, register_node(world))
    assert world.cloudflare.writes == []


def test_never_3_zone_is_not_changed_if_a_list_is_shorter_than_its_count(world: World) -> None:
    page = {"success": True, "result": [], "result_info": {"page": 1, "total_pages": 1, "total_count": 1}}
    world.cloudflare.faults.add(faults.answer(200, json.dumps(page)), method="GET", times=None)
    run_watch(world, SEVERAL_READS_S, world.headscale.add_node(NAME, user=USER))
    assert world.cloudflare.writes == []


@pytest.mark.parametrize("fault", UNUSABLE_RESPONSES)
@pytest.mark.parametrize("path", ["/api/v1/user$", "/api/v1/node$", "/api/v1/node/", ""])
def test_never_3_dns_watch_changes_nothing_if_headscale_is_unreadable(world: World, fault: Fault, path: str) -> None:
    """dns-watch concludes neither that its node was deleted, nor that a later pod has taken its place."""
    node = world.headscale.add_node(NAME, user=USER)
    interface = Interface(*node.addresses)
    watch = world.watch(interface, MAX_RETRIES="0", SELF_HEAL="true")
    world.run(watch, HEALING_S)
    keys = world.headscale.keys
    assert len(world.cloudflare.writes) == 1
    world.headscale.faults.add(fault, method="GET", path=path, times=None)
    world.run(watch, SEVERAL_READS_S)
    interface.set_addresses(None)
    world.run(watch, HEALING_S)
    assert len(world.cloudflare.writes) == 1
    assert world.headscale.keys == keys
    assert world.key is None


# --- 4: the key file is absent or complete ------------------------------------------------------------

OLD_KEY = "hskey-auth-of-an-earlier-start"


@contextmanager
def before_each_instruction_of(module: Any, check: Callable[[], None]) -> Iterator[None]:
    """Call a function before each instruction of a module, because a SIGKILL could end the process there."""

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            check()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize("mode", ["0640", "0600", "0444"])
@pytest.mark.parametrize("old", [None, OLD_KEY], ids=["first-start", "later-start"])
def test_never_4_key_file_is_absent_or_complete_at_every_instant(world: World, old: str | None, mode: str) -> None:
    if old is not None:
        world.key_file.write_text(old)
        world.key_file.chmod(int(mode, 8))
    states: list[tuple[str | None, int | None]] = []
    files_with_wider_mode: list[str] = []
    reader = KeyFileReader(world.key_file)

    def check() -> None:
        """Record each content and mode of the key file. Only the key metadata, authkey.id, may have a wider mode."""
        # Incomplete metadata raises an error. The metadata is written first, so that it always describes the new key.
        metadata = reader.read_metadata()
        assert world.key in {None, old} or (metadata and reader.contains_key_of(metadata))
        exists = world.key_file.exists()
        state = (world.key, stat.S_IMODE(world.key_file.stat().st_mode) if exists else None)
        if state not in states:
            states.append(state)
        for path in world.key_file.parent.iterdir():
            bits = stat.S_IMODE(path.stat().st_mode)
            if not path.name.lstrip(".").startswith("authkey.id") and bits & ~int(mode, 8) & 0o077:
                files_with_wider_mode.append(path.name)

    umask = os.umask(0)
    try:
        with before_each_instruction_of(key_file_writer, check):
            world.cleanup(AUTHKEY_FILE_MODE=mode).run()
    finally:
        os.umask(umask)
    [key] = world.headscale.keys
    assert states == [(old, int(mode, 8) if old else None), (key.key, int(mode, 8))]
    assert files_with_wider_mode == []


def test_never_4_key_file_is_complete_while_dns_watch_replaces_it(world: World) -> None:
    world.cleanup().run()
    node = register_node(world)
    watch = run_watch(world, HEALING_S, node, SELF_HEAL="true")
    delete_node(world, node)
    contents: set[str | None] = set()
    with before_each_instruction_of(key_file_writer, lambda: contents.add(world.key)):
        world.run(watch, HEALING_S)
    assert contents <= {key.key for key in world.headscale.keys}
    assert len(contents) > 1


# --- 5: no secret leaves the program ------------------------------------------------------------------

FAULTS = [
    pytest.param(None, id="none"),
    pytest.param(faults.drop(after_execution=True), id="response-lost"),
    pytest.param(faults.truncate(), id="truncated"),
    pytest.param(faults.html(502), id="502"),
    pytest.param(faults.malformed_json(), id="malformed-JSON"),
    pytest.param(faults.too_many_requests(1), id="429"),
    pytest.param(refusal(403, 10000), id="403"),
]


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield every text that an exception and its causes can be formatted as."""
    while error is not None:
        yield from (str(error), repr(error), repr(vars(error)), *traceback.format_exception(error))
        error = error.__cause__ or error.__context__


@each_dialect
@pytest.mark.parametrize("fault", FAULTS)
def test_never_5_no_output_contains_a_secret(world: World, fault: Fault | None, events: Events) -> None:
    """Output is events, exceptions, settings, metrics, status, URLs, and files other than the key file."""
    world.add_leftovers()
    texts: list[str] = []

    def add_faults() -> None:
        if fault is not None:
            # Some requests succeed in between, so that each kind of request fails once.
            for number in range(6):
                world.headscale.faults.add(fault, after=2 * number)
                world.cloudflare.faults.add(fault, after=number)

    add_faults()
    for _ in range(4):
        try:
            world.cleanup().run()
        except LifecycleError as error:
            texts += texts_of(error)
    world.headscale.faults.clear()
    world.cleanup().run()
    node = register_node(world)
    add_faults()
    watch = run_watch(world, HEALING_S, node, SELF_HEAL="true")
    delete_node(world, node)
    add_faults()
    world.run(watch, HEALING_S)
    for command in (CleanupSettings, DnsWatchSettings):
        settings = world.settings(command)
        texts += [repr(settings), str(non_default_settings(settings))]
    texts += map(repr, events)
    texts += [f"{exchange.path}?{exchange.query}" for exchange in world.headscale.requests + world.cloudflare.requests]
    status = watch.status
    texts += [
        render_metrics(status, accept="")[1].decode(),
        repr(status),
        json.dumps([status.node(), status.readiness()]),
    ]
    texts += [path.read_text() for path in world.key_file.parent.iterdir() if path != world.key_file]
    secrets = [*world.headscale.secrets(), *world.cloudflare.secrets()]
    assert len(secrets) > 4
    assert [text for text in texts for secret in secrets if secret in text] == []


@each_dialect
@pytest.mark.parametrize("path", ["/api/v1/node", "/api/v1/preauthkey"])
def test_never_5_error_about_a_malformed_response_contains_no_secret(world: World, path: str, events: Events) -> None:
    key = {"id": "none", "key": world.headscale.create_key(USER).key}
    node = {"id": "1", "name": NAME, "preAuthKey": key}
    answer = json.dumps({"node": node, "nodes": [node], "preAuthKey": key, "preAuthKeys": [key]})
    world.headscale.faults.add(faults.answer(200, answer), path=path)
    with pytest.raises(ApiError) as raised:
        world.cleanup().run()
    assert [text for text in (*texts_of(raised.value), *map(repr, events)) if key["key"] in text] == []


# --- 6: two pods never keep overwriting each other's record ---------------------------------------------


@each_dialect
@pytest.mark.parametrize("order", ["earlier-first", "later-first"])
def test_never_6_the_later_of_two_pods_owns_the_name(world: World, order: str) -> None:
    nodes = [world.headscale.add_node(NAME, user=USER) for _ in range(2)]
    earlier, later = (world.watch(Interface(*node.addresses)) for node in nodes)
    pair = (earlier, later) if order == "earlier-first" else (later, earlier)
    world.run_together(*pair, seconds=SEVERAL_READS_S)
    writes = len(world.cloudflare.writes)
    # A pod stops writing the record when a later pod has published its address.
    assert writes == (2 if order == "earlier-first" else 1)
    world.run_together(*pair, seconds=2 * SEVERAL_READS_S)
    assert len(world.cloudflare.writes) == writes
    assert world.records() == {f"A {nodes[1].address}": OUR_COMMENT}
    assert (earlier.state.superseded_by, later.state.superseded_by) == (str(nodes[1].id), None)


def test_never_6_pod_whose_node_was_deleted_leaves_the_record_to_the_later_pod(world: World, tmp_path: Path) -> None:
    earlier_node = world.headscale.add_node(NAME, user=USER)
    # Each pod has a volume of its own.
    earlier = world.watch(Interface(*earlier_node.addresses), AUTHKEY_OUTPUT_PATH=str(tmp_path / "earlier"))
    world.run(earlier, SEVERAL_READS_S)
    world.cleanup().run()
    node = register_node(world)
    later = world.watch(Interface(*node.addresses))
    world.run_together(earlier, later, seconds=2 * SEVERAL_READS_S)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    # Sent by the earlier pod, by `cleanup`, and by the later pod.
    assert [write.method for write in world.cloudflare.writes] == ["POST", "DELETE", "POST"]
    assert earlier.state.superseded_by == str(node.id)


# --- 7: no write without a difference -----------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"DNS_IPV6": "true"}, id="both-families"),
        pytest.param({"DNS_TTL": "1"}, id="automatic-TTL"),
        pytest.param({"DNS_OWNER": "staging/eu"}, id="other-owner"),
        pytest.param({"CLOUDFLARE_ZONE_ID": ""}, id="zone-looked-up"),
    ],
)
def test_never_7_later_run_of_dns_watch_sends_no_write(world: World, variables: dict[str, str]) -> None:
    node = world.headscale.add_node(NAME, user=USER)
    for _ in range(3):
        run_watch(world, SEVERAL_READS_S, node, **variables)
        assert len(world.cloudflare.writes) == 1


@pytest.mark.parametrize("dns_cleanup", ["delete", "keep"])
def test_never_7_later_cleanup_sends_no_write_to_cloudflare(world: World, dns_cleanup: str) -> None:
    world.add_leftovers()
    world.add_record("100.64.0.98", comment=OUR_COMMENT)
    world.add_record("by hand", type_="TXT")
    for _ in range(2):
        world.cleanup(DNS_CLEANUP=dns_cleanup).run()
        # The first run deletes both records in one request; with `keep`, only one of them.
        assert len(world.cloudflare.writes) == 1


# --- 8: a failure of Cloudflare never keeps a pod from starting, and no outage ends dns-watch ----------

OUTAGES = [
    pytest.param(faults.refuse(), id="refused"),
    pytest.param(faults.hang(), id="time-out"),
    pytest.param(faults.drop(), id="connection-lost"),
    pytest.param(faults.drop(after_execution=True), id="response-lost"),
    pytest.param(faults.html(502), id="502"),
    pytest.param(
        faults.answer(503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 -0100"}), id="503-until-the-year-10000"
    ),
    pytest.param(faults.too_many_requests(900), id="429-for-15-minutes"),
    pytest.param(faults.too_many_requests(), id="429"),
    pytest.param(faults.html(200), id="HTML"),
    pytest.param(faults.html(404), id="404"),
    pytest.param(faults.answer(401, "Unauthorized", content_type="text/plain"), id="401"),
    pytest.param(refusal(403, 9109), id="403"),
    pytest.param(refusal(400, 81053), id="conflict"),
    pytest.param(faults.malformed_json(), id="malformed-JSON"),
    pytest.param(faults.answer(200, b"[" * 100_000), id="deeply-nested"),
    pytest.param(faults.answer(200, b"\xff\xfe"), id="not-text"),
]


@pytest.mark.parametrize("fault", OUTAGES)
@pytest.mark.parametrize(("method", "event"), [("GET", "zone.unreadable"), ("DELETE", "record.delete_failed")])
def test_never_8_cleanup_succeeds_without_cloudflare(
    world: World, events: Events, fault: Fault, method: str, event: str
) -> None:
    """The failed request is not retried."""
    world.add_leftovers()
    world.cloudflare.faults.add(fault, method=method, times=None)
    world.cleanup().run()
    assert world.headscale.nodes == []
    assert world.key == world.headscale.keys[-1].key
    assert event_names(events).count(event) == 1
    assert [request.method for request in world.cloudflare.requests].count(method) == 1
    assert world.clock.elapsed_s == 0


@pytest.mark.parametrize("fault", OUTAGES)
@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
def test_never_8_no_outage_ends_dns_watch(world: World, fault: Fault, upstream: str) -> None:
    watch = run_watch(world, SEVERAL_READS_S, world.headscale.add_node(NAME, user=USER), SELF_HEAL="true")
    [record] = world.cloudflare.records(world.zone_id)
    # Now dns-watch has to change the record.
    world.cloudflare.change_record(record.id, ttl=300)
    failing_server = world.headscale if upstream == "headscale" else world.cloudflare
    failing_server.faults.add(fault, times=None)
    world.run(watch, SEVERAL_READS_S)
    failing_server.faults.clear()
    # This time is longer than the Retry-After of 15 minutes.
    world.run(watch, 2 * SEVERAL_READS_S)
    assert watch.state.is_registered
    assert watch.state.records.in_sync


@pytest.mark.parametrize("fault", OUTAGES)
def test_never_8_failed_lookups_do_not_count_towards_max_retries(world: World, fault: Fault) -> None:
    interface = Interface(None)
    watch = world.watch(interface, MAX_RETRIES="3")
    watch.run_pass()
    world.headscale.faults.add(fault, times=None)
    world.run(watch, SEVERAL_READS_S)
    world.headscale.faults.clear()
    watch.run_pass()
    interface.set_addresses(*world.headscale.add_node(NAME, user=USER).addresses)
    world.run(watch, SEVERAL_READS_S)
    assert watch.state.records.in_sync


@pytest.mark.parametrize("file_state", ["gone", "empty", "folder"])
@pytest.mark.parametrize("name", ["HEADSCALE_API_KEY", "CLOUDFLARE_API_TOKEN"])
def test_never_8_unreadable_secret_file_does_not_end_dns_watch(
    world: World, tmp_path_factory: pytest.TempPathFactory, name: str, file_state: str
) -> None:
    secret = tmp_path_factory.mktemp("secret") / "value"
    secret.write_text(world.environment[name])
    node = world.headscale.add_node(NAME, user=USER)
    watch = run_watch(world, SEVERAL_READS_S, node, **{name: "", f"{name}_FILE": str(secret)})
    secret.unlink()
    if file_state == "empty":
        secret.write_text("")
    elif file_state == "folder":
        secret.mkdir()
    rotated = world.cloudflare.set_token() if name.startswith("CLOUDFLARE") else world.headscale.rotate_api_key()
    world.run(watch, SEVERAL_READS_S)
    if file_state == "folder":
        secret.rmdir()
    secret.write_text(rotated)
    world.run(watch, SEVERAL_READS_S)
    assert watch.state.is_registered
    assert watch.state.records.in_sync
